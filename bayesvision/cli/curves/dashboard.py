"""What `bayesvision watch` knows: the runs of a folder, their forecasts, and what of it changed since when."""

import json
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bayesvision.cli.curves.options import Units
from bayesvision.early_stopping.forecasts import Band, Final, RunForecaster
from bayesvision.early_stopping.readings import origin
from bayesvision.io.log_files import Curve
from bayesvision.io.logs import Logs

__all__ = ["Dashboard"]

LEAST = 2  # readings before a run is to be stopped
POINTS = 16  # of a band
CHANCES = 25  # steps ahead that are asked for a better value
SHOWN = 120  # readings of a run that the page draws, at most, and half as many beyond the horizon
EARLY = 0.01  # of its way that a run has to go before it is forecast
OTHERS = 0.1  # of the runs that have to be about as long as the longest one, for a guessed horizon
TOGETHER = 128  # runs that are forecast before the page is told
CHOICES = 60  # metrics that the page offers
COMPLAINTS = 20  # files with bad lines that the page is told of


@dataclass
class _Line:
    """A run: what was read, what is forecast, and the text that the page gets, with the version that it is of."""

    index: int
    curve: Curve
    problem: str | None = None
    final: Final | None = None
    band: Band | None = None
    chance: float | None = None
    version: int = 0
    text: str = ""
    updated: float = 0.0
    best: float | None = field(default=None)


