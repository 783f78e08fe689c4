"""Prunes the trials of an Optuna study that are unlikely to beat its best one."""

import math
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bayesvision.distributions.metric import MetricScale
from bayesvision.early_stopping.directions import Mode, directed
from bayesvision.early_stopping.monitor import FailSafe
from bayesvision.early_stopping.rule import RunState, StoppingRule
from bayesvision.early_stopping.runs import Decision
from bayesvision.integrations import needs
from bayesvision.io.checkpoints import find

with needs("optuna"):
    import optuna
    from optuna.pruners import BasePruner
    from optuna.study import Study, StudyDirection
    from optuna.trial import FrozenTrial, TrialState

__all__ = ["LCPFNPruner", "attach"]

RECIPE = "bayesvision:pruner"  # user attribute of a study
PASSED = 4  # later trials that ran to their end, after which a running one is taken for dead
PREDICTED = "bayesvision:predicted_after"  # user attribute of a trial: the step that its value was predicted at


class LCPFNPruner(BasePruner):
    """Prunes a trial when P(y_t > best) <= delta at every later epoch t, as `StoppingRule` does.

    The decision is a function of the values in the study's storage alone, so it is the same in every process and after
    a restart: `best` is the best value that any trial reported, aside from failed ones and from running ones that died,
    by the looks of it: `PASSED` later trials have run to their end since it began, or twice as many as are running. The
    direction is the study's, whatever the scale says. Steps count as they are reported; only where trials report at 0,
    1, 2, ... and none reaches the horizon, the first epoch is step 0. A trial whose latest value is NaN or infinite is
    pruned; such values are left out otherwise, as are those of other trials outside the scale. What fails inside is
    told once, as a warning, and prunes nothing.

    Args:
        horizon: epochs of a trial that is not pruned; if left out, those of the longest complete trial, and nothing is
            pruned before there is one.
        scale: units of the metric; without it a score lies in [0, 1], and a loss is measured between 0 and what the
            first trials start with.
        on_stop: what `stop` does in the objective: "prune" raises `TrialPruned`, and "return_prediction" returns the
            predicted final value.
        **options: of `StoppingRule`: posterior, delta, learn, least, at, audit, seed. `learn` is 0 here: samplers
            suggest trials that are unlike those before, and the level is learned for runs that are like them.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        horizon: float | None = None,
        scale: MetricScale | None = None,
        on_stop: str = "prune",
        **options: Any,
    ) -> None:
        if on_stop not in ("prune", "return_prediction"):
            raise ValueError(f"on_stop must be 'prune' or 'return_prediction', got {on_stop!r}")
        self.horizon, self.scale, self.on_stop, self.options = horizon, scale, on_stop, {"learn": 0, **options}
        self._start()
        self._rule(100.0 if horizon is None else horizon, minimize=False)  # refuse bad options now

    def _start(self) -> None:
        self._cautious, self._lock, self._model = FailSafe(), threading.RLock(), None
        self._known: weakref.WeakKeyDictionary[Study, _Known] = weakref.WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def _rule(self, horizon: float, minimize: bool) -> StoppingRule:
        options = {"posterior": "lcpfn", **self.options}
        if isinstance(options["posterior"], str):
            if self._model is None:
                self._model = find(options["posterior"])
            options["posterior"] = self._model
        mode: Mode = "min" if minimize else "max"
        return StoppingRule(horizon, directed(self.scale, mode), mode=mode, **options)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether Optuna should prune the trial.

        Raises:
            ValueError: the study has several objectives.
        """
        _refuse_several(study)
        return self._cautious.ask(lambda: self.decide(study, trial)).stop

    def decide(self, study: Study, trial: FrozenTrial) -> Decision:
        """The decision on a trial with its reason and its forecast; steps of the decision count from 1.

        Raises:
            ValueError: the latest value is outside the scale, or its step beyond the horizon.
        """
        if not trial.intermediate_values:
            return _undecided("the trial has reported nothing")
        with self._lock:
            trials = {t.number: t for t in study.get_trials(deepcopy=False)} | {trial.number: trial}
            first = _first_step(trials.values(), self.horizon)
            horizon = self.horizon or max((_epochs(t, first) for t in trials.values() if _is_whole(t)), default=0)
            if self.horizon is None and _epochs(trial, first) >= horizon:
                return _undecided("the trial is as long as any complete one")
            minimize = study.direction == StudyDirection.MINIMIZE
            known = self._known.get(study)
            if known is None or (known.first, known.rule.horizon, known.rule.minimize) != (first, horizon, minimize):
                known = self._known[study] = _Known(self._rule(horizon, minimize), first)
            return known.decide(trials, trial)

    def stop(self, trial: optuna.Trial) -> float:
        """What an objective does once `trial.should_prune()` says so: `return pruner.stop(trial)`.

        With `on_stop="return_prediction"` it returns the predictive median of the final value, marked by the user
        attribute `bayesvision:predicted_after`, so that samplers learn from the trial as from a complete one. It is
        held just below the best final value of the trials that were not stopped: `study.best_trial` stays a real one.

        Raises:
            optuna.TrialPruned: with `on_stop="prune"`, or where nothing can be predicted: the trial diverged, or no
                other trial is complete.
        """
        if self.on_stop == "prune":
            raise optuna.TrialPruned
        trials = {t.number: t for t in trial.study.get_trials(deepcopy=False)}
        decision = self._cautious.ask(lambda: self.decide(trial.study, trials[trial.number]))
        finals = [float(t.value) for t in trials.values() if _is_whole(t) and t.value is not None]
        if not finals or not math.isfinite(decision.predicted_final):
            raise optuna.TrialPruned(decision.reason)
        trial.set_user_attr(PREDICTED, trials[trial.number].last_step)
        if trial.study.direction == StudyDirection.MINIMIZE:
            return max(decision.predicted_final, math.nextafter(min(finals), math.inf))
        return min(decision.predicted_final, math.nextafter(max(finals), -math.inf))


