import math

import numpy as np
import pytest
import torch

import bayesvision as bv
from bayesvision.early_stopping.policies import Chances, Forecast, Hyperband, NoStopping, Patience, SuccessiveHalving
from bayesvision.early_stopping.replay import random_orders, replay, speedup, steps_to

NAN = math.nan
SMALL = np.array([[0.1, 0.3, 0.2], [0.4, NAN, NAN], [0.2, 0.5, 0.6]])


def some_curves(runs: int = 30, steps: int = 12, seed: int = 0) -> np.ndarray:
    """Noisy curves, some of which end early, and some with gaps."""
    source = np.random.default_rng(seed)
    curves = source.uniform(0, 1, (runs, 1)) * np.linspace(0.3, 1, steps) + 0.1 * source.normal(size=(runs, steps))
    for run in range(0, runs, 4):
        curves[run, source.integers(1, steps) :] = NAN
    curves[1, 3] = NAN
    return curves


class Bounds:
    """Chances of 0 for a best value of at least `bounds[run, step]`, and of 1 below."""

    def __init__(self, bounds: np.ndarray, there: np.ndarray) -> None:
        self.bounds, self.there = bounds, there

    def better(self, runs: np.ndarray, best: np.ndarray) -> np.ndarray:
        return (best < self.bounds[runs]) * 1.0


def test_by_hand() -> None:
    result = replay(SMALL, NoStopping(), np.array([[0, 1, 2], [2, 1, 0]]))
    assert result.best.tolist() == [[0.1, 0.3, 0.3, 0.4, 0.4, 0.5, 0.6], [0.2, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6]]
    assert result.taken.tolist() == [[3, 1, 3]] * 2 and not result.stopped.any()
    assert result.spent.tolist() == [7, 7] and result.found.tolist() == [0.6, 0.6]
    assert result.regret(0.6)[[0, 3]].tolist() == pytest.approx([0.45, 0.1])

    short = replay(SMALL, NoStopping(), np.array([[0, 1, 2]]), budget=5)
    assert short.best.tolist() == [[0.1, 0.3, 0.3, 0.4, 0.4]] and short.taken.tolist() == [[3, 1, 1]]

    patient = replay(SMALL, Patience(1), np.array([[2, 0, 1]]))  # run 0 does not improve at its last step
    assert patient.taken.tolist() == [[3, 3, 1]] and not patient.stopped.any()
    bounds = np.array([[0.9, 0.9, 0.9], [0.9, 0.9, 0.9], [0.9, 0.5, 0.9]])
    stopped = replay(SMALL, Forecast(Bounds(bounds, ~np.isnan(SMALL)), learn=0), np.array([[0, 1, 2]]))
    assert stopped.taken.tolist() == [[3, 1, 2]] and stopped.stopped.tolist() == [[False, False, True]]
    assert stopped.best[0].tolist() == [0.1, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5]


def slow(curves: np.ndarray, stop, order: np.ndarray, budget: int) -> tuple[list[float], list[int]]:
    """The same, step by step; `stop(run, steps done, best)` says whether to stop."""
    trace, taken, best = [], [], -math.inf
    for place, run in enumerate(order):
        length = max(np.nonzero(~np.isnan(curves[run]))[0], default=-1) + 1
        for step in range(length):
            if len(trace) == budget:
                return trace, taken
            value = curves[run, step]
            best = best if math.isnan(value) else max(best, value)
            trace.append(best)
            if stop(place, run, step + 1, best):
                break
        taken.append(step + 1 if length else 0)
    return trace + [best] * (budget - len(trace)), taken


def slow_patience(curves: np.ndarray, k: int):
    def stop(place: int, run: int, done: int, best: float) -> bool:
        own, last = -math.inf, 0
        for step in range(done):
            if curves[run, step] > own:
                own, last = curves[run, step], step
        return done - 1 - last >= k

    return stop


