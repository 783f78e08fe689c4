"""`RunForecaster`: many runs under way, whose new readings one network takes in together."""

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.core.modules import share
from bayesvision.distributions import Continuous
from bayesvision.distributions.metric import MetricScale

__all__ = ["Band", "Final", "RunForecaster", "readings", "steps_ahead"]

READINGS = 100  # of a run are looked at, at most
BATCH = 256  # runs that go through the network at once
KEPT = 512  # runs whose keys and values are kept; the others are read again when they grow
Readings = tuple[Sequence[float], Sequence[float]]


class Final(NamedTuple):
    """Predictive mean at the horizon, and the ends of a central interval."""

    mean: float
    lower: float
    upper: float


class Band(NamedTuple):
    """Predictive quantiles, one list a level, at steps to come."""

    steps: list[float]
    quantiles: list[list[float]]


class _Seen(NamedTuple):
    """What the network has read of a run, and what that left: its last state, and its keys and values while kept."""

    steps: list[float]
    values: list[float]
    count: int  # readings of the run, those that were not looked at included
    state: Tensor
    cache: Tensor | None  # [layers, 2, heads, tokens, size]


def readings(steps: Sequence[float], horizon: float) -> list[int]:
    """Places of the readings to look at: the first one in each hundredth of the horizon."""
    places, k = [], 0
    while k < len(steps):  # from one to the next by bisection: a run may have many more
        places.append(k)
        tick = math.floor(steps[k] * READINGS / horizon + 1e-9)
        k = bisect.bisect_left(steps, (tick + 1 - 1e-9) * horizon / READINGS, k + 1)
    return places


def steps_ahead(step: float, count: int, horizon: float, points: int = READINGS) -> list[float]:
    """Steps from `step` to the horizon, as far apart as the `count` seen, and at most `points` of them."""
    stride = max(step / count, horizon / READINGS)
    number = max(0, math.ceil((horizon - step) / stride - 1e-9) - 1)
    steps = [*(step + stride * (k + 1) for k in range(number)), horizon]
    if len(steps) <= points:
        return steps
    places = torch.linspace(0, len(steps) - 1, points).round().long().tolist()
    return [steps[k] for k in places]


