"""`SensorFusion`: where a target is and how fast it moves, from a rangefinder and a bearing."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Generator, Tensor
from torch.distributions import constraints

from priors.checks import check_counts, check_positive
from priors.draws import Draws
from priors.families.evidence import log_posterior_by_sampling
from priors.families.problem import MixtureParameters, Problem, Seen, random_factors

__all__ = ["RangeOrBearing", "SensorFusion"]

RIGHT, SHORT, STRAY = 0.7, 0.2, 0.1  # probabilities of the rangefinder's three kinds of reading
BEARING = 0.1  # standard deviation of a bearing, in radians
TURNS = (-1, 0, 1)  # of a wrapped bearing; more have no mass
NEAREST = 1e-3  # distance at which a bearing is taken to have no direction


class RangeOrBearing(td.Distribution):
    """What a station at the origin reads of a target at (east, north), at the distance r and the angle b.

    Range: 0.7 N(r, (0.1 (r + 1))^2) + 0.2 Exp(1) + 0.1 U(0, m), clipped to [0, m], so that there is probability at 0
    and at m itself, where `log_prob` is its logarithm. Bearing: N(b, 0.1^2) wrapped to [-pi, pi].

    Args:
        position: of the target, east and north.
        is_bearing: which of the two is read.
        maximum: m.
    """

    arg_constraints: ClassVar = {}  # pyright: ignore[reportAssignmentType] (torch's base declares properties)

    def __init__(
        self, position: Float[Tensor, "*#shape 2"], is_bearing: Float[Tensor, "*#shape"], maximum: float
    ) -> None:
        east, north = position.unbind(-1)
        self.distance, self.angle, is_bearing = torch.broadcast_tensors(
            torch.hypot(east, north), torch.atan2(north, east), is_bearing
        )
        self.is_bearing, self.maximum = is_bearing > 0.5, maximum
        super().__init__(self.distance.shape, validate_args=False)

    @property
    def support(self) -> Any:
        high = torch.full_like(self.distance, self.maximum).where(~self.is_bearing, math.pi)
        return constraints.interval(torch.where(self.is_bearing, -high, torch.zeros_like(high)), high)

    @property
    def _right(self) -> td.Normal:
        return td.Normal(self.distance, 0.1 * (self.distance + 1), validate_args=False)

    @property
    def _turned(self) -> td.Normal:
        turns = 2 * math.pi * torch.tensor(TURNS, dtype=self.angle.dtype, device=self.angle.device)
        return td.Normal(self.angle.unsqueeze(-1) + turns, BEARING, validate_args=False)

    @torch.no_grad()
    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Float[Tensor, "..."]:
        """Readings [*sample_shape, *shape]; the kind of a range and its value come from the same branch."""
        like: Any = {"generator": generator, "device": self.distance.device, "dtype": torch.float32}
        shape = self._extended_shape(sample_shape)
        kind, z = torch.rand(shape, **like), torch.randn(shape, **like)
        right = self.distance + 0.1 * (self.distance + 1) * z
        short = -torch.log1p(-torch.rand(shape, **like).clamp(max=1 - 1e-7))
        stray = self.maximum * torch.rand(shape, **like)
        ranged = torch.where(kind < RIGHT, right, torch.where(kind < RIGHT + SHORT, short, stray))
        bearing = torch.remainder(self.angle + BEARING * torch.randn(shape, **like) + math.pi, 2 * math.pi) - math.pi
        return torch.where(self.is_bearing, bearing, ranged.clamp(0, self.maximum))

    def log_prob(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        inside = value.clamp(0, self.maximum)
        law = self._right
        right = math.log(RIGHT) + law.log_prob(inside)
        other = torch.log(SHORT * (-inside).exp() + STRAY / self.maximum)
        at_low = math.log(RIGHT) + torch.special.log_ndtr(-law.loc / law.scale)
        at_high = math.log(RIGHT) + torch.special.log_ndtr((law.loc - self.maximum) / law.scale)
        at_high = torch.logaddexp(at_high, at_high.new_tensor(math.log(SHORT) - self.maximum))
        found = torch.where(value <= 0, at_low, torch.where(value >= self.maximum, at_high, right.logaddexp(other)))
        bearing = self._turned.log_prob(value.unsqueeze(-1)).logsumexp(-1)
        found = torch.where(self.is_bearing, bearing, found)
        low, high = self.support.lower_bound, self.support.upper_bound
        return torch.where((value < low) | (value > high), -torch.inf, found)

    def cdf(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        inside = value.clamp(0, self.maximum)
        found = RIGHT * self._right.cdf(inside) - SHORT * torch.expm1(-inside) + STRAY * inside / self.maximum
        turned = self._turned
        bearing = (turned.cdf(value.unsqueeze(-1)) - turned.cdf(torch.full_like(turned.loc, -math.pi))).sum(-1)
        found = torch.where(self.is_bearing, bearing, found).clamp(0, 1)
        low, high = self.support.lower_bound, self.support.upper_bound
        return torch.where(value < low, 0.0, torch.where(value >= high, 1.0, found))


@dataclass(frozen=True)
class SensorFusion:
    """A target's position and velocity (east, north, velocity east, velocity north) from range and bearing readings.

    A design is 0 for a range and 1 for a bearing, both from a station at the origin (`RangeOrBearing`), with the
    outliers of real rangefinders (arXiv 2502.02463, section 4.4). Priors are Gaussian mixtures from narrow to wide,
    anywhere within three quarters of the rangefinder's reach.

    Example:
        >>> belief = bv.pretrained("dt-sensor").with_prior(prior)
        >>> belief = belief.move(SensorFusion.transition, SensorFusion.noise).condition(y=[range, bearing])

    Args:
        maximum: reach of the rangefinder.
        components: maximum number of Gaussians of a prior.

    Raises:
        ValueError: a field is not positive.
    """

    maximum: float = 20.0
    components: int = 4

    latents = 4
    features = 1
    inputs = 13
    hyperparameters = 0
    supports = ("real",) * 4
    reading: ClassVar[Tensor] = torch.tensor([[0.0], [1.0]], dtype=torch.float64)  # a range and a bearing
    transition: ClassVar[Tensor] = torch.kron(
        torch.tensor([[1.0, 0.6321], [0.0, 0.3679]], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    )
    noise: ClassVar[Tensor] = torch.diag(torch.tensor([0.01, 0.01, 0.04, 0.04], dtype=torch.float64))

    def __post_init__(self) -> None:
        check_counts(components=self.components)
        check_positive(maximum=self.maximum)

    def sample(self, batch: int, rows: int, *, generator: Generator) -> Problem:
        """Draw `batch` problems with `rows` observations: ranges and bearings in turn, or in any order."""
        check_counts(batch=batch, rows=rows)
        draws = Draws(batch, generator)
        mixture = self._mixture(draws)
        theta = mixture.draw(draws)
        first = draws.happens(1, p=0.5)
        in_turn = (torch.arange(rows, device=generator.device) + first) % 2 == 0
        either = draws.happens(rows, p=0.5)
        x = torch.where(draws.happens(1, p=0.25), either, in_turn).float().unsqueeze(-1)
        y = self.observed(theta, x).sample(generator=generator)
        return Problem(x, y, theta, self, None, mixture)

    def _mixture(self, draws: Draws) -> MixtureParameters:
        k, d = self.components, self.latents
        device = draws.generator.device
        used = torch.arange(k, device=device) <= draws.integers(1, high=k)
        logits = draws.normal(k).where(used, -torch.inf)
        angle, radius = draws.uniform(1, high=2 * math.pi), draws.uniform(1, high=0.75 * self.maximum)
        centre = torch.cat([radius * angle.cos(), radius * angle.sin(), 0.4 * draws.normal(2)], -1).unsqueeze(-2)
        typical = torch.cat(
            [
                draws.log_uniform(1, low=0.1, high=3.0).expand(-1, 2),
                draws.log_uniform(1, low=0.1, high=1.0).expand(-1, 2),
            ],
            -1,
        ).unsqueeze(-2)
        tril = random_factors(draws, k, d) * (typical * draws.log_uniform(k, 1, low=0.5, high=1.5)).unsqueeze(-1)
        apart = draws.log_uniform(1, 1, low=0.05, high=3.0)
        return MixtureParameters(logits, centre + apart * typical * draws.normal(k, d), tril)

    def own(self, count: int, generator: Generator) -> Float[Tensor, "count latents"]:
        """Draws of theta where nothing is said of its prior: averaged over the meta-prior."""
        return self.sample(count, 1, generator=generator).theta

    def relative(self, x: Tensor, y: Tensor, loc: Tensor, tril: Tensor) -> tuple[Tensor, Tensor]:
        """Readings less those expected at the prior's mean, in units of their noise.

        Columns: whether it is a bearing; whether a range is at a bound; slopes of the reading, and of the other kind of
        reading, along the columns of `tril`, in units of the noise; the prior's deviations along and across the line of
        sight per distance; the distance. They are the same for a problem that is turned around the station.
        """
        is_bearing = x[..., 0] > 0.5
        east, north = loc[..., :1], loc[..., 1:2]
        distance = torch.hypot(east, north).clamp(min=NEAREST)
        deviation = 0.1 * (distance + 1)
        turn = torch.remainder(y - torch.atan2(north, east) + math.pi, 2 * math.pi) - math.pi
        off = torch.where(is_bearing, turn / BEARING, (y - distance) / deviation)
        at_bound = (y >= self.maximum).to(y) - (y <= 0).to(y)
        at_bound = torch.where(is_bearing, torch.zeros_like(y), at_bound)
        sight = torch.cat([east, north], -1) / distance
        across = torch.stack([-sight[..., 1], sight[..., 0]], -1)
        along, across = ((v.unsqueeze(-2) @ tril[..., :2, :]).squeeze(-2) for v in (sight, across))
        slopes = (along / deviation).unsqueeze(-2), (across / (distance * BEARING)).unsqueeze(-2)
        own = torch.where(is_bearing.unsqueeze(-1), slopes[1], slopes[0])
        other = torch.where(is_bearing.unsqueeze(-1), slopes[0], slopes[1])
        wide = torch.stack([along.norm(dim=-1), across.norm(dim=-1)], -1) / distance
        same = torch.cat([wide, distance / 5], -1).unsqueeze(-2).expand(*off.shape, 3)
        flags = torch.stack([is_bearing.to(off), at_bound], -1).expand(*off.shape, 2)
        return torch.cat([flags, own, other, same], -1), off

    def check(self, x: Float[Tensor, "*batch rows 1"], y: Float[Tensor, "*batch rows"]) -> None:
        """Refuse a source that is neither, a range beyond the rangefinder's, and a bearing beyond a half turn.

        Raises:
            ValueError: one of them.
        """
        source = x[..., 0]
        if not ((source == 0) | (source == 1)).all():
            raise ValueError("x must name the source of each reading, 0 for a range and 1 for a bearing")
        if ((source == 0) & ((y < 0) | (y > self.maximum))).any():
            raise ValueError(f"a range must lie between 0 and {self.maximum:g}, got one beyond")
        if ((source == 1) & (y.abs() > math.pi + 1e-5)).any():
            raise ValueError("a bearing must lie between -pi and pi, got one beyond; take it modulo a turn")

    def linearized(self, x: Tensor, y: Tensor, loc: Tensor, tril: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes g and residuals e of e = g^T u + N(0, 1) about the prior's mean, u = tril^-1 (theta - loc)."""
        columns, off = self.relative(x, y, loc, tril)
        return columns[..., 2 : 2 + self.latents], off

    def log_likelihood(
        self, theta: Float[Tensor, "*draws 4"], x: Float[Tensor, "*#draws rows 1"], y: Float[Tensor, "*#draws rows"]
    ) -> Float[Tensor, "*draws rows"]:
        """Log density of every reading; the log probability of a range that is 0 or the maximum."""
        return self.observed(theta, x).log_prob(y)

    def observed(
        self, theta: Float[Tensor, "*draws 4"], x: Float[Tensor, "*#draws rows 1"], seen: Seen = None
    ) -> RangeOrBearing:
        """Distribution of the readings x given where the target is, [*draws, rows]."""
        return RangeOrBearing(theta[..., :2].unsqueeze(-2), x[..., 0], self.maximum)

    def prior_of(self, problem: Problem) -> td.MixtureSameFamily:
        """The prior of every problem of a batch, in float64."""
        assert problem.mixture is not None
        return problem.mixture.distribution()

    def log_posterior(self, problem: Problem) -> Float[Tensor, " batch"]:
        """Log density of the exact posterior at theta: the evidence by importance sampling from the prior."""
        return log_posterior_by_sampling(self, problem)
