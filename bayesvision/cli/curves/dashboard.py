"""What `bayesvision watch` knows: the runs of a folder, their forecasts, and what of it changed since when."""

import json
import math
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bayesvision.distributions.metric import MetricScale
from bayesvision.early_stopping.forecasts import Band, Final, RunForecaster
from bayesvision.io.logs import Curve, Logs

__all__ = ["Dashboard"]

LEAST = 2  # readings before a run is to be stopped
POINTS = 16  # of a band
CHANCES = 25  # steps ahead that are asked for a better value
SHOWN = 120  # readings of a run that the page draws, at most
TOGETHER = 128  # runs that are forecast before the page is told
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
    best: float | None = field(default=None)


class Dashboard:
    """Follows logs and keeps, for each run, its forecast and whether to stop it.

    Args:
        logs: the files.
        posterior: an `LCPFNPosterior` that has seen no curve.
        scale: units of the metric.
        horizon: last step of a run; without it the next of 100, 200, 500, 1000, ... that no run has passed.
        delta: chance to beat the best at which a run is to be stopped.
        mass: probability of the band.
    """

    def __init__(
        self, logs: Logs, posterior: Any, scale: MetricScale | None, horizon: float | None, delta: float, mass: float
    ) -> None:
        self.logs, self.posterior, self.scale, self.given, self.delta, self.mass = (
            logs, posterior, scale, horizon, delta, mass,
        )  # fmt: skip
        self.levels = ((1 - mass) / 2, 0.25, 0.5, 0.75, (1 + mass) / 2)
        self.fleet = RunForecaster(posterior, horizon or 100.0, scale)
        self.lines: dict[str, _Line] = {}
        self.best, self.holder = math.nan, ""
        self.error, self.busy = "", True
        self.instance, self.version = secrets.token_hex(8), 0
        self._lock, self._done = threading.Lock(), threading.Event()
        self._said: dict[str, Any] = {}
        self._head, self._rows = "", list[tuple[int, str]]()
        self._publish([])

    def run(self, interval: float) -> None:
        """Look at the files every `interval` seconds until `close`; an error is shown and does not end it."""
        while not self._done.is_set():
            start = time.monotonic()
            try:
                self.refresh()
                self.error = ""
            except Exception as error:  # the page has to say it; a thread that ends in silence helps nobody
                self.error = f"{type(error).__name__}: {error}"[:300]
                self._publish([])
            self._done.wait(max(0.05, interval - (time.monotonic() - start)))

    def close(self) -> None:
        """End `run`."""
        self._done.set()

    def refresh(self) -> None:
        """Read what was added to the files and forecast the runs that changed."""
        changed = self.logs.poll()
        order = {name: k for k, name in enumerate(self.logs.runs)}
        gone = [name for name in self.lines if name not in order]
        for name in gone:
            del self.lines[name]
        self.fleet.forget(gone)
        for name in changed & order.keys():
            curve = self.logs.curve(name)
            old = self.lines.get(name)
            self.lines[name] = _Line(order[name], curve)
            if old is not None:  # the page keeps what it has until the forecast is ready
                self.lines[name].version, self.lines[name].text = old.version, old.text
        fresh = [name for name in order if name in changed and self.lines[name].curve.steps]
        if self._outgrown():
            fresh = [name for name in order if self.lines[name].curve.steps]
        moved = self._find_best()
        self.busy = bool(fresh)
        self._publish([name for name in fresh if not self.lines[name].version])
        for names in self._forecast(fresh):
            self._publish(names)
        rest = set(fresh) if moved else set(order)
        self._publish(self._again([name for name in order if name not in rest]))
        self.busy = False
        self._publish([])

    def _outgrown(self) -> bool:
        """Set the horizon, unless it is given; whether it changed."""
        last = max((line.curve.steps[-1] for line in self.lines.values() if line.curve.steps), default=0.0)
        if self.given is not None or last <= self.fleet.horizon:
            return False
        size = 10.0 ** math.floor(math.log10(last))
        horizon = next(k * size for k in (1, 2, 5, 10) if k * size >= last)
        self.fleet = RunForecaster(self.posterior, horizon, self.scale)
        return True

    def _find_best(self) -> bool:
        """Find the best value of all; whether it moved."""
        pick = min if self.fleet.minimize else max
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
        for k in range(0, len(names), TOGETHER):
            some = names[k : k + TOGETHER]
            ready = {}
            for name in some:
                line = self.lines[name]
                curve = line.curve.finite
                line.problem = None if self._is_over(line) else self.fleet.problem(curve)
                if line.problem is None and curve.steps and not self._is_over(line):
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
        return line.curve.diverged or line.curve.steps[-1] >= self.fleet.horizon

    def _again(self, names: list[str]) -> list[str]:
        """Measure runs that stand where they stood against a best value that moved; those whose chance changed."""
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
            return "stop", "the last value is not a finite number: the run diverged"
        if self._is_over(line):
            return "done", "the run reached the horizon"
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
        problems = self.logs.problems
        return {
            "instance": self.instance,
            "folder": self.logs.home.name,
            "metrics": self.logs.metrics[:5],
            "horizon": self.fleet.horizon,
            "guessed": self.given is None,
            "minimize": self.fleet.minimize,
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
        steps, values = _thinned(line.curve)
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


def _thinned(curve: Curve) -> tuple[list[float], list[float]]:
    """At most `SHOWN` readings, evenly chosen, the last one among them."""
    count = len(curve.steps)
    if count <= SHOWN:
        return curve.steps, curve.values
    places = sorted({round(k * (count - 1) / (SHOWN - 1)) for k in range(SHOWN)})
    return [curve.steps[k] for k in places], [curve.values[k] for k in places]
