"""Where the one-hot variables of a machine lie in a flat vector."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Block", "Layout"]


class Block(NamedTuple):
    """Variables with the same number of levels on one grid; flat, the levels come last and the rows of the grid first.

    Attributes:
        height, width: of the grid, 1 where there is none.
        groups: variables at each place.
        levels: of each variable.
    """

    height: int
    width: int
    groups: int
    levels: int

    @property
    def count(self) -> int:
        """Number of variables."""
        return self.height * self.width * self.groups

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.count * self.levels


class Layout:
    """Blocks one after the other.

    Args:
        layers: the blocks of each.
    """

    def __init__(self, layers: tuple[tuple[Block, ...], ...]) -> None:
        self.layers = layers
        self.blocks = tuple(block for layer in layers for block in layer)
        self.sizes = [block.size for block in self.blocks]
        self.size, self.count = sum(self.sizes), sum(block.count for block in self.blocks)

    def grouped(self, flat: Float[Tensor, "*batch size"]) -> "list[Float[Tensor, '*batch count levels']]":
        """The entries of every block, variable by variable."""
        parts = flat.split(self.sizes, -1)
        return [p.unflatten(-1, (b.count, b.levels)) for p, b in zip(parts, self.blocks, strict=True)]

    def each(self, function: Callable[[Tensor], Tensor], flat: Tensor) -> Float[Tensor, "*batch size"]:
        """`function` of every variable's levels, which are its last axis."""
        return torch.cat([function(part).expand(part.shape).flatten(-2) for part in self.grouped(flat)], -1)

    def log_softmax(self, logits: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        """Log probabilities of every variable."""
        return self.each(lambda v: v.log_softmax(-1), logits)

    def softmax(self, logits: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        """Probabilities of every variable."""
        return self.each(lambda v: v.softmax(-1), logits)

    def sums(self, flat: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        """At every entry the sum over the levels of its variable."""
        return self.each(lambda v: v.sum(-1, keepdim=True), flat)

    def centered(self, flat: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        """Every entry less the mean over the levels of its variable: what is along the simplex."""
        return self.each(lambda v: v - v.mean(-1, keepdim=True), flat)

    def layer_sizes(self) -> list[int]:
        """Number of entries of every layer."""
        return [sum(block.size for block in layer) for layer in self.layers]

    def spans(self) -> list[tuple[int, int]]:
        """Where the levels of each variable begin and end."""
        found, first = [], 0
        for block in self.blocks:
            found += [(first + k * block.levels, first + (k + 1) * block.levels) for k in range(block.count)]
            first += block.size
        return found

    def names(self, device: torch.device) -> Int[Tensor, " size"]:
        """Number of the variable that each entry belongs to."""
        levels = torch.cat([torch.full((b.count,), b.levels) for b in self.blocks])
        return torch.arange(self.count).repeat_interleave(levels).to(device)
