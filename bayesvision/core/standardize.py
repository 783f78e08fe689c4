"""`Standardization`: columns and target brought to mean 0 and standard deviation 1."""

from typing import NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Standardization", "statistics"]


class Standardization(NamedTuple):
    """Standardised units: (x - x_loc) / x_scale for each column and (y - y_loc) / y_scale."""

    x_loc: Float[Tensor, "*batch 1 features"]
    x_scale: Float[Tensor, "*batch 1 features"]
    y_loc: Float[Tensor, "*batch 1"]
    y_scale: Float[Tensor, "*batch 1"]

    @classmethod
    def of(cls, x: Float[Tensor, "*batch n features"], y: Float[Tensor, "*batch n"] | None, standardize: bool) -> Self:
        """Mean and standard deviation of the rows, scale 1 where there is no spread.

        The identity without `standardize` or without rows; the target's is the identity without `y`.
        """
        x_loc, y_loc = x.new_zeros(*x.shape[:-2], 1, x.shape[-1]), x.new_zeros(*x.shape[:-2], 1)
        x_scale, y_scale = torch.ones_like(x_loc), torch.ones_like(y_loc)
        if standardize and x.shape[-2]:
            x_loc, x_scale = statistics(x, -2)
            if y is not None:
                y_loc, y_scale = statistics(y, -1)
        return cls(x_loc, x_scale, y_loc, y_scale)

    def inputs(self, x: Float[Tensor, "*batch n features"]) -> Float[Tensor, "*batch n features"]:
        """Columns in these units."""
        return (x - self.x_loc) / self.x_scale

    def targets(self, y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """Targets in these units."""
        return (y - self.y_loc) / self.y_scale


def statistics(values: Float[Tensor, "..."], axis: int) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Mean and standard deviation along `axis`, which stays with length 1; 1 for a deviation of rounding noise."""
    loc = values.mean(axis, keepdim=True)
    if values.shape[axis] == 1:
        return loc, torch.ones_like(loc)
    scale = values.std(axis, keepdim=True)
    floor = 16 * torch.finfo(values.dtype).eps * values.abs().amax(axis, keepdim=True)
    return loc, torch.where(scale > floor, scale, torch.ones_like(scale))
