"""Beliefs that move: what a transition makes of the components of a Gaussian mixture."""

import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.core.motion import Motion

__all__ = ["moved"]


def moved(
    loc: Float[Tensor, "*batch components latents"],
    scale_tril: Float[Tensor, "*batch components latents latents"],
    motion: Motion,
) -> tuple[Tensor, Tensor]:
    """Means and Cholesky factors after theta' = f(theta) + N(0, noise).

    A matrix F is exact: F m and F S F^T + Q. A function is taken at the 2 d sigma points m +- sqrt(d) L_i, and the
    moments of the images are matched (Julier and Uhlmann 2004, eq. 12 with kappa = 0).

    Raises:
        ValueError: a belief without volume.
    """
    if motion.matrix is None:
        d = loc.shape[-1]
        steps = d**0.5 * scale_tril.mT
        image = motion.function(loc.unsqueeze(-2) + torch.cat([steps, -steps], -2))
        loc = image.mean(-2)
        apart = image - loc.unsqueeze(-2)
        covariance = apart.mT @ apart / (2 * d)
    else:
        loc, half = loc @ motion.matrix.mT, motion.matrix @ scale_tril
        covariance = half @ half.mT
    factor, info = torch.linalg.cholesky_ex(covariance + motion.noise)
    if info.any():
        raise ValueError("the moved belief has no volume; add noise to the variables that the transition fixes")
    return loc, factor
