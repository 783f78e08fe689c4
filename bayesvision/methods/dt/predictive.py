"""Observations to come: what a Gaussian mixture over latent variables, or draws from it, say of them."""

import math
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.core.checks import check_inputs
from bayesvision.core.observations import observation
from bayesvision.core.roles import Draws, Family
from bayesvision.distributions import GaussianMixture, Mixture, Normal, Predictive
from bayesvision.training.seeds import generator, seeded

__all__ = ["drawn", "image"]

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


def drawn(
    family: Family, latent: GaussianMixture, seen: tuple[Tensor | None, Tensor | None], x: Any, count: int, seed: int
) -> Draws:
    """`count` draws of theta, and observations given each of them at `x`, or at those seen.

    Raises:
        ValueError: a batch of problems.
    """
    if tuple(latent.batch_shape):
        raise ValueError(f"draws are of one problem, got a batch {tuple(latent.batch_shape)}; take them one by one")
    theta = latent.sample((count,), generator(latent.loc.device, seed)).unsqueeze(0)
    sites, known = (
        {"theta": theta},
        None if seen[0] is None or seen[1] is None else (seen[0].double(), seen[1].double()),
    )
    if x is None and known is None:
        return Draws(sites)
    design = known[0] if x is None and known is not None else check_inputs(x, family.features).to(theta)
    alone, y = family.observed(theta, design), known[1] if x is None and known is not None else None
    with seeded(seed):
        some = alone.sample()[0, 0] if y is None else y
    pointwise = torch.allclose(alone.log_prob(some), family.log_likelihood(theta, design, some), atol=1e-6)
    if known is not None and x is not None:  # what was seen may tell of new rows beyond theta
        given = family.observed(theta, design, known)
        pointwise = pointwise and torch.allclose(given.log_prob(some), alone.log_prob(some), atol=1e-6)
    law = alone if pointwise or known is None else family.observed(theta, design, known)
    return Draws(sites, law, design, y, pointwise)
