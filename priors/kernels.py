"""Stationary covariance functions with one lengthscale for each feature."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Kernel", "check_kernel", "correlation", "gram", "safe_cholesky", "scaled_distance"]

Kernel = Literal["rbf", "matern12", "matern32", "matern52"]


def check_kernel(kernel: str) -> None:
    """Raise a `ValueError` unless `kernel` is known."""
    if kernel not in get_args(Kernel):
        raise ValueError(f"kernel must be one of {', '.join(get_args(Kernel))}, got {kernel!r}")


def scaled_distance(
    a: Float[Tensor, "*#batch n features"], b: Float[Tensor, "*#batch m features"], lengthscale: Tensor
) -> Float[Tensor, "*batch n m"]:
    """Squared distance sum_d (a_d - b_d)^2 / lengthscale_d^2."""
    a, b = a / lengthscale, b / lengthscale
    if a.shape[-1] == 1:  # one feature: the difference itself, exact where the expanded square would cancel
        return (a - b.mT).square()
    centre = a.mean(-2, keepdim=True)  # small norms keep the expanded square accurate
    a, b = a - centre, b - centre
    norms = a.square().sum(-1, keepdim=True) + b.square().sum(-1).unsqueeze(-2)
    if a.ndim == b.ndim == 3 and a.shape[0] == b.shape[0]:
        return torch.baddbmm(norms, a, b.mT, alpha=-2).clamp_(min=0)
    return (norms - 2 * a @ b.mT).clamp(min=0)


def correlation(kernel: Kernel, squared: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Correlation at a squared scaled distance r^2 (Rasmussen and Williams 2006, eqs. 4.9 and 4.17).

    RBF exp(-r^2 / 2); Matern 1/2 exp(-r), 3/2 (1 + s) exp(-s) with s = sqrt 3 r,
    5/2 (1 + s + s^2 / 3) exp(-s) with s = sqrt 5 r.
    """
    if kernel == "rbf":
        return torch.exp(-squared / 2)
    smoothness = {"matern12": 1, "matern32": 3, "matern52": 5}[kernel]
    s = torch.sqrt(squared.clamp(min=1e-30) * smoothness)  # the clamp keeps the gradient at distance zero finite
    polynomial = {1: 1.0, 3: 1 + s, 5: 1 + s + s.square() / 3}[smoothness]
    return polynomial * torch.exp(-s)


def gram(
    kernel: Kernel,
    a: Float[Tensor, "*#batch n features"],
    b: Float[Tensor, "*#batch m features"],
    lengthscale: Tensor,
    variance: Tensor | float,
) -> Float[Tensor, "*batch n m"]:
    """Covariance matrix between the rows of `a` and of `b`."""
    return variance * correlation(kernel, scaled_distance(a, b, lengthscale))


def safe_cholesky(matrix: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """Cholesky factor of a batch of covariance matrices; where float32 fails, the whole batch is done in float64.

    Raises:
        ValueError: a matrix is not positive definite in float64 with a jitter of 1e-6 of its largest variance.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not info.any():
        return factor
    diagonal = matrix.diagonal(dim1=-2, dim2=-1).double()
    jitter = 1e-6 * diagonal.amax(-1, keepdim=True).expand_as(diagonal)
    factor, info = torch.linalg.cholesky_ex(matrix.double() + torch.diag_embed(jitter))
    if info.any():
        count = int((info > 0).sum())
        raise ValueError(f"{count} of {info.numel()} covariance matrices are not positive definite; raise the noise")
    return factor.to(matrix.dtype)
