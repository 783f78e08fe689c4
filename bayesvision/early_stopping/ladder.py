"""Where runs stand among each other at the same parts of their way, and which of them goes on."""

import bisect
import math
from collections.abc import Container, Hashable
from typing import Any, NamedTuple

from bayesvision.core.checks import check_count

__all__ = ["CLOSE", "UNSEEN", "Choice", "Ladder"]

UNSEEN = -math.inf  # the value of a run before its first
CLOSE = 1e-9  # two parts of a way that are the same


class Choice(NamedTuple):
    """What to train next.

    Attributes:
        run: a frozen run, or None for a new one.
        goal: part of its way to go to; 1 for all of it.
        ruled: whether a stopping rule decides in between.
    """

    run: Hashable | None
    goal: float
    ruled: bool


class Ladder:
    """Promotes frozen runs by their rank at the same rung, while that finds better values; else it trusts a rule.

    The rungs are at eta^-k of the way, k = rungs, ..., 1. A run that comes to a rung is frozen there, and goes on to
    the next one when it is among the best floor(n / eta) of the n runs that came there, as in asynchronous successive
    halving (Li et al. 2018, arXiv 1810.05934); a new run starts where none may.

    Ranks at the same step say little where runs end at steps of their own (as those do that stop at a target), and
    nothing where curves cross late. So the first runs go their whole way, ranks count only while three of four
    runs that ended did so at the horizon, and they are left for the rule when the best value has not moved for
    `patience[0]` whole runs' worth of steps; the rule is left for them after `patience[1]`. Larger values are better.

    Args:
        eta: one in how many goes on.
        rungs: their number.
        whole: runs that go their whole way at first.
        patience: whole runs' worth of steps without a better value before ranks and the rule change places.

    Raises:
        ValueError: eta is below 2, there is no rung, or a patience is not positive.
    """

    def __init__(
        self, eta: int = 3, rungs: int = 3, whole: int = 1, patience: tuple[float, float] = (3.0, 10.0)
    ) -> None:
        check_count("eta", eta, 2)
        check_count("rungs", rungs)
        check_count("whole", whole, 0)
        if len(patience) != 2 or not min(patience) > 0:
            raise ValueError(f"patience must be two positive numbers of runs, got {patience!r}")
        self.eta, self.whole, self.patience = eta, whole, patience
        self.rungs = [float(eta) ** -k for k in range(rungs, 0, -1)]
        self.tops: list[list[tuple[float, int]]] = [[] for _ in self.rungs]  # at each rung: minus value, number of run
        self.names: list[Hashable] = []
        self.numbers: dict[Hashable, int] = {}
        self.way: list[float] = []  # part that each run has gone
        self.value: list[float] = []  # its best value
        self.ended: set[int] = set()
        self.began = 0  # runs sent their whole way at first
        self.best, self.since, self.ranks = UNSEEN, 0.0, True
        self.ends = [0, 0]  # runs that ended before the horizon, and at it

    def put(self, run: Hashable, way: float, value: float) -> None:
        """A run has gone a part of its way, its latest value there; what it said of later parts is replaced."""
        k = self._number(run)
        if way <= self.way[k]:
            self._cut(k, way)
        before = self.way[k]
        self.way[k], self.value[k] = way, max(self.value[k], value)
        self.ended.discard(k)
        for rung, tops in zip(self.rungs, self.tops, strict=True):
            if before < rung <= way + CLOSE:
                bisect.insort(tops, (-self.value[k], k))
        self.since = 0.0 if value > self.best else self.since + way - before
        self.best = max(self.best, value)

    def _number(self, run: Hashable) -> int:
        if run not in self.numbers:
            self.numbers[run] = len(self.names)
            self.names.append(run)
            self.way.append(0.0)
            self.value.append(UNSEEN)
        return self.numbers[run]

    def _cut(self, k: int, way: float) -> None:
        """Forget what a run did from a part of its way on; its best value up to there is that of the last rung."""
        self.value[k], kept = UNSEEN, 0.0
        for place, rung in enumerate(self.rungs):
            held = [pair for pair in self.tops[place] if pair[1] == k]
            if held and rung < way:
                self.value[k], kept = -held[0][0], rung
            elif held:
                self.tops[place].remove(held[0])
        self.way[k] = min(kept, way)

    def end(self, run: Hashable, early: bool) -> None:
        """A run came to its own end, at the horizon or `early`."""
        self.drop(run)
        self.ends[0 if early else 1] += 1

    def drop(self, run: Hashable) -> None:
        """A run cannot go on."""
        self.ended.add(self._number(run))

    @property
    def fair(self) -> bool:
        """Whether runs end at the horizon, so that ranks at the same step compare like with like."""
        return 3 * self.ends[0] <= self.ends[1]

    def choose(self, busy: Container[Hashable] = ()) -> Choice:
        """What goes on next, runs that are `busy` aside."""
        if self.began < self.whole:
            return Choice(None, 1.0, False)
        if not self.fair:
            self.ranks = False
        elif self.since > self.patience[0 if self.ranks else 1]:
            self.ranks, self.since = not self.ranks, 0.0
        if not self.ranks:
            return Choice(None, 1.0, True)
        for place in reversed(range(len(self.rungs))):
            tops = self.tops[place]
            goal = self.after(self.rungs[place])
            for _, k in tops[: len(tops) // self.eta]:
                if k not in self.ended and self.way[k] < goal - CLOSE and self.names[k] not in busy:
                    return Choice(self.names[k], goal, False)
        return Choice(None, self.rungs[0], False)

    def after(self, way: float) -> float:
        """The rung that comes after a part of the way, or 1."""
        return next((rung for rung in self.rungs if rung > way + CLOSE), 1.0)

    def begin(self, run: Hashable) -> None:
        """A new run starts."""
        self._number(run)
        self.began += 1

    def frozen(self, busy: Container[Hashable] = ()) -> list[Hashable]:
        """The runs that have begun and could go on."""
        return [run for k, run in enumerate(self.names) if k not in self.ended and self.way[k] > 0 and run not in busy]

    def state(self) -> dict[str, Any]:
        """All that happened, as JSON data; the names of runs as text."""
        data = {name: getattr(self, name) for name in ("way", "began", "since", "ranks", "ends", "tops")}
        value, best = ([None if v == UNSEEN else v for v in some] for some in (self.value, [self.best]))
        names = [str(run) for run in self.names]
        return {**data, "value": value, "best": best[0], "names": names, "ended": sorted(self.ended)}

    def load(self, saved: dict[str, Any]) -> None:
        """Go on from `state()`; a KeyError, TypeError or ValueError for anything else."""
        tops = [[(float(v), int(k)) for v, k in rung] for rung in saved["tops"]]
        if len(tops) != len(self.rungs):
            raise ValueError(f"the state has {len(tops)} rungs, and this ladder {len(self.rungs)}")
        self.tops, self.names, self.ended = tops, list(saved["names"]), set(map(int, saved["ended"]))
        self.numbers = {run: k for k, run in enumerate(self.names)}
        *value, self.best = (UNSEEN if v is None else float(v) for v in [*saved["value"], saved["best"]])
        self.way, self.value = list(map(float, saved["way"])), value
        self.began, self.since = int(saved["began"]), float(saved["since"])
        self.ranks, self.ends = bool(saved["ranks"]), list(map(int, saved["ends"]))
