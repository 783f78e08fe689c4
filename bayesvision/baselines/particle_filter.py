"""`ParticleFilter`: beliefs as weighted draws, which converge to the exact ones as their number grows."""

from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Tensor

from bayesvision.core.checks import check_count, check_inputs, columns_of
from bayesvision.core.data import output_dtype
from bayesvision.core.modules import outside_inference_mode, share
from bayesvision.core.motion import Motion
from bayesvision.core.observations import check_no_design, check_observations, in_dtype, joint_batch, observation
from bayesvision.core.recipes import convert_fields
from bayesvision.core.roles import Conditionable, Family, Log
from bayesvision.distributions import GaussianMixture, Predictive, WeightedDraws
from bayesvision.training.seeds import generator

__all__ = ["ParticleFilter", "ParticleFilterPosterior"]


@dataclass(frozen=True)
class ParticleFilter:
    """Sequential importance resampling (Gordon et al. 1993) for a family of inference problems.

    A belief is N draws theta_i with weights w_i. Observations multiply them, w_i <- w_i p(y | x, theta_i); a motion
    resamples systematically and moves each draw, theta_i <- f(theta_i) + N(0, noise).

    Example:
        >>> belief = bv.ParticleFilter(10_000).fit(SensorFusion()).with_prior(prior)
        >>> belief.move(F, Q).condition(y=[range, bearing]).latent.mean

    Args:
        particles: number N of draws.
        seed: of all draws.

    Raises:
        ValueError: `particles` is below 2.
    """

    particles: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        convert_fields(self)
        check_count("particles", self.particles, 2)

    @outside_inference_mode
    def fit(self, source: Family, log: Log | None = None) -> "ParticleFilterPosterior":
        """A filter for the family `source`, whose own prior it starts from; nothing is learned.

        Raises:
            TypeError: `source` is not a family of inference problems.
        """
        if not isinstance(source, Family) or isinstance(source, type):
            raise TypeError(f"source must be a family such as priors.SensorFusion(), got {type(source).__name__}")
        theta = source.own(self.particles, generator("cpu", self.seed)).double()
        return ParticleFilterPosterior(self, source, theta)


class ParticleFilterPosterior(Conditionable):
    """What a particle filter believes.

    Attributes:
        method: the recipe.
        family: what is observed, and its likelihood.
        latent: weighted draws of the latent variables.
        steps: number of motions so far.
        columns: column names of the designs, if they came as a frame.
    """

    theta: Tensor
    log_weights: Tensor

    def __init__(
        self, method: ParticleFilter, family: Family, theta: Float[Tensor, "*batch particles latents"]
    ) -> None:
        super().__init__()
        self.method, self.family, self.steps = method, family, 0
        self.register_buffer("theta", theta)
        self.register_buffer("log_weights", torch.zeros_like(theta[..., 0]))
        self.seen: tuple[Tensor, Tensor] | None = None
        self.columns: tuple[str, ...] | None = None

    def facts(self) -> list[str]:
        rows = 0 if self.seen is None else self.seen[1].shape[-1]
        return [f"{self.theta.shape[-2]:,} particles", f"has seen {rows:,} rows", f"{self.steps} motions"]

    @property
    def latent(self) -> WeightedDraws:
        """Weighted draws of the latent variables."""
        return WeightedDraws(self.theta, self.log_weights.softmax(-1))

    def with_prior(self, prior: Any) -> Self:
        """A filter that starts anew from draws of `prior`, a distribution or draws [*batch, n, latents].

        Raises:
            ValueError: another number of latent variables, or values that are not finite.
        """
        count, rng = self.method.particles, generator("cpu", self.method.seed, 1)
        if isinstance(prior, GaussianMixture):
            theta = prior.sample((count,), rng)
        elif isinstance(prior, td.Distribution):
            with torch.random.fork_rng():
                torch.manual_seed(self.method.seed)
                theta = prior.sample((count,))
        else:
            draws = check_inputs(prior, self.family.latents, name="prior").double()
            place = torch.randint(draws.shape[-2], (count,), generator=rng)
            theta = draws[..., place, :].movedim(-2, 0)
        theta = theta.double()
        if theta.shape[-1] != self.family.latents:
            raise ValueError(f"prior must have {self.family.latents} latent variables, got {theta.shape[-1]}")
        return type(self)(self.method, self.family, theta.movedim(0, -2))

    @outside_inference_mode
    def condition(self, x: Any = None, y: Any = None) -> Self:
        """The belief that has also seen the observations y [*batch, rows] with the designs x [*batch, rows, features].

        x is None where observations have no design, or where y is a whole reading.

        Raises:
            ValueError: wrong shapes, values that are not finite, or observations that no draw explains.
        """
        new, names = share(self), columns_of(x)
        x, y = check_observations(self.family, x, y, self.columns)
        new.columns = self.columns or names
        if new.seen is not None:
            x, y = torch.cat([new.seen[0], x], -2), torch.cat([new.seen[1], y], -1)
        new.seen = (x, y)
        x, y = x.double(), y.double()
        batch = joint_batch(self.theta.shape[:-2], y.shape[:-1])
        theta = self.theta.expand(*batch, *self.theta.shape[-2:])
        found = self.family.log_likelihood(theta, x.unsqueeze(-3), y.unsqueeze(-2)).sum(-1)
        if not found.isfinite().any(-1).all():
            raise ValueError("no draw explains these observations; take more particles, or a wider prior")
        new.theta, new.log_weights = theta, found
        return new

    def move(self, transition: Any, noise: Any) -> Self:
        """The belief after theta' = f(theta) + N(0, noise), of equally weighted draws.

        Args:
            transition: a matrix [latents, latents], or a function f of theta [..., latents].
            noise: covariance [latents, latents].

        Raises:
            ValueError: latent variables that are not real, wrong shapes, or a covariance that is not positive
                semi-definite.
        """
        motion = Motion.of(transition, noise, self.family.supports, self.theta)
        new, rng = share(self), generator("cpu", self.method.seed, 2 + self.steps)
        theta = motion.function(self.latent.resampled(self.theta.shape[-2], rng))
        step = torch.randn(theta.shape, generator=rng, dtype=torch.float64)
        new.theta, new.steps = theta + step @ motion.factor().mT, self.steps + 1
        new.log_weights, new.seen = torch.zeros_like(new.theta[..., 0]), None
        return new

    def predict(self, x: Any = None) -> Predictive:
        """Distribution of the next observation at every design of `x` [*batch, rows, features], noise included.

        Raises:
            ValueError: wrong shapes, or values that are not finite.
        """
        none = self.family.features == 0
        if none:
            check_no_design(self.family, x)
        x = self.theta.new_zeros(1, 0) if none else check_inputs(x, self.family.features, self.columns)
        design = x.double()
        batch = torch.broadcast_shapes(self.theta.shape[:-2], design.shape[:-2])
        theta = self.theta.expand(*batch, *self.theta.shape[-2:])
        weights = self.log_weights.log_softmax(-1).expand(theta.shape[:-1])
        seen = None if self.seen is None else (self.seen[0].double(), self.seen[1].double())
        law = observation(self.family, theta, weights, design, seen)
        law = in_dtype(law, output_dtype(x, None if self.seen is None else self.seen[1]))
        return law[..., 0] if none else law