class RunForecaster:
    """Runs of different lengths, each conditioned on as far as it came; those of equal length go in one batch.

    A new reading of a run costs one token, as in `condition`; a run whose past changed is read again.

    Args:
        posterior: an `LCPFNPosterior` that has seen no curve.
        horizon: last step of a run.
        scale: units of the metric; None for one in [0, 1] where larger is better.

    Raises:
        ValueError: the posterior is of another kind, or the horizon is not positive.
    """

    def __init__(self, posterior: Any, horizon: float, scale: MetricScale | None = None) -> None:
        if not hasattr(posterior, "with_metric"):
            raise ValueError(f"posterior must extrapolate learning curves (an LCPFN), got {type(posterior).__name__}")
        self.posterior = posterior.with_metric(float(horizon), scale)
        self.horizon, self.scale = float(horizon), scale
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
        groups: dict[tuple[int, int], list[tuple[str, list[float], list[float], int]]] = {}
        for name, (steps, values) in runs.items():
            rows = readings(steps, self.horizon)
            x, y = [steps[k] for k in rows], [values[k] for k in rows]
            old = self._seen.get(name)
            if not rows or (old is not None and (old.steps, old.values) == (x, y)):
                continue
            known = 0 if old is None or old.cache is None else len(old.steps)
            if old is not None and (old.steps, old.values) != (x[:known], y[:known]):
                known = 0
            groups.setdefault((known, len(rows)), []).append((name, x, y, len(steps)))
        for (known, _), group in groups.items():
            for k in range(0, len(group), BATCH):
                self._extend(group[k : k + BATCH], known)
        self._shrink()

    def _extend(self, group: list[tuple[str, list[float], list[float], int]], known: int) -> None:
        """Condition runs of equal length, the first `known` rows of which were read before."""
        x, y = (torch.tensor([run[k] for run in group], dtype=torch.float64) for k in (1, 2))
        base = self.posterior
        if known:
            old = [self._seen[run[0]] for run in group]
            base = self._standing(x[:, :known], y[:, :known], [seen.state for seen in old])
            layers = torch.stack([seen.cache for seen in old if seen.cache is not None]).unbind(1)
            base.memory.store(tuple((pair[:, 0], pair[:, 1]) for pair in layers))
        new = base.condition(x[:, known:].unsqueeze(-1), y[:, known:])
        cache = torch.stack([torch.stack(pair, 1) for pair in new.memory.cache], 1)
        for k, (name, steps, values, count) in enumerate(group):
            self._seen.pop(name, None)  # the order of the dictionary tells who reported last
            self._seen[name] = _Seen(steps, values, count, new.state[k].clone(), cache[k].clone())

    def _standing(self, x: Tensor, y: Tensor, states: list[Tensor]) -> Any:
        """A batch of posteriors as they stand, without keys and values."""
        posterior = share(self.posterior)
        posterior.x, posterior.y, posterior.state = x, y, torch.stack(states)
        return posterior

    def _shrink(self) -> None:
        kept = [name for name, seen in self._seen.items() if seen.cache is not None]
        for name in kept[: max(0, len(kept) - KEPT)]:
            self._seen[name] = self._seen[name]._replace(cache=None)

    def forget(self, names: Sequence[str]) -> None:
        """Drop runs."""
        for name in names:
            self._seen.pop(name, None)

    def _batches(self, names: Sequence[str]) -> Iterator[tuple[Sequence[str], Any]]:
        """Runs, and a posterior that stands where they do; predictions need the last reading and the state alone."""
        for k in range(0, len(names), BATCH):
            seen = [self._seen[name] for name in names[k : k + BATCH]]
            x, y = (torch.tensor([[v[-1]] for v in rows]).double() for rows in zip(*[s[:2] for s in seen], strict=True))
            yield names[k : k + BATCH], self._standing(x, y, [s.state for s in seen])

    def _ahead(self, names: Sequence[str], points: int) -> Float[Tensor, "runs points 1"]:
        """Steps to ask for, where a shorter list repeats its last entry, the horizon."""
        steps = []
        for name in names:
            seen = self._seen[name]
            steps.append(steps_ahead(seen.steps[-1], seen.count, self.horizon, points))
        most = max(map(len, steps))
        padded = [[*s, *([self.horizon] * (most - len(s)))] for s in steps]
        return torch.tensor(padded, dtype=torch.float64).unsqueeze(-1)

    @torch.no_grad()
    def chances(self, names: Sequence[str], best: float, points: int = READINGS) -> dict[str, float]:
        """For each run the largest probability, over `points` steps to come, that it is better than `best`."""
        found: dict[str, float] = {}
        for some, posterior in self._batches(names):
            law: Continuous = posterior.predict(self._ahead(some, points))
            better = law.cdf(law.mean.new_tensor(best)) if self.minimize else law.probability_above(best)
            found |= zip(some, better.amax(-1).tolist(), strict=True)
        return found

    @torch.no_grad()
    def finals(self, names: Sequence[str], mass: float = 0.9) -> dict[str, Final]:
        """For each run the prediction at the horizon, with the central interval of probability `mass`."""
        found: dict[str, Final] = {}
        for some, posterior in self._batches(names):
            law: Continuous = posterior.predict(torch.full((len(some), 1, 1), self.horizon, dtype=torch.float64))
            lower, upper = law.interval(mass)
            ends = [v[..., 0].tolist() for v in (law.mean, lower, upper)]
            found |= {name: Final(*values) for name, *values in zip(some, *ends, strict=True)}
        return found

    @torch.no_grad()
    def bands(self, names: Sequence[str], levels: Sequence[float], points: int = READINGS) -> dict[str, Band]:
        """For each run the quantiles at the given levels, at no more than `points` steps to come."""
        found: dict[str, Band] = {}
        wanted = torch.tensor(levels, dtype=torch.float64)
        for some, posterior in self._batches(names):
            ahead = self._ahead(some, points)
            quantiles = posterior.predict(ahead).quantile(wanted).movedim(0, 1)
            for name, steps, curves in zip(some, ahead.squeeze(-1).tolist(), quantiles, strict=True):
                count = steps.index(self.horizon) + 1
                found[name] = Band(steps[:count], curves[:, :count].tolist())
        return found

    @torch.no_grad()
    def fan(self, name: str) -> tuple[Float[Tensor, " points"], Continuous]:
        """Steps to come of one run, and the predictive distribution at each."""
        seen = self._seen[name]
        x, y = (torch.tensor(v, dtype=torch.float64) for v in (seen.steps, seen.values))
        posterior = self._standing(x, y, [seen.state])
        posterior.state = seen.state
        ahead = torch.tensor(steps_ahead(seen.steps[-1], seen.count, self.horizon), dtype=torch.float64)
        return ahead, posterior.predict(ahead)
