"""`BayesianLinear`: linear models as a prior."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from priors.checks import check_counts, check_positive
from priors.designs import Design, check_design, draw_inputs
from priors.exact import GaussianPosterior, condition
from priors.task import Task

__all__ = ["BayesianLinear"]


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
        return condition(self, x, y)
