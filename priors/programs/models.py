"""Our own priors as pyro models, for Markov chain Monte Carlo."""

import math
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from priors.curves import PARAMETER_PRIORS, LearningCurves
from priors.gaussian_process import GaussianProcess, GaussianProcessMixture
from priors.kernels import correlation, scaled_distance
from priors.linear import BayesianLinear
from priors.networks import RandomNetwork

__all__ = ["CurveProgram", "LinearProgram", "NetworkProgram", "ProcessMixtureProgram", "ProcessProgram", "model"]

JITTER = 1e-6  # of the output variance, where a covariance without noise is factorised
CELLS = 4_000_000  # numbers of one block of covariance matrices: bounds the memory of predictive
Draws = dict[str, Tensor]


# Programs of our own priors. Called with x and y, each is a pyro model whose observed site is "y"; `predictive` gives
# the distribution of y at new rows for every posterior draw.


def _vector(law: Any, *shape: int) -> Any:
    """Independent draws from `law`, as one event of the given shape."""
    return law.expand(shape).to_event(len(shape))


@dataclass(frozen=True)
class LinearProgram:
    """`BayesianLinear` as a pyro model with the latent sites `weights` and `intercept`."""

    prior: BayesianLinear

    def __call__(self, x: Float[Tensor, "n features"], y: Float[Tensor, " n"] | None = None) -> Tensor:
        zero, prior = x.new_zeros(()), self.prior
        weights = pyro.sample("weights", _vector(dist.Normal(zero, math.sqrt(prior.weight_variance)), x.shape[-1]))
        intercept = pyro.sample("intercept", dist.Normal(zero, math.sqrt(prior.intercept_variance)))
        with pyro.plate("rows", x.shape[-2]):
            return pyro.sample("y", dist.Normal(x @ weights + intercept, math.sqrt(prior.noise)), obs=y)

    def predictive(
        self,
        draws: Draws,
        x_seen: Float[Tensor, "n features"],
        y_seen: Float[Tensor, " n"],
        x: Float[Tensor, "m features"],
    ) -> tuple[Float[Tensor, "draws m"], Float[Tensor, "draws m"]]:
        """Mean and standard deviation of y at the rows of `x` for every draw: x w + intercept, and sqrt(noise)."""
        mean = draws["weights"] @ x.mT + draws["intercept"].unsqueeze(-1)
        return mean, torch.full_like(mean, math.sqrt(self.prior.noise))


@dataclass(frozen=True)
class NetworkProgram:
    """`RandomNetwork` for regression as a pyro model with the latent sites `weight0`, `bias0`, `weight1`, ..."""

    prior: RandomNetwork

    def __call__(self, x: Float[Tensor, "n features"], y: Float[Tensor, " n"] | None = None) -> Tensor:
        theta, normal = {}, dist.Normal(x.new_zeros(()), x.new_ones(()))
        for k, shape in enumerate(self.prior.shapes(x.shape[-1])):
            theta[f"weight{k}"] = pyro.sample(f"weight{k}", _vector(normal, *shape))
            theta[f"bias{k}"] = pyro.sample(f"bias{k}", _vector(normal, shape[1]))
        mean = self.prior.function(x, theta).squeeze(-1)
        with pyro.plate("rows", x.shape[-2]):
            return pyro.sample("y", dist.Normal(mean, math.sqrt(self.prior.noise)), obs=y)

    def predictive(
        self,
        draws: Draws,
        x_seen: Float[Tensor, "n features"],
        y_seen: Float[Tensor, " n"],
        x: Float[Tensor, "m features"],
    ) -> tuple[Float[Tensor, "draws m"], Float[Tensor, "draws m"]]:
        """Mean and standard deviation of y at the rows of `x` for every draw: f(x), and sqrt(noise)."""
        mean = self.prior.function(x, draws).squeeze(-1)
        return mean, torch.full_like(mean, math.sqrt(self.prior.noise))


