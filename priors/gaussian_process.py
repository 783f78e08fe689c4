"""Gaussian processes as priors, with fixed hyper-parameters or with hyper-priors."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from priors.checks import check_counts, check_positive, feature_range
from priors.designs import Design, check_design, draw_inputs
from priors.exact import GaussianPosterior, condition
from priors.kernels import Kernel, check_kernel, correlation, gram, safe_cholesky, scaled_distance
from priors.task import Task

__all__ = ["GaussianProcess", "GaussianProcessMixture"]

KERNELS: tuple[Kernel, ...] = ("rbf", "matern12", "matern32", "matern52")


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
        return condition(self, x, y)


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
