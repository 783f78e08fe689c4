"""How well posteriors of latent variables are calibrated, over problems whose latent variables are known."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.core.checks import check_count, check_inputs
from bayesvision.distributions import GaussianMixture, WeightedDraws
from bayesvision.training.seeds import generator

__all__ = ["latent_pit", "tarp"]


def latent_pit(latent: GaussianMixture | WeightedDraws, theta: Any) -> Float[Tensor, "*batch latents"]:
    """Level P(theta_i <= truth) of every latent variable under its posterior, uniform over problems if it is right.

    Simulation-based calibration with infinitely many draws (Talts et al. 2018, arXiv 1804.06788): hand the levels of
    one variable, one for each problem, to `ks_pvalue`. Of weighted draws it is their share below the truth, and half of
    those equal to it.

    Args:
        latent: posteriors with the batch axes of `theta`.
        theta: true latent variables.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    theta = _truth(latent, theta)
    if isinstance(latent, GaussianMixture):
        return torch.stack([latent.marginal(i).cdf(theta[..., i]) for i in range(theta.shape[-1])], -1).clamp(0, 1)
    apart = latent.values - theta.unsqueeze(-2)
    below = (apart < 0).to(apart) + (apart == 0).to(apart) / 2
    return (latent.weights.unsqueeze(-1) * below).sum(-2).clamp(0, 1)


def tarp(
    latent: GaussianMixture | WeightedDraws, theta: Any, draws: int = 1_000, seed: int = 0
) -> Float[Tensor, "*batch"]:
    """Share of posterior draws that are nearer to a random reference point than the truth, uniform if calibrated.

    Tests of accuracy with random points (Lemos et al. 2023, arXiv 2302.03026, algorithm 2), which see all latent
    variables at once. References are drawn from the box of the true ones, distances in units of their deviations. Hand
    the levels to `ks_pvalue`; ties are broken at random.

    Args:
        latent: posteriors with one batch axis, that of the problems.
        theta: true latent variables [problems, latents].
        draws: from every posterior.
        seed: of draws and references.

    Raises:
        ValueError: shapes that do not fit, fewer than two problems, or no draws.
    """
    theta = _truth(latent, theta)
    check_count("draws", draws)
    if theta.ndim != 2 or len(theta) < 2:
        raise ValueError(f"theta must be [problems, latents] of at least two problems, got {tuple(theta.shape)}")
    rng = generator(theta.device, seed)
    if isinstance(latent, GaussianMixture):
        found = latent.sample((draws,), rng).movedim(0, -2)
    else:
        found = latent.resampled(draws, rng)
    low, high = theta.amin(0), theta.amax(0)
    scale = theta.std(0).clamp(min=torch.finfo(theta.dtype).tiny)
    reference = low + (high - low) * torch.rand(theta.shape, generator=rng, dtype=theta.dtype, device=theta.device)

    def distance(values: Tensor, points: Tensor) -> Tensor:
        return ((values - points) / scale).norm(dim=-1)

    nearer = (distance(found, reference.unsqueeze(-2)) < distance(theta, reference).unsqueeze(-1)).sum(-1)
    tie = torch.rand(nearer.shape, generator=rng, dtype=theta.dtype, device=theta.device)
    return (nearer + tie) / (draws + 1)


def _truth(latent: GaussianMixture | WeightedDraws, theta: Any) -> Float[Tensor, "*batch latents"]:
    mean = latent.mean
    theta = check_inputs(theta, name="theta").to(mean)
    if theta.shape != mean.shape:
        raise ValueError(f"theta must have the shape {tuple(mean.shape)} of the posteriors, got {tuple(theta.shape)}")
    return theta
