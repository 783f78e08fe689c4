"""The units of a metric that nobody has told: a loss between zero and what runs start with."""

import math
import statistics
from collections.abc import Iterable, Sequence

from bayesvision.distributions.metric import MetricScale

__all__ = ["FIRST", "beyond", "is_readable", "is_within", "learned_scale", "remark", "start_of"]

FAR = 0.5  # of the width of the soft range: a value further out is said to lie outside of it
TINY = 1e-6
SPIKE = 3.0  # times as large as the next reading: a first loss that says nothing of the range
FIRST = 8  # runs whose first readings tell where losses start


def start_of(values: Sequence[float]) -> float:
    """What a run starts with: its first reading, or one of the next two where the one before is much larger."""
    k = 0
    while k < 2 and k + 1 < len(values) and values[k + 1] > 0 and values[k] > SPIKE * values[k + 1]:
        k += 1
    return values[k]


def learned_scale(
    firsts: Sequence[float],
    least: float,
    lower: float | None = None,
    upper: float | None = None,
    soft_lower: float | None = None,
    soft_upper: float | None = None,
) -> MetricScale:
    """The scale of a loss that is known by the runs' own readings.

    The soft range goes from 0, or from below the least value where losses are negative, to the median of the first
    readings; 0 is a hard bound as long as no value lies below it. What is told is kept.

    Args:
        firsts: what each run starts with (`start_of`).
        least: the least value that was seen.
        lower, upper, soft_lower, soft_upper: of the scale.

    Raises:
        ValueError: as in `MetricScale`.
    """
    top = statistics.median(firsts)
    lower = (0.0 if least >= 0 else -math.inf) if lower is None else lower
    upper = math.inf if upper is None else upper
    if soft_lower is None:
        below = least - max(top - least, abs(least), TINY) / 2
        soft_lower = lower if math.isfinite(lower) else -(2.0 ** math.ceil(math.log2(-below)))  # moves seldom
    if soft_upper is None:
        soft_upper = min(top, upper)
        if soft_upper <= soft_lower:
            soft_upper = min(soft_lower + max(1.0, abs(soft_lower)), upper)
    return MetricScale(lower, upper, soft_lower, soft_upper, minimize=True)


def beyond(values: Iterable[float], scale: MetricScale | None) -> list[float]:
    """The values outside the soft range of a scale, where forecasts are coarse."""
    if scale is None:
        return []
    low, high = scale.soft
    reach = FAR * (high - low)
    return [v for v in values if math.isfinite(v) and not low - reach <= v <= high + reach]


def remark(value: float, scale: MetricScale | None) -> str:
    """A word on a value outside the soft range, or nothing."""
    if scale is None or not beyond([value], scale):
        return ""
    low, high = scale.soft
    return f"; {value:.6g} lies beyond the soft range {low:.6g} to {high:.6g}, where forecasts are coarse"


def is_within(value: float, bounds: tuple[float, float]) -> bool:
    """Whether a value is finite and between its bounds, up to rounding."""
    slack = 1e-6 * max(1.0, abs(value))
    return math.isfinite(value) and bounds[0] - slack <= value <= bounds[1] + slack


def is_readable(step: float, value: float, horizon: float, bounds: tuple[float, float]) -> bool:
    """Whether a report can be read, or else is one of a run that diverged.

    Raises:
        ValueError: it is neither.
    """
    if not 0 < step <= horizon:
        raise ValueError(
            f"step must lie above 0 and be at most the horizon {horizon:g}, got {step:g}; "
            "count steps from 1, or set a longer horizon"
        )
    if math.isfinite(value) and not is_within(value, bounds):
        raise ValueError(
            f"value must lie in [{bounds[0]:g}, {bounds[1]:g}], got {value:g}; "
            "declare the metric's range with scale=MetricScale(lower, upper, soft_lower, soft_upper, minimize)"
        )
    return math.isfinite(value)
