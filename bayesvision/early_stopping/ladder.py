"""Where runs stand among each other at the same parts of their way, and which of them goes on."""

import bisect
import math
from collections.abc import Container, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bayesvision.core.checks import check_count

__all__ = ["CLOSE", "FAINT", "UNSEEN", "Choice", "Ladder"]

CLOSE = 1e-9  # two parts of a way that are the same
FAINT = 1e-3  # chance of a run that may not beat the best one
UNSEEN = -math.inf  # the value of a run before its first


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


@dataclass
class _Climb:
    """One run on the ladder.

    Attributes:
        number: how many began before it.
        way, best: the part of its way that it has gone, and its best value there.
        marks: its best value at each rung that it came to.
        out: whether it cannot go on.
        failed: whether it broke off; then its values count for nothing.
        early: whether it came to its own end, and that before the horizon; None if it did not.
        first: whether it was sent its whole way as one of the first.
    """

    number: int
    way: float = 0.0
    best: float = UNSEEN
    marks: list[float] = field(default_factory=list)
    out: bool = False
    failed: bool = False
    early: bool | None = None
    first: bool = False


class Ladder:
    """Promotes frozen runs by their rank at the same rung, while that finds better values; else it trusts a rule.

    The rungs are at eta^-k of the way, k = rungs, ..., 1. A run that comes to a rung is frozen there, and goes on to
    the next one when it is among the best floor(n / eta) of the n runs that came there, as in asynchronous successive
    halving (Li et al. 2018, arXiv 1810.05934); a new run starts where none may.

    Ranks at the same step say little where runs end at steps of their own (as those do that stop at a target), and
    nothing where curves cross late. So the first runs go their whole way, ranks count only while three of four runs
    that ended did so at the horizon, and they are left for the rule when the best value has not moved for
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
        if not (isinstance(patience, tuple | list) and len(patience) == 2 and all(0 < p < math.inf for p in patience)):
            raise ValueError(f"patience must be two positive numbers of runs, got {patience!r}")
        self.eta, self.whole, self.patience = eta, whole, patience
        self.rungs = [float(eta) ** -k for k in range(rungs, 0, -1)]
        self.runs: dict[Hashable, _Climb] = {}
        self.tops: list[list[tuple[float, int, Hashable]]] = [[] for _ in self.rungs]  # minus value, number, run
        self.best, self.since, self.ranks = UNSEEN, 0.0, True

    def begin(self, run: Hashable, first: bool = False) -> None:
        """A new run starts, as one of the first or not."""
        number = 1 + max((climb.number for climb in self.runs.values()), default=-1)
        self.runs.setdefault(run, _Climb(number)).first = first

    def put(self, run: Hashable, way: float, value: float) -> None:
        """A run has come further, to a part `way` of its way, and has a value there."""
        climb = self.runs[run]
        climb.out, climb.failed, climb.early = False, False, None
        self.since += max(0.0, way - climb.way)
        climb.way, climb.best = way, max(climb.best, value)
        self._mark(run, climb)
        if climb.best > self.best:
            self.best, self.since = climb.best, 0.0

    def _mark(self, run: Hashable, climb: _Climb) -> None:
        while len(climb.marks) < len(self.rungs) and self.rungs[len(climb.marks)] <= climb.way + CLOSE:
            bisect.insort(self.tops[len(climb.marks)], (-climb.best, climb.number, run))
            climb.marks.append(climb.best)

    def replace(self, run: Hashable, readings: Iterable[tuple[float, float]]) -> None:
        """What is known of a run is replaced by these parts of its way and values; no steps are spent."""
        climb = self.runs[run]
        self._unmark(run, climb)
        climb.way, climb.best, climb.failed = 0.0, UNSEEN, False
        for way, value in readings:
            climb.way, climb.best = way, max(climb.best, value)
            self._mark(run, climb)
        self._find_best()

    def _unmark(self, run: Hashable, climb: _Climb) -> None:
        for tops, mark in zip(self.tops, climb.marks, strict=False):
            tops.remove((-mark, climb.number, run))
        climb.marks = []

    def _find_best(self) -> None:
        self.best = max((climb.best for climb in self.runs.values() if not climb.failed), default=UNSEEN)

    def end(self, run: Hashable, early: bool) -> None:
        """A run came to its own end, at the horizon or `early`."""
        self.runs[run].out, self.runs[run].early = True, early

    def drop(self, run: Hashable) -> None:
        """A run cannot go on; what it found counts."""
        self.runs[run].out = True

    def fail(self, run: Hashable) -> None:
        """A run broke off: its values count for nothing until `replace`; one that had none is forgotten."""
        climb = self.runs[run]
        self.drop(run)
        self._unmark(run, climb)
        climb.failed = True
        if climb.way == 0:
            del self.runs[run]
        self._find_best()

    @property
    def fair(self) -> bool:
        """Whether runs end at the horizon, so that ranks at the same step compare like with like."""
        ends = [climb.early for climb in self.runs.values() if climb.early is not None]
        return 4 * sum(ends) <= len(ends)

    def choose(self, busy: Container[Hashable] = ()) -> Choice:
        """What goes on next, runs that are `busy` aside."""
        if sum(climb.first and (not climb.out or climb.early is not None) for climb in self.runs.values()) < self.whole:
            return Choice(None, 1.0, False)
        if not self.fair:
            self.ranks = False
        elif self.since > self.patience[0 if self.ranks else 1]:
            self.ranks, self.since = not self.ranks, 0.0
        if not self.ranks:
            return Choice(None, 1.0, True)
        for place in reversed(range(len(self.rungs))):
            tops, goal = self.tops[place], self.after(self.rungs[place])
            for _, _, run in tops[: len(tops) // self.eta]:
                climb = self.runs[run]
                if not climb.out and climb.way < goal - CLOSE and run not in busy:
                    return Choice(run, goal, False)
        return Choice(None, self.rungs[0], False)

    def after(self, way: float) -> float:
        """The rung that comes after a part of the way, or 1."""
        return next((rung for rung in self.rungs if rung > way + CLOSE), 1.0)

    def frozen(self, busy: Container[Hashable] = ()) -> list[Hashable]:
        """The runs that have begun and could go on."""
        return [run for run, climb in self.runs.items() if not climb.out and climb.way > 0 and run not in busy]

    def state(self) -> dict[str, Any]:
        """All that happened, as JSON data; the names of runs as text."""
        runs = {}
        for run, climb in self.runs.items():
            best, *marks = (None if v == UNSEEN else v for v in (climb.best, *climb.marks))
            runs[str(run)] = {**vars(climb), "best": best, "marks": marks}
        return {"rungs": list(self.rungs), "runs": runs, "since": self.since, "ranks": self.ranks}

    def load(self, saved: dict[str, Any]) -> None:
        """Go on from `state()`.

        Raises:
            ValueError: the state is of other rungs; a KeyError, TypeError or AttributeError for no state at all.
        """
        if list(saved["rungs"]) != self.rungs:
            raise ValueError(
                f"the state has the rungs {saved['rungs']}, and this ladder {self.rungs}; build both alike"
            )
        runs: dict[Hashable, _Climb] = {}
        tops: list[list[tuple[float, int, Hashable]]] = [[] for _ in self.rungs]
        for run, told in saved["runs"].items():
            best, *marks = (UNSEEN if v is None else float(v) for v in (told["best"], *told["marks"]))
            runs[run] = _Climb(**{**told, "best": best, "marks": marks})
            for place, mark in zip(tops, marks, strict=False):
                bisect.insort(place, (-mark, runs[run].number, run))
        self.runs, self.tops = runs, tops
        self.since, self.ranks = float(saved["since"]), bool(saved["ranks"])
        self._find_best()
