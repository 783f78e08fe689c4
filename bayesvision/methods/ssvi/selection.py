"""Which weights are kept: how many in each layer, which go, and which come in their place."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from bayesvision.methods.ssvi.layers import SparseLayer
from bayesvision.training.optimizers import Optimizers

__all__ = ["Allocation", "Criterion", "exchange", "kept_counts", "random_places", "score"]

Criterion = Literal["magnitude", "ratio", "expected_magnitude", "snr", "exponential", "exponential_snr"]
Allocation = Literal["erk", "uniform"]


def score(
    criterion: Criterion, mu: Float[Tensor, " kept"], sigma: Float[Tensor, " kept"], exponent: float = 1.0
) -> Float[Tensor, " kept"]:
    """How much each weight theta ~ N(mu, sigma^2) is worth keeping; the least go first (section 4.2).

    With a = |mu| / sigma, phi and Phi of the standard normal, d = 2 (phi(a) - a Phi(-a)), l the exponent and
    M(l) = E exp(l |theta|):

    - magnitude: |mu|
    - ratio: a
    - expected_magnitude: E|theta| = sigma (a + d)
    - snr: E|theta| / sd|theta| = (a + d) / sqrt(1 - 2 a d - d^2), which loses no digits where a is large
    - exponential: log M(l)
    - exponential_snr: M(l) / sqrt(M(2 l) - M(l)^2)
    """
    size = mu.abs()
    sigma = sigma.clamp(min=torch.finfo(sigma.dtype).tiny ** 0.5)
    a = size / sigma
    if criterion == "magnitude":
        return size
    if criterion == "ratio":
        return a
    if criterion == "exponential":
        return _log_moment(exponent, size, sigma)
    if criterion == "exponential_snr":
        gap = _log_moment(2 * exponent, size, sigma) - 2 * _log_moment(exponent, size, sigma)
        return gap.clamp(min=torch.finfo(gap.dtype).tiny).expm1().rsqrt()
    density = (-0.5 * a.square()).exp() / math.sqrt(2 * math.pi)
    d = (2 * (density - a * torch.special.ndtr(-a))).clamp(min=0)
    return sigma * (a + d) if criterion == "expected_magnitude" else (a + d) * (1 - 2 * a * d - d.square()).rsqrt()


def _log_moment(exponent: float, size: Tensor, sigma: Tensor) -> Tensor:
    """log E exp(l |theta|) = log of the sum over both signs of e^{l^2 s^2 / 2 +- l mu} Phi(+-mu / s + l s)."""
    a, b = size / sigma, exponent * sigma
    ends = [sign * exponent * size + torch.special.log_ndtr(sign * a + b) for sign in (1, -1)]
    return b.square() / 2 + torch.logaddexp(*ends)


def kept_counts(shapes: Sequence[tuple[int, ...]], density: float, allocation: Allocation) -> list[int]:
    """How many weights each layer keeps: at least one for every output, and all it has at most.

    - erk: shares in proportion to (outputs + inputs + sides of the kernel) / weights, such that `density` of all
      weights are kept (Erdos-Renyi-kernel; Evci et al. 2020, arXiv 1911.11134, section 3)
    - uniform: `density` in every layer but the first, which stays dense (the paper, section 5.1)
    """
    sizes = [math.prod(shape) for shape in shapes]
    if allocation == "uniform":
        shares = [1.0 if k == 0 and len(shapes) > 1 else density for k in range(len(shapes))]
    else:
        shares = _erdos_renyi(shapes, sizes, density)
    return [min(n, max(round(share * n), shape[0])) for share, n, shape in zip(shares, sizes, shapes, strict=True)]


def _erdos_renyi(shapes: Sequence[tuple[int, ...]], sizes: list[int], density: float) -> list[float]:
    raw = [sum(shape) / n for shape, n in zip(shapes, sizes, strict=True)]
    dense: set[int] = set()  # layers whose share would be above one
    while True:
        wanted = density * sum(sizes) - sum(sizes[k] for k in dense)
        rest = [k for k in range(len(sizes)) if k not in dense]
        if not rest:
            return [1.0] * len(sizes)
        factor = wanted / sum(raw[k] * sizes[k] for k in rest)
        over = {k for k in rest if factor * raw[k] > 1}
        if not over:
            return [1.0 if k in dense else max(factor, 0.0) * raw[k] for k in range(len(sizes))]
        dense |= over


def random_places(shape: tuple[int, ...], count: int, source: Generator) -> Int[Tensor, " count"]:
    """`count` flat places at random, ascending, at least one of every output."""
    size, inner = math.prod(shape), math.prod(shape[1:])
    first = torch.arange(shape[0]) * inner + torch.randint(inner, (shape[0],), generator=source)
    rank = torch.randperm(size, generator=source)
    rank[first] = -1  # these are in any case
    return rank.topk(count, largest=False).indices.sort().values


def largest_places(weight: Tensor, count: int) -> Int[Tensor, " count"]:
    """The flat places of the `count` largest weights, ascending, the largest of every output among them."""
    rank = weight.detach().abs().flatten(1).clone()
    rank.scatter_(1, rank.argmax(1, keepdim=True), torch.inf)
    return rank.flatten().topk(count).indices.sort().values


def _least(layer: SparseLayer, worth: Float[Tensor, " kept"], fraction: float) -> Int[Tensor, " going"]:
    """Which of the kept weights go: the least, the best of each output aside."""
    kept, outputs = len(layer.index), layer.shape[0]
    row = layer.index // (layer.size // outputs)
    best = torch.full((outputs,), -torch.inf, dtype=worth.dtype, device=worth.device).scatter_reduce(
        0, row, worth, "amax"
    )
    ties = (worth == best[row]).nonzero().squeeze(-1)
    first = torch.full((outputs,), kept, device=worth.device).scatter_reduce(0, row[ties], ties, "amin")
    worth = worth.index_fill(0, first, torch.inf)
    count = min(int(fraction * kept), kept - outputs, layer.size - kept)
    return worth.topk(max(count, 0), largest=False).indices


@torch.no_grad()
def exchange(
    layer: SparseLayer,
    gradient: Tensor,
    fraction: float,
    criterion: Criterion,
    exponent: float,
    optimizers: Optimizers | None = None,
) -> int:
    """Let the least weights of a layer go, and take as many with the largest gradients; returns how many.

    The best weight of every output stays. New weights start at mean zero, with the layer's mean standard deviation and
    optimiser states of zero. None of those that go comes back at once.

    Args:
        gradient: of the loss in all means, dense.
        fraction: of the kept weights that are exchanged.
    """
    going = _least(layer, score(criterion, layer.mu, layer.sigma, exponent), fraction)
    count = len(going)
    if not count:
        return 0
    steep = gradient.abs().flatten().clone()
    steep[layer.index] = -1.0
    coming = steep.topk(count).indices
    stay = torch.ones(len(layer.index), dtype=torch.bool, device=steep.device)
    stay[going] = False
    index, order = torch.cat([layer.index[stay], coming]).sort()

    def moved(values: Tensor, new: float | Tensor) -> Tensor:
        return torch.cat([values[stay], torch.zeros_like(values[:count]) + new])[order]

    for parameter in (layer.mu, layer.rho) if optimizers is not None else ():
        assert optimizers is not None
        for value in optimizers.state_of(parameter).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value.copy_(moved(value, 0.0))
    spread = layer.sigma.mean()
    layer.rewire(index, moved(layer.mu, 0.0), moved(layer.rho, spread + (-(-spread).expm1()).log()))
    return count
