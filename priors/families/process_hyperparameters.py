"""`ProcessHyperparameters`: a value of a Gaussian process together with its lengthscale."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Generator, Tensor

from priors.checks import check_counts, check_positive
from priors.draws import Draws
from priors.families.problem import Problem, Seen

__all__ = ["ProcessHyperparameters"]

NODES = 801  # of the quadrature over the logarithm of the lengthscale
REACH = 9.0  # standard deviations
JITTER = 1e-6  # of the kernel's unit diagonal


@dataclass(frozen=True)
class ProcessHyperparameters:
    """theta = (f(0), lengthscale) of a Gaussian process f with a squared-exponential kernel of unit scale.

    y = f(x) + N(0, noise). A design is the place x less that of the value in question, since the process is
    stationary: to ask for f(3), give x - 3. The lengthscale has an InverseGamma(a, b) prior, a ~ U(100, 105) and
    b ~ U(100, 700); f(0) is N(0, 1) whatever the lengthscale (arXiv 2502.02463, section 4.2).

    Args:
        noise: variance of the noise.
        width: places are drawn uniformly from [0, width], the one in question too.

    Raises:
        ValueError: a field is not positive.
    """

    noise: float = 0.1
    width: float = 5.0

    latents = 2
    features = 1
    inputs = 1
    hyperparameters = 2
    supports = ("real", "positive")
    reading = None
    concentrations: ClassVar[tuple[float, float]] = (100.0, 105.0)
    rates: ClassVar[tuple[float, float]] = (100.0, 700.0)

    def __post_init__(self) -> None:
        check_positive(noise=self.noise, width=self.width)

    def sample(self, batch: int, rows: int, *, generator: Generator) -> Problem:
        """Draw `batch` problems with `rows` observations each."""
        check_counts(batch=batch, rows=rows)
        draws = Draws(batch, generator)
        low, high = self.concentrations
        a = draws.uniform(1, low=low, high=high)
        low, high = self.rates
        hyper = torch.cat([a, draws.uniform(1, low=low, high=high)], -1).log()
        lengthscale = self._lengthscales(hyper, 1, draws)
        places = draws.uniform(rows + 1, high=self.width)
        x = (places[:, 1:] - places[:, :1]).unsqueeze(-1)
        everywhere = torch.cat([x.new_zeros(batch, 1, 1), x], 1)
        factor = torch.linalg.cholesky(_kernel(everywhere, everywhere, lengthscale, JITTER).double())
        f = (factor @ draws.normal(rows + 1, 1).double()).squeeze(-1).to(x)
        y = f[:, 1:] + self.noise**0.5 * draws.normal(rows)
        return Problem(x, y, torch.cat([f[:, :1], lengthscale], -1), self, hyper)

    def _lengthscales(self, hyper: Float[Tensor, "batch 2"], count: int, draws: Draws) -> Float[Tensor, "batch draws"]:
        return (hyper[:, 1:] - draws.log_gamma(count, shape=hyper[:, :1].exp())).exp()

    def draws(
        self, hyper: Float[Tensor, "batch 2"], count: int, generator: Generator
    ) -> Float[Tensor, "batch draws 2"]:
        """Draws of theta from each prior."""
        draws = Draws(len(hyper), generator)
        return torch.stack([draws.normal(count), self._lengthscales(hyper, count, draws)], -1)

    def describe(self, prior: td.Distribution) -> Float[Tensor, "*batch 2"]:
        """(log a, log b) of an inverse gamma, the prior of the lengthscale.

        Raises:
            ValueError: another distribution.
        """
        if not isinstance(prior, td.InverseGamma):
            raise ValueError(
                "the prior must be a torch.distributions.InverseGamma, that of the lengthscale, "
                f"got {type(prior).__name__}"
            )
        return torch.stack([prior.concentration.log(), prior.rate.log()], -1)

    def distribution(self, hyper: Float[Tensor, "*batch 2"]) -> td.Distribution:
        """The prior of theta [*batch, 2] that `hyper` tells."""
        return _Joint(hyper)

    def moments(self, hyper: Float[Tensor, "*batch 2"]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of f(0), 0 and 1, and of the log lengthscale."""
        a, log_b = hyper[..., :1].exp(), hyper[..., 1:]
        loc, scale = log_b - torch.digamma(a), torch.polygamma(1, a).sqrt()
        return torch.cat([torch.zeros_like(loc), loc], -1), torch.cat([torch.ones_like(scale), scale], -1)

    def own(self, count: int, generator: Generator) -> Float[Tensor, "count latents"]:
        """Draws of theta where nothing is said of its prior: averaged over the meta-prior."""
        return self.sample(count, 1, generator=generator).theta

    def relative(self, x: Tensor, y: Tensor, loc: Tensor, tril: Tensor) -> tuple[Tensor, Tensor]:
        """Places in units of the prior's lengthscale; values as they are, of the process's unit scale."""
        x = x * torch.exp(-loc[..., None, 1:])
        return x, y.expand(x.shape[:-1])

    def log_likelihood(
        self, theta: Float[Tensor, "*draws 2"], x: Float[Tensor, "*#draws rows 1"], y: Float[Tensor, "*#draws rows"]
    ) -> Float[Tensor, "*draws rows"]:
        """log p(y_i | y_1, ..., y_(i-1), theta), whose sum is that of all."""
        loc, covariance = self._given(theta, x)
        factor = torch.linalg.cholesky(covariance)
        z = torch.linalg.solve_triangular(factor, (y - loc).unsqueeze(-1), upper=False).squeeze(-1)
        return -z.square() / 2 - factor.diagonal(dim1=-2, dim2=-1).log() - math.log(2 * math.pi) / 2

    def _given(
        self, theta: Tensor, x: Tensor
    ) -> tuple[Float[Tensor, "*draws rows"], Float[Tensor, "*draws rows rows"]]:
        """Mean and covariance of y at x given f(0) and the lengthscale."""
        value, lengthscale = theta[..., :1], theta[..., 1:]
        to_value = (-(x[..., 0] / lengthscale).square() / 2).exp()
        loc = to_value * value
        within = _kernel(x, x, lengthscale, JITTER + self.noise)
        return loc, within - to_value.unsqueeze(-1) * to_value.unsqueeze(-2) / (1 + JITTER)

    def observed(
        self, theta: Float[Tensor, "*draws 2"], x: Float[Tensor, "*#draws rows 1"], seen: Seen = None
    ) -> td.Normal:
        """The normal of y at x, [*draws, rows], given theta and the observations before it."""
        if seen is None:
            loc, covariance = self._given(theta, x)
            return td.Normal(loc, covariance.diagonal(dim1=-2, dim2=-1).sqrt(), validate_args=False)
        before = seen[0].shape[-2]
        batch = torch.broadcast_shapes(seen[0].shape[:-2], x.shape[:-2])
        whole = torch.cat([seen[0].expand(*batch, *seen[0].shape[-2:]), x.expand(*batch, *x.shape[-2:])], -2)
        loc, covariance = self._given(theta, whole)
        known, cross = covariance[..., :before, :before], covariance[..., before:, :before]
        factor = torch.linalg.cholesky(known)
        gain = torch.linalg.solve_triangular(factor, cross.mT, upper=False)
        off = torch.linalg.solve_triangular(factor, (seen[1] - loc[..., :before]).unsqueeze(-1), upper=False)
        variance = covariance.diagonal(dim1=-2, dim2=-1)[..., before:] - gain.square().sum(-2)
        return td.Normal(loc[..., before:] + (gain.mT @ off).squeeze(-1), variance.sqrt(), validate_args=False)

    def prior_of(self, problem: Problem) -> td.InverseGamma:
        """The prior of every problem's lengthscale, in float64."""
        assert problem.hyper is not None
        a, b = problem.hyper.double().exp().unbind(-1)
        return td.InverseGamma(a, b)

    def log_posteriors(self, problem: Problem) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Log densities of the exact marginal posteriors of f(0) and of the lengthscale at those of every problem.

        By a quadrature over the log lengthscale, with f(0) in closed form given it.
        """
        prior, x, y = self.prior_of(problem), problem.x.double(), problem.y.double()
        theta = problem.theta.double()
        loc, scale = (v[:, 1] for v in self.moments(self.describe(prior)))
        u = loc + torch.linspace(-REACH, REACH, NODES, dtype=torch.float64).unsqueeze(-1) * scale
        log_weight, law = self._given_lengthscale(prior, u.exp(), x, y)
        log_weight = log_weight + u
        width = 2 * REACH / (NODES - 1) * scale
        evidence = log_weight.logsumexp(0) + width.log()
        value = (log_weight + law.log_prob(theta[:, 0])).logsumexp(0) + width.log() - evidence
        return value, self._given_lengthscale(prior, theta[:, 1], x, y)[0] - evidence

    def log_posterior(self, problem: Problem) -> Float[Tensor, " batch"]:
        """Log density of the exact joint posterior of every problem at its theta."""
        _, lengthscale = self.log_posteriors(problem)
        prior, x, y = self.prior_of(problem), problem.x.double(), problem.y.double()
        law = self._given_lengthscale(prior, problem.theta[:, 1].double(), x, y)[1]
        return lengthscale + law.log_prob(problem.theta[:, 0].double())

    def _given_lengthscale(
        self, prior: td.InverseGamma, lengthscale: Float[Tensor, "*nodes batch"], x: Tensor, y: Tensor
    ) -> tuple[Float[Tensor, "*nodes batch"], td.Normal]:
        """log p(lengthscale) p(y | lengthscale), and the normal of f(0) given the lengthscale and y."""
        each = lengthscale.unsqueeze(-1)
        factor = torch.linalg.cholesky(_kernel(x, x, each, JITTER + self.noise))
        z = torch.linalg.solve_triangular(factor, y.unsqueeze(-1).expand(*factor.shape[:-1], 1), upper=False)
        log_evidence = -z.square().sum((-1, -2)) / 2 - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_evidence = log_evidence - y.shape[-1] * math.log(2 * math.pi) / 2
        cross = (-(x[..., 0] / each).square() / 2).exp().unsqueeze(-1)
        half = torch.linalg.solve_triangular(factor, cross, upper=False)
        loc, variance = (half * z).sum((-1, -2)), 1 + JITTER - half.square().sum((-1, -2))
        return prior.log_prob(lengthscale) + log_evidence, td.Normal(loc, variance.sqrt(), validate_args=False)


class _Joint(td.Distribution):
    """f(0) ~ N(0, 1) and the lengthscale ~ InverseGamma(a, b), independent."""

    arg_constraints: ClassVar = {}  # pyright: ignore[reportAssignmentType] (torch's base declares properties)

    def __init__(self, hyper: Float[Tensor, "*batch 2"]) -> None:
        a, b = hyper.exp().unbind(-1)
        self.lengthscale = td.InverseGamma(a, b)
        super().__init__(a.shape, torch.Size([2]), validate_args=False)

    def log_prob(self, value: Float[Tensor, "*shape 2"]) -> Float[Tensor, "*shape"]:
        f = value[..., 0]
        return -f.square() / 2 - math.log(2 * math.pi) / 2 + self.lengthscale.log_prob(value[..., 1])


def _kernel(a: Tensor, b: Tensor, lengthscale: Tensor, diagonal: float) -> Tensor:
    """exp(-(a_i - b_j)^2 / (2 l^2)), with `diagonal` added where it is square."""
    apart = (a[..., 0].unsqueeze(-1) - b[..., 0].unsqueeze(-2)) / lengthscale.unsqueeze(-1)
    eye = torch.eye(apart.shape[-1], dtype=apart.dtype, device=apart.device)
    return (-apart.square() / 2).exp() + diagonal * eye
