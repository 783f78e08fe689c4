"""Policies of a replay: when a run of a sequence is stopped."""

import itertools
import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Shaped

from bayesvision.core.checks import LARGEST
from bayesvision.distributions import Mixture, Normal, TruncatedTransformed
from bayesvision.distributions.metric import MetricScale
from bayesvision.early_stopping.replay import Curves, Runs, Stopper, bests, lengths
from bayesvision.early_stopping.threshold import RECENT, TOP, best_level, costs

__all__ = ["Answers", "Chances", "Forecast", "Forecaster", "Hyperband", "NoStopping", "Patience", "SuccessiveHalving"]

CHUNK = 1 << 18  # forecasts that are made at once
SMALL = 1e-6  # mass that a law keeps between the bounds at least
GRID = 40  # values to beat that the chances are tabulated at, of each kind


@runtime_checkable
class Answers(Protocol):
    """What a policy asks of forecasts: where runs have values, and their chances; `Chances` has them."""

    there: Shaped[np.ndarray, "runs steps"]

    def better(self, runs: Any, best: Any) -> Any: ...


@dataclass(frozen=True)
class NoStopping:
    """Trains every run to its end."""

    def begin(self, curves: Curves, orders: int) -> Stopper:
        return lambda runs, best: np.full(len(runs), curves.shape[1])


@dataclass(frozen=True)
class Patience:
    """Stops a run that has not improved on its own best value for `steps` steps.

    Raises:
        ValueError: `steps` is below 1.
    """

    steps: int = 5

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def begin(self, curves: Curves, orders: int) -> Stopper:
        tops, columns = bests(curves), np.arange(curves.shape[1])
        better = np.diff(tops, axis=1, prepend=-np.inf) > 0
        since = columns - np.maximum.accumulate(np.where(better, columns, 0), 1)
        ends = _first(since >= self.steps)
        return lambda runs, best: ends[runs]


@dataclass(frozen=True)
class Forecast:
    """Stops a run after step T when P(y_t' > best) is at most the level for every t' > T.

    The first `learn` runs are not stopped, and from then on the level is the one that serves the runs so far best, as
    in `bayesvision.early_stopping.rule.StoppingRule`.

    Args:
        chances: forecasts of the runs from each of their steps.
        delta: the level if `learn` is 0.
        learn: runs that are never stopped.
        least: readings before the first decision.

    Raises:
        ValueError: delta is outside (0, 1), or `learn` is negative.
    """

    chances: Answers
    delta: float = 0.05
    learn: int = 2
    least: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1 or self.learn < 0:
            raise ValueError(
                f"delta must lie strictly between 0 and 1 and learn be at least 0, got {self.delta!r} and {self.learn}"
            )

    def begin(self, curves: Curves, orders: int) -> Stopper:
        return self.forecaster(curves).stop

    def forecaster(self, curves: Curves) -> "Forecaster":
        """What decides on these curves.

        Raises:
            ValueError: the chances are of others.
        """
        if self.chances.there.shape != curves.shape:
            raise ValueError(f"chances must be those of the curves {curves.shape}, got {self.chances.there.shape}")
        return Forecaster(self, curves)