class Dashboard:
    """Follows logs and keeps, for each run, its forecast and whether to stop it.

    Args:
        logs: the files.
        posterior: an `LCPFNPosterior` that has seen no curve.
        units: direction and bounds of a metric; a `ValueError` says that they have to be told.
        horizon: last step of a run; without it the next of 100, 200, 500, 1000, ... that no run has passed, save a few
            that are much longer than all others.
        delta: chance to beat the best at which a run is to be stopped.
        mass: probability of the band.
    """

    def __init__(
        self,
        logs: Logs,
        posterior: Any,
        units: Callable[[str], Units],
        horizon: float | None,
        delta: float,
        mass: float,
    ) -> None:
        self.logs, self.posterior, self.units, self.given, self.delta, self.mass = (
            logs, posterior, units, horizon, delta, mass,
        )  # fmt: skip
        self.levels = ((1 - mass) / 2, 0.25, 0.5, 0.75, (1 + mass) / 2)
        self.fleet: RunForecaster | None = None
        self.told: Units | None = None
        self.told_of = ""  # the metric that it is of
        self.lines: dict[str, _Line] = {}
        self.best, self.holder = math.nan, ""
        self.error, self.busy, self.question = "", True, ("", "")
        self.offered: list[str] = []  # metrics that may be asked for, as the page was told
        self.instance, self.version = secrets.token_hex(8), 0
        self._lock = threading.Lock()
        self._said: dict[str, Any] = {}
        self._head, self._rows = "", list[tuple[int, str]]()
        self._publish([])

    def try_refresh(self) -> None:
        """`refresh`; an error is shown and ends nothing."""
        try:
            self.refresh()
            self.error = ""
        except Exception as error:  # the page has to say it; a thread that ends in silence helps nobody
            self.error = f"{type(error).__name__}: {error}"[:300]
            self._publish([])

    def refresh(self) -> None:
        """Read what was added to the files and forecast the runs that changed."""
        changed = self.logs.poll()
        order = {name: k for k, name in enumerate(self.logs.runs)} if self.is_clear() else {}
        gone = [name for name in self.lines if name not in order]
        for name in gone:
            del self.lines[name]
        now = time.time()
        for name in [name for name in order if name in changed or name not in self.lines]:
            curve, old = self.logs.curve(name, self.given), self.lines.get(name)
            self.lines[name] = _Line(order[name], curve, updated=self.logs.updated(name) if old is None else now)
            changed.add(name)
            if old is not None:  # the page keeps what it has until the forecast is ready
                self.lines[name].version, self.lines[name].text = old.version, old.text
        fresh = [name for name in order if name in changed and self.lines[name].curve.steps]
        if self._measure():
            fresh = [name for name in order if self.lines[name].curve.steps]
        if self.fleet is not None:
            self.fleet.forget(gone)
            self._follow(list(order), fresh)
        self.busy = False
        self._publish([])

    def _follow(self, names: list[str], fresh: list[str]) -> None:
        """Forecast the runs that changed, and measure all against the best value."""
        moved = self._find_best()
        self.busy = bool(fresh)
        self._publish([name for name in fresh if not self.lines[name].version])
        for some in self._forecast(fresh):
            self._publish(some)
        rest = set(fresh) if moved else set(names)
        self._publish(self._again([name for name in names if name not in rest]))

    def is_clear(self) -> bool:
        """Whether it is known which metric to read, and which way it gets better; else a question is asked."""
        metrics, choices = self.logs.metrics, self.logs.choices
        self.question = ("", "")
        if len(metrics) > 1 or (not metrics and len(choices) > 1):
            self.question = "metric", "several metrics may be read; choose one, or name it with --metric"
            return False
        metric = self.logs.names.metric or (metrics[0] if metrics else "metric")
        if metric != self.told_of:
            self.told, self.fleet, self.told_of = None, None, metric
            self.lines.clear()
        if self.logs.runs and self.told is None:
            try:
                self.told = self.units(metric)
            except ValueError as error:
                self.question = "mode", str(error)
        return self.told is not None

    def _measure(self) -> bool:
        """Set the horizon, unless it is given, and the units; whether something changed."""
        if self.told is None:
            return False
        lengths = sorted((line.curve.steps[-1] for line in self.lines.values() if line.curve.steps), reverse=True)
        scale = self.told.scale(line.curve for line in self.lines.values())
        horizon = self.given or _round_up(_length(lengths) if lengths else 100.0)
        if self.fleet is not None and (self.fleet.horizon, self.fleet.scale) == (horizon, scale):
            return False
        self.fleet = RunForecaster(self.posterior, horizon, scale)
        return True

    @property
    def minimize(self) -> bool:
        """Whether smaller values are better."""
        return self.told is not None and self.told.mode == "min"

    def _find_best(self) -> bool:
        """Find the best value of all; whether it moved."""
        pick = min if self.minimize else max
        before = self.best
        for line in self.lines.values():
            if line.best is None:
                line.best = pick(line.curve.finite.values, default=math.nan)
        found = {name: line.best for name, line in self.lines.items() if line.best is not None}
        found = {name: best for name, best in found.items() if not math.isnan(best)}
        self.holder = pick(found, key=lambda name: found[name]) if found else ""
        self.best = found[self.holder] if found else math.nan
        return self.best != before

    def _forecast(self, names: list[str]) -> Iterator[list[str]]:
        """Forecast runs, and yield them as they are ready."""
        assert self.fleet is not None
        for k in range(0, len(names), TOGETHER):
            some = names[k : k + TOGETHER]
            ready = {}
            for name in some:
                line = self.lines[name]
                curve = line.curve.finite
                line.problem = None if self._is_over(line) else self.fleet.problem(curve)
                line.chance = line.final = line.band = None
                if line.problem is None and curve.steps and not self._is_over(line) and not self._is_early(line):
                    ready[name] = curve
            self.fleet.read(ready)
            live = list(ready)
            chances = self.fleet.chances(live, self.best, CHANCES)
            finals = self.fleet.finals(live, self.mass)
            bands = self.fleet.bands(live, self.levels, POINTS)
            for name in live:
                line = self.lines[name]
                line.chance, line.final, line.band = chances[name], finals[name], bands[name]
            self.fleet.forget([name for name in some if name not in ready])
            yield some

    def _is_over(self, line: _Line) -> bool:
        return line.curve.diverged or (self.fleet is not None and line.curve.steps[-1] >= self.fleet.horizon)

    def _is_early(self, line: _Line) -> bool:
        """Whether a run has gone less than a hundredth of its way, from which nothing can be said."""
        assert self.fleet is not None
        start = origin(line.curve.finite.steps, self.fleet.horizon)
        return line.curve.steps[-1] - start < EARLY * (self.fleet.horizon - start) - 1e-9

    def _again(self, names: list[str]) -> list[str]:
        """Measure runs that stand where they stood against a best value that moved; those whose chance changed."""
        assert self.fleet is not None
        live = [name for name in names if self.lines[name].chance is not None]
        changed = []
        for name, chance in self.fleet.chances(live, self.best, CHANCES).items():
            if round(chance, 4) != round(self.lines[name].chance or 0.0, 4):
                self.lines[name].chance = chance
                changed.append(name)
        return changed

    def _call(self, line: _Line) -> tuple[str, str]:
        """Stop, go, done or none, and why in words."""
        if line.problem is not None:
            return "none", line.problem
        if line.curve.diverged:
            return "diverged", "the last value is not a finite number: the run diverged"
        if self._is_over(line):
            beyond = sum(step > self.fleet.horizon for step in line.curve.steps) if self.fleet else 0
            more = f"; {beyond} readings lie beyond it, up to step {line.curve.steps[-1]:g}" if beyond else ""
            return "done", f"the run reached the horizon{more}"
        if line.chance is None and line.curve.finite.steps and self.fleet and self._is_early(line):
            return "go", f"nothing is said before {EARLY:.0%} of the way to the horizon"
        if line.chance is None:
            return "none", "the forecast is under way"
        if len(line.curve.steps) < LEAST:
            return "go", f"fewer than {LEAST} readings"
        if line.chance <= self.delta:
            return "stop", f"it beats the best so far with probability {line.chance:.3g} at most"
        return "go", f"it may beat the best so far (probability {line.chance:.3g})"

    def _publish(self, names: list[str]) -> None:
        """Give runs, and what is said of all, a new version, if there is anything new."""
        texts = {name: self._text(name) for name in names}
        version = self.version + 1
        for name, text in texts.items():
            self.lines[name].text, self.lines[name].version = text, version
        rows = [(line.version, line.text) for line in self.lines.values() if line.text]
        said = {**self._head_data(), "count": len(rows)}
        if texts or said != self._said:
            head = json.dumps({**said, "version": version})
            with self._lock:
                self.version, self._said, self._head, self._rows = version, said, head, rows

    def _head_data(self) -> dict[str, Any]:
        """What is said of all runs."""
        problems = [p for p in self.logs.problems if p.first != self.question[1]]
        self.offered = self.logs.choices[:CHOICES]
        return {
            "instance": self.instance,
            "folder": self.logs.home.name,
            "metrics": self.logs.metrics[:5],
            "choices": self.offered,
            "question": self.question[0],
            "asks": self.question[1],
            "horizon": self.fleet.horizon if self.fleet else self.given or 100.0,
            "guessed": self.given is None,
            "minimize": self.minimize,
            "delta": self.delta,
            "mass": self.mass,
            "best": _number(self.best),
            "holder": self.holder,
            "busy": self.busy,
            "error": self.error,
            "problems": [[p.file, p.count, p.first[:300]] for p in problems[:COMPLAINTS]],
            "more": max(0, len(problems) - COMPLAINTS),
        }

    def _text(self, name: str) -> str:
        """A run as the page gets it."""
        line = self.lines[name]
        steps, values = _thinned(line.curve, self.fleet.horizon if self.fleet else math.inf)
        call, why = self._call(line)
        live, over = line.band is not None, call == "done" and bool(values)
        final = [values[-1]] * 3 if over else list(line.final or ())
        data = {
            "name": name,
            "index": line.index,
            "steps": steps,
            "values": [_number(v) for v in values],
            "count": len(line.curve.steps),
            "ahead": [_number(v) for v in line.band.steps] if live and line.band else [],
            "band": [[_number(v) for v in q] for q in line.band.quantiles] if live and line.band else [],
            "final": [_number(v) for v in final],
            "chance": None if line.chance is None else round(line.chance, 4),
            "call": call,
            "why": why,
            "updated": round(line.updated),
        }
        return json.dumps(data, separators=(",", ":"))

    def since(self, version: int) -> bytes:
        """What changed after `version`, as JSON: all about the whole, and the runs that are newer."""
        with self._lock:
            head, rows = self._head, self._rows
        runs = ",".join(text for newer, text in rows if newer > version)
        return f'{head[:-1]}, "runs": [{runs}]}}'.encode()


def _number(value: float) -> float | None:
    """Six digits of a number; JSON knows no infinity."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _thinned(curve: Curve, horizon: float) -> tuple[list[float], list[float]]:
    """At most `SHOWN` readings up to the horizon and half as many beyond it, evenly chosen, with the last of each."""
    within = sum(step <= horizon for step in curve.steps)
    places = [*_even(0, within, SHOWN), *_even(within, len(curve.steps), SHOWN // 2)]
    return [curve.steps[k] for k in places], [curve.values[k] for k in places]


def _even(first: int, end: int, most: int) -> list[int]:
    count = end - first
    if count <= most:
        return list(range(first, end))
    return sorted({first + round(k * (count - 1) / (most - 1)) for k in range(most)})


def _length(lengths: list[float]) -> float:
    """The longest run, save a few that are more than twice as long as all others."""
    need = min(len(lengths), max(2, math.ceil(OTHERS * len(lengths))))
    return next(step for step in lengths if sum(other >= step / 2 for other in lengths) >= need)


def _round_up(step: float) -> float:
    """The next of 100, 200, 500, 1000, ..."""
    size = 10.0 ** math.floor(math.log10(max(step, 100.0)))
    return next(k * size for k in (1, 2, 5, 10) if k * size >= step)
