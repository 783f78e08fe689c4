"""Observations to come: what a Gaussian mixture over latent variables says of them."""

import math
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.core.observations import observation
from bayesvision.core.roles import Family
from bayesvision.distributions import GaussianMixture, Mixture, Normal, Predictive

__all__ = ["image"]

NODES = 48  # of a Gauss-Hermite rule over one latent variable
POINTS = 128  # of a quasi-random rule over several


@runtime_checkable
class Linear(Protocol):
    """A family whose observations are linear in its real latent variables."""

    def design(self, x: Tensor) -> tuple[Tensor, float]:
        """Matrix A and noise variance of y = A theta + N(0, noise)."""
        ...


def image(
    family: Family,
    latent: GaussianMixture,
    x: Float[Tensor, "*batch rows features"],
    seen: tuple[Tensor, Tensor] | None = None,
) -> Predictive:
    """Distribution of an observation at every design: exact where it is linear in theta, otherwise a quadrature.

    A u + N(0, noise) of a component N(m, L L^T) is N(A m, A L L^T A^T + noise). Elsewhere every component is replaced
    by the points of a rule, each with the distribution that an observation has given theta there.
    """
    if isinstance(family, Linear):
        matrix, noise = family.design(x)
        loc = matrix @ latent.loc.mT
        half = matrix.unsqueeze(-3) @ latent.scale_tril
        scale = (half.square().sum(-1).mT + noise).sqrt()
        return Mixture.of(Normal(loc, scale, validate_args=False), latent.logits.unsqueeze(-2))
    z, weights = _rule(family.latents)
    u = latent.loc.unsqueeze(-2) + z.to(latent.loc) @ latent.scale_tril.mT
    theta = latent.constrained(u).flatten(-3, -2)
    log_weights = (latent.logits.unsqueeze(-1) + weights.to(latent.loc).log()).flatten(-2)
    return observation(family, theta, log_weights, x, seen)


def _rule(latents: int) -> tuple[Float[Tensor, "points latents"], Float[Tensor, " points"]]:
    """Points and weights for expectations over N(0, I): Gauss-Hermite, or Sobol points for several variables."""
    if latents == 1:
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        return torch.as_tensor(nodes).unsqueeze(-1), torch.as_tensor(weights / math.sqrt(2 * math.pi))
    points = torch.quasirandom.SobolEngine(latents, scramble=True, seed=0).draw(POINTS, dtype=torch.float64)
    z = torch.special.ndtri(points.clamp(1e-6, 1 - 1e-6))
    return z, torch.full((POINTS,), 1 / POINTS, dtype=torch.float64)
