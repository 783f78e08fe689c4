"""What a stopping rule knows of a run, and what it says about it."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Decision", "Report", "Run", "fair_level"]

MOST = 0.5  # greatest level: a run that is as likely as not to beat the best one goes on


def fair_level(delta: float, price: float | None, others: int, cost: Any, left: Any) -> Any:
    """Probability to beat the best value below which a run is not worth its remaining steps.

    `delta` without a price. With one, min(1/2, max(delta, price / (k + 1) left / cost)): of exchangeable runs the next
    one is better than k others with probability 1 / (k + 1), at the mean cost of a run so far, and going on with this
    one costs the steps that are left. At price 1 a step of this run must be as likely to bring a new best as a step of
    a fresh run.

    Args:
        others: other runs so far, k.
        cost: their mean number of steps; a number or an array.
        left: steps from here to the horizon; a number or an array.
    """
    if price is None or not others:
        return delta
    return np.clip(price / (others + 1) * left / cost, delta, max(delta, MOST))


class Decision(NamedTuple):
    """What to do with a run.

    Attributes:
        stop: whether to stop it.
        reason: why, in words.
        p_improve: greatest probability over the epochs to come that the run beats the best value; NaN if not asked.
        predicted_final: predictive mean at the horizon, in the metric's units; NaN if not asked.
        step: the step that was decided at.
    """

    stop: bool
    reason: str
    p_improve: float
    predicted_final: float
    step: float


class Report(NamedTuple):
    """What the rule did so far.

    Attributes:
        runs, stopped, audited: counts of runs; an audited one would have been stopped and went on.
        steps_spent: steps that all runs took.
        steps_saved: steps that the stopped runs did not take.
        wrong: audited runs that beat the value they were to be stopped for.
        regret: mean amount by which the audited runs did, in the metric's units; NaN without audited runs.
        delta: the level in force.
    """

    runs: int
    stopped: int
    audited: int
    steps_spent: float
    steps_saved: float
    wrong: int
    regret: float
    delta: float


@dataclass
class Run:
    """What is known of one run.

    Attributes:
        steps, values: its readings, by ascending step.
        read: how many of them `posterior` has seen.
        posterior: conditioned on these readings, or None.
        bounds: upper quantiles by step, forecast when the run had half its readings.
        misses: for each doubling of the readings, whether the value exceeded such a bound.
        judged: number of readings at the last doubling that was looked at.
        stopped: step at which the run was stopped.
        audited: step at which it would have been stopped, and the best value at that time.
    """

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    read: int = 0
    posterior: Any = None
    bounds: dict[str, float] = field(default_factory=dict)
    misses: list[bool] = field(default_factory=list)
    judged: int = 0
    stopped: float | None = None
    audited: tuple[float, float] | None = None
