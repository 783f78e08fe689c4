"""`LearningCurves`: mixtures of parametric curves, the prior of LC-PFN."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from priors.checks import check_counts
from priors.task import Task

__all__ = ["LearningCurves"]

Sites = dict[str, Tensor]
# Every parameter of the prior: its distribution and that one's two numbers, U(low, high) or LogN(mean, sd of the log).
PARAMETER_PRIORS: dict[str, tuple[str, float, float]] = {
    "w1": ("uniform", 0.0, 1.0),
    "w2": ("uniform", 0.0, 1.0),
    "w3": ("uniform", 0.0, 1.0),
    "pow3_a": ("uniform", -0.6, 0.6),
    "pow3_c": ("uniform", 0.0, 1.25),
    "pow3_alpha": ("lognormal", 0.0, 2.0),
    "ilog2_a": ("uniform", -0.5, 0.5),
    "ilog2_c": ("uniform", 0.0, 1.0),
    "janoschek_alpha": ("uniform", 0.0, 1.0),
    "janoschek_beta": ("uniform", 0.0, 2.0),
    "janoschek_kappa": ("lognormal", -2.0, 1.0),
    "janoschek_delta": ("lognormal", 0.0, 0.5),
    "sigma": ("lognormal", -4.0, 1.0),
}
PROPOSALS = 8192  # drawn at a time: a block of them fits the processor's cache
SCREEN = (1, 2, 3, 5, 8, 13, 25, 50)  # epochs where most bad proposals show, checked before all others


@dataclass(frozen=True)
class LearningCurves:
    """The prior of LC-PFN (Adriaensen et al. 2023, arXiv 2310.20447, section 3.2 and appendix A).

    y_t ~ N(f(t), sigma^2) at the epochs t = 1, ..., epochs, with f = w1 pow3 + w2 ilog2 + w3 janoschek and weights
    U(0, 1) that are not normalised:

        pow3(t) = c - a t^-alpha,  ilog2(t) = c - a / ln(t + 1),
        janoschek(t) = alpha - (alpha - beta) exp(-kappa t^delta).

    `PARAMETER_PRIORS` holds their distributions. A curve is rejected unless f(epochs) > f(1) and 0 <= f <= 1 at
    every epoch. The noise comes after that, so targets may leave [0, 1].

    Args:
        epochs: the horizon.

    Raises:
        ValueError: fewer than two epochs.
    """

    epochs: int = 100

    def __post_init__(self) -> None:
        check_counts(epochs=self.epochs)
        if self.epochs < 2:
            raise ValueError(f"epochs must be at least 2, got {self.epochs}")

    def sample(self, batch: int, rows: int, *, generator: Generator) -> Task:
        """The first `rows` epochs of `batch` curves; x holds the epochs 1, ..., rows.

        Raises:
            ValueError: more rows than epochs.
        """
        check_counts(batch=batch, rows=rows)
        if rows > self.epochs:
            raise ValueError(f"rows must be at most the {self.epochs} epochs of this prior, got {rows}")
        theta, curves = self.accepted(batch, generator)
        f = curves[:, :rows]
        noise = torch.randn(f.shape, generator=generator, device=f.device, dtype=f.dtype)
        x = torch.arange(1, rows + 1, device=f.device, dtype=f.dtype)
        return Task(x.expand(batch, -1).unsqueeze(-1), f + theta["sigma"].unsqueeze(-1) * noise, theta, self)

    def accepted(self, count: int, generator: Generator) -> tuple[Sites, Float[Tensor, "count epochs"]]:
        """Parameters of `count` accepted curves, and the curves without noise."""
        kept: list[Tensor] = []
        curves: list[Tensor] = []
        epochs = torch.arange(1, self.epochs + 1, device=generator.device, dtype=torch.float32)
        screen = torch.tensor(sorted({*(t for t in SCREEN if t < self.epochs), self.epochs}), dtype=torch.float32)
        missing = count
        while missing > 0:
            proposals = self.propose(min(PROPOSALS, 6 * missing + 64), generator)
            proposals = proposals[_fits(self.curve(_sites(proposals), screen.to(epochs)))]
            f = self.curve(_sites(proposals), epochs)
            fits = _fits(f)
            kept.append(proposals[fits][:missing])
            curves.append(f[fits][:missing])
            missing -= len(kept[-1])
        return _sites(torch.cat(kept)), torch.cat(curves)

    def propose(self, count: int, generator: Generator) -> Float[Tensor, "count parameters"]:
        """Parameters before rejection, in the order of `PARAMETER_PRIORS`."""
        uniform = torch.rand(
            count, len(PARAMETER_PRIORS), generator=generator, device=generator.device, dtype=torch.float32
        )
        normal = torch.randn(
            count, len(PARAMETER_PRIORS), generator=generator, device=generator.device, dtype=torch.float32
        )
        columns = []
        for k, (law, a, b) in enumerate(PARAMETER_PRIORS.values()):
            columns.append(a + (b - a) * uniform[:, k] if law == "uniform" else torch.exp(a + b * normal[:, k]))
        return torch.stack(columns, -1)

    def curve(self, theta: Sites, t: Float[Tensor, "*#batch epochs"]) -> Float[Tensor, "*batch epochs"]:
        """The noise-free curve f at the epochs `t` for parameters with any batch axes."""
        s = {name: value.unsqueeze(-1) for name, value in theta.items()}
        log_t = t.log()
        pow3 = s["pow3_c"] - s["pow3_a"] * torch.exp(-s["pow3_alpha"] * log_t)
        ilog2 = s["ilog2_c"] - s["ilog2_a"] / torch.log1p(t)
        gap = s["janoschek_alpha"] - s["janoschek_beta"]
        growth = torch.exp(s["janoschek_delta"] * log_t)
        janoschek = s["janoschek_alpha"] - gap * torch.exp(-s["janoschek_kappa"] * growth)
        return s["w1"] * pow3 + s["w2"] * ilog2 + s["w3"] * janoschek

    def fits(self, theta: Sites) -> Bool[Tensor, "*batch"]:
        """Whether the prior accepts the curve of these parameters."""
        reference = theta["w1"]
        return _fits(self.curve(theta, torch.arange(1, self.epochs + 1).to(reference)))

    def log_prob(self, theta: Sites) -> Float[Tensor, "*batch"]:
        """Log density of accepted parameters, less the log of the share accepted, a constant; -inf for all others."""
        uniform, log_normal = (
            {name: (a, b) for name, (law, a, b) in PARAMETER_PRIORS.items() if law == kind}
            for kind in ("uniform", "lognormal")
        )
        u, v = (torch.stack([theta[name] for name in names], -1) for names in (uniform, log_normal))
        (low, high), (mean, spread) = (u.new_tensor(list(s.values())).unbind(-1) for s in (uniform, log_normal))
        inside = ((low <= u) & (u < high)).all(-1) & (v > 0).all(-1) & self.fits(theta)
        log_v = v.clamp(min=torch.finfo(v.dtype).tiny).log()
        normal = -((log_v - mean) / spread).square() / 2 - log_v - (spread * math.sqrt(2 * math.pi)).log()
        return torch.where(inside, normal.sum(-1) - (high - low).log().sum(), -math.inf)


def _sites(values: Float[Tensor, "*batch parameters"]) -> Sites:
    return dict(zip(PARAMETER_PRIORS, values.unbind(-1), strict=True))


def _fits(f: Float[Tensor, "*batch epochs"]) -> Bool[Tensor, "*batch"]:
    """f(last) > f(first) and 0 <= f <= 1 everywhere."""
    low, high = f.aminmax(dim=-1)
    return (f[..., -1] > f[..., 0]) & (low >= 0) & (high <= 1)
