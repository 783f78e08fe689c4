"""`StoppingRule`: stops runs that are unlikely to beat the best one, over any posterior that extrapolates curves."""

import hashlib
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from bayesvision import plots
from bayesvision.core.data import Data
from bayesvision.distributions import Continuous
from bayesvision.distributions.metric import MetricScale
from bayesvision.early_stopping.forecasts import READINGS, readings, steps_ahead
from bayesvision.early_stopping.runs import CurvePosterior, Decision, Forecaster, Report, Run
from bayesvision.early_stopping.threshold import RECENT, TOP, Record, best_level
from bayesvision.io.checkpoints import find

__all__ = ["CurvePosterior", "Forecaster", "RunState", "StoppingRule"]

RunState = Literal["running", "stopped", "complete"]
CLOSE = 1e-4  # two probabilities that rounding might swap
POINTS = 12  # steps to come that a run which has ended is looked at, from each of its readings
REMEMBERED = 256  # runs whose conditioned posterior is kept; the others are read again when they report


class StoppingRule:
    """Stops run r at step T when P(y_t' > best) <= delta for every t' in (T, horizon] (arXiv 2310.20447, section 5.3).

    `best` is the best value of any run so far, this one included. A fraction `audit` of the runs goes on although the
    rule would stop them, so that `report()` can tell what stopping costs.

    The level delta is learned, which is also how the rule falls back where the forecasts are wrong or stopping does not
    pay: the first `learn` runs are never stopped, and once so many have gone their whole way the level is the one that
    would have found most improvements a step among the runs that have ended
    (`bayesvision.early_stopping.threshold.best_level`), each of them stopped as the posterior would have had it. Level
    0 stops nothing. Until then, or with `learn=0`, it is `delta`.

    Example:
        >>> rule = bv.StoppingRule(horizon=100)
        >>> rule.update("run 1", step=1, value=0.41).stop

    Args:
        horizon: last step of a run that is not stopped.
        scale: units of the metric; None for one in [0, 1] where larger is better.
        posterior: a `CurvePosterior`, a shipped name or a checkpoint file.
        delta: level before it is learned.
        learn: runs that are never stopped, the first ones; with 0, and for a posterior without `forecasts`, the level
            stays `delta`.
        least: readings before the first decision.
        at: fractions of the horizon to decide at, each at the first report that reaches it; all reports if left out.
        audit: fraction of the runs that are never stopped.
        seed: of the choice of audited runs, which depends on nothing else but the run's name.

    Raises:
        ValueError: an argument is out of range.
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
    ) -> None:
        if not 0 < delta < 1:
            raise ValueError(f"delta must lie strictly between 0 and 1, got {delta!r}")
        if isinstance(learn, bool) or not isinstance(learn, int) or learn < 0:
            raise ValueError(f"learn must be a number of runs, or 0 for a fixed level, got {learn!r}")
        if not 0 <= audit <= 1:
            raise ValueError(f"audit must lie in [0, 1], got {audit!r}")
        if isinstance(least, bool) or not isinstance(least, int) or least < 1:
            raise ValueError(f"least must be a whole number of at least 1, got {least!r}")
        if at is not None and not all(0 < a <= 1 for a in at):
            raise ValueError(f"at must hold fractions of the horizon in (0, 1], got {at!r}")
        if not (isinstance(horizon, int | float) and 0 < horizon < math.inf):
            raise ValueError(f"horizon must be a positive number of steps, got {horizon!r}")
        model: Any = find(posterior) if isinstance(posterior, str) else posterior
        if not isinstance(model, CurvePosterior):
            raise ValueError(f"posterior must extrapolate learning curves (an LCPFN), got {type(model).__name__}")
        self.posterior = model.with_metric(float(horizon), scale)
        self.horizon, self.scale, self.delta, self.least, self.at = float(horizon), scale, delta, least, at
        self.learn = learn if isinstance(model, Forecaster) else 0
        self.audit, self.seed = audit, seed
        self._runs: dict[str, Run] = {}
        self._level: tuple[tuple[str, ...], float] | None = None  # learned from these runs

    @property
    def minimize(self) -> bool:
        """Whether smaller values are better."""
        return self.scale is not None and self.scale.minimize

    @property
    def best(self) -> float:
        """The best value of any run so far; NaN before the first."""
        values = [v for run in self._runs.values() for v in run.values]
        return (min if self.minimize else max)(values) if values else math.nan

    @property
    def level(self) -> float:
        """The level in force for a new run."""
        return self._level_for(None)

    def _level_for(self, state: Run | None) -> float:
        """The level for a run, by the others that have ended."""
        ended = {
            name: run
            for name, run in self._runs.items()
            if run is not state and run.steps and (run.whole or run.stopped is not None)
        }
        if not self.learn or sum(run.whole for run in ended.values()) < self.learn:
            return self.delta
        if self._level is None or self._level[0] != tuple(ended):
            self._level = tuple(ended), self._learned(list(ended.values()))
        return self._level[1]

    @torch.no_grad()
    def _learned(self, ended: list[Run]) -> float:
        """The best level for the runs that have ended, had each of them come last."""
        sign = -1.0 if self.minimize else 1.0
        best = max(sign * v for run in ended for v in run.values)
        spent = [self._record(run).costs(best) for run in ended[-RECENT:]]
        ranked = sorted(ended, key=lambda run: -max(sign * v for v in run.values))
        pairs = ((run, other) for run, other in itertools.pairwise(ranked) if run.whole)
        found = (self._record(run).lowest(max(sign * v for v in other.values)) for run, other in pairs)
        lowest = list(itertools.islice((p for p in found if not math.isnan(p)), TOP))
        return float(best_level(np.array(lowest), np.stack(spent)))

    def _record(self, run: Run) -> Record:
        """What the posterior would have said after each reading of a run, asked for once."""
        if run.record is None:
            sign, rows = -1.0 if self.minimize else 1.0, readings(run.steps, self.horizon)
            x = torch.tensor([run.steps[k] for k in rows], dtype=torch.float64).unsqueeze(-1)
            y = torch.tensor([run.values[k] for k in rows], dtype=torch.float64)
            at = self.horizon * torch.arange(1, POINTS + 1, dtype=torch.float64) / POINTS
            model: Any = self.posterior
            steps = x[:, 0].numpy()
            decided = (np.arange(1, len(rows) + 1) >= self.least) & (steps < self.horizon)
            due = [self._due(before, step) for before, step in itertools.pairwise([0.0, *steps.tolist()])]
            decided &= np.array(due)
            steps[-1] = run.steps[-1]
            tops = (sign * y).cummax(0).values.numpy()
            run.record = Record(model.forecasts(x, y, at), at > x, steps, tops, decided, self.minimize)
        return run.record

    def update(self, run: Hashable, step: float, value: float) -> Decision:
        """Take in the value of a run at a step, and decide; the same reports in the same order decide the same.

        A step that was reported before is replaced. A value that is not finite stops the run. Steps may be skipped or
        come late; of more than 100 steps to the horizon, about 100 are read.

        Raises:
            ValueError: the step is not in (0, horizon], or the value is outside the bounds of the scale.
        """
        step, value = float(step), float(value)
        state = self._runs.setdefault(str(run), Run())
        if not self._is_number(step, value):
            state.stopped = step
            return self._diverged(step, value)
        previous = state.steps[-1] if state.steps else 0.0
        state.insert(step, value)
        self._level = None
        return self._consider(str(run), state, previous, step)

    def _is_number(self, step: float, value: float) -> bool:
        """Whether a report can be read, or else is one of a run that diverged; an error if it is neither."""
        if not 0 < step <= self.horizon:
            raise ValueError(
                f"step must lie above 0 and be at most the horizon {self.horizon:g}, got {step:g}; "
                "count steps from 1, or set a longer horizon"
            )
        if math.isfinite(value) and not self._is_valid(value):
            raise ValueError(
                f"value must lie in [{self._range[0]:g}, {self._range[1]:g}], got {value:g}; "
                "declare the metric's range with scale=MetricScale(lower, upper, soft_lower, soft_upper, minimize)"
            )
        return math.isfinite(value)

    def _diverged(self, step: float, value: float) -> Decision:
        return Decision(True, f"the value is {value} at step {step:g}: the run diverged", 0.0, math.nan, step)

    def _consider(self, name: str, state: Run, previous: float, step: float) -> Decision:
        """Decide, if the reading at `step` after the one at `previous` is one to decide at."""
        if step >= self.horizon:
            state.posterior, state.read, state.whole, state.stopped = None, 0, True, None
            return Decision(False, "the run reached the horizon", math.nan, state.values[-1], step)
        if step <= previous or not self._due(previous, step):
            return Decision(False, "not a step to decide at", math.nan, math.nan, step)
        if len(state.steps) < self.least:
            return Decision(False, f"fewer than {self.least} readings", math.nan, math.nan, step)
        return self._decide(name, state, step)

    def take(self, run: Hashable, curve: Mapping[float, float], state: RunState = "running") -> None:
        """Replace what is known of a run by its values at steps and by how it ended, without a decision.

        Steps outside (0, horizon] and values that are not finite or outside the scale are left out.
        """
        known = self._runs.setdefault(str(run), Run())
        rows = sorted((float(s), float(v)) for s, v in curve.items() if 0 < s <= self.horizon and self._is_valid(v))
        steps, values = [s for s, _ in rows], [v for _, v in rows]
        held = len(known.steps)
        if steps[:held] != known.steps or values[:held] != known.values:
            known, self._level = Run(), None
            self._runs[str(run)] = known
        if len(steps) != held:
            known.record, self._level = None, None
        known.steps, known.values = steps, values
        known.whole = state == "complete"
        known.stopped = (steps[-1] if steps else 0.0) if state == "stopped" else None

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
        if not self._is_number(step, value):
            return self._diverged(step, value)
        state = self._runs[str(run)]
        return self._consider(str(run), state, state.steps[-2] if len(state.steps) > 1 else 0.0, step)

    @property
    def _range(self) -> tuple[float, float]:
        return (self.scale.lower, self.scale.upper) if self.scale else (0.0, 1.0)

    def _is_valid(self, value: float) -> bool:
        slack = 1e-6 * max(1.0, abs(value))
        return math.isfinite(value) and self._range[0] - slack <= value <= self._range[1] + slack

    def _due(self, previous: float, step: float) -> bool:
        """Whether the step passes a fraction to decide at."""
        if self.at is None:
            return self._tick(step) > self._tick(previous)
        return any(previous < a * self.horizon <= step for a in self.at)

    def _tick(self, step: float) -> int:
        """Number of the reading that a step belongs to, from 0 to 100 at the horizon."""
        return math.floor(step * READINGS / self.horizon + 1e-9)

    def _read(self, state: Run) -> Any:
        """The posterior that has seen the run, which costs one token for each new reading."""
        if state.posterior is None:
            held = [r for r in self._runs.values() if r.posterior is not None]
            for other in held[: max(0, len(held) - REMEMBERED + 1)]:
                other.posterior, other.read = None, 0
            state.posterior, state.read = self.posterior, 0
        steps, ticks = state.steps, [self._tick(s) for s in state.steps]
        rows = [k for k in range(state.read, len(steps)) if k == 0 or ticks[k] > ticks[k - 1]]
        if rows:
            state.posterior = state.posterior.condition([steps[k] for k in rows], [state.values[k] for k in rows])
        state.read = len(steps)
        return state.posterior

    def _ahead(self, step: float, readings: int) -> Tensor:
        """Steps to come, as far apart as those seen but at most 100 of them, and the horizon."""
        return torch.tensor(steps_ahead(step, readings, self.horizon), dtype=torch.float64)

    @torch.no_grad()
    def _decide(self, name: str, state: Run, step: float) -> Decision:
        ahead, best = self._ahead(step, len(state.steps)), self.best
        law, p = self._forecast(state, ahead, best)
        final = float(law.mean[-1])
        level = self._level_for(state)
        if abs(p - level) < CLOSE:  # rounding depends on what was read in one go: read it all at once
            state.posterior, state.read = None, 0
            _, p = self._forecast(state, ahead, best)
        if level <= 0:
            return Decision(False, "stopping would have cost too much among the runs that ended", p, final, step)
        if p > level:
            return Decision(False, f"it may beat {best:.6g} (probability {p:.3f})", p, final, step)
        reason = f"it is unlikely to beat {best:.6g} (probability {p:.3f} at most, level {level:.3f})"
        if state.audited is not None or self._is_first(state) or self._is_audited(name):
            state.audited = state.audited or (step, best)
            why = f"is one of the first {self.learn}" if self._is_first(state) else "runs on as an audit"
            return Decision(False, f"{reason}, but it {why}", p, final, step)
        state.stopped, state.posterior, state.read = step, None, 0
        return Decision(True, reason, p, final, step)

    def _forecast(self, state: Run, ahead: Tensor, best: float) -> tuple[Continuous, float]:
        """Distribution at the steps ahead, and the largest probability among them to be better than `best`."""
        law: Continuous = self._read(state).predict(ahead)
        better = law.cdf(torch.full_like(ahead, best)) if self.minimize else law.probability_above(best)
        return law, float(better.max())

    def _is_first(self, state: Run) -> bool:
        """Whether the run is one of the first that were not stopped."""
        going = [run for run in self._runs.values() if run.stopped is None]
        return any(run is state for run in going[: self.learn])

    def _is_audited(self, name: str) -> bool:
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.audit * 2**64

    def report(self) -> Report:
        """Counts, steps, and what the audited runs reveal."""
        return Report.of(self._runs.values(), self.horizon, self.minimize, self.level)

    @torch.no_grad()
    def explain(self, run: Hashable, ax: Axes | None = None) -> Axes:
        """Draw the run, the fan of its forecast, and the best value that it is measured against.

        Raises:
            ValueError: the run is unknown.
        """
        state = self._runs.get(str(run))
        if state is None or not state.steps:
            raise ValueError(f"run must be one that has reported ({', '.join(self._runs) or 'none'}), got {run!r}")
        step = state.steps[-1]
        seen = Data(torch.tensor(state.steps), torch.tensor(state.values))
        ahead = self._ahead(step, len(state.steps))
        axes = plots.curve_fan(self._read(state).predict(ahead), ahead, seen, best=self.best, ax=ax)
        axes.set_title(f"{run}, step {step:g}")
        return axes

    def state_dict(self) -> dict[str, Any]:
        """All that was reported and decided, as JSON data."""
        return {"runs": {name: run.state() for name, run in self._runs.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`; the arguments of the rule are its own.

        Raises:
            ValueError: not such a state.
        """
        try:
            runs = {name: Run.of_state(saved) for name, saved in state["runs"].items()}
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"state must come from state_dict() of a StoppingRule ({error!r})") from None
        self._runs, self._level = runs, None
