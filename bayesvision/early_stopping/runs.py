"""What a stopping rule knows of a run, and what it says about it."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["Decision", "Report", "Run"]


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
        level: the level in force.
    """

    runs: int
    stopped: int
    audited: int
    steps_spent: float
    steps_saved: float
    wrong: int
    regret: float
    level: float


@dataclass
class Run:
    """What is known of one run.

    Attributes:
        steps, values: its readings, by ascending step.
        read: how many of them `posterior` has seen.
        posterior: conditioned on these readings, or None.
        stopped: step at which the run was stopped.
        audited: step at which it would have been stopped, and the best value at that time.
        whole: whether it went its whole way.
        record: what it would have been given at each reading; made when it has ended.
    """

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    read: int = 0
    posterior: Any = None
    stopped: float | None = None
    audited: tuple[float, float] | None = None
    whole: bool = False
    record: Any = None
