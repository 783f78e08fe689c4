"""The level of a stopping rule, learned from the runs that have ended: the one that would have served them best."""

import numpy as np
from jaxtyping import Float

__all__ = ["LEVELS", "RECENT", "TOP", "best_level", "costs"]

LEVELS = np.array([0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5])  # at 0 nothing is stopped
MARGIN = 1.5  # a run must have stayed so many times above a level to count as kept at it
TOP, RECENT = 8, 24  # best runs that tell what a level loses, and latest ones that tell what it costs


def costs(
    chances: Float[np.ndarray, "*batch readings"], steps: Float[np.ndarray, "*batch readings"]
) -> Float[np.ndarray, "*batch levels"]:
    """Steps that a run would have taken at each of `LEVELS`.

    Args:
        chances: greatest probability to improve from each reading on; infinite where the rule does not decide.
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
