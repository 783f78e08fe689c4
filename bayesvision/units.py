"""Units: `Units`, standardised by the rows that a posterior has seen, and `Scale`, of a metric with known bounds."""

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import AffineTransform, ComposeTransform, SigmoidTransform

__all__ = ["Scale", "Units", "statistics"]


class Units(NamedTuple):
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


@dataclass(frozen=True)
class Scale:
    """The units of a metric, and its map to [0, 1] where larger is better.

    u(y) = (s(z) - s(z_lower)) / (s(z_upper) - s(z_lower)) with the logistic s and z = 2 (y - soft_lower) /
    (soft_upper - soft_lower) - 1: the soft range becomes [-1, 1] before the logistic, and the hard bounds become 0
    and 1 after it. A metric to be minimised is reflected, 1 - u (Adriaensen et al. 2023, arXiv 2310.20447, appendix
    on normalisation).

    Args:
        lower, upper: hard bounds, which may be infinite.
        soft_lower, soft_upper: where values are expected; the hard bounds when left out.
        minimize: whether smaller is better.

    Raises:
        ValueError: bounds that do not increase, a soft range outside the hard one, or an infinite soft bound.
    """

    lower: float = -math.inf
    upper: float = math.inf
    soft_lower: float | None = None
    soft_upper: float | None = None
    minimize: bool = False

    def __post_init__(self) -> None:
        low, high = self.soft
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(
                f"soft_lower and soft_upper must be finite, got {low} and {high}; "
                "say where the values of an unbounded metric are expected"
            )
        if not self.lower <= low < high <= self.upper:
            raise ValueError(
                "the bounds must satisfy lower <= soft_lower < soft_upper <= upper, "
                f"got {self.lower}, {low}, {high} and {self.upper}"
            )

    @property
    def soft(self) -> tuple[float, float]:
        """The soft range."""
        low = self.lower if self.soft_lower is None else self.soft_lower
        return low, self.upper if self.soft_upper is None else self.soft_upper

    @property
    def recipe(self) -> dict[str, float | bool]:
        """The fields that are set, as JSON data, which knows no infinity: `Scale(**scale.recipe) == scale`."""
        return {k: v for k, v in asdict(self).items() if v is not None and math.isfinite(v)}

    @property
    def transform(self) -> ComposeTransform:
        """The map y -> u, with its inverse and its Jacobian; values in float64."""
        low, high = self.soft
        slope = 2 / (high - low)
        first, last = (_logistic(slope * (bound - low) - 1) for bound in (self.lower, self.upper))
        loc, scale = -first / (last - first), 1 / (last - first)
        if self.minimize:
            loc, scale = 1 - loc, -scale
        return ComposeTransform(
            [AffineTransform(-slope * low - 1, slope), SigmoidTransform(), AffineTransform(loc, scale)]
        )

    def normalize(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """u(y) in float64; strictly inside the image of the real line, however large y is."""
        u: Any = self.transform(y.double())  # torch annotates it as possibly None
        return u


def _logistic(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z > -700 else 0.0
