"""How far a run has come: its own clock, the readings that are looked at, and the steps to come."""

import math
from collections.abc import Sequence

import torch

__all__ = ["READINGS", "clocked", "is_due", "looked_at", "origin", "steps_ahead"]

READINGS = 100  # of a run are looked at, at most
LONE = 10  # a run with one reading counts as no later than this part of its way


def origin(steps: Sequence[float], horizon: float) -> float:
    """The step at which the clock of a run starts: as far before its first reading as its second lies behind it.

    So it is 0 for a run from the beginning, whether it reports every step or every hundredth, and for one that goes on
    from a late step it is where that one went on.
    """
    first = steps[0]
    gap = steps[1] - first if len(steps) > 1 else min(first, (horizon - first) / (LONE - 1))
    start = max(0.0, first - gap)
    return start if start < horizon else 0.0


def clocked(steps: Sequence[float], start: float, horizon: float) -> list[float]:
    """Steps by the clock of a run: from 0 where it starts to the horizon; the same steps if it starts at 0.

    The part of the way comes first, so that rounding carries no step beyond the horizon.
    """
    return list(steps) if start == 0 else [horizon * ((step - start) / (horizon - start)) for step in steps]


def looked_at(count: int, most: int = READINGS) -> tuple[list[int], int]:
    """Places of the readings to look at among `count`, and how many of them stay as more come.

    All up to `most`; beyond that every second one, every fourth, ..., and the latest, which then does not stay.
    """
    stride = 1
    while math.ceil(count / stride) > (most if stride == 1 else most - 1):
        stride *= 2
    places = list(range(0, count, stride))
    kept = len(places)
    return (places if places[-1:] == [count - 1] or not count else [*places, count - 1]), kept


def steps_ahead(step: float, count: int, horizon: float, start: float = 0.0, points: int = READINGS) -> list[float]:
    """At most `points` steps from `step` to the horizon, as far apart as the `count` readings since `start`."""
    stride = max((step - start) / count, (horizon - start) / READINGS)
    number = max(0, math.ceil((horizon - step) / stride - 1e-9) - 1)
    steps = [*(step + stride * (k + 1) for k in range(number)), horizon]
    if len(steps) <= points:
        return steps
    places = torch.linspace(0, len(steps) - 1, points).round().long().tolist()
    return [steps[k] for k in places]


def is_due(previous: float, step: float, start: float, horizon: float, at: Sequence[float] | None = None) -> bool:
    """Whether a step passes a hundredth of the way from `start` to the horizon, or one of its fractions `at`."""
    way = horizon - start
    if at is not None:
        return any(previous < start + a * way <= step for a in at)
    before, now = (math.floor((s - start) * READINGS / way + 1e-9) for s in (previous, step))
    return now > before