class Forecaster:
    """The runs of each order so far, and the level that serves them best.

    Attributes:
        tops: best value of each run up to each step [runs, steps].
        length: steps of each run.
    """

    def __init__(self, policy: Forecast, curves: Curves) -> None:
        self.policy, self.tops, self.length = policy, bests(curves), lengths(curves)
        there, steps = policy.chances.there, curves.shape[1]
        self.open = there & (there.cumsum(1) >= policy.least) & (np.arange(1, steps + 1) < steps)
        self.runs: list[Runs] = []
        self.taken: list[Runs] = []
        self.grid, self.table = _tabulate(policy.chances, self.tops) if policy.learn else (np.zeros(0), np.zeros(0))

    def stop(self, runs: Runs, best: Float[np.ndarray, " orders"]) -> Runs:
        """Steps after which each run is stopped."""
        if len(self.runs) < self.policy.learn:
            wanted = np.full(len(runs), self.tops.shape[1])
        elif self.policy.learn:
            wanted = self.wanted(runs, best, self.level(np.stack(self.runs, 1), np.stack(self.taken, 1), best))
        else:
            wanted = self.wanted(runs, best, np.full(len(runs), self.policy.delta))
        self.runs.append(runs)
        self.taken.append(np.minimum(wanted, self.length[runs]))
        return wanted

    def chances(self, runs: Any, best: Any) -> Float[np.ndarray, "orders steps"]:
        """Largest probability ahead, from each step on, to be better than `best` and the run itself so far."""
        return self.policy.chances.better(runs, np.maximum(best[:, None], self.tops[runs]))

    def wanted(self, runs: Any, best: Any, level: Any) -> Runs:
        """Steps after which each run is stopped at a level."""
        return _first((self.chances(runs, best) <= level[:, None]) & (level[:, None] > 0) & self.open[runs])

    def level(self, runs: Any, taken: Any, best: Any) -> Float[np.ndarray, " orders"]:
        """The level that serves the runs [orders, places] best that took so many steps."""
        return best_level(self._lowest(runs, taken), self._costs(runs[:, -RECENT:], taken[:, -RECENT:], best))

    def _costs(self, runs: Any, taken: Any, best: Any) -> Float[np.ndarray, "orders recent levels"]:
        """Steps that each run would have taken at each level."""
        at = np.arange(1, self.tops.shape[1] + 1)
        p = self._look(runs, np.maximum(best[:, None, None], self.tops[runs]))
        p = np.where(self.open[runs] & (at < taken[..., None]), p, np.inf)
        return costs(p, np.minimum(at, np.maximum(taken, 1)[..., None]).astype(float))

    def _lowest(self, runs: Any, taken: Any) -> Float[np.ndarray, "orders top"]:
        """For the best whole runs the least chance to beat the next best one before they did; NaN for none."""
        whole = taken == self.length[runs]
        found = self.tops[runs, taken - 1]
        ranked = np.argsort(-found, 1, kind="stable")
        found, whole = (np.take_along_axis(v, ranked, 1) for v in (found, whole))
        pairs = whole[:, :-1] & (found[:, :-1] > found[:, 1:])
        rank = pairs.cumsum(1)
        row, column = np.nonzero(pairs & (rank <= TOP))
        one, value = runs[row, ranked[row, column]], found[row, column + 1][:, None]
        before = self.open[one] & (self.tops[one] < value)
        p = np.where(before, self._look(one, np.broadcast_to(value, before.shape)), 1.0).min(1)
        lowest = np.full((len(runs), TOP), np.nan)
        lowest[row, rank[row, column] - 1] = p
        return lowest

    def _look(self, runs: Any, best: Any) -> Any:
        """Chances to beat `best` [*runs, steps], by linear interpolation in the table."""
        right = np.clip(np.searchsorted(self.grid, best), 1, len(self.grid) - 1)
        low, high = self.grid[right - 1], self.grid[right]
        part = np.clip((best - low) / (high - low), 0, 1)
        place = runs[..., None], np.arange(self.tops.shape[1])
        return self.table[(*place, right - 1)] * (1 - part) + self.table[(*place, right)] * part


def _tabulate(chances: Answers, tops: Curves) -> tuple[np.ndarray, np.ndarray]:
    """Values to beat, close together where the best runs end, and the chances [runs, steps, values] to beat them."""
    final = np.sort(tops[:, -1][np.isfinite(tops[:, -1])])  # a run may have no values
    share = np.linspace(0, 1, GRID)
    grid = np.unique([*final[-GRID:], *np.quantile(final, share), *np.quantile(tops[np.isfinite(tops)], share[::4])])
    margin = max(1.0, grid[-1] - grid[0])
    grid = np.array([grid[0] - margin, *grid, grid[-1] + margin])
    runs, shape = np.arange(len(tops)), tops.shape
    return grid, np.stack([chances.better(runs, np.full(shape, value)) for value in grid], -1).astype(np.float32)


