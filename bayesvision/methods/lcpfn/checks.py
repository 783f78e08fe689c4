"""Checks on the values and the epochs that a user hands to a posterior over curves."""

import numpy as np
import torch
from torch import Tensor

from bayesvision.distributions.metric import MetricScale

__all__ = ["batch_axes", "check_values"]

REACH = 8.0  # how far beyond [0, 1] a value may lie where no bounds are known
SLACK = 1e-6  # how far beyond a bound rounding may carry a value


def check_values(y: Tensor, scale: MetricScale | None, bounds: tuple[float, float] | None) -> None:
    """Refuse values beyond the hard bounds of a metric, or far outside [0, 1] where none are known.

    Raises:
        ValueError: such a value.
    """
    lower, upper = bounds or (-REACH, 1 + REACH)
    slack = SLACK * y.abs().clamp(min=1)
    outside = (y < lower - slack) | (y > upper + slack)
    if not outside.any():
        return
    value = y[outside][0].item()
    if scale is not None:
        raise ValueError(f"y must lie within the bounds of the scale, {lower:g} to {upper:g}, got {value:g}")
    more = "; for values as the prior draws them say posterior.unbounded()" if bounds else ""
    raise ValueError(
        f"y must be a metric in [0, 1] where larger is better, got {value:g}; for another one "
        f"say posterior.with_metric(scale=MetricScale(lower, upper, soft_lower, soft_upper, minimize)) first{more}"
    )


def batch_axes(x: Tensor, seen: Tensor) -> torch.Size:
    """The batch axes of epochs asked for and of curves seen, broadcast.

    Raises:
        ValueError: they do not broadcast.
    """
    try:
        return torch.Size(np.broadcast_shapes(x.shape[:-1], seen.shape[:-1]))  # torch's imports sympy
    except ValueError:
        raise ValueError(
            f"x must have batch axes that broadcast with the curves' {tuple(seen.shape[:-1])}, "
            f"got {tuple(x.shape[:-1])}"
        ) from None
