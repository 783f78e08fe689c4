"""Beliefs that move: what a transition makes of the components of a Gaussian mixture."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.core.checks import as_tensor

__all__ = ["moved"]


def moved(
    loc: Float[Tensor, "*batch components latents"],
    scale_tril: Float[Tensor, "*batch components latents latents"],
    transition: Any,
    noise: Any,
) -> tuple[Tensor, Tensor]:
    """Means and Cholesky factors after theta' = transition(theta) + N(0, noise).

    A matrix F is exact: F m and F S F^T + Q. A function is taken at the 2 d sigma points m +- sqrt(d) L_i, and the
    moments of the images are matched (Julier and Uhlmann 2004, eq. 12 with kappa = 0).

    Raises:
        ValueError: wrong shapes, or a covariance that is not symmetric and positive semi-definite.
    """
    d = loc.shape[-1]
    noise = _covariance(noise, d).to(loc)
    if callable(transition):
        steps = d**0.5 * scale_tril.mT
        points = loc.unsqueeze(-2) + torch.cat([steps, -steps], -2)
        image = torch.as_tensor(transition(points)).to(loc)
        if image.shape != points.shape:
            raise ValueError(f"transition must keep the shape [..., {d}], got {tuple(image.shape)}")
        loc = image.mean(-2)
        apart = image - loc.unsqueeze(-2)
        covariance = apart.mT @ apart / (2 * d)
    else:
        matrix = as_tensor("transition", transition).to(loc)
        if matrix.shape != (d, d):
            raise ValueError(f"transition must be a matrix [{d}, {d}] or a function, got {tuple(matrix.shape)}")
        loc, half = loc @ matrix.mT, matrix @ scale_tril
        covariance = half @ half.mT
    factor, info = torch.linalg.cholesky_ex(covariance + noise)
    if info.any():
        raise ValueError("the moved belief has no volume; add noise to the variables that the transition fixes")
    return loc, factor


def _covariance(noise: Any, d: int) -> Float[Tensor, "latents latents"]:
    found = as_tensor("noise", noise).double()
    if found.shape != (d, d):
        raise ValueError(f"noise must be a covariance [{d}, {d}], got {tuple(found.shape)}")
    least = torch.linalg.eigvalsh(found).min()
    if not torch.allclose(found, found.mT) or least < -1e-9 * found.abs().max():
        raise ValueError(f"noise must be symmetric and positive semi-definite, got the eigenvalue {float(least):g}")
    return found