@dataclass(frozen=True)
class SuccessiveHalving:
    """Asynchronous successive halving in its stopping form (Li et al. 2018, arXiv 1810.05934).

    At the rungs least, eta least, eta^2 least, ... a run goes on if its value is in the top 1 / eta of those recorded
    at that rung so far, its own included; the first is always in it.

    Raises:
        ValueError: eta is below 2 or `least` below 1.
    """

    eta: int = 3
    least: int = 1

    def __post_init__(self) -> None:
        if self.eta < 2 or self.least < 1:
            raise ValueError(f"eta must be at least 2 and least at least 1, got {self.eta} and {self.least}")

    def begin(self, curves: Curves, orders: int) -> Stopper:
        bracket = _Bracket(curves, orders, self.eta, self.least)
        return bracket.stop


@dataclass(frozen=True)
class Hyperband:
    """Hyperband over a sequence (Li et al. 2018, arXiv 1603.06560): runs go in turn to brackets of `SuccessiveHalving`.

    Bracket s = 0, ..., floor(log_eta(steps / least)) has the lowest rung least eta^s and records of its own.

    Raises:
        ValueError: eta is below 2 or `least` below 1.
    """

    eta: int = 3
    least: int = 1

    def __post_init__(self) -> None:
        SuccessiveHalving(self.eta, self.least)

    def begin(self, curves: Curves, orders: int) -> Stopper:
        rungs = _rungs(self.eta, self.least, curves.shape[1] + 1)
        brackets = [_Bracket(curves, orders, self.eta, rung) for rung in rungs]
        turn = itertools.count()
        return lambda runs, best: brackets[next(turn) % len(brackets)].stop(runs, best)


def _rungs(eta: int, least: int, below: int) -> list[int]:
    count = 0 if below <= least else math.floor(math.log((below - 1) / least, eta) + 1e-9) + 1
    return [least * eta**k for k in range(count)]


