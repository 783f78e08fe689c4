"""Quantiles, their levels and quadrature that the families share."""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["integrate", "laguerre", "quantile", "rule"]


@torch.no_grad()
def quantile(
    law: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, low: Tensor, high: Tensor, level: Tensor
) -> Tensor:
    """Solve F(y) = level, bracketed by `low` and `high`, where `law(y)` is F and its density there.

    Newton's method on Phi^-1(F(y)) = Phi^-1(level), where the normal's F is a line, so that a mixture's takes a few
    steps, also in the tails. A step that leaves the bracket, or comes when three steps did not halve it, goes to its
    middle instead. The result carries no gradient. Equal ends are the answer themselves, infinite ones too.
    """
    eps = torch.finfo(start.dtype).eps
    middle = torch.where(low == high, low, low + (high - low) / 2)
    y = torch.where((start > low) & (start < high), start, middle)
    aim, width, done = torch.special.ndtri(level), high - low, low == high
    for step in range(200):
        below, density = law(y)
        off = below - level
        rounding = level * (4 + aim.square()) + 4 * density * y.abs()  # of F: of its terms, and of y itself
        done = done | (off.abs() <= eps * rounding)
        low, high = torch.where((off < 0) & ~done, y, low), torch.where((off >= 0) & ~done, y, high)
        probit = torch.special.ndtri(below)
        slope = density / (torch.exp(-probit.square() / 2) / math.sqrt(2 * math.pi))
        new = y - (probit - aim) / slope
        middle = low + (high - low) / 2
        slow = (high - low > width / 2) if step % 3 == 2 else torch.zeros_like(done)
        width = (high - low) if step % 3 == 2 else width
        new = torch.where((new > low) & (new < high) & ~slow, new, middle)
        new = torch.where(done, y, new)
        done = done | ((new - y).abs() <= eps * y.abs())
        y = new
        if bool(done.all()):
            break
    return y


def laguerre(like: Tensor, order: int = 40) -> tuple[Float[Tensor, " nodes"], Float[Tensor, " nodes"]]:
    """Nodes and weights of int_0^inf f(w) exp(-w) dw, on the device of `like` and in float64."""
    nodes, weights = np.polynomial.laguerre.laggauss(order)
    return torch.as_tensor(nodes, device=like.device), torch.as_tensor(weights, device=like.device)


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
    points, weights = rule(knots, order)
    return (weights * function(points)).sum((0, 1))


def rule(
    knots: Float[Tensor, "*batch knots"], order: int = 4
) -> tuple[Float[Tensor, "nodes intervals *batch"], Float[Tensor, "nodes intervals *batch"]]:
    """Points and weights of a Gauss-Legendre rule between neighbours among the sorted `knots`."""
    nodes, weights = (torch.as_tensor(v).to(knots) for v in np.polynomial.legendre.leggauss(order))
    half = knots.diff(dim=-1).unsqueeze(-1) / 2
    points = knots[..., :-1].unsqueeze(-1) + half * (1 + nodes)
    return points.movedim((-1, -2), (0, 1)), (half * weights).movedim((-1, -2), (0, 1))
