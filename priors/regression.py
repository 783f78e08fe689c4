"""Regression priors in closed form: linear models and Gaussian processes, fixed or with hyper-priors."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Generator, Tensor

from priors.designs import Design, check_counts, check_design, check_positive, draw_inputs
from priors.kernels import Kernel, check_kernel, correlation, gram, safe_cholesky, scaled_distance
from priors.task import Task

if TYPE_CHECKING:
    import priors.pyro

__all__ = ["BayesianLinear", "GaussianPosterior", "GaussianProcess", "GaussianProcessMixture"]

KERNELS: tuple[Kernel, ...] = ("rbf", "matern12", "matern32", "matern52")


@dataclass(frozen=True)
class GaussianPosterior:
    """Exact posterior of a prior whose data are jointly normal given x.

    With the covariance k of the noise-free function, K = k(x, x) + noise I:
    mean k(x', x) K^{-1} y and covariance k(x', x') - k(x', x) K^{-1} k(x, x')
    (Rasmussen and Williams 2006, eqs. 2.25-2.26).
    """

    covariance: "BayesianLinear | GaussianProcess"
    x: Float[Tensor, "*batch n features"]
    factor: Float[Tensor, "*batch n n"]
    weights: Float[Tensor, "*batch n 1"]

    def joint(self, x: Float[Tensor, "*batch m features"]) -> td.MultivariateNormal:
        """Joint law of noisy targets at the rows of `x`, in float64."""
        x = x.double()
        cross, prior = self.covariance.covariance(x, self.x), self.covariance.covariance(x, x)
        half = torch.linalg.solve_triangular(self.factor, cross.mT, upper=False)
        noise = self.covariance.noise * torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
        return td.MultivariateNormal((cross @ self.weights).squeeze(-1), prior - half.mT @ half + noise)

    def predict(self, x: Float[Tensor, "*batch m features"]) -> td.Normal:
        """Marginal law of a noisy target at every row of `x`, in float64."""
        x = x.double()
        cross = self.covariance.covariance(x, self.x)
        half = torch.linalg.solve_triangular(self.factor, cross.mT, upper=False)
        variance = self.covariance.variance(x) - half.square().sum(-2) + self.covariance.noise
        return td.Normal((cross @ self.weights).squeeze(-1), variance.sqrt())


def _condition(covariance: "BayesianLinear | GaussianProcess", x: Tensor, y: Tensor) -> GaussianPosterior:
    if y.shape != x.shape[:-1]:
        raise ValueError(f"y must have one value for each row of x, {tuple(x.shape[:-1])}, got {tuple(y.shape)}")
    x, y = x.double(), y.double().unsqueeze(-1)
    noise = covariance.noise * torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    factor = torch.linalg.cholesky(covariance.covariance(x, x) + noise)
    return GaussianPosterior(covariance, x, factor, torch.cholesky_solve(y, factor))


@dataclass(frozen=True)
class BayesianLinear:
    """y = intercept + x w + noise, with w ~ N(0, weight_variance I) and intercept ~ N(0, intercept_variance).

    Args:
        features: number of columns of x.
        weight_variance, intercept_variance, noise: variances.
        design: how x spreads.

    Raises:
        ValueError: a count or variance is not positive.
    """

    features: int = 1
    weight_variance: float = 1.0
    intercept_variance: float = 1.0
    noise: float = 0.01
    design: Design = "uniform"

    def __post_init__(self) -> None:
        check_counts(features=self.features)
        check_positive(
            weight_variance=self.weight_variance, intercept_variance=self.intercept_variance, noise=self.noise
        )
        check_design(self.design)

    def sample(self, batch: int, rows: int, *, generator: Generator) -> Task:
        """Draw `batch` data sets of `rows` rows."""
        check_counts(batch=batch, rows=rows)
        x = draw_inputs(self.design, batch, rows, self.features, generator)
        normal: Any = {"generator": generator, "device": generator.device, "dtype": torch.float32}
        weights = math.sqrt(self.weight_variance) * torch.randn(batch, self.features, 1, **normal)
        intercept = math.sqrt(self.intercept_variance) * torch.randn(batch, 1, **normal)
        noise = math.sqrt(self.noise) * torch.randn(batch, rows, **normal)
        theta = {"weights": weights.squeeze(-1), "intercept": intercept.squeeze(-1)}
        return Task(x, (x @ weights).squeeze(-1) + intercept + noise, theta, self)

    def covariance(self, a: Tensor, b: Tensor) -> Float[Tensor, "*batch n m"]:
        """Covariance of the noise-free line, intercept_variance + weight_variance a b^T."""
        return self.intercept_variance + self.weight_variance * a @ b.mT

    def variance(self, x: Tensor) -> Float[Tensor, "*batch n"]:
        """Diagonal of `covariance(x, x)`."""
        return self.intercept_variance + self.weight_variance * x.square().sum(-1)

    def posterior(self, x: Float[Tensor, "*batch n features"], y: Float[Tensor, "*batch n"]) -> GaussianPosterior:
        """Exact posterior given the rows (x, y), of which there may be none."""
        return _condition(self, x, y)

    def program(self) -> "priors.pyro.LinearProgram":
        """The same prior as a pyro model, for Markov chain Monte Carlo; needs pyro."""
        from priors.pyro import LinearProgram

        return LinearProgram(self)


@dataclass(frozen=True)
class GaussianProcess:
    """Gaussian process with zero mean and fixed hyper-parameters: y = f(x) + noise.

    Args:
        features: number of columns of x.
        lengthscale: one for all features, or one for each (automatic relevance determination).
        noise, variance_scale: noise variance and output variance.
        kernel: `rbf`, `matern12`, `matern32` or `matern52`.
        design: how x spreads.

    Raises:
        ValueError: an argument is out of range, or there is not one lengthscale for each feature.
    """

    features: int = 1
    lengthscale: float | tuple[float, ...] = 0.3
    noise: float = 0.01
    variance_scale: float = 1.0
    kernel: Kernel = "rbf"
    design: Design = "uniform"

    def __post_init__(self) -> None:
        check_counts(features=self.features)
        check_kernel(self.kernel)
        check_design(self.design)
        scales = self.lengthscale if isinstance(self.lengthscale, tuple | list) else (self.lengthscale,)
        for value in scales:
            check_positive(lengthscale=value, noise=self.noise, variance_scale=self.variance_scale)
        if len(scales) not in (1, self.features):
            raise ValueError(f"lengthscale must be one number or {self.features} numbers, got {len(scales)}")

    def sample(self, batch: int, rows: int, *, generator: Generator) -> Task:
        """Draw `batch` data sets of `rows` rows."""
        check_counts(batch=batch, rows=rows)
        x = draw_inputs(self.design, batch, rows, self.features, generator)
        factor = safe_cholesky(_add_noise(self.covariance(x, x), self.noise))
        z = torch.randn(batch, rows, 1, generator=generator, device=generator.device, dtype=torch.float32)
        return Task(x, (factor @ z).squeeze(-1), None, self)

    def covariance(self, a: Tensor, b: Tensor) -> Float[Tensor, "*batch n m"]:
        """Covariance of the noise-free function."""
        lengthscale = torch.as_tensor(self.lengthscale, dtype=a.dtype, device=a.device)
        return gram(self.kernel, a, b, lengthscale, self.variance_scale)

    def variance(self, x: Tensor) -> Float[Tensor, "*batch n"]:
        """Diagonal of `covariance(x, x)`."""
        return torch.full_like(x[..., 0], self.variance_scale)

    def posterior(self, x: Float[Tensor, "*batch n features"], y: Float[Tensor, "*batch n"]) -> GaussianPosterior:
        """Exact posterior given the rows (x, y), of which there may be none."""
        return _condition(self, x, y)

    def program(self) -> "priors.pyro.ProcessProgram":
        """The same prior as a pyro model, for Markov chain Monte Carlo; needs pyro."""
        from priors.pyro import ProcessProgram

        return ProcessProgram(self)


def _add_noise(covariance: Tensor, noise: Tensor | float) -> Tensor:
    covariance.diagonal(dim1=-2, dim2=-1).add_(noise)
    return covariance


@dataclass(frozen=True)
class GaussianProcessMixture:
    """Gaussian processes with fresh hyper-parameters for every data set.

    `recipe="botorch"` follows BoTorch on the unit cube: a lengthscale LogN(sqrt 2 + ln(D)/2, sqrt 3) for each of the D
    features (Hvarfner et al. 2024, arXiv 2402.02229, section 4), noise variance LogN(-4, 1) but at least 1e-4, and unit
    output variance. `recipe="gamma"` draws one lengthscale Gamma(3, 6) for all features, output variance
    Gamma(0.5, 0.15) and noise variance Gamma(1.1, 0.05), shape and rate, each at least 1e-3, 1e-4 and 1e-4, as the code
    released with the PFN paper does (arXiv 2112.10510).

    Args:
        features: number of columns of x, or a range `(least, most)` drawn anew for each batch.
        recipe: the hyper-priors.
        kernels: one of these is drawn for each data set.
        design: how x spreads.

    Raises:
        ValueError: an argument is out of range.
    """

    features: int | tuple[int, int] = 1
    recipe: Literal["botorch", "gamma"] = "botorch"
    kernels: tuple[Kernel, ...] = KERNELS
    design: Design = "mixed"

    def __post_init__(self) -> None:
        feature_range(self.features)
        check_design(self.design)
        if self.recipe not in ("botorch", "gamma"):
            raise ValueError(f"recipe must be 'botorch' or 'gamma', got {self.recipe!r}")
        if not self.kernels:
            raise ValueError("kernels must name at least one kernel")
        for kernel in self.kernels:
            check_kernel(kernel)

    def hyperparameters(self, batch: int, features: int, generator: Generator) -> dict[str, Tensor]:
        """Draw lengthscales, noise and output variances, and kernel indices."""
        device, kind = generator.device, torch.float32

        def log_normal(location: float, scale: float, *shape: int) -> Tensor:
            return torch.exp(location + scale * torch.randn(*shape, generator=generator, device=device, dtype=kind))

        def gamma(shape: float, rate: float) -> Tensor:
            shapes = torch.full((batch, 1), shape, device=device, dtype=kind)
            return torch._standard_gamma(shapes, generator=generator) / rate

        if self.recipe == "botorch":
            lengthscale = log_normal(math.sqrt(2) + math.log(features) / 2, math.sqrt(3), batch, features)
            noise, variance = (
                log_normal(-4, 1, batch, 1).clamp(min=1e-4),
                torch.ones(batch, 1, device=device, dtype=kind),
            )
        else:
            lengthscale = gamma(3, 6).clamp(min=1e-3).expand(batch, features)
            variance, noise = gamma(0.5, 0.15).clamp(min=1e-4), gamma(1.1, 0.05).clamp(min=1e-4)
        kernel = torch.randint(len(self.kernels), (batch,), generator=generator, device=device)
        return {"lengthscale": lengthscale, "noise": noise, "variance": variance, "kernel": kernel}

    def sample(self, batch: int, rows: int, *, generator: Generator) -> Task:
        """Draw `batch` data sets of `rows` rows."""
        check_counts(batch=batch, rows=rows)
        least, most = feature_range(self.features)
        features = int(torch.randint(least, most + 1, (), generator=generator, device=generator.device))
        x = draw_inputs(self.design, batch, rows, features, generator)
        theta = self.hyperparameters(batch, features, generator)
        squared = scaled_distance(x, x, theta["lengthscale"].unsqueeze(-2))
        covariance = torch.empty_like(squared)
        for k, kernel in enumerate(self.kernels):
            member = theta["kernel"] == k
            covariance[member] = correlation(kernel, squared[member])
        covariance = covariance.mul_(theta["variance"].unsqueeze(-1))
        factor = safe_cholesky(_add_noise(covariance, theta["noise"]))
        z = torch.randn(batch, rows, 1, generator=generator, device=generator.device, dtype=torch.float32)
        return Task(x, (factor @ z).squeeze(-1), theta, self)

    def program(self) -> "priors.pyro.ProcessMixtureProgram":
        """The same prior as a pyro model, for Markov chain Monte Carlo; needs pyro."""
        from priors.pyro import ProcessMixtureProgram

        return ProcessMixtureProgram(self)


def feature_range(features: int | tuple[int, int]) -> tuple[int, int]:
    """The least and the greatest number of features; a `ValueError` unless `features` is a count or a range of them."""
    pair = tuple(features) if isinstance(features, tuple | list) else (features, features)
    for value in pair:
        check_counts(features=value)
    if len(pair) != 2 or pair[0] > pair[1]:
        raise ValueError(f"features must be a number or a range (least, most), got {features!r}")
    return pair[0], pair[1]
