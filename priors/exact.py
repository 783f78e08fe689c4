"""The exact posterior of priors whose data are jointly normal."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Tensor

__all__ = ["Gaussian", "GaussianPosterior", "condition"]


@runtime_checkable
class Gaussian(Protocol):
    """A prior whose noise-free values are jointly normal given x, seen with independent normal noise."""

    @property
    def noise(self) -> float:
        """Noise variance."""
        ...

    def covariance(self, a: Tensor, b: Tensor) -> Tensor:
        """Covariance [*batch, n, m] of the noise-free values at the rows of `a` and of `b`."""
        ...

    def variance(self, x: Tensor) -> Tensor:
        """Diagonal of `covariance(x, x)`."""
        ...


@dataclass(frozen=True)
class GaussianPosterior:
    """Exact posterior of a prior whose data are jointly normal given x.

    With the covariance k of the noise-free function, K = k(x, x) + noise I:
    mean k(x', x) K^{-1} y and covariance k(x', x') - k(x', x) K^{-1} k(x, x')
    (Rasmussen and Williams 2006, eqs. 2.25-2.26).
    """

    prior: Gaussian
    x: Float[Tensor, "*batch n features"]
    factor: Float[Tensor, "*batch n n"]
    weights: Float[Tensor, "*batch n 1"]

    def joint(self, x: Float[Tensor, "*batch m features"]) -> td.MultivariateNormal:
        """Joint distribution of noisy targets at the rows of `x`, in float64."""
        x = x.double()
        cross, before = self.prior.covariance(x, self.x), self.prior.covariance(x, x)
        half = torch.linalg.solve_triangular(self.factor, cross.mT, upper=False)
        noise = self.prior.noise * torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
        return td.MultivariateNormal((cross @ self.weights).squeeze(-1), before - half.mT @ half + noise)

    def predict(self, x: Float[Tensor, "*batch m features"]) -> td.Normal:
        """Marginal distribution of a noisy target at every row of `x`, in float64."""
        x = x.double()
        cross = self.prior.covariance(x, self.x)
        half = torch.linalg.solve_triangular(self.factor, cross.mT, upper=False)
        variance = self.prior.variance(x) - half.square().sum(-2) + self.prior.noise
        return td.Normal((cross @ self.weights).squeeze(-1), variance.sqrt())


def condition(
    prior: Gaussian, x: Float[Tensor, "*batch n features"], y: Float[Tensor, "*batch n"]
) -> GaussianPosterior:
    """Exact posterior of `prior` given the rows (x, y), of which there may be none.

    Raises:
        ValueError: not one target for each row.
    """
    if y.shape != x.shape[:-1]:
        raise ValueError(f"y must have one value for each row of x, {tuple(x.shape[:-1])}, got {tuple(y.shape)}")
    x, y = x.double(), y.double().unsqueeze(-1)
    noise = prior.noise * torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    factor = torch.linalg.cholesky(prior.covariance(x, x) + noise)
    return GaussianPosterior(prior, x, factor, torch.cholesky_solve(y, factor))
