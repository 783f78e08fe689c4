"""`Thaw`: freezes runs and goes on with those that promise most, over a stopping rule and the runs' ranks."""

import math
from collections.abc import Hashable
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from bayesvision.distributions.metric import MetricScale
from bayesvision.early_stopping.directions import Mode
from bayesvision.early_stopping.ladder import CLOSE, FAINT, Ladder
from bayesvision.early_stopping.readings import clocked, origin
from bayesvision.early_stopping.rule import StoppingRule
from bayesvision.early_stopping.runs import CurvePosterior, Decision, Report

__all__ = ["Slice", "Thaw"]


class Slice(NamedTuple):
    """What to train next.

    Attributes:
        run: the run: a frozen one to go on with from its checkpoint, or the new one that was offered.
        until: step to train it to. The first report at or after it ends the slice, unless one before does: `update`
            says so.
        new: whether it is the new one.
        reason: why, in words.
    """

    run: str
    until: float
    new: bool
    reason: str


class Thaw:
    """Chooses among frozen runs and a new one which to train next, and how far (freeze-thaw, arXiv 1406.3896).

    Runs are frozen at 1/27, 1/9 and 1/3 of the horizon, and one of the best third there is thawed before a new one
    begins. Ranks at the same step find the best runs of most searches far sooner than forecasts of each run alone
    do; they are worse than nothing where runs end at steps of their own or where curves cross late. So the first run
    goes its whole way, and `StoppingRule` decides, on forecasts alone, where runs end short of the horizon and
    whenever ranks have found nothing better for three whole runs' worth of steps (`ladder.Ladder`). Then the runs that
    were frozen by their rank go on to their end, those with the best chance first, before a new one begins: they cost
    less than it does. What the rule stops is frozen as well.

    The loop of a search:

        >>> thaw = bv.Thaw(horizon=100)
        >>> piece = thaw.next("run 1")  # Slice(run="run 1", until=100.0, new=True, ...)
        >>> thaw.update("run 1", step=1, value=0.41).stop  # once True: save a checkpoint, and ask for the next slice

    Args:
        horizon: last step of a run.
        scale: units of the metric; without it a metric to be maximised lies in [0, 1], and a loss is measured between 0
            and what the first runs start with.
        posterior: a `CurvePosterior`, a shipped name or a checkpoint file.
        mode: `min` or `max`, which way the metric gets better; that of the scale if left out, and `max` without one.
        eta: one in how many goes on from a rung to the next one, eta times as far.
        rungs: their number; the first is at horizon / eta^rungs.
        patience: whole runs' worth of steps without a better value after which ranks make way for the rule, and the
            rule for ranks.
        delta: level of the rule before it is learned.

    Raises:
        ValueError: an argument is out of range, or `mode` is not that of the scale.
    """

    def __init__(
        self,
        horizon: float,
        scale: MetricScale | None = None,
        posterior: CurvePosterior | str = "lcpfn",
        mode: Mode | None = None,
        eta: int = 3,
        rungs: int = 3,
        patience: tuple[float, float] = (3.0, 10.0),
        delta: float = 0.05,
    ) -> None:
        self.rule = StoppingRule(horizon, scale, posterior, delta, audit=0.0, mode=mode)
        self.ladder = Ladder(eta, rungs, patience=patience)
        self._ranked: set[str] = set()  # runs that were frozen to be compared
        self._broken: dict[str, tuple[float, bool]] = {}  # where runs that broke off were sent
        self._chances: dict[str, tuple[Any, float]] = {}
        self._goals: dict[str, tuple[float, bool]] = {}  # of the runs under way: part of the way, whether the rule asks

    def __repr__(self) -> str:
        known = f"{len(self.rule.runs)} runs, {len(self.frozen)} frozen, best {self.best:.4g}"
        by = "ranks" if self.ladder.ranks and self.ladder.fair else "forecasts"
        return f"{type(self).__name__}(horizon {self.horizon:g}, {known}, by {by})"

    @property
    def horizon(self) -> float:
        """Last step of a run."""
        return self.rule.horizon

    @property
    def best(self) -> float:
        """The best value of any run so far, failed ones aside; NaN before the first."""
        return self.rule.best

    @property
    def busy(self) -> list[str]:
        """The runs that were handed out and are not frozen since."""
        return list(self._goals)

    @property
    def frozen(self) -> list[str]:
        """The runs that could go on and are not under way."""
        return [str(run) for run in self.ladder.frozen(self._goals)]

    def next(self, new: Hashable | None = None) -> Slice | None:
        """The run to train next, for a worker that is free; each worker asks for itself.

        Args:
            new: name of the run to begin if a new one is the best choice; None if there is none. Then runs are thawed
                by rank, or else by their chance to beat the best one while that is above the level of the rule.

        Returns:
            None if nothing is worth to go on with now; what is `busy` may change that.

        Raises:
            ValueError: `new` is the name of a run that has begun.
        """
        if new is not None and str(new) in self.ladder.runs:
            raise ValueError(f"new must name a run that has not begun, got {new!r}; frozen runs need not be named")
        choice = self.ladder.choose(self._goals)
        if choice.run is not None:
            place = f"is among the best 1/{self.ladder.eta} at its step"
            return self._thaw(str(choice.run), choice.goal, False, place)
        piece = self._most_promising(sorted(self._ranked), FAINT, False) if choice.ruled else None
        if piece is None and new is None:
            piece = self._most_promising(self.frozen, self.rule.level, True)
        if piece is not None or new is None:
            return piece
        first = choice.goal == 1 and not choice.ruled
        self.ladder.begin(str(new), first)
        why = "ranks find nothing better, so forecasts decide" if choice.ruled else "no frozen run is due"
        self._goals[str(new)] = choice.goal, choice.ruled
        until = self.horizon * choice.goal
        return Slice(str(new), until, True, "the first run goes its whole way" if first else why)

    def _thaw(self, run: str, goal: float, ruled: bool, why: str) -> Slice:
        self.rule.resume(run)
        self._ranked.discard(run)
        self._goals[run] = goal, ruled
        start = origin(self.rule.runs[run].steps, self.horizon)
        return Slice(run, start + goal * (self.horizon - start), False, f"{why}: {goal:.0%} of its way")

    def _most_promising(self, frozen: list[str], level: float, ruled: bool) -> Slice | None:
        """Go on with the run that has the best chance, if that is above a level, to its end or under the rule."""
        chances = {run: self._chance(run) for run in frozen}
        run = max(chances, key=chances.__getitem__, default=None)
        if run is None or chances[run] <= level:
            return None
        return self._thaw(run, 1.0, ruled, f"it may beat {self.best:.6g} (probability {chances[run]:.3f})")

    def _chance(self, run: str) -> float:
        """`rule.chance`, asked for once until the run, the best value or the units change."""
        asked = len(self.rule.runs[run].steps), self.best, self.rule.scale
        if self._chances.get(run, (None, 0.0))[0] != asked:
            self._chances[run] = asked, self.rule.chance(run)
        return self._chances[run][1]

    def update(self, run: Hashable, step: float, value: float) -> Decision:
        """Take in the value of a run at a step; `stop` means to save a checkpoint and to ask for the next slice.

        A step at or before the last one replaces everything from there on. A value that is not finite ends the run. One
        that begins without having been asked for is new, and one that goes on although it is frozen is told so again.

        Raises:
            ValueError: the step is not in (0, horizon], or the value is outside the bounds of the scale.
        """
        name, step, value = str(run), float(step), float(value)
        self.rule.check(step, value)
        if name not in self.ladder.runs:
            choice = self.ladder.choose(self._goals)
            self.ladder.begin(name, choice.goal == 1 and not choice.ruled and choice.run is None)
            self._goals[name] = (choice.goal, choice.ruled) if choice.run is None else (self.ladder.rungs[0], False)
        diverged = self._observe(name, step, value)
        if diverged is not None:
            self._leave(name)
            self.ladder.drop(name)
            return diverged
        if name in self._broken:  # it comes back, to go where it was sent
            self._goals[name] = self._broken.pop(name)
        way = self.ladder.runs[name].way
        goal, ruled = self._goals.get(name, (0.0, False))
        if way >= 1:
            self.complete(name)
            return Decision(False, "the run reached the horizon", math.nan, value, step)
        if not ruled and way < goal - CLOSE:
            return Decision(False, f"it goes to {goal:.0%} of its way", math.nan, math.nan, step)
        decision = self.rule.decide(name) if ruled else _to_compare(way, step)
        if decision.stop:
            self.freeze(name)
            if ruled:
                self._ranked.discard(name)
        return decision

    def _observe(self, name: str, step: float, value: float) -> Decision | None:
        """Tell the rule and the ladder, which is told anew of a run that went back, came back, or moved its clock."""
        before = self.rule.runs.get(name)
        known = [] if before is None else before.steps
        start, back = origin(known, self.horizon) if known else None, bool(known) and step <= known[-1]
        diverged = self.rule.observe(name, step, value)
        if diverged is not None:
            return diverged
        state, sign = self.rule.runs[name], -1.0 if self.rule.minimize else 1.0
        now = origin(state.steps, self.horizon)
        if back or self.ladder.runs[name].failed or start not in (None, now):
            ways = [at / self.horizon for at in clocked(state.steps[:-1], now, self.horizon)]
            self.ladder.replace(name, [(w, sign * v) for w, v in zip(ways, state.values, strict=False)])
        lone = len(state.steps) == 1 and now > 0  # it came late, and it is not known how far from its start
        way = CLOSE if lone else clocked([step], now, self.horizon)[0] / self.horizon
        self.ladder.put(name, way, sign * value)
        return None

    def _leave(self, name: str) -> None:
        self._goals.pop(name, None)
        self._ranked.discard(name)
        self._chances.pop(name, None)

    def freeze(self, run: Hashable) -> None:
        """A run was stopped where it is, with a checkpoint: its worker gives it back before the slice has ended."""
        name = str(run)
        if name in self.ladder.runs:
            self.rule.stop(name)
            self._leave(name)
            if not self.ladder.runs[name].out and name in self.rule.runs:
                self._ranked.add(name)

    def complete(self, run: Hashable) -> None:
        """A run came to its own end, at the horizon or before it; it cannot be thawed."""
        name = str(run)
        if name in self.ladder.runs:
            self.rule.complete(name)
            self._leave(name)
            way = self.ladder.runs[name].way
            if way > 0:
                self.ladder.end(name, early=way < 1)
            else:
                self.ladder.fail(name)

    def fail(self, run: Hashable) -> None:
        """A run broke off: its curve is kept, sets no best, and is not thawed unless the run reports again.

        Then it goes where it was sent. One that had no value is forgotten, and may begin anew.
        """
        name = str(run)
        if name in self.ladder.runs:
            goal = self._goals.get(name, (self.ladder.after(self.ladder.runs[name].way), False))
            self.rule.fail(name)
            self._leave(name)
            self.ladder.fail(name)
            if name in self.ladder.runs:
                self._broken[name] = goal

    def drop(self, run: Hashable) -> None:
        """A frozen run is given up: what it found counts, and it is not thawed."""
        name = str(run)
        if name in self.ladder.runs:
            self._leave(name)
            self.ladder.drop(name)

    def report(self) -> Report:
        """Counts and steps; frozen runs count as stopped."""
        return self.rule.report()

    def explain(self, run: Hashable, ax: Axes | None = None) -> Axes:
        """Draw a run, the fan of its forecast, and the best value.

        Raises:
            ValueError: the run is unknown.
        """
        return self.rule.explain(run, ax)

    def state_dict(self) -> dict[str, Any]:
        """All that was reported and decided, as JSON data."""
        told = {"goals": dict(self._goals), "ranked": sorted(self._ranked), "broken": dict(self._broken)}
        return {"rule": self.rule.state_dict(), "ladder": self.ladder.state(), **told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`; runs that were under way still are.

        Raises:
            ValueError: not such a state, or one under another horizon or other rungs.
        """
        ladder = Ladder(self.ladder.eta, len(self.ladder.rungs), self.ladder.whole, self.ladder.patience)
        try:
            goals, broken = (
                {str(name): (float(goal), bool(ruled)) for name, (goal, ruled) in state[part].items()}
                for part in ("goals", "broken")
            )
            rule, ranked = state["rule"], set(map(str, state["ranked"]))
            ladder.load(state["ladder"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"state must come from state_dict() of a Thaw ({error!r})") from None
        self.rule.load_state_dict(rule)
        self.ladder, self._goals, self._broken, self._ranked, self._chances = ladder, goals, broken, ranked, {}


def _to_compare(way: float, step: float) -> Decision:
    reason = f"frozen at {way:.0%} of its way, where it is compared with the others"
    return Decision(True, reason, math.nan, math.nan, step)
