"""Importance sampling that turns an approximate posterior into the exact one, and says whether it could."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.core.checks import check_inputs
from bayesvision.core.roles import Family, Posterior
from bayesvision.distributions import GaussianMixture, Mixture, Normal
from bayesvision.training.seeds import generator

__all__ = ["Refined", "WeightedDraws", "refine"]

TRUSTED = 0.7  # of k-hat


class WeightedDraws:
    """Draws of the latent variables with weights that sum to 1.

    Attributes:
        values: the draws.
        weights: one for each.
    """

    def __init__(self, values: Float[Tensor, "draws latents"], weights: Float[Tensor, " draws"]) -> None:
        self.values, self.weights = values, weights

    @property
    def mean(self) -> Float[Tensor, " latents"]:
        """Weighted mean."""
        return self.weights @ self.values

    @property
    def covariance_matrix(self) -> Float[Tensor, "latents latents"]:
        """Weighted covariance."""
        apart = self.values - self.mean
        return (self.weights.unsqueeze(-1) * apart).mT @ apart

    @property
    def effective_size(self) -> float:
        """1 / sum w^2: so many equally weighted draws say as much."""
        return float(1 / self.weights.square().sum())

    def quantile(self, level: float) -> Float[Tensor, " latents"]:
        """Weighted quantile of every latent variable.

        Raises:
            ValueError: `level` lies outside (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
        order = self.values.argsort(0)
        mass = self.weights[order].cumsum(0)
        place = (mass < level).sum(0).clamp(max=len(self.values) - 1)
        return self.values.gather(0, order).gather(0, place.unsqueeze(0)).squeeze(0)

    def interval(self, mass: float) -> tuple[Float[Tensor, " latents"], Float[Tensor, " latents"]]:
        """Central interval of every latent variable by itself.

        Raises:
            ValueError: `mass` lies outside (0, 1).
        """
        return self.quantile((1 - mass) / 2), self.quantile((1 + mass) / 2)

    def resampled(self, count: int, seed: int = 0) -> Float[Tensor, "count latents"]:
        """Equally weighted draws, by systematic resampling."""
        start = torch.rand((), generator=generator("cpu", seed), dtype=torch.float64)
        points = (torch.arange(count, dtype=torch.float64) + start) / count
        place = torch.searchsorted(self.weights.cumsum(0), points.to(self.weights))
        return self.values[place.clamp(max=len(self.values) - 1)]


class Refined(Posterior):
    """A posterior by importance sampling.

    Attributes:
        latent: weighted draws.
        khat: shape of the weights' Pareto tail; below 0.7 the draws can be trusted.
    """

    def __init__(self, family: Family, latent: WeightedDraws, khat: float) -> None:
        super().__init__()
        self.family, self.latent, self.khat = family, latent, khat

    def predict(self, x: Any = None) -> Mixture:
        """Distribution of the next observation, noise included: a mixture over the draws."""
        none = x is None and self.family.features == 0
        design = torch.zeros(1, 0) if none else check_inputs(x, self.family.features)
        loc, scale = self.family.observed(self.latent.values, design.double().unsqueeze(-3))
        law = Mixture.of(Normal(loc.mT, scale.mT, validate_args=False), self.latent.weights.log().expand(loc.mT.shape))
        return law[..., 0] if none else law


def refine(
    family: Family,
    latent: GaussianMixture,
    log_prior: Callable[[Tensor], Tensor],
    x: Tensor | None,
    y: Tensor | None,
    draws: int,
    seed: int,
) -> Refined:
    """Weights p(theta) p(y | theta) / q(theta) of draws from q = `latent`, smoothed by a generalised Pareto tail."""
    try:
        from arviz import psislw
    except ModuleNotFoundError as error:
        raise ImportError('refine needs arviz: pip install "bayesvision[mcmc]"') from error
    theta = latent.sample((draws,), generator(latent.loc.device, seed))
    ratio = log_prior(theta) - latent.log_prob(theta)
    if x is not None and y is not None:
        ratio = ratio + family.log_likelihood(theta, x.double(), y.double()).sum(-1)
    smoothed, khat = psislw(ratio.cpu().numpy())
    weights = torch.as_tensor(smoothed).to(theta).softmax(-1)
    k = float(khat)
    if k > TRUSTED:
        warnings.warn(
            f"the weights have a tail of k-hat = {k:.2f}, above {TRUSTED}: these draws do not stand for the posterior; "
            "take more draws, or run bayesvision.MCMC on this problem",
            stacklevel=3,
        )
    return Refined(family, WeightedDraws(theta, weights), k)
