"""Importance sampling that turns an approximate posterior into the exact one, and says whether it could."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bayesvision.core.checks import check_inputs
from bayesvision.core.observations import observation
from bayesvision.core.roles import Family, Posterior
from bayesvision.distributions import GaussianMixture, Predictive, WeightedDraws
from bayesvision.training.seeds import generator

__all__ = ["Refined", "refine"]

TRUSTED = 0.7  # of k-hat


class Refined(Posterior):
    """A posterior by importance sampling.

    Attributes:
        latent: weighted draws.
        khat: shape of the weights' Pareto tail; below 0.7 the draws can be trusted.
    """

    def __init__(self, family: Family, latent: WeightedDraws, khat: float, seen: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self.family, self.latent, self.khat, self.seen = family, latent, khat, seen

    def predict(self, x: Any = None) -> Predictive:
        """Distribution of the next observation, noise included: a mixture over the draws."""
        none = x is None and self.family.features == 0
        design = torch.zeros(1, 0) if none else check_inputs(x, self.family.features)
        law = observation(self.family, self.latent.values, self.latent.weights.log(), design.double(), self.seen)
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
    seen = None if x is None or y is None else (x.double(), y.double())
    if seen is not None:
        ratio = ratio + family.log_likelihood(theta, *seen).sum(-1)
    smoothed, khat = psislw(ratio.cpu().numpy())
    weights = torch.as_tensor(smoothed).to(theta).softmax(-1)
    k = float(khat)
    if k > TRUSTED:
        warnings.warn(
            f"the weights have a tail of k-hat = {k:.2f}, above {TRUSTED}: these draws do not stand for the posterior; "
            "take more draws, or run bayesvision.MCMC on this problem",
            stacklevel=3,
        )
    return Refined(family, WeightedDraws(theta, weights), k, seen)
