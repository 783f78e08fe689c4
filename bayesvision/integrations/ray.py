"""Stops the trials of a Ray Tune run that are unlikely to beat its best one, or freezes and thaws them."""

import json
import math
from pathlib import Path
from typing import Any, ClassVar

from bayesvision.core.warn import warn
from bayesvision.distributions.metric import MetricScale
from bayesvision.early_stopping.directions import Mode, check_mode, directed
from bayesvision.early_stopping.monitor import FailSafe
from bayesvision.early_stopping.rule import StoppingRule
from bayesvision.early_stopping.runs import Decision
from bayesvision.early_stopping.thaw import Thaw
from bayesvision.integrations import needs
from bayesvision.io.tensors import replacing

with needs("ray"):
    from ray.tune import Stopper
    from ray.tune.experiment import Trial
    from ray.tune.result import SHOULD_CHECKPOINT
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.trainable.function_trainable import FunctionTrainable
    from ray.tune.utils import flatten_dict

__all__ = ["LCPFNScheduler", "LCPFNStopper", "ThawScheduler"]


Kind = type[StoppingRule] | type[Thaw]


def _can_pause(trial: Trial, result: dict[str, Any]) -> bool:
    """Whether a trial can go on from where it is: a class can be saved, and a function has to report checkpoints."""
    if result.get(SHOULD_CHECKPOINT) or trial.has_checkpoint():
        return True
    kind = trial.get_trainable_cls()
    return kind is None or not issubclass(kind, FunctionTrainable)


class LCPFNStopper(Stopper):
    """A stopper for `RunConfig(stop=...)`: a trial ends when P(y_t > best) <= delta at every later step t.

    `best` is the best value that any trial reported. What fails inside, a metric that was not reported among others, is
    told once, as a warning, and the trials go on. Ray keeps the state of a stopper with the run.

    Args:
        metric: name of the reported metric.
        mode: "max" or "min".
        horizon: last step of a trial that is not stopped.
        scale: units of the metric; without it a score lies in [0, 1], and a loss is measured between 0 and what the
            first trials start with.
        time_attr: name of the reported step, which counts from 1.
        **options: of `StoppingRule`: posterior, delta, least, at, audit, seed.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        metric: str,
        mode: str,
        horizon: float,
        scale: MetricScale | None = None,
        time_attr: str = "training_iteration",
        **options: Any,
    ) -> None:
        self.trials = _Trials(StoppingRule, horizon, scale, time_attr, options)
        self.trials.begin(metric, mode)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.trials.report(trial_id, flatten_dict(result))

    def stop_all(self) -> bool:
        return False


class _Scheduler(FIFOScheduler):
    """What the schedulers share: the metric, reports, and the state."""

    kind: ClassVar[Kind]

    def __init__(
        self,
        horizon: float,
        metric: str | None = None,
        mode: str | None = None,
        scale: MetricScale | None = None,
        time_attr: str = "training_iteration",
        **options: Any,
    ) -> None:
        super().__init__()
        self._metric, self._mode = metric, mode
        self.trials = _Trials(self.kind, horizon, scale, time_attr, options)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        if (self._metric and metric) or (self._mode and mode):
            return False
        self._metric, self._mode = self._metric or metric, self._mode or mode
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        if not self._metric or not self._mode:
            found = f"{self._metric!r} and {self._mode!r}"
            raise ValueError(f"metric and mode must be given to the scheduler or to TuneConfig, got {found}")
        self.trials.begin(self._metric, self._mode)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        return TrialScheduler.STOP if self.trials.report(trial.trial_id, result) else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if trial.trial_id not in self.trials.stopped:  # the last result of a trial that ended by itself comes only here
            self.trials.report_last(trial.trial_id, result)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        if self.trials.rule is not None:
            self.trials.rule.fail(trial.trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Write all that was reported and decided to a JSON file, whole or not at all."""
        with replacing(Path(checkpoint_path)) as temporary:
            temporary.write_text(json.dumps(self.trials.state_dict()))

    def restore(self, checkpoint_path: str) -> None:
        """Go on from a file that `save` wrote.

        Raises:
            ValueError: the file is of another metric or mode.
        """
        state = json.loads(Path(checkpoint_path).read_text())
        for name, ours in (("metric", self._metric), ("mode", self._mode)):
            if ours and ours != state[name]:
                raise ValueError(f"{checkpoint_path} is of the {name} {state[name]!r}, and this scheduler of {ours!r}")
        self.trials.load_state_dict(state)


class LCPFNScheduler(_Scheduler):
    """A scheduler for `TuneConfig(scheduler=...)`: a trial ends when P(y_t > best) <= delta at every later step t.

    `best` is the best value that any trial reported, failed ones aside. Trials start in the order of submission. One
    that fails and is tried again keeps its curve up to the iteration that it is restored from. What fails inside is
    told once, as a warning, and the trials go on. Ray does not keep the state of a scheduler with the run: `save` it,
    and `restore` a new one before the run is resumed.

    Args:
        horizon: last step of a trial that is not stopped.
        metric, mode: name of the reported metric and "max" or "min"; those of `TuneConfig` if left out.
        scale: units of the metric; without it a score lies in [0, 1], and a loss is measured between 0 and what the
            first trials start with.
        time_attr: name of the reported step, which counts from 1.
        **options: of `StoppingRule`: posterior, delta, least, at, audit, seed.

    Raises:
        ValueError: an argument is out of range; before the first trial, if no metric or mode is known.
    """

    kind = StoppingRule

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        if not trial.is_finished() and isinstance(self.trials.rule, StoppingRule):  # one that failed is tried again
            self.trials.rule.resume(trial.trial_id)

    def debug_string(self) -> str:
        return f"Using LC-PFN early stopping: {len(self.trials.stopped)} trials stopped."


