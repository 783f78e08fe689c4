"""Importance sampling that turns an approximate posterior into the exact one, and says whether it could."""

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bayesvision.core.checks import check_inputs
from bayesvision.core.observations import observation
from bayesvision.core.roles import Family, Posterior
from bayesvision.core.warn import warn
from bayesvision.distributions import GaussianMixture, Predictive, WeightedDraws
from bayesvision.methods.dt.prior import ToldPrior
from bayesvision.training.seeds import generator

__all__ = ["Refined", "refine"]

TRUSTED = 0.7  # of k-hat
DEFENCE = 0.1  # share of draws from the prior


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
    prior: ToldPrior,
    seen: tuple[Tensor, Tensor] | None,
    draws: int,
    seed: int,
) -> Refined:
    """Weights p(theta) p(y | theta) / q(theta), smoothed by a generalised Pareto tail.

    Draws are from q, nine parts `latent` and one part the prior: a defensive mixture, whose weights are bounded by ten
    times the largest likelihood, however light the tails of `latent` are (Hesterberg 1995).

    Raises:
        ValueError: a prior told by draws.
        ImportError: arviz is not installed.
    """
    psislw = _smoother()
    log_prior, rng = prior.log_density(family), generator(latent.loc.device, seed)
    few = max(1, round(DEFENCE * draws))
    theta = torch.cat([latent.sample((draws - few,), rng), prior.sample(family, few, rng).to(latent.loc)])
    before, share = log_prior(theta), few / draws
    proposal = torch.logaddexp(latent.log_prob(theta) + math.log1p(-share), before + math.log(share))
    ratio = before - proposal
    if seen is not None:
        ratio = ratio + family.log_likelihood(theta, *seen).sum(-1)
    smoothed, khat = psislw(ratio.cpu().numpy())
    weights = torch.as_tensor(smoothed).to(theta).softmax(-1)
    k = float(khat)
    if k > TRUSTED:
        warn(
            f"the weights have a tail of k-hat = {k:.2f}, above {TRUSTED}: these draws do not stand for the posterior; "
            "take more draws, or run bayesvision.MCMC on this problem"
        )
    return Refined(family, WeightedDraws(theta, weights), k, seen)


def _smoother() -> Callable[[Any], tuple[Any, Any]]:
    """ArviZ's Pareto smoothing of log weights, which has another place since version 1.0."""
    try:
        import arviz

        if hasattr(arviz, "psislw"):
            return arviz.psislw
        stats = importlib.import_module("arviz_stats.base")
    except ModuleNotFoundError as error:
        raise ImportError('refine needs arviz: pip install "bayesvision[mcmc]"') from error
    return lambda weights: stats.array_stats.psislw(-weights)  # it takes log likelihoods
