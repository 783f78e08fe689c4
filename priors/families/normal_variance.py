"""`NormalVariance`: the variance of a normal, with an inverse-gamma prior."""

import math
from dataclasses import dataclass

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Generator, Tensor

from priors.checks import check_counts, check_positive
from priors.draws import Draws
from priors.families.problem import Problem, Seen

__all__ = ["NormalVariance"]


@dataclass(frozen=True)
class NormalVariance:
    """y ~ N(0, theta) with theta ~ InverseGamma(a, b), and a, b ~ InverseGamma(*meta) (arXiv 2502.02463, section 4.1).

    Observations have no design. The exact posterior is InverseGamma(a + n / 2, b + sum y^2 / 2).

    Example:
        >>> bv.DistributionTransformer().fit(NormalVariance()).with_prior(td.InverseGamma(5.0, 7.0)).condition(y=[1.2])

    Args:
        meta: concentration and rate of the inverse gamma that a and b are drawn from: (4, 6) is wide, (10000, 20000)
            next to a point.

    Raises:
        ValueError: `meta` is not positive.
    """

    meta: tuple[float, float] = (4.0, 6.0)

    latents = 1
    features = 0
    inputs = 0
    reading = None
    hyperparameters = 2
    supports = ("positive",)

    def __post_init__(self) -> None:
        check_positive(concentration=self.meta[0], rate=self.meta[1])

    def sample(self, batch: int, rows: int, *, generator: Generator) -> Problem:
        """Draw `batch` problems with `rows` observations each."""
        check_counts(batch=batch, rows=rows)
        draws = Draws(batch, generator)
        concentration, rate = self.meta
        hyper = math.log(rate) - draws.log_gamma(2, shape=concentration)
        theta = self.draws(hyper, 1, generator)[:, 0]
        y = theta.sqrt() * draws.normal(rows)
        return Problem(y.new_zeros(batch, rows, 0), y, theta, self, hyper)

    def draws(
        self, hyper: Float[Tensor, "batch 2"], count: int, generator: Generator
    ) -> Float[Tensor, "batch draws 1"]:
        """Draws of theta from each prior."""
        gamma = Draws(len(hyper), generator).log_gamma(count, shape=hyper[:, :1].exp())
        return (hyper[:, 1:] - gamma).clamp(-70, 70).exp().unsqueeze(-1)

    def describe(self, prior: td.Distribution) -> Float[Tensor, "*batch 2"]:
        """(log a, log b) of an inverse gamma.

        Raises:
            ValueError: another distribution.
        """
        if not isinstance(prior, td.InverseGamma):
            raise ValueError(f"the prior must be a torch.distributions.InverseGamma, got {type(prior).__name__}")
        return torch.stack([prior.concentration.log(), prior.rate.log()], -1)

    def distribution(self, hyper: Float[Tensor, "*batch 2"]) -> td.Distribution:
        """The prior of theta [*batch, 1] that `hyper` tells."""
        a, b = hyper.exp().unbind(-1)
        return td.Independent(td.InverseGamma(a.unsqueeze(-1), b.unsqueeze(-1)), 1)

    def moments(self, hyper: Float[Tensor, "*batch 2"]) -> tuple[Tensor, Tensor]:
        """Mean log b - digamma(a) and standard deviation sqrt(trigamma(a)) of log theta, [*batch, 1] each."""
        a, log_b = hyper[..., :1].exp(), hyper[..., 1:]
        return log_b - torch.digamma(a), torch.polygamma(1, a).sqrt()

    def own(self, count: int, generator: Generator) -> Float[Tensor, "count latents"]:
        """Draws of theta where nothing is said of its prior: averaged over the meta-prior."""
        return self.sample(count, 1, generator=generator).theta

    def relative(self, x: Tensor, y: Tensor, loc: Tensor, tril: Tensor) -> tuple[Tensor, Tensor]:
        """Observations in units of exp(loc / 2), their typical size if log theta is about `loc` [*batch, 1]."""
        y = y * torch.exp(-loc / 2)
        return x.expand(*y.shape, 0), y

    def log_likelihood(
        self, theta: Float[Tensor, "*draws 1"], x: Float[Tensor, "*#draws rows 0"], y: Float[Tensor, "*#draws rows"]
    ) -> Float[Tensor, "*draws rows"]:
        """log N(y; 0, theta) of every observation."""
        return self.observed(theta, x).log_prob(y)

    def observed(
        self, theta: Float[Tensor, "*draws 1"], x: Float[Tensor, "*#draws rows 0"], seen: Seen = None
    ) -> td.Normal:
        """N(0, theta) of every observation, [*draws, rows]."""
        scale = theta.sqrt().expand(torch.broadcast_shapes(theta.shape, x.shape[:-1]))
        return td.Normal(torch.zeros_like(scale), scale, validate_args=False)

    def posterior(self, prior: td.InverseGamma, y: Float[Tensor, "*batch rows"]) -> td.InverseGamma:
        """The exact posterior given the observations `y`."""
        half = y.square().sum(-1) / 2
        return td.InverseGamma(prior.concentration + y.shape[-1] / 2, prior.rate + half)

    def prior_of(self, problem: Problem) -> td.InverseGamma:
        """The prior of every problem of a batch, in float64."""
        assert problem.hyper is not None
        a, b = problem.hyper.double().exp().unbind(-1)
        return td.InverseGamma(a, b)

    def log_posterior(self, problem: Problem) -> Float[Tensor, " batch"]:
        """Log density of the exact posterior of every problem at its theta."""
        return self.posterior(self.prior_of(problem), problem.y.double()).log_prob(problem.theta[:, 0].double())
