"""`StoppingRule`: stops runs that are unlikely to beat the best one, over any posterior that extrapolates curves."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import torch
from matplotlib.axes import Axes

from bayesvision import plots
from bayesvision.core.checks import check_count, check_horizon
from bayesvision.core.data import Data
from bayesvision.distributions.metric import MetricScale
from bayesvision.early_stopping.directions import Mode, check_mode
from bayesvision.early_stopping.reader import Reader
from bayesvision.early_stopping.readings import is_due, origin
from bayesvision.early_stopping.runs import (
    CurvePosterior,
    Decision,
    Forecaster,
    Report,
    Run,
    changed,
    is_chosen,
    runs_of,
)
from bayesvision.early_stopping.threshold import Record, learned_level
from bayesvision.early_stopping.units import FIRST, is_readable, is_within, learned_scale, remark, start_of
from bayesvision.io.checkpoints import find

__all__ = ["CurvePosterior", "Forecaster", "RunState", "StoppingRule"]

RunState = Literal["running", "stopped", "complete", "failed"]
CLOSE = 1e-4  # two probabilities that rounding might swap


class StoppingRule:
    """Stops run r at step T when P(y_t' > best) <= delta for every t' in (T, horizon] (arXiv 2310.20447, section 5.3).

    `best` is the best value of any run so far, this one included, and failed ones aside. A fraction `audit` of the runs
    goes on although the rule would stop them, so that `report()` can tell what stopping costs.

    The level delta is learned, which is also how the rule falls back where the forecasts are wrong or stopping does not
    pay: the first `learn` runs are never stopped, and once so many have gone their whole way the level is the one that
    would have found most improvements a step among the runs that have ended
    (`bayesvision.early_stopping.threshold.best_level`), each of them stopped as the posterior would have had it. Level
    0 stops nothing. Until then, or with `learn=0`, it is `delta`.

    The clock of a run starts where the run does: as far before its first report as the second one comes after it.
    A report at or before a step that was there is of a run that went on from a checkpoint, or began anew: it replaces
    everything from its step on.

    Example:
        >>> rule = bv.StoppingRule(horizon=100)
        >>> rule.update("run 1", step=1, value=0.41).stop

    Attributes:
        runs: what is known of each run, by its name.

    Args:
        horizon: last step of a run that is not stopped.
        scale: units of the metric; without it a metric to be maximised lies in [0, 1], and a loss is measured between 0
            and what the first runs start with.
        posterior: a `CurvePosterior`, a shipped name or a checkpoint file.
        delta: level before it is learned.
        learn: runs that are never stopped, the first ones; with 0, and for a posterior without `forecasts`, the level
            stays `delta`.
        least: readings before the first decision.
        at: fractions of the horizon to decide at, each at the first report that reaches it; all reports if left out.
        audit: fraction of the runs that are never stopped.
        seed: of the choice of audited runs, which depends on nothing else but the run's name.
        mode: `min` or `max`, which way the metric gets better; that of the scale if left out, and `max` without one.

    Raises:
        ValueError: an argument is out of range, or `mode` is not that of the scale.
    """

    def __init__(
        self,
        horizon: float,
        scale: MetricScale | None = None,
        posterior: CurvePosterior | str = "lcpfn",
        delta: float = 0.05,
        learn: int = 2,
        least: int = 2,
        at: Sequence[float] | None = None,
        audit: float = 0.05,
        seed: int = 0,
        mode: Mode | None = None,
    ) -> None:
        check_count("learn", learn, 0)
        check_count("least", least)
        if not 0 < delta < 1 or not 0 <= audit <= 1:
            raise ValueError(f"delta must lie in (0, 1) and audit in [0, 1], got {delta!r} and {audit!r}")
        if not all(0 < a <= 1 for a in at or ()):
            raise ValueError(f"at must hold fractions of the horizon in (0, 1], got {at!r}")
        check_mode(mode, scale)
        model: Any = find(posterior) if isinstance(posterior, str) else posterior
        if not isinstance(model, CurvePosterior):
            raise ValueError(f"posterior must extrapolate learning curves (an LCPFN), got {type(model).__name__}")
        self._own_units, self._model = scale is None and mode == "min", model
        self.horizon, self.delta, self.least, self.at = check_horizon(horizon), delta, least, at
        self.reader = Reader(model, self.horizon, learned_scale([1.0], 0.0) if self._own_units else scale)
        self.learn = learn if isinstance(model, Forecaster) else 0
        self.audit, self.seed, self.runs = audit, seed, dict[str, Run]()
        self._level: tuple[tuple[str, ...], float] | None = None  # learned from these runs

    def __repr__(self) -> str:
        mode, known = "min" if self.minimize else "max", f"{len(self.runs)} runs, best {self.best:.4g}"
        return f"{type(self).__name__}(horizon {self.horizon:g}, {mode}, {known}, level {self.level:.3g})"

    @property
    def scale(self) -> MetricScale | None:
        """Units of the metric, as told or as learned so far."""
        return self.reader.scale

    @property
    def minimize(self) -> bool:
        """Whether smaller values are better."""
        return self.reader.minimize

    @property
    def best(self) -> float:
        """The best value of any run so far, failed ones aside; NaN before the first."""
        pick, end = (min, 0) if self.minimize else (max, 1)
        return pick((r.ends[end] for r in self.runs.values() if r.values and not r.failed), default=math.nan)

    @property
    def level(self) -> float:
        """The level in force for a new run."""
        return self._level_for(None)

    def _level_for(self, state: Run | None) -> float:
        """The level for a run, by the others that have ended."""
        ended = {name: run for name, run in self.runs.items() if run is not state and run.has_ended}
        if not self.learn or sum(run.whole for run in ended.values()) < self.learn:
            return self.delta
        if self._level is None or self._level[0] != tuple(ended):
            level = learned_level(list(ended.values()), self._record, self.minimize)
            self._level = tuple(ended), level
        return self._level[1]

    @torch.no_grad()
    def _record(self, run: Run) -> Record:
        """What the posterior would have said after each reading of a run, asked for once."""
        if run.record is None:
            start = origin(run.steps, self.horizon)
            run.record = self.reader.record(
                run, lambda before, step: is_due(before, step, start, self.horizon, self.at), self.least
            )
        return run.record

    def update(self, run: Hashable, step: float, value: float) -> Decision:
        """Take in the value of a run at a step, and decide; the same reports in the same order decide the same.

        A step at or before the last one replaces everything from there on. A value that is not finite stops the run.
        Steps may be skipped; up to 100 readings are all read, and of more an even part with the latest.

        Raises:
            ValueError: the step is not in (0, horizon], or the value is outside the bounds of the scale.
        """
        return self.observe(run, step, value) or self.decide(run)

    def observe(self, run: Hashable, step: float, value: float) -> Decision | None:
        """Take in the value of a run as `update` does, without a decision but on one that diverged."""
        step, value = float(step), float(value)
        readable = self.check(step, value)
        state = self.runs.setdefault(str(run), Run())
        if not readable:
            state.cut(step)
            state.stopped, state.diverged = step, True
            return self._diverged(step, value)
        state.put(step, value)
        self._level = None
        self._learn_units()
        return None

    def decide(self, run: Hashable) -> Decision:
        """Decide on a run that has reported, if its latest reading is one to decide at.

        Raises:
            ValueError: the run is unknown, or has no value.
        """
        state = self._known(run)
        step = state.steps[-1]
        if step >= self.horizon:
            state.whole, state.stopped = True, None
            state.forget()
            return Decision(False, "the run reached the horizon", math.nan, state.values[-1], step)
        start = origin(state.steps, self.horizon)
        before = state.steps[-2] if len(state.steps) > 1 else start
        if not is_due(before, step, start, self.horizon, self.at):
            return Decision(False, "not a step to decide at", math.nan, math.nan, step)
        if len(state.steps) < self.least:
            return Decision(False, f"fewer than {self.least} readings", math.nan, math.nan, step)
        return self._decide(str(run), state, step)

    def fail(self, run: Hashable) -> None:
        """A run broke off: its curve is kept, and sets no best unless the run reports again."""
        self._level, self.runs = None, changed(self.runs, run, failed=True)

    def stop(self, run: Hashable) -> None:
        """A run was stopped after its last report, whatever was decided."""
        if (state := self.runs.get(str(run))) is not None:
            self._level, state.stopped = None, state.last

    def complete(self, run: Hashable) -> None:
        """A run came to its own end, before the horizon or at it."""
        self._level, self.runs = None, changed(self.runs, run, whole=True, stopped=None)

    def resume(self, run: Hashable) -> None:
        """A run that broke off, or was stopped, goes on."""
        self._level, self.runs = None, changed(self.runs, run, failed=False, stopped=None)

    def _learn_units(self) -> None:
        """Measure a loss between 0 and what the first runs started with, where no scale was told."""
        if not self._own_units:
            return
        runs = [run for run in self.runs.values() if run.values]
        if not runs:
            return
        scale = learned_scale([start_of(run.values) for run in runs[:FIRST]], min(run.ends[0] for run in runs))
        if scale != self.scale:
            self.reader, self._level = Reader(self._model, self.horizon, scale), None
            for run in self.runs.values():
                run.record = None
                run.forget()

    def check(self, step: float, value: float) -> bool:
        """Whether a report can be read, or else is one of a run that diverged; an error if it is neither."""
        return is_readable(step, value, self.horizon, self._range)

    def _diverged(self, step: float, value: float) -> Decision:
        return Decision(True, f"the value is {value} at step {step:g}: the run diverged", 0.0, math.nan, step)

    def take(self, run: Hashable, curve: Mapping[float, float], state: RunState = "running") -> None:
        """Replace what is known of a run by its values at steps and by how it ended, without a decision.

        Steps outside (0, horizon] and values that are not finite or outside the scale are left out.
        """
        known = self.runs.setdefault(str(run), Run())
        end, bounds = self.horizon, self._range
        rows = sorted((float(s), float(v)) for s, v in curve.items() if 0 < s <= end and is_within(v, bounds))
        steps, values = [s for s, _ in rows], [v for _, v in rows]
        held = len(known.steps)
        if steps[:held] != known.steps or values[:held] != known.values:
            known, self._level = Run(), None
            self.runs[str(run)] = known
        if len(steps) != held:
            known.record, known.extremes, self._level = None, None, None
        known.steps, known.values = steps, values
        known.whole, known.failed = state == "complete", state == "failed"
        known.stopped = max((s for s in curve if s <= self.horizon), default=0.0) if state == "stopped" else None
        self._learn_units()

    def judge(self, run: Hashable, curve: Mapping[float, float]) -> Decision:
        """Decide on a run by its curve so far and by those that `take` was given, whatever was decided before.

        What the network has read of a curve is kept, so a later step costs one token.

        Raises:
            ValueError: the curve is empty, or its last report is one that `update` refuses.
        """
        if not curve:
            raise ValueError("curve must hold the values of the run at its steps, got none")
        self.take(run, curve)
        step, value = map(float, max(curve.items()))
        return self.decide(run) if self.check(step, value) else self._diverged(step, value)

    @torch.no_grad()
    def chance(self, run: Hashable) -> float:
        """The largest chance of a run that has reported to beat the best one, over the steps to come.

        Raises:
            ValueError: the run is unknown, or has no value.
        """
        state = self._known(run)
        return self.reader.chance(self.reader.law(state, self.reader.ahead(state), self.runs.values()), self.best)

    def _known(self, run: Hashable) -> Run:
        state = self.runs.get(str(run))
        if state is None or not state.steps:
            raise ValueError(f"run must be one that has reported ({', '.join(self.runs) or 'none'}), got {run!r}")
        return state

    @property
    def _range(self) -> tuple[float, float]:
        if self._own_units:
            return -math.inf, math.inf
        return (self.scale.lower, self.scale.upper) if self.scale else (0.0, 1.0)

    @torch.no_grad()
    def _decide(self, name: str, state: Run, step: float) -> Decision:
        ahead, best = self.reader.ahead(state), self.best
        law = self.reader.law(state, ahead, self.runs.values())
        p, final = self.reader.chance(law, best), float(law[-1].quantile(0.5))
        level = self._level_for(state)
        if abs(p - level) < CLOSE:  # rounding depends on what was read in one go: read it all at once
            state.forget()
            p = self.reader.chance(self.reader.law(state, ahead), best)
        if level <= 0:
            return Decision(False, "stopping would have cost too much among the runs that ended", p, final, step)
        far = remark(state.values[-1], self.scale)
        if p > level:
            return Decision(False, f"it may beat {best:.6g} (probability {p:.3f}){far}", p, final, step)
        reason = f"it is unlikely to beat {best:.6g} (probability {p:.3f} at most, level {level:.3f}){far}"
        if state.audited is not None or self._is_first(state) or is_chosen(name, self.audit, self.seed):
            state.audited = state.audited or (step, best)
            why = f"is one of the first {self.learn}" if self._is_first(state) else "runs on as an audit"
            return Decision(False, f"{reason}, but it {why}", p, final, step)
        state.stopped = step
        state.forget()
        return Decision(True, reason, p, final, step)

    def _is_first(self, state: Run) -> bool:
        """Whether the run is one of the first that were not stopped, and not enough others went their whole way."""
        if sum(run.whole for run in self.runs.values() if run is not state) >= self.learn:
            return False
        going = [run for run in self.runs.values() if run.stopped is None]
        return any(run is state for run in going[: self.learn])

    def report(self) -> Report:
        """Counts, steps, and what the audited runs reveal."""
        return Report.of(self.runs.values(), self.horizon, self.minimize, self.level)

    @torch.no_grad()
    def explain(self, run: Hashable, ax: Axes | None = None) -> Axes:
        """Draw the run, the fan of its forecast, and the best value that it is measured against.

        Raises:
            ValueError: the run is unknown.
        """
        state = self._known(run)
        seen, ahead = Data(torch.tensor(state.steps), torch.tensor(state.values)), self.reader.ahead(state)
        axes = plots.curve_fan(self.reader.law(state, ahead), ahead, seen, best=self.best, ax=ax)
        axes.set_title(f"{run}, step {state.steps[-1]:g}")
        return axes

    def state_dict(self) -> dict[str, Any]:
        """All that was reported and decided, as JSON data."""
        return {"horizon": self.horizon, "runs": {name: run.state() for name, run in self.runs.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`; the arguments of the rule are its own.

        Raises:
            ValueError: not such a state, or one under another horizon.
        """
        self.runs, self._level = runs_of(state, self.horizon), None
        self._learn_units()
