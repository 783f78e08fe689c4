"""`LinearGaussian`: linear observations with normal noise, under Gaussian-mixture priors."""

from dataclasses import dataclass

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Generator, Tensor

from priors.checks import check_counts, check_positive
from priors.draws import Draws
from priors.families.problem import MixtureParameters, Problem, Seen

__all__ = ["LinearGaussian"]


@dataclass(frozen=True)
class LinearGaussian:
    """y = x^T theta + N(0, noise) with theta from a mixture of up to `components` Gaussians drawn at random.

    The exact posterior is a mixture of as many Gaussians, each updated as in Bayesian linear regression, its weight by
    the evidence of the observations under it (Bishop 2006, eqs. 3.50-3.51).

    Args:
        latents: dimensions of theta.
        components: maximum number of Gaussians of a prior.
        noise: variance of the noise.
        spread: standard deviation of the mixture's means, in units of the Gaussians' typical deviation of 1.

    Raises:
        ValueError: a count or variance is not positive.
    """

    latents: int = 2
    components: int = 3
    noise: float = 0.1
    spread: float = 2.0

    hyperparameters = 0
    reading = None

    def __post_init__(self) -> None:
        check_counts(latents=self.latents, components=self.components)
        check_positive(noise=self.noise, spread=self.spread)

    @property
    def features(self) -> int:
        """Columns of a design."""
        return self.latents

    @property
    def inputs(self) -> int:
        """Columns of a design in units of a prior."""
        return self.latents

    @property
    def supports(self) -> tuple[str, ...]:
        """Every latent variable is a real number."""
        return ("real",) * self.latents

    def sample(self, batch: int, rows: int, *, generator: Generator) -> Problem:
        """Draw `batch` problems with `rows` observations each, whose designs are standard normal."""
        check_counts(batch=batch, rows=rows)
        draws, k, d = Draws(batch, generator), self.components, self.latents
        used = torch.arange(k, device=generator.device) <= draws.integers(1, high=k)
        logits = draws.normal(k).where(used, -torch.inf)
        factor = draws.normal(k, d, d) / d**0.5 * draws.uniform(1, 1, 1)
        scale = draws.log_uniform(k, 1, 1, low=0.3, high=2.0)
        eye = torch.eye(d, device=generator.device, dtype=torch.float32)
        tril = torch.linalg.cholesky(scale.square() * (factor @ factor.mT + 0.1 * eye))
        loc = self.spread * draws.normal(k, d)
        mixture = MixtureParameters(logits, loc, tril)
        theta = mixture.draw(draws)
        x = draws.normal(rows, d)
        y = (x @ theta.unsqueeze(-1)).squeeze(-1) + self.noise**0.5 * draws.normal(rows)
        return Problem(x, y, theta, self, None, mixture)

    def own(self, count: int, generator: Generator) -> Float[Tensor, "count latents"]:
        """Draws of theta where nothing is said of its prior: averaged over the meta-prior."""
        return self.sample(count, 1, generator=generator).theta

    def relative(self, x: Tensor, y: Tensor, loc: Tensor, tril: Tensor) -> tuple[Tensor, Tensor]:
        """The same problem for tril^-1 (theta - loc), in units of the noise: x^T tril and y - x^T loc."""
        centred = y - (x @ loc.unsqueeze(-1)).squeeze(-1)
        return x @ tril / self.noise**0.5, centred / self.noise**0.5

    def linearized(self, x: Tensor, y: Tensor, loc: Tensor, tril: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes and residuals of e = g^T u + N(0, 1) for u = tril^-1 (theta - loc), which are exact here."""
        return self.relative(x, y, loc, tril)

    def design(self, x: Float[Tensor, "*batch rows features"]) -> tuple[Tensor, float]:
        """Matrix and noise variance of observations that are linear in theta."""
        return x, self.noise

    def log_likelihood(
        self,
        theta: Float[Tensor, "*draws latents"],
        x: Float[Tensor, "*#draws rows features"],
        y: Float[Tensor, "*#draws rows"],
    ) -> Float[Tensor, "*draws rows"]:
        """log N(y; x^T theta, noise) of every observation."""
        return self.observed(theta, x).log_prob(y)

    def observed(
        self, theta: Float[Tensor, "*draws latents"], x: Float[Tensor, "*#draws rows features"], seen: Seen = None
    ) -> td.Normal:
        """N(x^T theta, noise) of every observation, [*draws, rows]."""
        loc = (x @ theta.unsqueeze(-1)).squeeze(-1)
        return td.Normal(loc, torch.full_like(loc, self.noise**0.5), validate_args=False)

    def posterior(
        self, prior: MixtureParameters, x: Float[Tensor, "*batch rows features"], y: Float[Tensor, "*batch rows"]
    ) -> MixtureParameters:
        """The exact posterior given the observations (x, y)."""
        loc, tril, x, y = prior.loc, prior.scale_tril, x.unsqueeze(-3), y.unsqueeze(-2)
        covariance = tril @ tril.mT
        cross = x @ covariance
        total = cross @ x.mT + self.noise * torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
        residual = y - (x @ loc.unsqueeze(-1)).squeeze(-1)
        factor = torch.linalg.cholesky(total)
        evidence = td.MultivariateNormal(torch.zeros_like(residual), scale_tril=factor)
        gain = torch.cholesky_solve(cross, factor).mT
        after = covariance - gain @ cross
        moved = loc + (gain @ residual.unsqueeze(-1)).squeeze(-1)
        logits = prior.logits.log_softmax(-1) + evidence.log_prob(residual)
        return MixtureParameters(logits, moved, torch.linalg.cholesky((after + after.mT) / 2))

    def prior_of(self, problem: Problem) -> td.MixtureSameFamily:
        """The prior of every problem of a batch, in float64."""
        assert problem.mixture is not None
        return problem.mixture.distribution()

    def log_posterior(self, problem: Problem) -> Float[Tensor, " batch"]:
        """Log density of the exact posterior of every problem at its theta."""
        assert problem.mixture is not None
        prior = MixtureParameters(*(v.double() for v in problem.mixture))
        exact = self.posterior(prior, problem.x.double(), problem.y.double())
        return exact.distribution().log_prob(problem.theta.double())
