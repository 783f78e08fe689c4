"""`RealisticLearningCurves`: what the metrics of real runs do over their epochs."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from priors.checks import check_counts
from priors.curves import LearningCurves
from priors.task import Task

__all__ = ["RealisticLearningCurves"]


@dataclass(frozen=True)
class RealisticLearningCurves:
    """A prior for what curves of real runs do: wider than `LearningCurves`, and without a density.

    A fraction `exact` of the curves is drawn as by `LearningCurves`. Every other one goes from a level at its first row
    to a level at t = 100 along a mixture of two of the eleven families of Domhan et al. (2015, table 1), and may do
    more: stay at chance level before it rises, jump where a learning rate is lowered, decline late, diverge, or be
    constant. Its noise may be correlated, heavy-tailed, shrink as training goes on, and be cut off at 0 and 1. Rows
    lie on regular epochs, epochs with gaps, or epochs in geometric progression, always within (0, 100] with the last
    at 100, so that any horizon can be rescaled to it.

    Args:
        exact: fraction of the curves that follow `LearningCurves` at these epochs.

    Raises:
        ValueError: `exact` is not a probability.
    """

    exact: float = 0.3
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)  # of the metric; the noise of a draw may pass them

    def __post_init__(self) -> None:
        if not 0 <= self.exact <= 1:
            raise ValueError(f"exact must lie in [0, 1], got {self.exact}")

    def sample(self, batch: int, rows: int, *, generator: Generator) -> Task:
        """`rows` rows of `batch` curves; x holds the epochs, increasing from above 0 to 100."""
        check_counts(batch=batch, rows=rows)
        draw = _Draw(batch, generator)
        t = _epochs(draw, rows)
        f, noise = _shape(draw, t), _noise(draw, t)
        simple = draw.chance(self.exact)
        if self.exact:
            theta, _ = LearningCurves().accepted(batch, generator)
            whole = t.clamp(min=1)
            f = torch.where(simple, LearningCurves().curve(theta, whole), f)
            noise = torch.where(simple, theta["sigma"].unsqueeze(-1) * draw.normal(rows), noise)
        y = f + noise
        y = torch.where(draw.chance(0.5) & ~simple, y.clamp(0, 1), y)
        y = torch.where(simple, y, y + GRAIN * draw.normal(rows))  # where it is cut off, still a density
        return Task(t.unsqueeze(-1), y, None, self)


GRAIN = 2e-4  # standard deviation of the noise that every curve has: a digit that nobody reports


class _Draw:
    """Random columns [batch, 1], or [batch, rows], of one batch."""

    def __init__(self, batch: int, generator: Generator) -> None:
        self.batch, self.generator = batch, generator

    def uniform(self, low: float | Tensor = 0.0, high: float | Tensor = 1.0, columns: int = 1) -> Tensor:
        u = torch.rand(self.batch, columns, generator=self.generator, device=self.generator.device, dtype=torch.float32)
        return low + (high - low) * u

    def normal(self, columns: int = 1) -> Tensor:
        return torch.randn(
            self.batch, columns, generator=self.generator, device=self.generator.device, dtype=torch.float32
        )

    def log_uniform(self, low: float, high: float, columns: int = 1) -> Tensor:
        return self.uniform(math.log(low), math.log(high), columns).exp()

    def log_normal(self, mean: float, spread: float, columns: int = 1) -> Tensor:
        return (mean + spread * self.normal(columns)).exp()

    def chance(self, probability: float, columns: int = 1) -> Tensor:
        return self.uniform(columns=columns) < probability


def _epochs(draw: _Draw, rows: int) -> Float[Tensor, "batch rows"]:
    """Regular epochs, regular ones with gaps, or a geometric progression, the last of them at 100."""
    place = torch.arange(1, rows + 1, device=draw.generator.device, dtype=torch.float32)
    regular = (100 * (place / rows)).expand(draw.batch, -1)
    gaps = draw.uniform(columns=rows).clamp(min=1e-3).log().neg() ** draw.uniform(0.3, 1.5)
    gappy = (0.2 + gaps).cumsum(-1)
    gappy = 100 * (gappy / gappy[:, -1:])
    geometric = 100 * (draw.log_uniform(0.2, 10) / 100) ** ((rows - place) / max(rows - 1, 1))
    kind = draw.uniform()
    return torch.where(kind < 0.6, regular, torch.where(kind < 0.8, gappy, geometric))


def _families(draw: _Draw, u: Float[Tensor, "batch points"]) -> Float[Tensor, "batch families points"]:
    """The eleven curves of Domhan et al. (2015, table 1) at u >= 1, up to a shift and a factor."""
    log_u = u.log()
    rate, power = draw.log_normal(-2, 1), draw.log_normal(0, 0.5)
    half = draw.log_uniform(1.0, 100.0)
    offset, decay = draw.log_uniform(0.01, 10.0), draw.log_normal(-0.5, 0.8)
    inner = draw.log_normal(-1, 1)
    return torch.stack(
        [
            -torch.exp(-draw.log_normal(-0.3, 0.9) * log_u),  # pow3
            -torch.exp(-decay * (u * inner + offset).log()),  # pow4
            -1 / torch.log1p(u),  # ilog2
            torch.log(draw.log_normal(-1, 1) * log_u + 1),  # log log linear
            torch.exp(-draw.log_normal(0, 1) / u + 0.05 * draw.normal() * log_u),  # vapour pressure
            1 / (1 + (half / u) ** draw.log_normal(0.4, 0.5)),  # Hill
            1 / (1 + (u / draw.log_uniform(0.5, 60.0)) ** -draw.log_normal(0, 0.5)),  # log power
            -1 / (1 + (draw.log_uniform(0.01, 2.0) * u) ** power),  # MMF
            -torch.exp(-draw.log_normal(-1.5, 1) * u ** draw.uniform(0.2, 1.2)),  # exp4
            -torch.exp(-rate * u**power),  # Janoschek
            -torch.exp(-((draw.log_uniform(0.01, 1.0) * u) ** draw.log_normal(0, 0.4))),  # Weibull
        ],
        1,
    )


def _shape(draw: _Draw, t: Float[Tensor, "batch rows"]) -> Float[Tensor, "batch rows"]:
    """A curve from its level at the first row to its level at t = 100, and what may befall it on the way."""
    level = torch.where(draw.chance(0.5), draw.uniform(0, 1), 1 - draw.uniform().sqrt() * draw.uniform())
    gain = torch.where(draw.chance(0.6), level * draw.uniform(), draw.log_uniform(0.003, 0.3))
    gain = torch.where(draw.chance(0.1), -gain * draw.uniform(), gain)
    delay = torch.where(draw.chance(0.12), draw.log_uniform(1, 70), torch.zeros_like(level))
    begin = torch.where(draw.chance(0.5), t[:, :1], torch.zeros_like(level)) + delay
    u = 1 + (t - begin).clamp(min=0)
    ends = torch.cat([u[:, :1], u], -1)  # the first column only anchors the shape
    shapes = _families(draw, ends)
    index = (draw.uniform(columns=2) * shapes.shape[1]).long().clamp(max=shapes.shape[1] - 1)
    pair = shapes.gather(1, index.unsqueeze(-1).expand(-1, -1, ends.shape[-1]))
    span = pair[..., -1:] - pair[..., :1]
    pair = ((pair - pair[..., :1]) / span.clamp(min=1e-4))[..., 1:].clamp(0, 1)
    mix = torch.where(draw.chance(0.5), draw.uniform(), torch.ones_like(level))
    f = level - gain * (1 - (mix * pair[:, 0] + (1 - mix) * pair[:, 1]))
    return _events(draw, t, f, level)


def _events(draw: _Draw, t: Tensor, f: Tensor, level: Tensor) -> Float[Tensor, "batch rows"]:
    """Jumps at learning-rate steps, a late decline, divergence, constant curves."""
    zero = torch.zeros_like(level)
    for _ in range(2):
        size = torch.where(draw.chance(0.1), draw.log_uniform(0.005, 0.25), zero)
        when = draw.uniform(10, 90)
        f = f + size * (1 - torch.exp(-(t - when).clamp(min=0) / draw.log_uniform(0.1, 10)))
    turn, depth = draw.log_uniform(3, 95), torch.where(draw.chance(0.15), draw.log_uniform(0.003, 0.4), zero)
    f = f - depth * ((t - turn).clamp(min=0) / (100 - turn)) ** draw.uniform(0.4, 1.6)
    floor = torch.where(draw.chance(0.5), draw.uniform(0, 0.2), f[:, :1] * draw.uniform(0, 1))
    broken = draw.chance(0.05) & (t >= draw.uniform(2, 100))
    f = torch.where(broken, floor, f)
    return torch.where(draw.chance(0.06), level, f).clamp(-0.02, 1.02)


def _noise(draw: _Draw, t: Float[Tensor, "batch rows"]) -> Float[Tensor, "batch rows"]:
    """Normal or Student-t noise, possibly correlated along the curve and shrinking with t."""
    rows = t.shape[-1]
    z = draw.normal(rows)
    tail = torch._standard_gamma(torch.full_like(z, 2.0), generator=draw.generator) / 2
    z = torch.where(draw.chance(0.2), z / tail.sqrt(), z)  # Student-t with 4 degrees of freedom
    memory = torch.where(draw.chance(0.35), draw.uniform(0.1, 0.95), torch.zeros_like(t[:, :1]))
    fresh = (1 - memory.square()).sqrt()
    state, states = z[:, :1], [z[:, :1]]
    for k in range(1, rows):
        state = memory * state + fresh * z[:, k : k + 1]
        states.append(state)
    z = torch.cat(states, -1)
    fade = torch.where(draw.chance(0.5), draw.uniform(0, 0.8), torch.zeros_like(memory))
    return draw.log_normal(-4.6, 1.1) * z * (t.clamp(min=1) / 10) ** -fade
