import math
import time

import numpy as np
import pytest
import torch

import bayesvision as bv
from bayesvision.replay import (
    Forecast,
    Halving,
    Hyperband,
    NoStopping,
    Patience,
    forecast_bounds,
    random_orders,
    replay,
    speedup,
    steps_to,
)

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


def test_by_hand() -> None:
    result = replay(SMALL, NoStopping(), np.array([[0, 1, 2], [2, 1, 0]]))
    assert result.best.tolist() == [[0.1, 0.3, 0.3, 0.4, 0.4, 0.5, 0.6], [0.2, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6]]
    assert result.taken.tolist() == [[3, 1, 3]] * 2 and not result.stopped.any()
    assert result.spent.tolist() == [7, 7] and result.found.tolist() == [0.6, 0.6]
    assert result.regret(0.6)[[0, 3]].tolist() == pytest.approx([0.45, 0.1])

    short = replay(SMALL, NoStopping(), np.array([[0, 1, 2]]), budget=5)
    assert short.best.tolist() == [[0.1, 0.3, 0.3, 0.4, 0.4]] and short.taken.tolist() == [[3, 1, 1]]

    patient = replay(SMALL, Patience(1), np.array([[2, 0, 1]]))  # run 0 does not improve at its last step
    assert patient.taken.tolist() == [[3, 1, 3]] and not patient.stopped.any()
    bounds = np.array([[0.9, 0.9, 0.9], [0.9, 0.9, 0.9], [0.9, 0.5, 0.9]])
    stopped = replay(SMALL, Forecast(bounds), np.array([[0, 1, 2]]))
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
        "halving": (Halving(3), lambda: slow_halving(curves, 3, [1])),
        "hyperband": (Hyperband(3), lambda: slow_halving(curves, 3, [1, 3, 9])),
        "forecast": (Forecast(bounds), lambda: lambda _, run, done, best: done >= 2 and best >= bounds[run, done - 1]),
    }
    policy, stop = kinds[name]
    result = replay(curves, policy, orders, budget)
    for order, best, taken in zip(orders, result.best, result.taken, strict=True):
        trace, steps = slow(curves, stop(), order, budget)
        np.testing.assert_array_equal(best, trace)
        assert taken[order][: len(steps)].tolist() == steps
    assert (result.spent <= budget).all()


def test_no_policy_finds_more_than_no_stopping_in_the_end() -> None:
    curves, orders = some_curves(), random_orders(30, 5)
    whole = replay(curves, NoStopping(), orders)
    assert (whole.found == np.nanmax(curves)).all()
    for policy in (Patience(1), Halving(), Hyperband(2)):
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
def test_a_bound_is_where_the_greatest_probability_is_delta(posterior, minimize: bool) -> None:
    curves = some_curves(6, 10).clip(0, 1)
    scale = bv.Scale(0.0, math.inf, 0.0, 2.0, minimize=True) if minimize else None
    model = posterior.measured_in(20.0, scale)
    given = 1.0 - curves if minimize else curves
    steps = 2.0 * np.arange(1, 11)
    bounds = forecast_bounds(model, -given if minimize else given, 0.1, steps)
    assert np.isinf(bounds[:, -1]).all() and np.isinf(bounds[0, lengths_of(curves)[0] :]).all()
    for run in range(6):
        for done in range(1, 10):
            seen = np.nonzero(~np.isnan(curves[run, :done]))[0]
            if not len(seen) or np.isnan(curves[run, done - 1]):
                continue
            law = model.condition(steps[seen], given[run, seen]).predict(torch.as_tensor(steps[done:]))
            bound = bounds[run, done - 1]
            above = law.cdf(torch.tensor(-bound)) if minimize else law.probability_above(float(bound))
            assert float(above.max()) == pytest.approx(0.1, abs=1e-3)
    fewer = forecast_bounds(model, -given if minimize else given, 0.1, steps, points=3)
    assert (fewer[:, :9] <= bounds[:, :9] + 1e-4).all()  # a maximum over fewer steps


def lengths_of(curves: np.ndarray) -> np.ndarray:
    return (~np.isnan(curves)).cumsum(1).argmax(1) + 1


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
    for bad in (np.array([0, 1]), np.array([[0, 0, 1]]), np.array([[0, 1, 3]]), np.array([[-1, 1, 0]]), order * 1.0):
        with pytest.raises(ValueError, match="orders"):
            replay(SMALL, NoStopping(), bad)
    with pytest.raises(ValueError, match="budget"):
        replay(SMALL, NoStopping(), order, 0)
    with pytest.raises(ValueError, match="bounds"):
        replay(SMALL, Forecast(np.zeros((2, 2))), order)
    for wrong in (lambda: Patience(0), lambda: Halving(1), lambda: Hyperband(3, 0)):
        with pytest.raises(ValueError, match="at least"):
            wrong()
    with pytest.raises(ValueError, match="delta"):
        forecast_bounds(None, SMALL, 1.0)


def test_a_thousand_runs_in_forty_orders_take_seconds() -> None:
    curves, orders = some_curves(1000, 50), random_orders(1000, 40)
    bounds = np.random.default_rng(0).uniform(0.5, 2, curves.shape)
    start = time.perf_counter()
    for policy in (NoStopping(), Patience(5), Halving(), Hyperband(), Forecast(bounds)):
        replay(curves, policy, orders)
    assert time.perf_counter() - start < 15  # about one on an idle core
