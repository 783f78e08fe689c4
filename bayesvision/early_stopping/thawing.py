"""The replay of `Thaw` on finished runs."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayesvision.core.checks import check_count
from bayesvision.early_stopping.ladder import CLOSE, FAINT, UNSEEN, Ladder
from bayesvision.early_stopping.policies import Answers, Forecast, Forecaster
from bayesvision.early_stopping.replay import Curves, Replay

__all__ = ["Thawing"]


@dataclass(frozen=True)
class Thawing:
    """Freezes runs and goes on with those that promise most, as `bayesvision.early_stopping.thaw.Thaw` does.

    Args:
        chances: forecasts of the runs from each of their steps.
        eta, rungs, patience: of `bayesvision.early_stopping.ladder.Ladder`.
        learn: runs that are to have gone their whole way before the rule stops any.
        delta: level of the rule before that.

    A run that diverged, of which curves do not tell, counts as one that came to its own end.

    Raises:
        ValueError: as in `Ladder` and `Forecast`; the chances are of other curves.
    """

    chances: Answers
    eta: int = 3
    rungs: int = 3
    patience: tuple[float, float] = (3.0, 10.0)
    learn: int = 2
    delta: float = 0.05

    def __post_init__(self) -> None:
        check_count("learn", self.learn)
        self.ladder()
        self.rule()

    def rule(self) -> Forecast:
        """The rule that decides where ranks do not."""
        return Forecast(self.chances, self.delta, self.learn)

    def ladder(self) -> Ladder:
        """A new ladder."""
        return Ladder(self.eta, self.rungs, patience=self.patience)

    def play(self, curves: Curves, orders: np.ndarray, budget: int) -> Replay:
        """Train runs slice by slice until the budget is spent or nothing is worth to go on with."""
        rule = self.rule().forecaster(curves)
        games = [_Game(self, rule, curves, order, budget) for order in orders]
        for game in games:
            while game.spent < budget and game.move():
                pass
        best = np.maximum.accumulate(np.stack([game.best for game in games]), 1)
        taken = np.stack([game.done for game in games])
        frozen = (taken > 0) & (taken < rule.length[orders])
        last = [game.last for game in games]  # the budget may have ended before it was frozen
        frozen[np.arange(len(games)), last] &= [not game.cut for game in games]
        return Replay(best, taken, frozen)


class _Game:
    """One order of the runs."""

    def __init__(self, policy: Thawing, rule: Forecaster, curves: Curves, order: Any, budget: int) -> None:
        self.policy, self.rule, self.curves, self.order = policy, rule, curves, order
        self.ladder, self.steps = policy.ladder(), curves.shape[1]
        self.best, self.spent, self.top = np.full(budget, -np.inf), 0, -np.inf
        self.done, self.began = np.zeros(len(order), int), 0
        self.last, self.cut = 0, False
        self.judged: set[int] = set()  # runs that the rule has looked at

    def move(self) -> bool:
        """Train one slice; False if nothing is worth to go on with."""
        choice = self.ladder.choose()
        if choice.run is not None:
            k = int(choice.run)  # pyright: ignore[reportArgumentType]
            self.judged.discard(k)
            self._train(k, self._columns(choice.goal))
            return True
        if choice.ruled:
            k = self._thaw([run for run in self.ladder.frozen() if run not in self.judged], FAINT)
            if k is not None:
                self._train(k, self.steps)
                return True
        if self.began == len(self.order):
            return self._finish()
        k = self.began
        level = self._level() if choice.ruled else None
        self.began += 1
        self.ladder.begin(k, first=choice.goal == 1 and not choice.ruled)
        if level is None:
            self._train(k, self._columns(choice.goal))
        else:
            self.judged.add(k)
            self._train(k, int(self.rule.wanted(self.order[k : k + 1], np.array([self.top]), level)[0]))
        return True

    def _level(self) -> Any:
        """The level that serves the runs so far best; None while too few have gone their whole way."""
        runs, done = self.order[: self.began], self.done[: self.began]
        if (done == self.rule.length[runs]).sum() < self.policy.learn:
            return None
        return self.rule.level(runs[None], np.maximum(done[None], 1), np.array([self.top]))

    def _columns(self, goal: float) -> int:
        return int(np.ceil(goal * self.steps - CLOSE))

    def _thaw(self, some: list[Any], level: float) -> int | None:
        """The frozen run that has the best chance, if that is above a level."""
        if not some:
            return None
        frozen = np.array(some)
        chances = self.rule.chances(self.order[frozen], np.full(len(frozen), self.top))
        p = chances[np.arange(len(frozen)), self.done[frozen] - 1]
        return int(frozen[p.argmax()]) if p.max() > level else None

    def _finish(self) -> bool:
        """With no new run left: go on under the rule with the frozen run that has the best chance."""
        known = self._level()
        level = self.policy.delta if known is None else float(known[0])
        k = self._thaw(self.ladder.frozen(), level)
        if k is None:
            return False
        chances = self.rule.chances(self.order[k : k + 1], np.array([self.top]))[0]
        later = (chances <= level) & (np.arange(self.steps) >= self.done[k]) & self.rule.open[self.order[k]]
        stops = known is not None and level > 0 and later.any()
        self._train(k, int(later.argmax()) + 1 if stops else self.steps)
        return True

    def _train(self, k: int, until: int) -> None:
        """Train the run at a place up to a step, as far as it goes and the budget reaches."""
        run, first = self.order[k], int(self.done[k])
        end = min(until, int(self.rule.length[run]))
        last = min(end, first + len(self.best) - self.spent)
        for column in range(first, last):
            value = float(self.curves[run, column])
            value = UNSEEN if math.isnan(value) else value  # a gap
            self.top = max(self.top, value)
            self.ladder.put(k, (column + 1) / self.steps, value)
            self.best[self.spent] = self.top
            self.spent += 1
        self.done[k], self.last, self.cut = last, k, last < end
        if last == self.rule.length[run]:
            self.ladder.end(k, early=last < self.steps)