@dataclass(frozen=True)
class ProcessProgram:
    """`GaussianProcess` as a pyro model with the latent site `z` [rows], f = L z at the rows seen.

    L L^T = k(x, x) + 1e-6 variance I: without the jitter the covariance of the noise-free function may have no
    Cholesky factor.
    """

    prior: GaussianProcess

    def _factor(self, x: Float[Tensor, "n features"]) -> Float[Tensor, "n n"]:
        covariance = self.prior.covariance(x, x)
        return torch.linalg.cholesky(covariance + JITTER * torch.diag(self.prior.variance(x)))

    def __call__(self, x: Float[Tensor, "n features"], y: Float[Tensor, " n"] | None = None) -> Tensor:
        z = pyro.sample("z", _vector(dist.Normal(x.new_zeros(()), x.new_ones(())), x.shape[-2]))
        with pyro.plate("rows", x.shape[-2]):
            return pyro.sample("y", dist.Normal(self._factor(x) @ z, math.sqrt(self.prior.noise)), obs=y)

    def predictive(
        self,
        draws: Draws,
        x_seen: Float[Tensor, "n features"],
        y_seen: Float[Tensor, " n"],
        x: Float[Tensor, "m features"],
    ) -> tuple[Float[Tensor, "draws m"], Float[Tensor, "draws m"]]:
        """Mean and standard deviation of y at the rows of `x` for every draw.

        With A = L^{-1} k(x, x'), f(x') given f = L z is N(A^T z, k(x', x') - A^T A).
        """
        half = torch.linalg.solve_triangular(self._factor(x_seen), self.prior.covariance(x_seen, x), upper=False)
        variance = (self.prior.variance(x) - half.square().sum(-2)).clamp(min=0) + self.prior.noise
        mean = draws["z"] @ half
        return mean, variance.sqrt().expand(mean.shape)


