"""`StoppingRule`: stops runs that are unlikely to beat the best one, over any posterior that extrapolates curves."""

import bisect
import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import torch
from matplotlib.axes import Axes
from torch import Tensor

from bayesvision import plots
from bayesvision.checkpoints import find
from bayesvision.core import Data
from bayesvision.distributions import Continuous
from bayesvision.fleet import READINGS, steps_ahead
from bayesvision.runs import Decision, Report, Run, fair_level
from bayesvision.units import Scale

__all__ = ["CurvePosterior", "Decision", "Report", "StoppingRule"]

LEARNING_RATE = 0.02  # of the adaptive level
CLOSE = 1e-4  # two probabilities that rounding might swap
REMEMBERED = 256  # runs whose conditioned posterior is kept; the others are read again when they report


@runtime_checkable
class CurvePosterior(Protocol):
    """What the rule needs: `condition` on epochs and values, `predict` at later epochs, and units to be set first."""

    def measured_in(self, horizon: float, scale: Scale | None) -> Self: ...
    def condition(self, x: Any, y: Any) -> Self: ...
    def predict(self, x: Any) -> Any: ...


class StoppingRule:
    """Stops run r at step T when P(y_t' > best) <= delta for every t' in (T, horizon] (arXiv 2310.20447, section 5.3).

    `best` is the best value of any run so far, this one included. A share `audit` of the runs goes on although the
    rule would stop them, so that `report()` can tell what stopping costs. Where forecasts turn out too low, the rule
    falls back: whenever a run doubles its readings, its value is compared with the upper delta-quantile forecast from
    the first half, and the level follows delta <- delta + 0.02 (delta_0 - [exceeded]), between 0 and delta_0 (adaptive
    conformal inference, Gibbs and Candes 2021, eq. 2). At level 0 nothing stops until the forecasts are right again.

    Args:
        horizon: last step of a run that is not stopped.
        scale: units of the metric; None for one in [0, 1] where larger is better.
        posterior: a `CurvePosterior`, a shipped name or a checkpoint file.
        delta: level delta_0.
        price: if given, the level is raised where the steps of a run are better spent on a fresh one (`fair_level`);
            for searches whose runs come in random order.
        least: readings before the first decision.
        at: fractions of the horizon to decide at, each at the first report that reaches it; all reports if left out.
        audit: share of the runs that are never stopped.
        seed: of the choice of audited runs, which depends on nothing else but the run's name.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        horizon: float,
        scale: Scale | None = None,
        posterior: CurvePosterior | str = "lcpfn",
        delta: float = 0.05,
        price: float | None = None,
        least: int = 2,
        at: Sequence[float] | None = None,
        audit: float = 0.05,
        seed: int = 0,
    ) -> None:
        if not 0 < delta < 1:
            raise ValueError(f"delta must lie strictly between 0 and 1, got {delta!r}")
        if price is not None and not 0 < price < math.inf:
            raise ValueError(f"price must be a positive number or None, got {price!r}")
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
        self.posterior = model.measured_in(float(horizon), scale)
        self.horizon, self.scale, self.delta, self.least, self.at = float(horizon), scale, delta, least, at
        self.price, self.audit, self.seed = price, audit, seed
        self.level = delta
        self._runs: dict[str, Run] = {}

    @property
    def minimize(self) -> bool:
        """Whether smaller values are better."""
        return self.scale is not None and self.scale.minimize

    @property
    def best(self) -> float:
        """The best value of any run so far; NaN before the first."""
        values = [v for run in self._runs.values() for v in run.values]
        return (min if self.minimize else max)(values) if values else math.nan

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
        self._insert(state, step, value)
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
                "declare the metric's range with scale=Scale(lower, upper, soft_lower, soft_upper, minimize)"
            )
        return math.isfinite(value)

    def _diverged(self, step: float, value: float) -> Decision:
        return Decision(True, f"the value is {value} at step {step:g}: the run diverged", 0.0, math.nan, step)

    def _consider(self, name: str, state: Run, previous: float, step: float) -> Decision:
        """Decide, if the reading at `step` after the one at `previous` is one to decide at."""
        if step >= self.horizon:
            state.posterior, state.read = None, 0
            return Decision(False, "the run reached the horizon", math.nan, state.values[-1], step)
        if step <= previous or not self._due(previous, step):
            return Decision(False, "not a step to decide at", math.nan, math.nan, step)
        if len(state.steps) < self.least:
            return Decision(False, f"fewer than {self.least} readings", math.nan, math.nan, step)
        return self._decide(name, state, step)

    def take(self, run: Hashable, curve: Mapping[float, float]) -> None:
        """Replace what is known of a run by its values at steps, without a decision.

        Steps outside (0, horizon] and values that are not finite or outside the scale are left out.
        """
        state = self._runs.setdefault(str(run), Run())
        rows = sorted((float(s), float(v)) for s, v in curve.items() if 0 < s <= self.horizon and self._is_valid(v))
        steps, values = [s for s, _ in rows], [v for _, v in rows]
        held = len(state.steps)
        if steps[:held] != state.steps or values[:held] != state.values:
            state = self._runs[str(run)] = Run()
        state.steps, state.values = steps, values

    def judge(self, run: Hashable, curve: Mapping[float, float]) -> Decision:
        """Decide on a run by its curve so far and by those that `take` was given, whatever was decided before.

        As if the runs had reported one after the other, in the order in which they were first taken. What the network
        has read of a curve is kept, so a later step costs one token.

        Raises:
            ValueError: the curve is empty, or its last report is one that `update` refuses.
        """
        if not curve:
            raise ValueError("curve must hold the values of the run at its steps, got none")
        self.take(run, curve)
        step, value = map(float, max(curve.items()))
        if not self._is_number(step, value):
            return self._diverged(step, value)
        self.level = self.delta
        for other in self._runs.values():
            self._catch_up(other)
            for exceeded in other.misses:
                self._move(exceeded)
        state = self._runs[str(run)]
        return self._consider(str(run), state, state.steps[-2] if len(state.steps) > 1 else 0.0, step)

    @property
    def _range(self) -> tuple[float, float]:
        return (self.scale.lower, self.scale.upper) if self.scale else (0.0, 1.0)

    def _is_valid(self, value: float) -> bool:
        slack = 1e-6 * max(1.0, abs(value))
        return math.isfinite(value) and self._range[0] - slack <= value <= self._range[1] + slack

    def _insert(self, state: Run, step: float, value: float) -> None:
        """Put a reading in its place; what the network has read past it is read again."""
        place = bisect.bisect_left(state.steps, step)
        if place < len(state.steps) and state.steps[place] == step:
            state.values[place] = value
        else:
            state.steps.insert(place, step)
            state.values.insert(place, value)
        if place < state.read:
            state.posterior, state.read = None, 0

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
        if self._learn(state, len(state.steps), ahead, law):
            self._move(state.misses[-1])
        level = self._level_at(state, step)
        if abs(p - level) < CLOSE:  # rounding depends on what was read in one go: read it all at once
            state.posterior, state.read = None, 0
            _, p = self._forecast(state, ahead, best)
        if level <= 0:
            return Decision(False, "forecasts have been too low of late, so nothing is stopped", p, final, step)
        if p > level:
            return Decision(False, f"it may beat {best:.6g} (probability {p:.3f})", p, final, step)
        reason = f"it is unlikely to beat {best:.6g} (probability {p:.3f} at most, level {level:.3f})"
        if state.audited is not None or self._is_audited(name):
            state.audited = state.audited or (step, best)
            return Decision(False, f"{reason}, but it runs on as an audit", p, final, step)
        state.stopped, state.posterior, state.read = step, None, 0
        return Decision(True, reason, p, final, step)

    def _level_at(self, state: Run, step: float) -> float:
        """The level in force for a run at a step: the fair one, lowered as far as delta is."""
        others = [run.steps[-1] for run in self._runs.values() if run.steps and run is not state]
        cost = sum(others) / len(others) if others else math.nan
        fair = fair_level(self.delta, self.price, len(others), cost, self.horizon - step)
        return float(fair) * self.level / self.delta

    def _forecast(self, state: Run, ahead: Tensor, best: float) -> tuple[Continuous, float]:
        """Law at the steps ahead, and the greatest probability among them to be better than `best`."""
        law: Continuous = self._read(state).predict(ahead)
        better = law.cdf(torch.full_like(ahead, best)) if self.minimize else law.probability_above(best)
        return law, float(better.max())

    def _learn(self, state: Run, count: int, ahead: Tensor, law: Continuous) -> bool:
        """At 2, 4, 8, ... readings, compare the last with the forecast made at half as many, and make the next one.

        Whether there was one to compare with; each count is looked at once.
        """
        if count < 2 or count & (count - 1) or count <= state.judged:
            return False
        state.judged, compared = count, bool(state.bounds)
        if compared:
            step, value = state.steps[count - 1], state.values[count - 1]
            bound = state.bounds[min(state.bounds, key=lambda s: abs(float(s) - step))]
            state.misses.append(value < bound if self.minimize else value > bound)
        bound = law.quantile(self.delta if self.minimize else 1 - self.delta)
        state.bounds = {f"{s:g}": float(b) for s, b in zip(ahead.tolist(), bound.tolist(), strict=True)}
        return compared

    def _move(self, exceeded: bool) -> None:
        self.level = min(self.delta, max(0.0, self.level + LEARNING_RATE * (self.delta - exceeded)))

    @torch.no_grad()
    def _catch_up(self, state: Run) -> None:
        """Compare at every doubling that `update` would have decided at, had it seen the readings one by one."""
        count = max(2, 2 * state.judged)
        while count <= len(state.steps):
            previous, step = state.steps[count - 2], state.steps[count - 1]
            if count >= self.least and step < self.horizon and self._due(previous, step):
                part, ahead = Run(state.steps[:count], state.values[:count]), self._ahead(step, count)
                self._learn(state, count, ahead, self._read(part).predict(ahead))
                if count == len(state.steps):
                    state.posterior, state.read = part.posterior, part.read
            count *= 2

    def _is_audited(self, name: str) -> bool:
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.audit * 2**64

    def report(self) -> Report:
        """Counts, steps, and what the audited runs reveal."""
        runs = self._runs.values()
        sign = -1.0 if self.minimize else 1.0
        gains = []
        for run in runs:
            if run.audited is not None:
                later = [v for s, v in zip(run.steps, run.values, strict=True) if s > run.audited[0]]
                gains.append(max([sign * (v - run.audited[1]) for v in later], default=0.0))
        lost = [max(0.0, g) for g in gains]
        last = [run.steps[-1] for run in runs if run.steps]
        saved = [self.horizon - run.stopped for run in runs if run.stopped is not None]
        regret = sum(lost) / len(lost) if lost else math.nan
        wrong = sum(g > 0 for g in gains)
        return Report(len(last), len(saved), len(gains), sum(last), sum(saved), wrong, regret, self.level)

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
        keys = ("steps", "values", "bounds", "misses", "judged", "stopped", "audited")
        runs = {name: {k: getattr(run, k) for k in keys} for name, run in self._runs.items()}
        return {"level": self.level, "runs": runs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`; the arguments of the rule are its own.

        Raises:
            ValueError: not such a state.
        """
        try:
            runs = {}
            for name, saved in state["runs"].items():
                audited = None if saved["audited"] is None else (float(saved["audited"][0]), float(saved["audited"][1]))
                steps, values = list(map(float, saved["steps"])), list(map(float, saved["values"]))
                run = Run(steps, values, bounds=dict(saved["bounds"]), stopped=saved["stopped"], audited=audited)
                run.misses, run.judged = list(saved["misses"]), int(saved["judged"])
                runs[name] = run
            level = float(state["level"])
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"state must come from state_dict() of a StoppingRule ({error!r})") from None
        self._runs, self.level = runs, level
