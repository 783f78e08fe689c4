"""`Thaw`: the ladder by hand and against successive halving, the rule where ranks fail, its replay, and its state."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from checks import rejected
from trend import Forecasting, Trend

import bayesvision as bv
from bayesvision.early_stopping.ladder import Choice, Ladder
from bayesvision.early_stopping.policies import NoStopping
from bayesvision.early_stopping.replay import random_orders, replay
from bayesvision.early_stopping.thawing import Thawing

NAN = math.nan
ALWAYS = (1e9, 1e9)  # ranks decide for ever


def climb(level: float, steps: int = 27) -> list[float]:
    """A curve that keeps its rank at every step."""
    return [level * (1 - 0.7 * (k + 1) ** -0.8) for k in range(steps)]


def search(thaw: bv.Thaw, curves: dict[str, list[float]], budget: int = 10**9) -> list[tuple[str, int]]:
    """Train what is asked for, each run from where it stood; (run, steps) of each slice."""
    waiting, done, slices = list(curves), dict.fromkeys(curves, 0), []
    while budget > 0:
        piece = thaw.next(waiting[0] if waiting else None)
        if piece is None:
            break
        waiting = waiting[1:] if piece.new else waiting
        first, curve = done[piece.run], curves[piece.run]
        for step in range(first + 1, len(curve) + 1):
            done[piece.run], budget = step, budget - 1
            if thaw.update(piece.run, step, curve[step - 1]).stop:
                break
            if step == len(curve) and step < thaw.horizon:
                thaw.complete(piece.run)
        slices.append((piece.run, done[piece.run] - first))
    return slices


def make(**options: object) -> bv.Thaw:
    return bv.Thaw(**{"horizon": 27, "posterior": Trend(), "patience": ALWAYS, **options})  # pyright: ignore


def test_the_ladder_by_hand() -> None:
    ladder = Ladder(patience=ALWAYS)
    assert ladder.rungs == pytest.approx([1 / 27, 1 / 9, 1 / 3])
    assert ladder.choose() == Choice(None, 1.0, False)
    ladder.begin("a", first=True)
    for k in range(1, 28):
        ladder.put("a", k / 27, 0.5 + k / 100)
    ladder.end("a", early=False)
    for name, value in (("b", 0.9), ("c", 0.1)):
        assert ladder.choose() == Choice(None, 1 / 27, False)
        ladder.begin(name)
        ladder.put(name, 1 / 27, value)
    assert ladder.choose() == Choice("b", 1 / 9, False)  # best of three, a among them
    assert ladder.choose({"b"}) == Choice(None, 1 / 27, False)
    ladder.put("b", 1 / 9, 0.95)  # one of two there: none may go on
    assert ladder.choose() == Choice(None, 1 / 27, False)
    ladder.put("c", 1 / 9, 0.2)
    assert ladder.choose() == Choice("b", 1 / 3, False)  # best of three at the second rung
    ladder.drop("b")
    assert ladder.choose() == Choice(None, 1 / 27, False) and ladder.frozen() == ["c"]


def test_promotions_are_those_of_asynchronous_successive_halving() -> None:
    """Against a plain form that sorts all values anew, on curves that cross."""
    source = np.random.default_rng(0)
    curves = {f"r{k}": (source.uniform(0.2, 0.8) + 0.1 * source.normal(size=27)).clip(0, 1).tolist() for k in range(90)}
    thaw = make()
    slices = search(thaw, curves)
    done, waiting, rungs = dict.fromkeys(curves, 0), list(curves), [1, 3, 9]
    expected = [(waiting[0], 27)]
    done[waiting.pop(0)] = 27
    while True:
        move = None
        for place in (2, 1, 0):
            there = [r for r in done if done[r] >= rungs[place]]
            top = sorted(there, key=lambda r: (-max(curves[r][: rungs[place]]), list(curves).index(r)))
            goal = [3, 9, 27][place]
            left = [r for r in top[: len(there) // 3] if done[r] < goal]
            if left:
                move = left[0], goal
                break
        if move is None and not waiting:
            break
        run, goal = move or (waiting.pop(0), 1)
        expected.append((run, goal - done[run]))
        done[run] = goal
    assert slices[: len(expected)] == expected
    assert len(expected) > 120 and all(thaw.rule.chance(run) <= 0.05 for run in thaw.frozen)


@pytest.mark.parametrize("minimize", [False, True])
def test_the_best_run_is_found_in_a_fraction_of_the_steps(minimize: bool) -> None:
    levels = np.random.default_rng(1).permutation(np.linspace(0.1, 0.9, 60))
    curves = {f"r{k}": [1 - v if minimize else v for v in climb(level)] for k, level in enumerate(levels)}
    thaw = make(scale=bv.MetricScale(0, 1, minimize=True) if minimize else None)
    slices = search(thaw, curves)
    best = curves[f"r{levels.argmax()}"][-1]
    assert thaw.best == best and sum(steps for _, steps in slices) < 60 * 27 / 4
    assert thaw.report().steps_spent == sum(steps for _, steps in slices)


def test_where_runs_end_at_steps_of_their_own_the_rule_decides() -> None:
    """As trainings that stop at a target do: ranks at the same step would compare unlike with unlike."""
    levels = np.random.default_rng(2).uniform(0.3, 0.9, 12)
    curves = {f"r{k}": climb(level)[: 9 + k] for k, level in enumerate(levels)}
    thaw, rule = make(), bv.StoppingRule(27, posterior=Trend(), audit=0.0)
    for name, steps in search(thaw, curves):
        taken = 0
        for step, value in enumerate(curves[name][:steps], 1):
            taken = step
            if rule.update(name, step, value).stop:
                break
        assert taken == steps
    assert not thaw.ladder.fair and any(run.stopped for run in rule.runs.values())


def test_ranks_and_the_rule_change_places_where_nothing_better_is_found() -> None:
    ladder = Ladder(whole=0, patience=(1.0, 2.0))
    ladder.begin("a")
    ladder.put("a", 1 / 27, 0.9)
    seen = []
    for k in range(120):
        choice = ladder.choose({"a"})
        seen.append(choice.ruled)
        run, goal = choice.run if choice.run is not None else f"r{k}", 0.1 if choice.ruled else choice.goal
        if choice.run is None:
            ladder.begin(run)
        ladder.put(run, goal, 0.1)
    first = seen.index(True)
    assert 15 <= first <= 30 and seen[first : first + 20] == [True] * 20 and not seen[first + 22]
    ladder.begin("b")
    ladder.put("b", 1.0, 0.95)
    assert ladder.since == 0.0


def test_late_steps_count_from_where_a_run_began() -> None:
    thaw = make(horizon=100_270)
    thaw.ladder.whole = 0
    assert thaw.next("a").until == pytest.approx(100_270 / 27)  # it is not known yet where the run begins
    for name, value in (("a", 0.5), ("b", 0.4), ("c", 0.3)):
        if name != "a":
            thaw.next(name)
        assert not thaw.update(name, 100_001, value).stop  # one reading is no more than a tenth of the way
        assert [thaw.update(name, 100_000 + k, value).stop for k in range(2, 11)] == [k == 10 for k in range(2, 11)]
    piece = thaw.next()
    assert piece is not None and piece.run == "a" and piece.until == pytest.approx(100_000 + 30)


def test_a_state_goes_on_as_the_search_would_have() -> None:
    levels = np.random.default_rng(3).uniform(0.1, 0.9, 40)
    curves = {f"r{k}": climb(level) for k, level in enumerate(levels)}
    for budget in (5, 40, 90):
        one = make()
        search(one, curves, budget)
        text = json.dumps(one.state_dict(), allow_nan=False)
        two = make()
        two.load_state_dict(json.loads(text))
        for k in range(30):
            a, b = one.next(f"n{k}"), two.next(f"n{k}")
            assert a == b and a is not None
            step = max(one.rule.runs[a.run].steps, default=0) + 1 if a.run in one.rule.runs else 1
            while True:
                decisions = [t.update(a.run, step, 0.01 * ((7 * k + step) % 90)) for t in (one, two)]
                assert str(decisions[0]) == str(decisions[1])
                if decisions[0].stop or step >= 27:
                    break
                step += 1
        assert json.dumps(one.state_dict()) == json.dumps(two.state_dict())
    fresh = make()
    before = json.dumps(fresh.state_dict())
    for state, word in (({}, "state_dict"), ({"goals": 3}, "state_dict")):
        with pytest.raises(ValueError, match=word):
            fresh.load_state_dict(state)
    with pytest.raises(ValueError, match="rungs"):
        make(rungs=2).load_state_dict(json.loads(text))
    with pytest.raises(ValueError, match="horizon"):
        make(horizon=30).load_state_dict(json.loads(text))
    assert json.dumps(fresh.state_dict()) == before


def test_several_workers_are_given_different_runs() -> None:
    thaw = make()
    pieces = [thaw.next(f"r{k}") for k in range(4)]
    assert [p.until for p in pieces] == pytest.approx([27, 1, 1, 1])
    for p in pieces[1:]:
        assert thaw.update(p.run, 1, {"r1": 0.2, "r2": 0.5, "r3": 0.3}[p.run]).stop
    again = thaw.next("r4")
    assert again == (again.run, 3, False, again.reason) and again.run == "r2"
    assert thaw.next("r4").run == "r4" and thaw.frozen == ["r1", "r3"]


def test_runs_that_diverge_break_off_or_come_back() -> None:
    thaw = make()
    thaw.next("a")
    decision = thaw.update("a", 1, NAN)
    assert decision.stop and "diverged" in decision.reason and thaw.frozen == []
    assert thaw.next("whole").until == 27  # another one goes its whole way
    for step, value in enumerate(climb(0.1), 1):
        thaw.update("whole", step, value)
    for name, value in (("b", 0.5), ("c", 0.2)):
        assert thaw.next(name).new and thaw.update(name, 1, value).stop
    assert "frozen" in thaw.update("c", 2, 0.25).reason  # it was not asked for
    assert thaw.next("e").run == "b"
    thaw.fail("b")
    assert thaw.best == 0.25 and "b" not in thaw.frozen
    thaw.update("b", 2, 0.6)  # tried again, from its checkpoint
    assert thaw.best == 0.6 and thaw.update("b", 3, 0.6).stop and "b" in thaw.frozen
    thaw.update("b", 1, 0.1)  # began anew
    assert thaw.ladder.runs["b"].way == pytest.approx(1 / 27) and thaw.best == thaw.ladder.best == 0.25
    for tell in (thaw.complete, thaw.fail, thaw.drop, thaw.freeze):
        tell("nobody")
    assert "nobody" not in thaw.ladder.runs


def test_what_is_left_is_thawed_by_its_chance() -> None:
    """With no new run, the frozen ones go on while they may beat the best; then there is nothing."""
    thaw = make(posterior=Forecasting())
    curves = {"a": climb(0.6), "late": [0.55 + 0.1 * math.log(k) for k in range(1, 28)], "flat": [0.3] * 27}
    slices = search(thaw, curves)
    assert thaw.next() is None and slices[0] == ("a", 27)
    assert thaw.best == pytest.approx(max(curves["late"])) and thaw.report().steps_spent < 3 * 27


class Bounds:
    """Chances of 0 for a best value of at least `bounds[run]`, and of 1 below."""

    def __init__(self, bounds: np.ndarray, there: np.ndarray) -> None:
        self.bounds, self.there = bounds, there

    def better(self, runs: np.ndarray, best: np.ndarray) -> np.ndarray:
        return (best < self.bounds[runs][:, None]) * 1.0


@pytest.mark.parametrize("seed", range(3))
def test_the_replay_trains_what_a_search_would(seed: int) -> None:
    source = np.random.default_rng(seed)
    curves = (source.uniform(0.2, 0.8, (50, 1)) + 0.1 * source.normal(size=(50, 27))).clip(0, 1)
    order = random_orders(50, 1, seed)
    played = replay(curves, Thawing(Bounds(np.zeros(50), curves > -1), patience=ALWAYS), order, budget=180)
    thaw = make()
    named = {f"{place}": curves[run].tolist() for place, run in enumerate(order[0])}
    trace: list[float] = []
    see: Callable[..., object] = thaw.update

    def update(run: str, step: float, value: float) -> object:
        found = see(run, step, value)
        trace.append(thaw.best)
        return found

    thaw.update = update  # pyright: ignore
    search(thaw, named, 180)
    assert played.best[0, :180].tolist() == pytest.approx(trace[:180])
    done = [len(thaw.rule.runs[name].steps) if name in thaw.rule.runs else 0 for name in named]
    beyond = np.array(done) - played.taken[0]  # the search ends its last slice
    assert (beyond >= 0).all() and (beyond > 0).sum() <= 1 and beyond.sum() == sum(done) - 180


def test_replays_end_when_nothing_is_worth_to_go_on_with() -> None:
    source = np.random.default_rng(5)
    curves = np.sort(source.uniform(0, 1, (20, 9)), 1)
    curves[3, 5:] = NAN
    curves[4, 2] = NAN
    policy = Thawing(Bounds(curves[:, -1], ~np.isnan(curves)))
    result = replay(curves, policy, random_orders(20, 6))
    assert (result.found == np.nanmax(curves)).all() and (result.spent < 20 * 9).all()
    assert ((result.taken < 9) & (result.taken > 0))[result.stopped].all()
    whole = replay(curves, NoStopping(), random_orders(20, 6))
    assert (result.spent < whole.spent).all()
    again = replay(curves, policy, random_orders(20, 6))
    assert (again.best == result.best).all() and (again.taken == result.taken).all()


def test_repr_says_how_the_search_stands() -> None:
    thaw = make()
    assert repr(thaw) == "Thaw(horizon 27, 0 runs, 0 frozen, best nan, by ranks)"
    thaw.next("a")
    thaw.update("a", 1, 0.5)
    assert "1 runs" in repr(thaw) and "best 0.5" in repr(thaw)
    assert repr(thaw.rule) == "StoppingRule(horizon 27, max, 1 runs, best 0.5, level 0.05)"


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="eta"):
        make(eta=1)
    with pytest.raises(ValueError, match="rungs"):
        make(rungs=0)
    for patience in ((0.0, 1.0), (1.0,), (1.0, -2.0)):
        with rejected("patience"):
            make(patience=patience)
    with pytest.raises(ValueError, match="horizon"):
        make(horizon=-1)
    with pytest.raises(ValueError, match="contradicts"):
        make(mode="min", scale=bv.MetricScale(0, 1))
    thaw = make()
    thaw.next("a")
    with pytest.raises(ValueError, match="has not begun"):
        thaw.next("a")
    with pytest.raises(ValueError, match="horizon"):
        thaw.update("a", 28, 0.5)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        thaw.update("a", 1, 57.0)
    with pytest.raises(ValueError, match="reported"):
        thaw.explain("a")


def test_where_ranks_failed_the_runs_that_they_froze_go_on_first() -> None:
    """To their end, the one with the best chance first, unless it has none."""
    thaw = make()
    search(thaw, {"a": climb(0.6)})
    for name, value in (("near", 0.55), ("far", 0.2)):
        thaw.next(name)
        assert thaw.update(name, 1, value).stop
    thaw.ladder.ranks, thaw.ladder.since = False, 0.0
    copy = make()
    copy.load_state_dict(json.loads(json.dumps(thaw.state_dict())))
    for one in (thaw, copy):
        piece = one.next("later")
        assert piece is not None and (piece.run, piece.until, piece.new) == ("near", 27, False)
        assert not any(one.update("near", k, 0.5).stop for k in range(2, 28))
        again = one.next("later")
        assert again is not None and again.run == "later" and one.frozen == ["far"]


def test_a_run_that_broke_off_goes_where_it_was_sent() -> None:
    thaw = make()
    thaw.next("first")
    thaw.update("first", 1, 0.5)
    thaw.update("first", 2, 0.5)
    thaw.fail("first")
    assert [thaw.update("first", k, 0.5).stop for k in range(2, 27)] == [False] * 25
    thaw.update("first", 27, 0.5)
    assert thaw.ladder.runs["first"].early is False
    thaw.next("b")
    thaw.fail("b")  # before it had a value: it may begin anew
    assert thaw.busy == [] and thaw.next("b").new
    thaw.update("b", 1, NAN)
    thaw.fail("b")
    assert thaw.next("b").new and thaw.update("b", 1, 0.5).stop and thaw.frozen == ["b"]
    thaw.drop("b")
    assert thaw.frozen == []


def test_a_refused_report_changes_nothing() -> None:
    thaw = make()
    before = json.dumps(thaw.state_dict())
    for step, value in ((0, 0.5), (28, 0.5), (1, 57.0)):
        with pytest.raises(ValueError, match="must lie"):
            thaw.update("typo", step, value)
    assert json.dumps(thaw.state_dict()) == before and thaw.next("a").until == 27


def test_the_ladder_is_told_of_what_a_restart_replaces() -> None:
    """A repeated report costs no way and loses no value; a failed run's values count for nothing."""
    thaw = make()
    values = [0.1, 0.2, 0.3, 0.9, 0.5, 0.6]
    for step, value in enumerate(values, 1):
        thaw.update("a", step, value)
    since = thaw.ladder.since
    assert since == pytest.approx(2 / 27)
    thaw.update("a", 6, 0.6)
    assert thaw.ladder.since == pytest.approx(since + 1 / 27) and thaw.ladder.runs["a"].best == thaw.best == 0.9
    assert [len(rung) for rung in thaw.ladder.tops] == [1, 1, 0]
    thaw.update("a", 4, 0.2)
    assert thaw.ladder.best == thaw.best == 0.3
    thaw.fail("a")
    assert thaw.ladder.best == -math.inf and [len(rung) for rung in thaw.ladder.tops] == [0, 0, 0]