@dataclass(frozen=True)
class ProcessMixtureProgram:
    """`GaussianProcessMixture` as a pyro model with the latent sites `lengthscale`, `noise` and, in the recipe
    `gamma`, `variance`; the function and the kernel are integrated out.

    p(y | x, hyper-parameters) = mean over the kernels of N(y; 0, variance k(x, x) + noise I). The prior raises small
    draws to a floor (noise to 1e-4). Here the sites are the draws before that, and the likelihood applies the same
    floor to them, so that the distribution of y is the prior's own.
    """

    prior: GaussianProcessMixture

    def __call__(self, x: Float[Tensor, "n features"], y: Float[Tensor, " n"] | None = None) -> Tensor:
        one, features = x.new_ones(()), x.shape[-1]
        if self.prior.recipe == "botorch":
            location = (math.sqrt(2) + math.log(features) / 2) * one
            length = _vector(dist.LogNormal(location, math.sqrt(3)), features)
            sites = {"lengthscale": length, "noise": dist.LogNormal(-4 * one, 1.0)}
        else:
            sites = {
                "lengthscale": dist.Gamma(3 * one, 6.0),
                "noise": dist.Gamma(1.1 * one, 0.05),
                "variance": dist.Gamma(0.5 * one, 0.15),
            }
        draws = {name: pyro.sample(name, law) for name, law in sites.items()}
        covariance = self._covariance(draws, x, x) + _diagonal(self._noise(draws), x)
        normals = dist.MultivariateNormal(x.new_zeros(x.shape[-2]), scale_tril=torch.linalg.cholesky(covariance))
        kernels = dist.Categorical(logits=x.new_zeros(len(self.prior.kernels)))
        return pyro.sample("y", dist.MixtureSameFamily(kernels, normals), obs=y)

    def predictive(
        self,
        draws: Draws,
        x_seen: Float[Tensor, "n features"],
        y_seen: Float[Tensor, " n"],
        x: Float[Tensor, "m features"],
    ) -> tuple[Float[Tensor, "draws m"], Float[Tensor, "draws m"]]:
        """Mean and standard deviation of y at the rows of `x` for every draw, by exact conditioning.

        The kernel of each draw is drawn from p(kernel | hyper-parameters, x, y), with random numbers of a fixed seed.
        """
        count = len(draws["noise"])
        source = Generator().manual_seed(0)
        levels = torch.rand(count, 1, generator=source, dtype=torch.float64).to(x)
        block = max(1, CELLS // (len(self.prior.kernels) * len(x_seen) * max(len(x_seen), len(x))))
        parts = [
            self._condition({k: v[i : i + block] for k, v in draws.items()}, levels[i : i + block], x_seen, y_seen, x)
            for i in range(0, count, block)
        ]
        means, stddevs = zip(*parts, strict=True)
        return torch.cat(means), torch.cat(stddevs)

    def _condition(
        self, draws: Draws, levels: Tensor, x_seen: Tensor, y_seen: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        noise = self._noise(draws)
        factor = torch.linalg.cholesky(self._covariance(draws, x_seen, x_seen) + _diagonal(noise, x_seen))
        z = torch.linalg.solve_triangular(factor, y_seen.unsqueeze(-1), upper=False)
        evidence = -z.squeeze(-1).square().sum(-1) / 2 - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        below = evidence.softmax(-1).cumsum(-1)[..., :-1]
        kernel = (levels > below).sum(-1).reshape(-1, 1, 1, 1)
        factor, z = (v.take_along_dim(kernel, 1).squeeze(1) for v in (factor, z))
        cross = self._covariance(draws, x_seen, x).take_along_dim(kernel, 1).squeeze(1)
        half = torch.linalg.solve_triangular(factor, cross, upper=False)
        variance = (self._variance(draws).unsqueeze(-1) - half.square().sum(-2)).clamp(min=0) + noise.unsqueeze(-1)
        return (half.mT @ z).squeeze(-1), variance.sqrt()

    def _noise(self, draws: Draws) -> Float[Tensor, "*draws"]:
        return draws["noise"].clamp(min=1e-4)

    def _variance(self, draws: Draws) -> Float[Tensor, "*draws"]:
        return draws["variance"].clamp(min=1e-4) if "variance" in draws else torch.ones_like(draws["noise"])

    def _covariance(self, draws: Draws, a: Tensor, b: Tensor) -> Float[Tensor, "*draws kernels n m"]:
        length = draws["lengthscale"]
        length = length.unsqueeze(-2) if self.prior.recipe == "botorch" else length.clamp(min=1e-3)[..., None, None]
        squared = scaled_distance(a, b, length)
        correlations = torch.stack([correlation(kernel, squared) for kernel in self.prior.kernels], -3)
        return self._variance(draws)[..., None, None, None] * correlations


def _diagonal(noise: Float[Tensor, "*draws"], x: Float[Tensor, "n features"]) -> Float[Tensor, "*draws 1 n n"]:
    return noise[..., None, None, None] * torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)


@dataclass(frozen=True)
class CurveProgram:
    """`LearningCurves` as a pyro model: its parameters are the latent sites, y_t ~ N(f(t), sigma^2) at the epochs `x`.

    A factor of 0 or -inf holds the curve to what the prior accepts, so the posterior is that of the prior, whose
    normaliser is a constant. A trajectory of the No-U-Turn sampler ends where it leaves that region, and counts as
    divergent.
    """

    prior: LearningCurves

    def __call__(self, x: Float[Tensor, "n 1"], y: Float[Tensor, " n"] | None = None) -> Tensor:
        one, theta = x.new_ones(()), {}
        for name, (law, a, b) in PARAMETER_PRIORS.items():
            family = dist.Uniform(a * one, b * one) if law == "uniform" else dist.LogNormal(a * one, b * one)
            theta[name] = pyro.sample(name, family)
        with torch.no_grad():
            accepted = torch.where(self.prior.fits(theta), 0.0, -math.inf)
        pyro.factor("accepted", accepted)
        with pyro.plate("rows", x.shape[-2]):
            return pyro.sample("y", dist.Normal(self.prior.curve(theta, x.squeeze(-1)), theta["sigma"]), obs=y)

    def predictive(
        self,
        draws: Draws,
        x_seen: Float[Tensor, "n 1"],
        y_seen: Float[Tensor, " n"],
        x: Float[Tensor, "m 1"],
    ) -> tuple[Float[Tensor, "draws m"], Float[Tensor, "draws m"]]:
        """Mean and standard deviation of y at the rows of `x` for every draw: f(t), and sigma."""
        mean = self.prior.curve(draws, x.squeeze(-1))
        return mean, draws["sigma"].unsqueeze(-1).expand(mean.shape)


PROGRAMS: dict[type, Any] = {
    BayesianLinear: LinearProgram,
    GaussianProcess: ProcessProgram,
    GaussianProcessMixture: ProcessMixtureProgram,
    LearningCurves: CurveProgram,
    RandomNetwork: NetworkProgram,
}


def model(prior: Any) -> Any:
    """`prior` as a pyro model with the observed site "y", for Markov chain Monte Carlo.

    Raises:
        TypeError: a prior that has none.
        ValueError: a `RandomNetwork` over classes.
    """
    if type(prior) not in PROGRAMS:
        known = ", ".join(sorted(kind.__name__ for kind in PROGRAMS))
        raise TypeError(f"prior must be one of {known}, got {type(prior).__name__}; write its pyro model(x, y=None)")
    if getattr(prior, "classes", None) is not None:
        raise ValueError(f"classes must be None for a program, got {prior.classes}; only regression has one")
    return PROGRAMS[type(prior)](prior)
