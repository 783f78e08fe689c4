"""`MetricScale`: the bounds and the direction of a metric, and its map to [0, 1]."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.distributions import AffineTransform, ComposeTransform, SigmoidTransform

from bayesvision.distributions.base import Continuous
from bayesvision.distributions.transformed import TruncatedTransformed

__all__ = ["MetricScale"]


@dataclass(frozen=True)
class MetricScale:
    """The units of a metric, and its map to [0, 1] where larger is better.

    u(y) = (s(z) - s(z_lower)) / (s(z_upper) - s(z_lower)) with the logistic s and z = 2 (y - soft_lower) /
    (soft_upper - soft_lower) - 1: the soft range becomes [-1, 1] before the logistic, and the hard bounds become 0
    and 1 after it. A metric to be minimised is reflected, 1 - u (Adriaensen et al. 2023, arXiv 2310.20447, appendix
    on normalisation).

    Example:
        >>> loss = bv.MetricScale(lower=0, soft_lower=0, soft_upper=4, minimize=True)
        >>> bv.pretrained("lcpfn").with_metric(50, loss).condition([1, 2], [3.9, 3.1]).predict(50).mean

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

    def law(self, base: Continuous) -> TruncatedTransformed:
        """The law of the metric, between its hard bounds, where u follows `base`."""
        return TruncatedTransformed(base, self.transform, self.lower, self.upper, validate_args=False)

    def normalize(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """u(y) in float64; strictly inside the image of the real line, however large y is."""
        u: Any = self.transform(y.double())  # torch annotates it as possibly None
        return u


def _logistic(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z > -700 else 0.0
