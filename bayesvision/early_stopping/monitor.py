"""What the adapters to other frameworks share: a metric's direction, and reports that never end a training."""

import copy
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from bayesvision.core.warn import warn
from bayesvision.distributions.metric import MetricScale
from bayesvision.early_stopping.directions import Mode, check_mode, directed, direction, known_direction
from bayesvision.early_stopping.rule import StoppingRule
from bayesvision.early_stopping.runs import Decision

__all__ = ["FailSafe", "Monitor"]


class FailSafe:
    """Asks for decisions; what fails is told once, as a warning, and stops nothing."""

    def __init__(self) -> None:
        self.warned = False

    def ask(self, question: Callable[[], Decision]) -> Decision:
        """The answer, or a decision to go on where the question fails."""
        try:
            return question()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if not self.warned:
                self.warned = True
                message = f"early stopping failed and the run goes on ({reason}); this is said once"
                warn(message, RuntimeWarning)
            return Decision(False, reason, math.nan, math.nan, math.nan)


class Monitor:
    """Reports one metric of a training to a stopping rule, the training's own or one that several share.

    Without other runs the rule stops a training that is unlikely to improve on its own best value.

    Args:
        metric: name of the metric; None if the framework knows it.
        horizon: steps of a whole training; what the framework was told if left out.
        scale: units of the metric; without it a score lies in [0, 1], and a loss is measured between 0 and its first
            value.
        rule: a rule that other runs report to as well, in place of `horizon` and `scale`.
        run: name of this training in such a rule.
        mode: `min` or `max`, which way the metric gets better; left out, its scale or a well-known name tells it.

    Raises:
        ValueError: a metric whose direction is not known, a rule together with `horizon`, `scale` or `mode`, with
            another direction than the metric's name, or without `run`.
    """

    def __init__(
        self,
        metric: str | None,
        horizon: float | None = None,
        scale: MetricScale | None = None,
        rule: StoppingRule | None = None,
        run: Hashable = None,
        mode: Mode | None = None,
    ) -> None:
        check_mode(mode)
        if rule is not None and not (horizon is None and scale is None and mode is None):
            raise ValueError("horizon, scale and mode must be left out where a rule is given; they are the rule's")
        if rule is not None and run is None:
            raise ValueError("run must name this training in the rule that it shares, got None")
        self.metric, self.horizon, self.scale, self.rule = metric, horizon, scale, rule
        self.mode: Mode | None = mode
        self.run = "run" if run is None else run
        self.shared = rule is not None
        self.decision: Decision | None = None
        self._cautious, self._saved, self._seen = FailSafe(), None, False
        if metric is not None:
            self._check(metric, mode)

    def _check(self, metric: str, mode: Mode | None) -> Mode:
        if self.rule is None or not self.shared:
            return direction(metric, mode, self.scale)[0]
        told: Mode = "min" if self.rule.minimize else "max"
        if known_direction(metric) not in (None, told):
            raise ValueError(
                f"{metric!r} has another direction than the rule, whose scale says minimize={self.rule.minimize}; "
                "give the rule a scale with its direction"
            )
        return told

    def begin(self, horizon: float | None, mode: Mode | None = None) -> None:
        """Start a training of so many steps; a rule of its own forgets the one before.

        Args:
            mode: what the framework says of the metric's direction, where `mode` of the constructor says nothing.

        Raises:
            ValueError: no horizon is known, or as in the constructor.
        """
        self.decision, self._seen = None, False
        if self.shared:
            return
        horizon = horizon if self.horizon is None else self.horizon
        if horizon is None or not 0 < horizon < math.inf:
            raise ValueError(
                f"horizon must be given, as the framework does not know how long it trains, got {horizon!r}"
            )
        if self.metric is None:
            raise ValueError("the metric must be named before a training begins")
        found = self._check(self.metric, mode if self.mode is None else self.mode)
        self.rule = StoppingRule(horizon, directed(self.scale, found), learn=0, audit=0.0, mode=found)
        if self._saved is not None:
            self.rule.load_state_dict(
                self._saved if self.horizon is not None else _under(self._saved, self.rule.horizon)
            )
            self._saved = None

    def reset(self) -> None:
        """Forget the training before; a shared rule stays."""
        if not self.shared:
            self.rule = None

    @property
    def silent(self) -> bool:
        """Whether a training of its own ended without a single value of the metric."""
        return not (self.shared or self._seen or self._cautious.warned) and self.rule is not None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Monitor":
        """A copy that reports to the same rule, if the rule is shared."""
        new = object.__new__(type(self))
        memo[id(self)] = new
        shared = {"rule"} if self.shared else set[str]()
        vars(new).update({k: v if k in shared else copy.deepcopy(v, memo) for k, v in vars(self).items()})
        return new

    def report(self, step: float, metrics: Mapping[str, Any]) -> bool:
        """Whether the training should stop after these metrics at a step; never raises."""
        self.decision = self._cautious.ask(lambda: self._report(step, metrics))
        return self.decision.stop

    def _report(self, step: float, metrics: Mapping[str, Any]) -> Decision:
        if self.rule is None:
            raise RuntimeError("begin() must come before report()")
        if self.metric is None or self.metric not in metrics:
            raise ValueError(f"the metric must be one of {', '.join(metrics) or 'none'}, got {self.metric!r}")
        self._seen = True
        return self.rule.update(self.run, step, float(metrics[self.metric]))

    def state_dict(self) -> dict[str, Any]:
        """What the training's own rule holds, as JSON data; a shared rule is saved by whoever owns it."""
        return {} if self.shared or self.rule is None else self.rule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`, now or at the next `begin`."""
        if self.shared or not state:
            return
        if self.rule is None:
            self._saved = state
        else:
            self.rule.load_state_dict(state)


def _under(state: dict[str, Any], horizon: float) -> dict[str, Any]:
    """The readings of a training that goes on for more or fewer steps than it was meant to, without decisions."""
    runs = {}
    for name, run in state.get("runs", {}).items():
        rows = [row for row in zip(run["steps"], run["values"], strict=True) if row[0] <= horizon]
        told = {"stopped": None, "audited": None, "whole": False, "failed": False}
        runs[name] = {"steps": [s for s, _ in rows], "values": [v for _, v in rows], **told}
    return state if state.get("horizon", horizon) == horizon else {"horizon": horizon, "runs": runs}
