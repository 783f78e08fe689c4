"""What a posterior over curves says of one run after another, with what it has read of each kept."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesvision.distributions import Continuous, within
from bayesvision.distributions.metric import MetricScale
from bayesvision.early_stopping.readings import clocked, looked_at, origin, steps_ahead
from bayesvision.early_stopping.runs import CurvePosterior, Run
from bayesvision.early_stopping.threshold import Record

__all__ = ["Reader", "bounded"]

POINTS = 12  # steps to come that a run which has ended is looked at, from each of its readings
REMEMBERED = 256  # runs whose conditioned posterior is kept; the others are read again when they report


def bounded(law: Any, scale: MetricScale | None) -> Any:
    """The law between the hard bounds of the metric, which is in [0, 1] without a scale."""
    return within(law, 0.0, 1.0) if scale is None else law


class Reader:
    """Reads runs on their own clocks and asks for the steps to come.

    Args:
        model: a posterior over curves that has seen none.
        horizon: last step of a run.
        scale: units of the metric; None for one in [0, 1].
    """

    def __init__(self, model: CurvePosterior, horizon: float, scale: MetricScale | None) -> None:
        self.posterior: Any = model.with_metric(horizon, scale)
        self.horizon, self.scale = horizon, scale

    @property
    def minimize(self) -> bool:
        """Whether smaller values are better."""
        return self.scale is not None and self.scale.minimize

    def ahead(self, run: Run) -> Tensor:
        """Steps to come of a run, as far apart as those seen but at most 100 of them, and the horizon."""
        start = origin(run.steps, self.horizon)
        steps = steps_ahead(run.steps[-1], len(run.steps), self.horizon, start)
        return torch.tensor(steps, dtype=torch.float64)

    def law(self, run: Run, ahead: Tensor, others: Iterable[Run] = ()) -> Continuous:
        """The predictive distribution of a run at steps to come, which costs one token for each new reading.

        Args:
            others: runs that may have to give up what is kept of them.
        """
        start = origin(run.steps, self.horizon)
        places, kept = looked_at(len(run.steps))
        if run.posterior is None or run.read != places[: len(run.read)] or run.start != start:
            if run.posterior is None:
                held = [other for other in others if other.posterior is not None]
                for other in held[: max(0, len(held) - REMEMBERED + 1)]:
                    other.forget()
            run.posterior, run.read, run.start = self.posterior, [], start
        new = places[len(run.read) : kept]
        if new:
            run.posterior, run.read = self._condition(run.posterior, run, new), places[:kept]
        last = places[kept:]  # the latest reading, where it does not stay
        posterior = self._condition(run.posterior, run, last) if last else run.posterior
        at = torch.tensor(clocked(ahead.tolist(), start, self.horizon), dtype=torch.float64)
        return bounded(posterior.predict(at), self.scale)

    def _condition(self, posterior: Any, run: Run, places: list[int]) -> Any:
        steps = clocked([run.steps[k] for k in places], run.start, self.horizon)
        return posterior.condition(steps, [run.values[k] for k in places])

    def chance(self, law: Continuous, best: float) -> float:
        """The largest probability among the steps of `law` to be better than `best`."""
        value = torch.full(law.batch_shape, best, dtype=torch.float64)
        return float((law.cdf(value) if self.minimize else law.probability_above(value)).max())

    def record(self, run: Run, due: Callable[[float, float], bool], least: int) -> Record:
        """What the posterior would have said after each reading of a run that has ended.

        Args:
            due: whether a step after another one is a step to decide at.
            least: readings before the first decision.
        """
        start, rows = origin(run.steps, self.horizon), looked_at(len(run.steps))[0]
        steps, sign = np.array([run.steps[k] for k in rows]), -1.0 if self.minimize else 1.0
        y = torch.tensor([run.values[k] for k in rows], dtype=torch.float64)
        x = torch.tensor(clocked(steps.tolist(), start, self.horizon), dtype=torch.float64)
        at = self.horizon * torch.arange(1, POINTS + 1, dtype=torch.float64) / POINTS
        decided = (np.arange(1, len(rows) + 1) >= least) & (steps < self.horizon)
        decided &= np.array([due(before, step) for before, step in itertools.pairwise([start, *steps.tolist()])])
        tops = (sign * y).cummax(0).values.numpy()
        law = bounded(self.posterior.forecasts(x.unsqueeze(-1), y, at), self.scale)
        return Record(law, at > x.unsqueeze(-1), steps, tops, decided, self.minimize)