def test_each_end_counts_once() -> None:
    thaw = make()
    for step, value in enumerate(climb(0.5), 1):
        thaw.update("a", step, value)
    thaw.complete("a")
    thaw.update("a", 27, 0.5)
    thaw.complete("a")
    assert [climb.early for climb in thaw.ladder.runs.values()] == [False] and thaw.ladder.fair


def test_clocks_that_move_are_no_restarts() -> None:
    """The first reading comes at 5, the second at 6: the run began at 4, and is entered once at each rung."""
    thaw = bv.Thaw(100, posterior=Trend(), patience=ALWAYS)
    thaw.ladder.whole = 0
    thaw.next("a")
    stops = [step for step in range(5, 60) if thaw.update("a", step, 0.5).stop]
    assert stops and [len(rung) for rung in thaw.ladder.tops] == [1, 1, 1]
    late = bv.Thaw(100_270, posterior=Trend(), patience=ALWAYS)
    for name in "ab":
        for step in range(100_001, 100_100):
            late.update(name, step, 0.5)
    assert [len(rung) for rung in late.ladder.tops] == [2, 2, 2]


def test_a_worker_may_give_a_run_back() -> None:
    thaw = make()
    thaw.next("a")
    thaw.update("a", 1, 0.5)
    thaw.freeze("a")
    assert thaw.frozen == ["a"] and thaw.busy == []


def test_a_state_is_a_copy_and_of_its_own_rungs() -> None:
    thaw = make()
    thaw.next("a")
    state = thaw.state_dict()
    text = json.dumps(state)
    for step, value in enumerate(climb(0.5), 1):
        thaw.update("a", step, value)
    assert json.dumps(state) == text
    with pytest.raises(ValueError, match="rungs"):
        make(eta=2).load_state_dict(state)
    with rejected("state"):
        make().load_state_dict({**state, "rule": 3})
    with rejected("patience"):
        make(patience=3)
    with rejected("patience"):
        make(patience=(3.0, NAN))


def test_a_replay_is_of_the_curves_that_were_forecast() -> None:
    curves = np.full((10, 9), 0.5)
    order = random_orders(10, 2)
    for shape in ((10, 5), (13, 9)):
        with pytest.raises(ValueError, match="chances"):
            replay(curves, Thawing(Bounds(np.zeros(13), np.ones(shape, bool))), order)
    with pytest.raises(ValueError, match="learn"):
        Thawing(Bounds(np.zeros(10), curves > 0), learn=-3)