class _Bracket:
    """The values recorded at the rungs, for each order."""

    def __init__(self, curves: Curves, orders: int, eta: int, least: int) -> None:
        self.curves, self.eta, self.end = curves, eta, curves.shape[1]
        self.rungs = _rungs(eta, least, self.end)
        self.records = [np.full((orders, len(curves)), -np.inf) for _ in self.rungs]
        self.counts = np.zeros((len(self.rungs), orders), int)

    def stop(self, runs: Runs, best: Float[np.ndarray, " orders"]) -> Runs:
        """Steps after which each run is stopped."""
        steps = np.full(len(runs), self.end)
        going = np.ones(len(runs), bool)
        for k, (rung, record, count) in enumerate(zip(self.rungs, self.records, self.counts, strict=True)):
            if count.max() == record.shape[1]:
                self.records[k] = record = np.pad(record, ((0, 0), (0, count.max())), constant_values=-np.inf)
            value = self.curves[runs, rung - 1]
            going = going & ~np.isnan(value)
            rows = np.nonzero(going)[0]
            above = (record[rows, : count.max() + 1] > value[rows, None]).sum(1)
            record[rows, count[rows]] = value[rows]
            count[rows] += 1
            lost = rows[above >= np.maximum(1, count[rows] // self.eta)]
            steps[lost], going[lost] = rung, False
        return steps


def _first(where: Shaped[np.ndarray, "some steps"]) -> Runs:
    """One more than the place of the first true entry of each row, or the number of entries."""
    return np.where(where.any(1), where.argmax(1) + 1, where.shape[1])


class Chances:
    """Forecasts of finished runs from each of their steps, by one pass of `posterior.forecasts` over each run.

    Args:
        posterior: an `LCPFNPosterior` in the units of the metric that has seen no curve.
        curves: values [runs, steps], larger is better: the negative metric if the posterior's scale minimises it.
        steps: the step that each column is of; 1, 2, ... if left out.
        points: steps t' to ask for, spread evenly, the last one among them; all of them if there are no more.

    Raises:
        ValueError: as in `forecasts`.
    """

    def __init__(self, posterior: Any, curves: Any, steps: Any = None, points: int = 12) -> None:
        curves = np.asarray(curves, dtype=np.float64)
        self.there, self.scale = ~np.isnan(curves), posterior.scale
        at = np.arange(1, curves.shape[1] + 1) if steps is None else np.asarray(steps)
        asked = at[np.unique(np.linspace(len(at) - 1, 0, points).round().astype(int))] if len(at) > points else at
        self.ahead = torch.as_tensor(asked > at[:, None])  # [steps, points]
        shape = *curves.shape, len(asked), posterior.method.components
        self.parts = torch.zeros(3, *shape)  # weights, means and standard deviations in the units of the network
        self.parts[2] = 1
        self.tail = torch.zeros(shape[:-1])  # mass beyond the best value that the metric can take
        self.mass = torch.ones(shape[:-1])  # mass between its bounds
        self.ends = _ends(posterior.scale)
        for runs, columns in _alike(self.there):
            size = max(1, CHUNK // (len(columns) * len(asked)))
            for k in range(0, len(runs), size):
                some = np.array(runs[k : k + size])[:, None]
                self._read(posterior, some, columns, curves[some, columns], at[columns], asked)

    @torch.no_grad()
    def _read(self, posterior: Any, runs: Any, columns: Any, values: Any, at: Any, asked: Any) -> None:
        x, later = (torch.as_tensor(v, dtype=torch.float32) for v in (at, asked))
        sign = -1.0 if self.scale is not None and self.scale.minimize else 1.0
        law: Any = posterior.forecasts(x.expand(len(values), -1).unsqueeze(-1), torch.as_tensor(sign * values), later)
        law = law.base if isinstance(law, TruncatedTransformed) else law
        parts = law.weights, law.component_distribution.mean, law.component_distribution.stddev
        for place, part in zip(self.parts, parts, strict=True):
            place[runs, columns] = part[:, 1:].float()  # the empty prefix comes first
        beyond = law.probability_above(self.ends[1])[:, 1:]
        self.tail[runs, columns] = beyond.float()
        self.mass[runs, columns] = (1 - law.cdf(self.ends[0])[:, 1:] - beyond).clamp(min=SMALL).float()

    @torch.no_grad()
    def better(self, runs: Runs, best: Float[np.ndarray, "orders steps"]) -> Float[np.ndarray, "orders steps"]:
        """Largest probability over the steps ahead that each of `runs` is better than `best`, for every step."""
        weights, means, stddevs = self.parts[:, torch.as_tensor(runs)]
        law: Any = Mixture.of(Normal(means, stddevs, validate_args=False), weights.log())
        value = torch.as_tensor(np.where(np.isfinite(best), best, -LARGEST)).unsqueeze(-1)
        if self.scale is not None:
            value = self.scale.normalize(-value if self.scale.minimize else value)
        rows = torch.as_tensor(runs)
        p = ((law.probability_above(value) - self.tail[rows]) / self.mass[rows]).clamp(0, 1)
        return p.where(self.ahead & (value < self.ends[1]), torch.zeros_like(p)).amax(-1).numpy()


def _ends(scale: MetricScale | None) -> tuple[float, float]:
    """The worst and the best value that a metric can take, in the units of the network."""
    if scale is None:
        return 0.0, 1.0
    worst, best = scale.normalize(torch.tensor([scale.lower, scale.upper], dtype=torch.float64)).sort().values.tolist()
    return worst, best


def _alike(there: Shaped[np.ndarray, "runs steps"]) -> list[tuple[list[int], np.ndarray]]:
    """Runs with values at the same steps, and the columns of these."""
    groups: dict[bytes, list[int]] = {}
    for run, row in enumerate(there):
        if row.any():
            groups.setdefault(row.tobytes(), []).append(run)
    return [(runs, np.nonzero(there[runs[0]])[0]) for runs in groups.values()]