@dataclass
class _Known:
    """A cache: the rule with the curves of one study that are in it, of which the finished ones do not change."""

    rule: StoppingRule
    first: int
    finished: set[int] = field(default_factory=set)

    def decide(self, trials: dict[int, FrozenTrial], trial: FrozenTrial) -> Decision:
        for number in sorted(trials):
            other = trials[number]
            if number not in self.finished or number == trial.number:
                state = "failed" if _is_dead(other, trials.values()) else _state(other)
                self.rule.take(number, self.curve(other), state)
                self.finished |= {number} if other.state.is_finished() else set()
        curve = self.curve(trial)
        if not curve:
            return _undecided("the trial has reported at step 0 alone, which is of the untrained state")
        return self.rule.judge(trial.number, curve)

    def curve(self, trial: FrozenTrial) -> dict[float, float]:
        steps = ((float(step + 1 - self.first), value) for step, value in trial.intermediate_values.items())
        return {step: value for step, value in steps if step > 0}


def _first_step(trials: Iterable[FrozenTrial], horizon: float | None) -> int:
    """0 where trials count their epochs from 0, and 1 where steps mean what they say."""
    steps = [sorted(t.intermediate_values) for t in trials if t.intermediate_values]
    from_zero = [s for s in steps if s[0] == 0]
    if not from_zero or (horizon is not None and any(s[-1] >= horizon for s in steps)):
        return 1
    return 0 if any(1 in s[:2] for s in from_zero) or all(len(s) == 1 for s in from_zero) else 1


def _is_dead(trial: FrozenTrial, trials: Iterable[FrozenTrial]) -> bool:
    """Whether a trial failed, or is called running and was overtaken by so many that its process must be gone."""
    if trial.state != TrialState.RUNNING:
        return trial.state == TrialState.FAIL
    running = passed = 0
    for other in trials:
        running += other.state == TrialState.RUNNING
        passed += other.number > trial.number and other.state == TrialState.COMPLETE
    return passed >= max(PASSED, 2 * running)


def _epochs(trial: FrozenTrial, first: int) -> int:
    return 0 if trial.last_step is None else trial.last_step + 1 - first


def _state(trial: FrozenTrial) -> RunState:
    if _is_whole(trial):
        return "complete"
    return "stopped" if trial.state.is_finished() else "running"


def _is_whole(trial: FrozenTrial) -> bool:
    """Whether the trial ran to its end."""
    return trial.state == TrialState.COMPLETE and PREDICTED not in trial.user_attrs


def _undecided(reason: str) -> Decision:
    return Decision(False, reason, math.nan, math.nan, math.nan)


def _refuse_several(study: Study) -> None:
    if len(study.directions) > 1:
        raise ValueError(
            f"the study must have one objective to be pruned, got {len(study.directions)}; "
            "leave the pruner out, or make one objective of them"
        )


def attach(study: Study, pruner: LCPFNPruner | None = None) -> Study:
    """Give a study its pruner, and keep the pruner's settings in the study; without `pruner`, use those kept there.

    Optuna stores no pruner: each worker that loads a study gets Optuna's default one. So call `attach(study, pruner)`
    where the study is created and `attach(optuna.load_study(...))` in each worker.

    Raises:
        ValueError: the study has several objectives; or no pruner is given and none is kept.
    """
    _refuse_several(study)
    if pruner is None:
        recipe = study.user_attrs.get(RECIPE)
        if recipe is None:
            raise ValueError("pruner must be given, as this study keeps none: attach(study, LCPFNPruner(...))")
        scale = None if recipe["scale"] is None else MetricScale(**recipe["scale"])
        pruner = LCPFNPruner(recipe["horizon"], scale, recipe["on_stop"], **recipe["options"])
    elif isinstance(pruner.options.get("posterior", ""), str):  # a posterior in memory cannot be kept
        study.set_user_attr(RECIPE, _recipe(pruner))
    study.pruner = pruner
    return study


def _recipe(pruner: LCPFNPruner) -> dict[str, Any]:
    scale = None if pruner.scale is None else pruner.scale.recipe
    return {"horizon": pruner.horizon, "scale": scale, "on_stop": pruner.on_stop, "options": pruner.options}
