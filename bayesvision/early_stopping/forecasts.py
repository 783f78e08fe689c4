"""`RunForecaster`: many runs under way, whose new readings one network takes in together."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.core.modules import share
from bayesvision.distributions import Continuous
from bayesvision.distributions.metric import MetricScale
from bayesvision.early_stopping.reader import bounded
from bayesvision.early_stopping.readings import READINGS, clocked, looked_at, origin, steps_ahead

__all__ = ["Band", "Final", "RunForecaster"]

BATCH = 256  # runs that go through the network at once
MEMORY = 1 << 30  # bytes of keys and values that are kept; the other runs are read again when they grow
Readings = tuple[Sequence[float], Sequence[float]]


class Final(NamedTuple):
    """Predictive median at the horizon, and the ends of a central interval."""

    median: float
    lower: float
    upper: float


class Band(NamedTuple):
    """Predictive quantiles, one list a level, at steps to come."""

    steps: list[float]
    quantiles: list[list[float]]


class _Run(NamedTuple):
    """What is to be read of a run."""

    name: str
    steps: list[float]  # by the clock of the run
    values: list[float]
    kept: int  # of these the keys and values are kept; the latest may be read for now only
    last: float  # step of the latest reading
    count: int  # readings of the run, those that were not looked at included
    start: float  # where its clock starts


class _Seen(NamedTuple):
    """What the network has read of a run, and what that left: its last state, and its keys and values while kept."""

    run: _Run
    state: Tensor
    cache: Tensor | None  # [layers, 2, heads, tokens, size]


class RunForecaster:
    """Runs of different lengths, each conditioned on as far as it came; those of equal length go in one batch.

    A new reading of a run costs one token, as in `condition`; a run whose past changed is read again. Each run has a
    clock of its own (`readings.origin`), and up to 100 readings of it are all read.

    Args:
        posterior: an `LCPFNPosterior` that has seen no curve.
        horizon: last step of a run.
        scale: units of the metric; None for one in [0, 1] where larger is better.
        memory: bytes of keys and values to keep.

    Raises:
        ValueError: the posterior is of another kind, or the horizon is not positive.
    """

    def __init__(self, posterior: Any, horizon: float, scale: MetricScale | None = None, memory: int = MEMORY) -> None:
        if not hasattr(posterior, "with_metric"):
            raise ValueError(f"posterior must extrapolate learning curves (an LCPFN), got {type(posterior).__name__}")
        self.posterior = posterior.with_metric(float(horizon), scale)
        self.horizon, self.scale, self.memory = float(horizon), scale, memory
        self._seen: dict[str, _Seen] = {}

    @property
    def minimize(self) -> bool:
        """Whether smaller values are better."""
        return self.scale is not None and self.scale.minimize

    def problem(self, run: Readings) -> str | None:
        """Why a run cannot be read, in words, or None."""
        lower, upper = (self.scale.lower, self.scale.upper) if self.scale else (0.0, 1.0)
        if run[0] and max(run[0]) > self.horizon:
            return f"step {max(run[0]):g} lies beyond the horizon {self.horizon:g}"
        for value in (min(run[1], default=lower), max(run[1], default=lower)):
            slack = 1e-6 * max(1.0, abs(value))
            if not lower - slack <= value <= upper + slack:
                return f"the value {value:g} lies outside the metric's range, {lower:g} to {upper:g}"
        return None

    @torch.no_grad()
    def read(self, runs: Mapping[str, Readings]) -> None:
        """Take in runs as far as they came: steps in increasing order, and finite values.

        Raises:
            ValueError: as in `LCPFNPosterior.condition`.
        """
        groups: dict[tuple[int, int, bool], list[_Run]] = {}
        for name, (steps, values) in runs.items():
            if not steps:
                continue
            new, old = self._new(name, steps, values), self._seen.get(name)
            if old is not None and (old.run.steps, old.run.values) == (new.steps, new.values):
                continue
            known = 0 if old is None or old.cache is None else min(old.run.kept, new.kept)
            if known and old is not None:
                same = (old.run.steps[:known], old.run.values[:known]) == (new.steps[:known], new.values[:known])
                known = known if same and known == old.run.kept else 0
            groups.setdefault((known, new.kept, len(new.steps) > new.kept), []).append(new)
        for (known, _, _), group in groups.items():
            for k in range(0, len(group), BATCH):
                self._extend(group[k : k + BATCH], known)
        self._shrink()

    def _new(self, name: str, steps: Sequence[float], values: Sequence[float]) -> _Run:
        start = origin(steps, self.horizon)
        rows, kept = looked_at(len(steps))
        x = clocked([steps[k] for k in rows], start, self.horizon)
        return _Run(name, x, [values[k] for k in rows], kept, steps[-1], len(steps), start)

    def _extend(self, group: list[_Run], known: int) -> None:
        """Condition runs of equal length, the first `known` rows of which were read before."""
        x = torch.tensor([run.steps for run in group], dtype=torch.float64)
        y = torch.tensor([run.values for run in group], dtype=torch.float64)
        base, kept = self.posterior, group[0].kept
        if known:
            old = [self._seen[run.name] for run in group]
            base = self._standing(x[:, :known], y[:, :known], [seen.state for seen in old])
            layers = torch.stack([seen.cache for seen in old if seen.cache is not None]).unbind(1)
            base.memory.store(tuple((pair[:, 0], pair[:, 1]) for pair in layers))
        if kept > known:
            base = base.condition(x[:, known:kept].unsqueeze(-1), y[:, known:kept])
        cache = torch.stack([torch.stack(pair, 1) for pair in base.memory.cache], 1)
        if x.shape[1] > kept:
            base = base.condition(x[:, kept:].unsqueeze(-1), y[:, kept:])
        for k, new in enumerate(group):
            self._seen.pop(new.name, None)  # the order of the dictionary tells who reported last
            self._seen[new.name] = _Seen(new, base.state[k].clone(), cache[k].clone())

    def _standing(self, x: Tensor, y: Tensor, states: list[Tensor]) -> Any:
        """A batch of posteriors as they stand, without keys and values."""
        posterior = share(self.posterior)
        posterior.x, posterior.y, posterior.state = x, y, torch.stack(states)
        return posterior

    def _shrink(self) -> None:
        spent = sum(seen.cache.nbytes for seen in self._seen.values() if seen.cache is not None)
        for name, seen in self._seen.items():
            if spent <= self.memory:
                break
            if seen.cache is not None:
                spent -= seen.cache.nbytes
                self._seen[name] = seen._replace(cache=None)

    def forget(self, names: Sequence[str]) -> None:
        """Drop runs."""
        for name in names:
            self._seen.pop(name, None)

    def _batches(self, names: Sequence[str]) -> Iterator[tuple[Sequence[str], Any]]:
        """Runs, and a posterior that stands where they do; predictions need the last reading and the state alone."""
        for k in range(0, len(names), BATCH):
            seen = [self._seen[name] for name in names[k : k + BATCH]]
            x = torch.tensor([[one.run.steps[-1]] for one in seen], dtype=torch.float64)
            y = torch.tensor([[one.run.values[-1]] for one in seen], dtype=torch.float64)
            yield names[k : k + BATCH], self._standing(x, y, [s.state for s in seen])

    def _predict(self, posterior: Any, ahead: Tensor) -> Any:
        return bounded(posterior.predict(ahead), self.scale)

    def _steps(self, name: str, points: int = READINGS) -> list[float]:
        """Steps of a run to come."""
        run = self._seen[name].run
        return steps_ahead(run.last, run.count, self.horizon, run.start, points)

    def _ahead(self, names: Sequence[str], steps: list[list[float]]) -> Float[Tensor, "runs points 1"]:
        """Steps to ask for on each run's clock, where a shorter list repeats its last entry, the horizon."""
        most = max(map(len, steps))
        padded = [
            clocked([*s, *([self.horizon] * (most - len(s)))], self._seen[name].run.start, self.horizon)
            for name, s in zip(names, steps, strict=True)
        ]
        return torch.tensor(padded, dtype=torch.float64).unsqueeze(-1)

    @torch.no_grad()
    def chances(self, names: Sequence[str], best: float, points: int = READINGS) -> dict[str, float]:
        """For each run the largest probability, over `points` steps to come, that it is better than `best`."""
        found: dict[str, float] = {}
        for some, posterior in self._batches(names):
            law: Continuous = self._predict(posterior, self._ahead(some, [self._steps(n, points) for n in some]))
            better = law.cdf(law.mean.new_tensor(best)) if self.minimize else law.probability_above(best)
            found |= zip(some, better.amax(-1).tolist(), strict=True)
        return found

    @torch.no_grad()
    def finals(self, names: Sequence[str], mass: float = 0.9) -> dict[str, Final]:
        """For each run the prediction at the horizon, with the central interval of probability `mass`."""
        found: dict[str, Final] = {}
        for some, posterior in self._batches(names):
            law: Continuous = self._predict(posterior, torch.full((len(some), 1, 1), self.horizon, dtype=torch.float64))
            levels = torch.tensor([0.5, (1 - mass) / 2, (1 + mass) / 2], dtype=torch.float64)
            ends = [v[..., 0].tolist() for v in law.quantile(levels)]
            found |= {name: Final(*values) for name, *values in zip(some, *ends, strict=True)}
        return found

    @torch.no_grad()
    def bands(self, names: Sequence[str], levels: Sequence[float], points: int = READINGS) -> dict[str, Band]:
        """For each run the quantiles at the given levels, at no more than `points` steps to come."""
        found: dict[str, Band] = {}
        wanted = torch.tensor(levels, dtype=torch.float64)
        for some, posterior in self._batches(names):
            steps = [self._steps(name, points) for name in some]
            quantiles = self._predict(posterior, self._ahead(some, steps)).quantile(wanted).movedim(0, 1)
            for name, own, curves in zip(some, steps, quantiles, strict=True):
                found[name] = Band(own, curves[:, : len(own)].tolist())
        return found

    @torch.no_grad()
    def fan(self, name: str) -> tuple[Float[Tensor, " points"], Continuous]:
        """Steps to come of one run, and the predictive distribution at each."""
        seen, steps = self._seen[name], self._steps(name)
        x, y = (torch.tensor(v, dtype=torch.float64) for v in (seen.run.steps, seen.run.values))
        posterior = self._standing(x, y, [seen.state])
        posterior.state = seen.state
        ahead = torch.tensor(clocked(steps, seen.run.start, self.horizon), dtype=torch.float64)
        return torch.tensor(steps, dtype=torch.float64), self._predict(posterior, ahead)
