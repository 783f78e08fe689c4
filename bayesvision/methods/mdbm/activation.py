"""`activate`: the proximal map of negative entropy less the square, both convex on the simplex together."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["activate"]

CURVATURE = 2.0  # negative entropy is 2-strongly convex on the simplex: where sum v = 0, sum v^2 / z >= 2 |v|^2
INNER = 4  # of Newton's method for w + log w = x, which then has all digits of float64
LOWEST = -1e30  # in place of minus infinity; its exponential is 0
OUTER = 60  # most steps for the multiplier, which comes from above and stops when it no longer moves


def activate(y: Float[Tensor, "*batch groups levels"], step: float) -> Float[Tensor, "*batch groups levels"]:
    """argmin_z |z - y|^2 / 2 + step (sum z log z - |z|^2) over the simplex, for every group by itself.

    At the minimum step (1 + log z) + (1 - 2 step) z = y + nu with sum z = 1; levels at minus infinity have probability
    0. The gradient comes from the implicit function theorem: dz = D (dy - <dy>), with D = z / (step + (1 - 2 step) z)
    and <dy> the mean of dy weighted by D. Arxiv 2307.04990, eq. 16, takes half the square away; since
    sum v^2 / z >= (sum |v|)^2 >= 2 |v|^2 wherever sum v = 0, all of it may be, and interactions may be twice as strong.

    Args:
        y: any logits, of any size.
        step: between 0 and 1/2, where it is softmax(2 y).

    Raises:
        ValueError: a step out of range.
    """
    if not 0 < step <= 1 / CURVATURE:
        raise ValueError(f"step must lie in (0, {1 / CURVATURE}], got {step}")
    return _Activation.apply(y, step)  # pyright: ignore[reportReturnType]


class _Activation(torch.autograd.Function):
    """The solution, and its derivative."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, step: float) -> Tensor:
        z = (y / step).softmax(-1) if step == 1 / CURVATURE else _solved(y, step)
        ctx.save_for_backward(z)
        ctx.step = step
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        slope = z / (ctx.step + (1 - CURVATURE * ctx.step) * z)
        mean = (slope * gradients[0]).sum(-1, keepdim=True) / slope.sum(-1, keepdim=True)
        return slope * (gradients[0] - mean), None


def _solved(y: Tensor, step: float) -> Tensor:
    """By Newton's method on nu: sum z is increasing and convex in it, so from above every step stays above.

    With c = (1 - 2 step) / step, c z = omega((y + nu) / step - 1 + log c), the Wright function omega(x) = W(exp x).
    """
    y = (y - y.amax(-1, keepdim=True)).clamp(min=LOWEST)
    c = (1 - CURVATURE * step) / step
    nu = torch.full_like(y[..., :1], 1 + (1 - CURVATURE) * step)  # where the largest z is 1
    z = torch.zeros_like(y)
    for _ in range(OUTER):
        z = _omega((y + nu) / step - 1 + math.log(c)) / c
        over = z.sum(-1, keepdim=True) - 1
        slope = (z / (step + (1 - CURVATURE * step) * z)).sum(-1, keepdim=True)
        new = nu - over / slope
        if not (new < nu).any() or bool((over <= 4 * torch.finfo(y.dtype).eps).all()):
            break
        nu = torch.minimum(new, nu)
    return z / z.sum(-1, keepdim=True)


def _omega(x: Tensor) -> Tensor:
    """The w > 0 with w + log w = x; 0 where it underflows.

    Newton's method in log w below 1, where w is near exp x, and in w above, where it is near x - log x (Corless and
    Jeffrey 2002).
    """
    low = x.clamp(max=1.0)
    u = low - low.exp().log1p()  # log w, at most 0.6 off
    high = x.clamp(min=1.0)
    w = high - high.log() + high.log() / high
    for _ in range(INNER):
        e = u.exp()
        u = u - (u + e - low) / (1 + e)
        w = w * (1 + high - w.log()) / (1 + w)
    return torch.where(x < 1, u.exp(), w)