class ThawScheduler(_Scheduler):
    """A scheduler for `TuneConfig(scheduler=...)` that pauses trials and goes on with those that promise most.

    It asks `bayesvision.Thaw`: trials are paused where they are compared with the others at the same step, and thawed
    from their checkpoint, so each `tune.report` has to hold one; a trial that reports none is not paused, which is
    told once, as a warning. Set `TuneConfig(reuse_actors=True)`: a thawed trial then goes before those that wait.
    `max_concurrent_trials` counts paused trials too; bound the number of trials at a time by their resources.
    When no trial waits and none that is paused is worth to go on with, the paused ones are ended.

    Args:
        horizon: last step of a trial.
        metric, mode: name of the reported metric and "max" or "min"; those of `TuneConfig` if left out.
        scale: units of the metric; without it a score lies in [0, 1], and a loss is measured between 0 and what the
            first trials start with.
        time_attr: name of the reported step, which counts from 1.
        **options: of `Thaw`: posterior, eta, rungs, patience, delta.

    Raises:
        ValueError: an argument is out of range; before the first trial, if no metric or mode is known.
    """

    kind = Thaw
    _warned = False

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if not self.trials.report(trial.trial_id, result):
            return TrialScheduler.CONTINUE
        if trial.trial_id not in self._thaw.frozen:  # it diverged
            return TrialScheduler.STOP
        self.trials.stopped.discard(trial.trial_id)
        if _can_pause(trial, result):
            return TrialScheduler.PAUSE
        if not self._warned:
            self._warned = True
            message = "trials are not paused, as tune.report(metrics, checkpoint=...) holds no checkpoint"
            warn(message, RuntimeWarning)
        return TrialScheduler.CONTINUE

    @property
    def _thaw(self) -> Thaw:
        assert isinstance(self.trials.rule, Thaw)
        return self.trials.rule

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        if self.trials.rule is not None:
            self._thaw.drop(trial.trial_id)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        if self.trials.rule is None:
            return None
        trials = {trial.trial_id: trial for trial in tune_controller.get_trials()}
        for name in [*self._thaw.frozen, *self._thaw.busy]:  # of a state that is older than the trials
            if name not in trials or trials[name].is_finished():
                self._thaw.drop(name)
        waiting, paused = ([t for t in trials.values() if t.status == s] for s in (Trial.PENDING, Trial.PAUSED))
        for trial in waiting + paused:
            if trial.trial_id in self._thaw.busy:  # it was chosen before, and does not run yet
                return trial
        new = next((t for t in waiting if t.trial_id not in self._thaw.ladder.runs), None)
        piece = self._thaw.next(None if new is None else new.trial_id)
        if piece is not None:  # one that is about to be paused is chosen when it is
            return None if trials[piece.run].status == Trial.RUNNING else trials[piece.run]
        if not waiting and not any(trial.status == Trial.RUNNING for trial in trials.values()):
            for trial in paused:
                tune_controller.stop_trial(trial)
        return None

    def debug_string(self) -> str:
        frozen = 0 if self.trials.rule is None else len(self._thaw.frozen)
        return f"Using Thaw: {frozen} trials frozen."


class _Trials:
    """The trials of one run, as reports to a rule or to what thaws; pickled without the network."""

    def __init__(
        self, kind: Kind, horizon: float, scale: MetricScale | None, time_attr: str, options: dict[str, Any]
    ) -> None:
        self.kind = kind
        self.horizon, self.scale, self.time_attr, self.options = horizon, scale, time_attr, options
        self.metric, self.mode = "", "max"
        self.stopped: set[str] = set()
        self.cautious = FailSafe()
        self.rule: StoppingRule | Thaw | None = None
        self.saved: dict[str, Any] | None = None
        kind(horizon, scale, **options)  # refuse bad options now

    def begin(self, metric: str, mode: str) -> StoppingRule | Thaw:
        """The rule for this metric, as it was saved if it was."""
        if self.rule is None:
            check_mode(mode)
            self.metric, self.mode = metric, mode
            told: Mode = "min" if mode == "min" else "max"
            self.rule = self.kind(self.horizon, directed(self.scale, told), mode=told, **self.options)
            if self.saved is not None:
                self.rule.load_state_dict(self.saved)
        return self.rule

    def report(self, trial: str, result: dict[str, Any]) -> bool:
        """Whether the trial should stop after this result."""
        stop = self.cautious.ask(lambda: self._update(trial, result)).stop
        if stop:
            self.stopped.add(trial)
        return stop

    def report_last(self, trial: str, result: dict[str, Any]) -> None:
        """Take in the last result of a trial that ended by itself, if it is new."""
        rule = self.rule.rule if isinstance(self.rule, Thaw) else self.rule
        known = None if rule is None else rule.runs.get(trial)
        if known is None or float(result.get(self.time_attr, math.inf)) > known.last:
            self.report(trial, result)
        if self.rule is not None:
            self.rule.complete(trial)

    def _update(self, trial: str, result: dict[str, Any]) -> Decision:
        for name in (self.metric, self.time_attr):
            if name not in result:
                raise ValueError(f"the result must hold {name!r}; it holds {', '.join(result)}")
        step, value = float(result[self.time_attr]), float(result[self.metric])
        return self.begin(self.metric, self.mode).update(trial, step, value)

    def state_dict(self) -> dict[str, Any]:
        rule = self.saved if self.rule is None else self.rule.state_dict()
        return {"metric": self.metric, "mode": self.mode, "stopped": sorted(self.stopped), "rule": rule}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.metric, self.mode, self.stopped = state["metric"], state["mode"], set(state["stopped"])
        self.rule, self.saved = None, state["rule"]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "rule": None, "saved": self.state_dict()["rule"]}
