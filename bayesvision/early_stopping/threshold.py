"""The level of a stopping rule, learned from the runs that have ended: the one that would have served them best."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from bayesvision.early_stopping.runs import Run

__all__ = ["LEVELS", "RECENT", "TOP", "Record", "best_level", "costs", "learned_level"]

LEVELS = np.array([0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5])  # at 0 nothing is stopped
MARGIN = 1.5  # a run must have stayed so many times above a level to count as kept at it
TOP, RECENT = 8, 24  # best runs that tell what a level loses, and latest ones that tell what it costs


def costs(
    chances: Float[np.ndarray, "*batch readings"], steps: Float[np.ndarray, "*batch readings"]
) -> Float[np.ndarray, "*batch levels"]:
    """Steps that a run would have taken at each of `LEVELS`.

    Args:
        chances: largest probability to improve from each reading on; infinite where the rule does not decide.
        steps: step of each reading, the last one repeated after it.
    """
    below = (chances[..., None] <= LEVELS) & (LEVELS > 0)
    first = np.where(below.any(-2), below.argmax(-2), chances.shape[-1] - 1)
    return np.take_along_axis(steps, first, -1)


def best_level(
    lowest: Float[np.ndarray, "*batch top"], spent: Float[np.ndarray, "*batch recent levels"]
) -> Float[np.ndarray, "*batch"]:
    """The level with the most improvements a step: argmax over `LEVELS` of kept(level) / mean cost(level).

    kept(level) = #{lowest > 1.5 level} / (n + 1) of n runs, and 1 at level 0: with one run counted as lost, a level
    above 0 must save a good part of the steps, and few runs that went their whole way do not say much. The smallest of
    equal levels is taken. This is the rate at which a search improves if the runs to come are like those that ended.

    Args:
        lowest: for each of the best runs that went their whole way the least chance, before it got there, to beat the
            next best run; NaN for none.
        spent: what the latest runs would have cost, as `costs` says.
    """
    there = ~np.isnan(lowest)
    kept = ((lowest[..., None] > MARGIN * LEVELS) & there[..., None]).sum(-2) / (there.sum(-1)[..., None] + 1)
    kept = np.where(LEVELS == 0, 1.0, kept)
    return np.asarray(LEVELS[(kept / spent.mean(-2)).argmax(-1)])


def learned_level(ended: Sequence[Run], record: Callable[[Run], "Record"], minimize: bool) -> float:
    """The best level for the runs that have ended, had each of them come last."""
    sign = -1.0 if minimize else 1.0
    best = max(sign * v for run in ended for v in run.values)
    spent = [record(run).costs(best) for run in ended[-RECENT:]]
    ranked = sorted(ended, key=lambda run: -max(sign * v for v in run.values))
    pairs = ((run, other) for run, other in itertools.pairwise(ranked) if run.whole)
    found = (record(run).lowest(max(sign * v for v in other.values)) for run, other in pairs)
    lowest = list(itertools.islice((p for p in found if not math.isnan(p)), TOP))
    return float(best_level(np.array(lowest), np.stack(spent)))


class Record(NamedTuple):
    """A run that has ended, and what its posterior would have said after each of its readings.

    Attributes:
        law: predictions [readings + 1, points] at steps to come, those before any reading first.
        ahead: which of the points lie after a reading [readings, points].
        steps: of the readings.
        tops: best value up to each reading, turned so that larger is better.
        decided: whether the rule decides at a reading.
        minimize: whether the metric's own values are better when smaller.
    """

    law: Any
    ahead: Shaped[Tensor, "readings points"]
    steps: Float[np.ndarray, " readings"]
    tops: Float[np.ndarray, " readings"]
    decided: Shaped[np.ndarray, " readings"]
    minimize: bool

    def chances(self, best: float) -> Float[np.ndarray, " readings"]:
        """Largest probability ahead, from each reading on, to be better than `best` and the run itself so far."""
        value = np.maximum(best, [self.tops[0], *self.tops])[:, None]
        p = (self.law.cdf(-value) if self.minimize else self.law.probability_above(value))[1:].cpu()
        p = p.where(self.ahead, torch.zeros_like(p)).amax(-1).numpy()
        return np.where(self.decided, p, np.inf)

    def costs(self, best: float) -> Float[np.ndarray, " levels"]:
        """Steps that the run would have taken at each level."""
        return costs(self.chances(best), self.steps)

    def lowest(self, best: float) -> float:
        """Least chance to beat `best` before the run did; NaN if it did not."""
        if self.tops[-1] <= best:
            return math.nan
        return float(np.min(self.chances(best)[self.tops < best], initial=1.0))