def slow_halving(curves: np.ndarray, eta: int, brackets: list[int]):
    """Records by bracket and rung; brackets take turns."""
    records: dict[tuple[int, int], list[float]] = {}

    def stop(place: int, run: int, done: int, best: float) -> bool:
        bracket = brackets[place % len(brackets)]
        rung = bracket
        while rung < done:
            rung *= eta
        if rung != done or done >= curves.shape[1]:
            return False
        seen = records.setdefault((bracket, rung), [])
        value = curves[run, done - 1]
        if math.isnan(value):
            return False
        seen.append(value)
        return sum(v > value for v in seen) >= max(1, len(seen) // eta)

    return stop


def slow_forecast(curves: np.ndarray, bounds: np.ndarray, run: int, done: int, best: float) -> bool:
    there = ~np.isnan(curves[run, :done])
    return bool(there[-1] and there.sum() >= 2 and done < curves.shape[1] and best >= bounds[run, done - 1])


@pytest.mark.parametrize("budget", [40, 300])
@pytest.mark.parametrize("name", ["none", "patience", "halving", "hyperband", "forecast"])
def test_a_replay_is_what_step_by_step_gives(name: str, budget: int) -> None:
    curves = some_curves()
    curves[1, 3] = curves[1, 2] if name in ("halving", "hyperband") else NAN  # a rung without a value ends both ways
    orders = random_orders(len(curves), 5)
    bounds = np.random.default_rng(1).uniform(0.3, 1.5, curves.shape)
    kinds = {
        "none": (NoStopping(), lambda: lambda *_: False),
        "patience": (Patience(2), lambda: slow_patience(curves, 2)),
        "halving": (SuccessiveHalving(3), lambda: slow_halving(curves, 3, [1])),
        "hyperband": (Hyperband(3), lambda: slow_halving(curves, 3, [1, 3, 9])),
        "forecast": (
            Forecast(Bounds(bounds, ~np.isnan(curves)), learn=0),
            lambda: lambda _, run, done, best: slow_forecast(curves, bounds, run, done, best),
        ),
    }
    policy, stop = kinds[name]
    result = replay(curves, policy, orders, budget)
    for order, best, taken in zip(orders, result.best, result.taken, strict=True):
        trace, steps = slow(curves, stop(), order, budget)
        np.testing.assert_array_equal(best, trace)
        assert taken[: len(steps)].tolist() == steps
    assert (result.spent <= budget).all()


def test_no_policy_finds_more_than_no_stopping_in_the_end() -> None:
    curves, orders = some_curves(), random_orders(30, 5)
    whole = replay(curves, NoStopping(), orders)
    assert (whole.found == np.nanmax(curves)).all()
    for policy in (Patience(1), SuccessiveHalving(), Hyperband(2)):
        result = replay(curves, policy, orders)
        assert (result.found <= whole.found).all() and (result.spent < whole.spent).all()
        assert (result.taken[~result.stopped] == whole.taken[~result.stopped]).all()


def test_orders_are_seeded_and_whole() -> None:
    orders = random_orders(7, 3, seed=1)
    assert (np.sort(orders, 1) == np.arange(7)).all() and (orders == random_orders(7, 3, seed=1)).all()
    assert (orders != random_orders(7, 3, seed=2)).any()


@pytest.fixture(scope="module")
def posterior():
    posterior = bv.LCPFN(width=16, layers=1, heads=2, readers=1, components=3).untrained().requires_grad_(False)
    source = torch.Generator().manual_seed(0)
    for weight in posterior.network.parameters():
        weight.copy_(0.2 * torch.randn(weight.shape, generator=source))
    return posterior


@pytest.mark.parametrize("minimize", [False, True])
def test_chances_are_what_conditioning_says(posterior, minimize: bool) -> None:
    curves = some_curves(6, 10).clip(0, 1)
    scale = bv.MetricScale(0.0, math.inf, 0.0, 2.0, minimize=True) if minimize else None
    model = posterior.with_metric(20.0, scale)
    given = 1.0 - curves if minimize else curves
    steps = 2.0 * np.arange(1, 11)
    chances = Chances(model, -given if minimize else given, steps)
    best = np.full((6, 10), -0.4 if minimize else 0.6)
    found = chances.better(np.arange(6), best)
    assert (found[:, -1] == 0).all()  # nothing is ahead
    for run in range(6):
        for done in range(1, 10):
            seen = np.nonzero(~np.isnan(curves[run, :done]))[0]
            if not len(seen) or np.isnan(curves[run, done - 1]):
                continue
            law = model.condition(steps[seen], given[run, seen]).predict(torch.as_tensor(steps[done:]))
            above = law.cdf(torch.tensor(0.4)) if minimize else law.probability_above(0.6)
            assert float(above.max()) == pytest.approx(float(found[run, done - 1]), abs=1e-4)
    fewer = Chances(model, -given if minimize else given, steps, points=3).better(np.arange(6), best)
    there = ~np.isnan(curves)
    assert (fewer[there] <= found[there] + 1e-4).all()  # a maximum over fewer steps


def test_a_replay_learns_the_level_that_the_rule_learns() -> None:
    """Run by run and step by step, with a network that extrapolates well, and up to the replay's interpolation."""
    source = np.random.default_rng(0)
    t = np.arange(1, 21)
    ends, paces = source.uniform(0.3, 0.9, (40, 1)), source.uniform(0.5, 2, (40, 1))
    curves = (ends - 0.3 * t**-paces + 0.004 * source.normal(size=(40, 20))).clip(0, 1)
    model = bv.pretrained("lcpfn").with_metric(20.0)
    policy = Forecast(Chances(model, curves))
    result = replay(curves, policy, np.arange(40)[None])
    rule, taken = bv.StoppingRule(20, posterior=bv.pretrained("lcpfn"), audit=0.0), []
    for run, curve in enumerate(curves):
        for step, value in enumerate(curve, 1):
            if rule.update(run, step, value).stop:
                break
        taken.append(step)
    same = (result.taken[0] == taken).mean()
    assert same > 0.8 and rule.level > 0 and result.stopped.mean() > 0.5
    fixed = replay(curves, Forecast(policy.chances, learn=0), np.arange(40)[None])
    assert result.spent < fixed.spent and (result.taken[0, :2] == 20).all()


def test_a_run_may_come_again() -> None:
    result = replay(SMALL, NoStopping(), np.array([[1, 1, 0, 1]]))
    assert result.taken.tolist() == [[1, 1, 3, 1]] and result.spent == 6
    draws = random_orders(3, 2, places=50)
    assert draws.shape == (2, 50) and set(draws.flat) == {0, 1, 2}
    for policy in (SuccessiveHalving(), Hyperband()):
        assert (replay(SMALL, policy, draws).found == 0.6).all()


def test_speedup() -> None:
    reference, policy = np.array([5.0, 4, 3, 2, 1, 0]), np.array([math.inf, 2, 2, 2, 2, 2])
    assert steps_to(reference, 2) == 4 and steps_to(policy, 1) == math.inf
    assert speedup(policy, reference) == 2
    assert speedup(reference, policy) == math.inf


def test_bad_arguments() -> None:
    order = np.array([[0, 1, 2]])
    for bad, words in [
        (np.zeros(3), r"\(3,\)"),
        (np.full((3, 2), NAN), "finite"),
        (np.array([[math.inf, 1], [1, 2], [1, 2]]), "finite"),
    ]:
        with pytest.raises(ValueError, match=words):
            replay(bad, NoStopping(), order)
    for bad in (np.array([0, 1]), np.array([[0, 1, 3]]), np.array([[-1, 1, 0]]), order * 1.0):
        with pytest.raises(ValueError, match="orders"):
            replay(SMALL, NoStopping(), bad)
    with pytest.raises(ValueError, match="budget"):
        replay(SMALL, NoStopping(), order, 0)
    with pytest.raises(ValueError, match="chances must be those of the curves"):
        replay(SMALL, Forecast(Bounds(np.zeros((2, 2)), np.ones((2, 2), bool))), order)
    with pytest.raises(ValueError, match="delta"):
        Forecast(Bounds(SMALL, ~np.isnan(SMALL)), 1.0)
    for wrong in (lambda: Patience(0), lambda: SuccessiveHalving(1), lambda: Hyperband(3, 0)):
        with pytest.raises(ValueError, match="at least"):
            wrong()
