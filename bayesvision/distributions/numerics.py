"""Bisection, quantile levels and quadrature that the families share."""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["bisect", "integrate"]


@torch.no_grad()
def bisect(cdf: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, level: Tensor, steps: int = 80) -> Tensor:
    """Solve `cdf(y) = level` for a nondecreasing `cdf` bracketed by `low` and `high`, to the last bit of the dtype.

    The result carries no gradient. Equal ends are the answer themselves, infinite ones too.
    """
    for _ in range(steps):
        middle = torch.where(low == high, low, low + (high - low) / 2)
        below = cdf(middle) < level
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(low == high, low, low + (high - low) / 2)


def tail_levels(count: int) -> Float[Tensor, " levels"]:
    """About `count` levels from 1e-12 to 1 - 1e-12, the same at both ends and denser there."""
    tails = torch.logspace(-12, math.log10(0.5), count // 2 + 1, dtype=torch.float64)
    return torch.cat([tails, (1 - tails[:-1]).flip(0)])


def integrate(
    function: Callable[[Tensor], Tensor], knots: Float[Tensor, "*batch knots"], order: int = 4
) -> Float[Tensor, "*batch"]:
    """Integral of `function` over the range of the sorted `knots`, by a Gauss-Legendre rule between neighbours.

    `function` sees points [nodes, intervals, *batch] and answers with the same shape.
    """
    nodes, weights = (torch.as_tensor(v).to(knots) for v in np.polynomial.legendre.leggauss(order))
    half = knots.diff(dim=-1).unsqueeze(-1) / 2
    points = knots[..., :-1].unsqueeze(-1) + half * (1 + nodes)
    values = function(points.movedim((-1, -2), (0, 1))).movedim((0, 1), (-1, -2))
    return (half * weights * values).sum((-2, -1))
