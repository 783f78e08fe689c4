"""Stops the trials of a Ray Tune run that are unlikely to beat its best one: a stopper and a scheduler."""

import json
from pathlib import Path
from typing import Any

from bayesvision.distributions.metric import MetricScale
from bayesvision.early_stopping.directions import Mode, check_mode, directed
from bayesvision.early_stopping.monitor import FailSafe
from bayesvision.early_stopping.rule import StoppingRule
from bayesvision.early_stopping.runs import Decision
from bayesvision.integrations import needs

with needs("ray"):
    from ray.tune import Stopper
    from ray.tune.experiment import Trial
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.utils import flatten_dict

__all__ = ["LCPFNScheduler", "LCPFNStopper"]


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
        self.trials = _Trials(horizon, scale, time_attr, options)
        self.trials.begin(metric, mode)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.trials.report(trial_id, flatten_dict(result))

    def stop_all(self) -> bool:
        return False


class LCPFNScheduler(FIFOScheduler):
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
        self.trials = _Trials(horizon, scale, time_attr, options)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        if (self._metric and metric) or (self._mode and mode):
            return False
        self._metric, self._mode = self._metric or metric, self._mode or mode
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        if not self._metric or not self._mode:
            found = f"{self._metric!r} and {self._mode!r}"
            raise ValueError(f"metric and mode must be given to the scheduler or to TuneConfig, got {found}")
        rule = self.trials.begin(self._metric, self._mode)
        if not trial.is_finished():  # one that failed and is tried again
            rule.resume(trial.trial_id)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        return TrialScheduler.STOP if self.trials.report(trial.trial_id, result) else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if trial.trial_id not in self.trials.stopped:  # the last result of a trial that ended by itself comes only here
            self.trials.report(trial.trial_id, result)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        if self.trials.rule is not None:
            self.trials.rule.fail(trial.trial_id)

    def debug_string(self) -> str:
        return f"Using LC-PFN early stopping: {len(self.trials.stopped)} trials stopped."

    def save(self, checkpoint_path: str) -> None:
        """Write all that was reported and decided to a JSON file, whole or not at all."""
        path = Path(checkpoint_path)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(self.trials.state_dict()))
        temporary.replace(path)

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


class _Trials:
    """The trials of one run, as reports to a rule; pickled without the network."""

    def __init__(self, horizon: float, scale: MetricScale | None, time_attr: str, options: dict[str, Any]) -> None:
        self.horizon, self.scale, self.time_attr, self.options = horizon, scale, time_attr, options
        self.metric, self.mode = "", "max"
        self.stopped: set[str] = set()
        self.cautious = FailSafe()
        self.rule: StoppingRule | None = None
        self.saved: dict[str, Any] | None = None
        StoppingRule(horizon, scale, **options)  # refuse bad options now

    def begin(self, metric: str, mode: str) -> StoppingRule:
        """The rule for this metric, as it was saved if it was."""
        if self.rule is None:
            check_mode(mode)
            self.metric, self.mode = metric, mode
            told: Mode = "min" if mode == "min" else "max"
            self.rule = StoppingRule(self.horizon, directed(self.scale, told), mode=told, **self.options)
            if self.saved is not None:
                self.rule.load_state_dict(self.saved)
        return self.rule

    def report(self, trial: str, result: dict[str, Any]) -> bool:
        """Whether the trial should stop after this result."""
        stop = self.cautious.ask(lambda: self._update(trial, result)).stop
        if stop:
            self.stopped.add(trial)
        return stop

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
