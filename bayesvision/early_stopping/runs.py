"""What a stopping rule knows of a run, and what it says about it."""

import bisect
import hashlib
import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

from bayesvision.distributions.metric import MetricScale

__all__ = ["CurvePosterior", "Decision", "Forecaster", "Report", "Run", "changed", "is_chosen", "runs_of"]


@runtime_checkable
class CurvePosterior(Protocol):
    """What the rule needs: `condition` on epochs and values, `predict` at later epochs, and units to be set first."""

    def with_metric(self, horizon: float, scale: MetricScale | None) -> Self: ...
    def condition(self, x: Any, y: Any) -> Self: ...
    def predict(self, x: Any) -> Any: ...


@runtime_checkable
class Forecaster(CurvePosterior, Protocol):
    """What learning the level needs too: `forecasts`, as `LCPFNPosterior` has it, from every prefix of a curve."""

    def forecasts(self, x: Any, y: Any, at: Any) -> Any: ...


class Decision(NamedTuple):
    """What to do with a run.

    Attributes:
        stop: whether to stop it.
        reason: why, in words.
        p_improve: largest probability over the epochs to come that the run beats the best value; NaN if not asked.
        predicted_final: predictive median at the horizon, in the metric's units; NaN if not asked.
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
        runs, stopped, audited: counts of runs; an audited one would have been stopped and went on. A run that diverged
            counts as stopped, at its first step too.
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

    @classmethod
    def of(cls, runs: Iterable["Run"], horizon: float, minimize: bool, level: float) -> Self:
        """What became of `runs` of `horizon` steps."""
        runs, sign, gains = list(runs), -1.0 if minimize else 1.0, []
        for run in runs:
            if run.audited is not None:
                later = [v for s, v in zip(run.steps, run.values, strict=True) if s > run.audited[0]]
                gains.append(max([sign * (v - run.audited[1]) for v in later], default=0.0))
        lost = [max(0.0, g) for g in gains]
        last = [run.last for run in runs if run.last > 0]
        saved = [horizon - run.stopped for run in runs if run.stopped is not None]
        regret = sum(lost) / len(lost) if lost else math.nan
        wrong = sum(g > 0 for g in gains)
        return cls(len(last), len(saved), len(gains), sum(last), sum(saved), wrong, regret, level)


@dataclass
class Run:
    """What is known of one run.

    Attributes:
        steps, values: its readings, by ascending step.
        read: places of those that `posterior` has seen.
        start: where its clock started when it saw them.
        posterior: conditioned on these readings, or None.
        stopped: step at which the run was stopped.
        audited: step at which it would have been stopped, and the best value at that time.
        whole: whether it went its whole way.
        diverged: whether its latest value was not finite.
        extremes: least and greatest value, while they are known.
        failed: whether it broke off and has not come back; its values set no best.
        record: what it would have been given at each reading; made when it has ended.
    """

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    start: float = 0.0
    posterior: Any = None
    stopped: float | None = None
    audited: tuple[float, float] | None = None
    whole: bool = False
    failed: bool = False
    diverged: bool = False
    extremes: tuple[float, float] | None = None
    record: Any = None

    @property
    def last(self) -> float:
        """The last step that it took; 0 before the first."""
        return max(self.steps[-1] if self.steps else 0.0, self.stopped or 0.0)

    @property
    def has_ended(self) -> bool:
        """Whether it went its whole way or was stopped."""
        return bool(self.steps) and (self.whole or self.stopped is not None)

    def put(self, step: float, value: float) -> None:
        """Take in a reading; at or before a step that was there, it replaces everything from that step on.

        So a run that goes on from a checkpoint, or starts anew, leaves nothing of what it did after that point.
        """
        self.cut(step)
        if self.diverged:
            self.stopped, self.diverged = None, False
        self.steps.append(step)
        self.values.append(value)
        self.failed, self.whole, self.extremes = False, False, None

    def cut(self, step: float) -> None:
        """Forget everything from a step on."""
        place = bisect.bisect_left(self.steps, step)
        self.record, self.extremes = None, None
        if place == len(self.steps):
            return
        self.whole, self.stopped = False, None
        self.audited = None if self.audited and self.audited[0] >= step else self.audited
        del self.steps[place:], self.values[place:]
        if self.read and self.read[-1] >= place:
            self.forget()

    @property
    def ends(self) -> tuple[float, float]:
        """Least and greatest value."""
        if self.extremes is None:
            self.extremes = min(self.values), max(self.values)
        return self.extremes

    def forget(self) -> None:
        """Let go of what was read."""
        self.posterior, self.read = None, []

    def state(self) -> dict[str, Any]:
        """What was reported and decided, as JSON data."""
        return {k: getattr(self, k) for k in ("steps", "values", "stopped", "audited", "whole", "failed")}

    @classmethod
    def of_state(cls, saved: dict[str, Any]) -> Self:
        """The run that `state` described; a KeyError, TypeError, IndexError or AttributeError for anything else."""
        audited = None if saved["audited"] is None else (float(saved["audited"][0]), float(saved["audited"][1]))
        steps, values = list(map(float, saved["steps"])), list(map(float, saved["values"]))
        whole, failed = bool(saved["whole"]), bool(saved.get("failed", False))
        return cls(steps, values, stopped=saved["stopped"], audited=audited, whole=whole, failed=failed)


def runs_of(state: dict[str, Any], horizon: float) -> dict[str, Run]:
    """The runs that `StoppingRule.state_dict` describes.

    Raises:
        ValueError: not such a state, or one under another horizon.
    """
    if not isinstance(state, dict):
        raise ValueError(f"state must come from state_dict() of a StoppingRule, got {type(state).__name__}")
    told = state.get("horizon", horizon)
    if told != horizon:
        raise ValueError(
            f"the state is of runs with the horizon {told:g}, and this rule has {horizon:g}; build both "
            "with the same horizon, the last step that runs may come to, or start without the state"
        )
    try:
        return {name: Run.of_state(saved) for name, saved in state["runs"].items()}
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"state must come from state_dict() of a StoppingRule ({error!r})") from None


def changed(runs: dict[str, Run], run: Hashable, **told: Any) -> dict[str, Run]:
    """The runs, one of which has other fields now, if it is there."""
    return {name: replace(known, **told) if name == str(run) else known for name, known in runs.items()}


def is_chosen(name: str, share: float, seed: int) -> bool:
    """Whether a run is one of a share of all, by its name and the seed alone."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
