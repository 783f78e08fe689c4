import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bayesvision as bv
from bayesvision.early_stopping import forecasts as module
from bayesvision.early_stopping.forecasts import RunForecaster, readings, steps_ahead
from bayesvision.methods.lcpfn.lcpfn import LCPFNPosterior

SCALES = [None, bv.MetricScale(0.0, math.inf, 0.0, 1.0, minimize=True)]


@pytest.fixture(scope="module")
def posterior() -> LCPFNPosterior:
    """A network with random weights: no two curves look alike to it."""
    posterior = bv.LCPFN(width=16, layers=2, heads=2, readers=1, components=3).untrained().requires_grad_(False)
    source = torch.Generator().manual_seed(0)
    for weight in posterior.network.parameters():
        weight.copy_(0.2 * torch.randn(weight.shape, generator=source))
    return posterior


def curves(count: int, seed: int = 0) -> dict[str, tuple[list[float], list[float]]]:
    """Runs of three to nine readings."""
    source = torch.Generator().manual_seed(seed)
    found = {}
    for k in range(count):
        n = 3 + k % 7
        values = torch.rand(n, generator=source, dtype=torch.float64).sort().values
        found[f"r{k}"] = (list(map(float, range(1, n + 1))), values.tolist())
    return found


@pytest.mark.parametrize("scale", SCALES, ids=["plain", "minimised"])
def test_runs_in_a_fleet_are_predicted_as_alone(posterior: LCPFNPosterior, scale: bv.MetricScale | None) -> None:
    fleet, runs = RunForecaster(posterior, 50, scale), curves(20)
    fleet.read({name: (x[:2], y[:2]) for name, (x, y) in runs.items()})  # then each grows by one row to seven
    fleet.read(runs)
    names = list(runs)[::-1]
    chances, finals, bands = fleet.chances(names, 0.6), fleet.finals(names, 0.8), fleet.bands(names, (0.1, 0.5, 0.9), 9)
    for name, (x, y) in runs.items():
        alone = posterior.with_metric(50.0, scale).condition(x, y)
        law = alone.predict(torch.arange(x[-1] + 1, 51, dtype=torch.float64))
        better = law.cdf(torch.tensor(0.6, dtype=torch.float64)) if scale else law.probability_above(0.6)
        assert chances[name] == pytest.approx(float(better.max()), abs=1e-5)
        lower, upper = law.interval(0.8)
        expected = [float(v[-1]) for v in (law.mean, lower, upper)]
        assert list(finals[name]) == pytest.approx(expected, abs=1e-4)
        band = bands[name]
        assert len(band.steps) == 9 and band.steps[0] == x[-1] + 1 and band.steps[-1] == 50
        expected = [float(v[-1]) for v in (lower, law.quantile(0.5), upper)]
        assert [q[-1] for q in band.quantiles] == pytest.approx(expected, abs=1e-4)
        ahead, fan = fleet.fan(name)
        assert ahead.tolist() == list(range(len(x) + 1, 51))
        torch.testing.assert_close(fan.mean, law.mean, atol=1e-5, rtol=1e-5)


def test_only_new_readings_go_through_the_network(posterior: LCPFNPosterior, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, runs, read = RunForecaster(posterior, 50), curves(9), []
    extend = RunForecaster._extend
    monkeypatch.setattr(
        RunForecaster,
        "_extend",
        lambda self, group, known: (read.append((len(group), known)), extend(self, group, known)),
    )
    fleet.read(runs)
    assert sum(count for count, _ in read) == 9 and all(known == 0 for _, known in read)
    read.clear()
    fleet.read(runs)
    assert read == []
    grown = {name: ([*x, x[-1] + 1], [*y, 0.5]) for name, (x, y) in list(runs.items())[:7]}
    fleet.read(grown)
    assert sorted(read) == [(1, n) for n in range(3, 10)]
    read.clear()
    x, y = runs["r8"]
    fleet.read({"r8": (x, [0.9, *y[1:]])})  # its past changed
    assert read == [(1, 0)]


def test_runs_beyond_what_is_kept_are_read_again(posterior: LCPFNPosterior, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    monkeypatch.setattr(module, "BATCH", 2)
    fleet, whole, runs = RunForecaster(posterior, 50), RunForecaster(posterior, 50), curves(9)
    fleet.read({name: (x[:2], y[:2]) for name, (x, y) in runs.items()})
    fleet.read(runs)
    monkeypatch.undo()
    whole.read(runs)
    assert fleet.chances(list(runs), 0.5) == pytest.approx(whole.chances(list(runs), 0.5), abs=1e-6)
    fleet.forget(["r0", "never seen"])
    with pytest.raises(KeyError):
        fleet.chances(["r0"], 0.5)


def test_readings_and_steps_ahead() -> None:
    assert readings([1, 2, 3, 4], 4) == [0, 1, 2, 3]
    assert readings(list(range(1, 1001)), 1000)[:3] == [0, 9, 19] and len(readings(list(range(1, 1001)), 1000)) == 101
    assert steps_ahead(3, 3, 6) == [4, 5, 6]
    assert steps_ahead(30, 3, 60) == [40, 50, 60]
    assert steps_ahead(5.5, 2, 6) == [6]
    assert steps_ahead(1, 1, 100, 3) == [2, 51, 100]


@given(st.lists(st.integers(1, 400), unique=True, max_size=60), st.integers(1, 400))
def test_readings_are_the_first_of_each_hundredth(steps: list[int], horizon: int) -> None:
    steps.sort()
    ticks = [math.floor(s * 100 / horizon + 1e-9) for s in steps]
    assert readings(steps, horizon) == [k for k, tick in enumerate(ticks) if k == 0 or tick > ticks[k - 1]]


def test_problems(posterior: LCPFNPosterior) -> None:
    fleet = RunForecaster(posterior, 10)
    assert fleet.problem(([1.0], [0.5])) is None and fleet.problem(([], [])) is None
    assert "step 11" in (fleet.problem(([11.0], [0.5])) or "")
    assert "value 1.5" in (fleet.problem(([1.0], [1.5])) or "")
    assert RunForecaster(posterior, 10, bv.MetricScale(0, 2)).problem(([1.0], [1.5])) is None
    with pytest.raises(ValueError, match="LCPFN"):
        RunForecaster(torch.nn.Linear(1, 1), 10)
