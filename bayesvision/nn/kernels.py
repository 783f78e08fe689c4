"""Kernels as functions of a Gram matrix, and Cholesky factors that do not fail silently."""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesvision.core.warn import warn

__all__ = ["GramKernel", "KernelName", "arc_cosine", "cholesky", "factor"]

KernelName = Literal["arccos", "gaussian", "rbf", "linear"]
JITTER, LARGEST = 1e-9, 1e-3  # of the mean diagonal: always added, and the most that is tried
TINY = 1e-300


class _ArcCosine(torch.autograd.Function):
    """(1 / pi) (s sin t + (pi - t) G), cos t = G / s, s = sqrt(l r), in few passes over G; and its derivatives.

    These, (pi - t) / pi to G and sin t / pi to s, are finite where that of t is not.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(gram: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore
        slope, half = _slopes(gram, left, right)
        return torch.addcmul(2 * half, slope, gram), slope, half

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs, *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore
        gram, left, right, slope, half = ctx.saved_tensors
        if torch.is_grad_enabled():  # second derivatives
            slope, half = _slopes(gram, left, right)
        moved = g * half
        left, right = left.clamp(min=TINY), right.clamp(min=TINY)
        return g * slope, moved.sum(-1, keepdim=True) / left, moved.sum(-2, keepdim=True) / right


def _slopes(gram: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """(pi - t) / pi, and s sin t / (2 pi)."""
    left, right = left.clamp(min=TINY), right.clamp(min=TINY)
    cosine = (gram * left.rsqrt() * right.rsqrt()).clamp(-1, 1)
    slope = 1 - torch.acos(cosine) / math.pi
    sine = (1 - cosine.square()).clamp(min=0).sqrt()
    return slope, sine * left.sqrt() * (right.sqrt() / (2 * math.pi))


def arc_cosine(
    gram: Float[Tensor, "... n m"], left: Float[Tensor, "... n"], right: Float[Tensor, "... m"]
) -> Float[Tensor, "... n m"]:
    """(1 / pi) sqrt(g_i g_j) (sin t + (pi - t) cos t), cos t = G_ij / sqrt(g_i g_j) (Cho and Saul 2009, n = 1).

    The covariance of a layer of infinitely many rectifiers, whose weights have the variance 2 / width.
    """
    return _ArcCosine.apply(gram, left.unsqueeze(-1), right.unsqueeze(-2))[0]  # pyright: ignore


class GramKernel(nn.Module):
    """K = weight kappa(G) + bias, both positive and learned.

    With g the diagonal of G and cos t = G_ij / sqrt(g_i g_j), kappa is

    - arccos: (1 / pi) sqrt(g_i g_j) (sin t + (pi - t) cos t), the covariance of a rectifying layer (Cho and Saul 2009)
    - gaussian: sqrt(g_i g_j) exp(cos t - 1)
    - rbf: exp(-(g_i + g_j - 2 G_ij) / 2)
    - linear: G

    Args:
        name: of kappa.
        bias: at the start; 0 for a kernel without one, whose weight is 1 then.
    """

    def __init__(self, name: KernelName, bias: float = 0.1) -> None:
        super().__init__()
        self.name = name
        start = torch.tensor([1.0, bias or 1.0], dtype=torch.float64).log()
        self.log_scales = nn.Parameter(start) if bias else None

    def forward(
        self, gram: Float[Tensor, "*batch n m"], left: Float[Tensor, "*batch n"], right: Float[Tensor, "*batch m"]
    ) -> Float[Tensor, "*batch n m"]:
        """Kernel between n and m points, from their Gram matrix and both diagonals."""
        return self._scaled(self._kappa(gram, left, right))

    def diagonal(self, gram: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """Kernel of each point with itself."""
        return self._scaled(torch.ones_like(gram) if self.name == "rbf" else gram)

    def _scaled(self, kappa: Tensor) -> Tensor:
        if self.log_scales is None:
            return kappa
        weight, bias = self.log_scales.exp()
        return weight * kappa + bias

    def _kappa(self, gram: Tensor, left: Tensor, right: Tensor) -> Tensor:
        if self.name == "linear":
            return gram
        if self.name == "arccos":
            return arc_cosine(gram, left, right)
        left, right = left.unsqueeze(-1), right.unsqueeze(-2)
        if self.name == "rbf":
            return torch.exp(-(left + right - 2 * gram).clamp(min=0) / 2)
        norm = (left * right).clamp(min=TINY).sqrt()
        return norm * torch.exp((gram / norm).clamp(max=1) - 1)


def factor(covariance: Float[Tensor, "n n"], layer: str) -> Float[Tensor, "n n"]:
    """Cholesky factor of a covariance in float64, with a jitter relative to its mean diagonal.

    The least jitter, 1e-9, is always added; more is tried in tens up to 1e-3, with a warning.

    Raises:
        ValueError: not finite, or not positive definite even so; it names the layer and the likely cause.
    """
    scale = covariance.diagonal().mean()
    if not torch.isfinite(covariance).all():
        raise ValueError(
            f"the kernel of {layer} holds NaN or infinite values; the learning rate is too large, or the inputs are"
        )
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    jitter = JITTER
    while jitter <= 1.001 * LARGEST:
        found, info = torch.linalg.cholesky_ex(covariance + jitter * scale * eye)
        if not info:
            if jitter > JITTER:
                warn(
                    f"the kernel of {layer} is nearly singular: {jitter:.0e} of its diagonal was added to factorise it"
                )
            return found
        jitter *= 10
    values = torch.linalg.eigvalsh(covariance.detach())
    raise ValueError(
        f"the kernel of {layer} is not positive definite: its eigenvalues lie between {float(values[0]):.1e} and "
        f"{float(values[-1]):.1e}; look for repeated rows and constant columns, or lower the learning rate"
    )


def cholesky(precision: Float[Tensor, "*batch n n"], what: str) -> Float[Tensor, "*batch n n"]:
    """Cholesky factor of a matrix that is positive definite by its making, such as I + A A^T.

    Raises:
        ValueError: numbers that are too large or not finite.
    """
    found, info = torch.linalg.cholesky_ex(precision)
    if bool(info.any()) or not torch.isfinite(found).all():
        raise ValueError(f"{what} cannot be factorised, since its numbers became too large; lower the learning rate")
    return found
