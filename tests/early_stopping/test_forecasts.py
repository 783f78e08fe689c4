import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bayesvision as bv
from bayesvision.distributions import within
from bayesvision.early_stopping import forecasts as module
from bayesvision.early_stopping.forecasts import RunForecaster
from bayesvision.early_stopping.readings import clocked, looked_at, origin, steps_ahead
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
        law = law if scale else within(law, 0.0, 1.0)
        better = law.cdf(torch.tensor(0.6, dtype=torch.float64)) if scale else law.probability_above(0.6)
        assert chances[name] == pytest.approx(float(better.max()), abs=1e-5)
        lower, upper = law.interval(0.8)
        expected = [float(v[-1]) for v in (law.quantile(0.5), lower, upper)]
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
    monkeypatch.setattr(module, "BATCH", 2)
    tokens = 2 * 2 * 16 * 4  # bytes of a token: layers, keys and values, width, float32
    fleet, whole, runs = RunForecaster(posterior, 50, memory=10 * tokens), RunForecaster(posterior, 50), curves(9)
    fleet.read({name: (x[:2], y[:2]) for name, (x, y) in runs.items()})
    assert sum(seen.cache is not None for seen in fleet._seen.values()) == 3  # of three tokens each
    fleet.read(runs)
    monkeypatch.undo()
    whole.read(runs)
    assert fleet.chances(list(runs), 0.5) == pytest.approx(whole.chances(list(runs), 0.5), abs=1e-6)
    fleet.forget(["r0", "never seen"])
    with pytest.raises(KeyError):
        fleet.chances(["r0"], 0.5)


def test_the_latest_reading_is_read_and_does_not_stay(posterior: LCPFNPosterior) -> None:
    """Of 150 readings every second one and the latest: in one go, one by one, and by `condition` alike."""
    source = torch.Generator().manual_seed(1)
    y = (0.3 + 0.4 * torch.rand(150, generator=source, dtype=torch.float64)).tolist()
    x = [10.0 * k for k in range(1, 151)]
    grown, whole = RunForecaster(posterior, 5000), RunForecaster(posterior, 5000)
    for count in (98, 99, 100, 101, 102, 149, 150):
        grown.read({"a": (x[:count], y[:count])})
    whole.read({"a": (x, y)})
    rows = [*range(0, 150, 2), 149]
    alone = posterior.with_metric(5000.0).condition([x[k] for k in rows], [y[k] for k in rows]).predict([5000.0])
    median = float(within(alone, 0.0, 1.0).quantile(0.5))
    for fleet in (grown, whole):
        assert fleet.finals(["a"])["a"].median == pytest.approx(median, abs=1e-5)
    changed = RunForecaster(posterior, 5000)
    changed.read({"a": (x, [*y[:-1], y[-1] + 0.2])})
    assert changed.finals(["a"])["a"].median != pytest.approx(median, abs=1e-4)


def test_the_clock_starts_where_the_run_does() -> None:
    for first in ([1], [5], [10], [1, 2], [5, 10], [0.5, 1], [1, 5, 10], [100, 200]):
        assert origin(first, 100 if first[-1] < 100 else 5000) == 0
    steps = list(range(100_010, 100_160, 10))
    assert origin(steps, 100_300) == 100_000
    assert clocked([100_010, 100_150], 100_000, 100_300) == pytest.approx([100_300 / 30, 100_300 / 2])
    lone = origin([100_010], 100_300)
    assert clocked([100_010], lone, 100_300)[0] == pytest.approx(10_030)  # no later than a tenth of its way
    assert origin([100], 100) == 0


def test_a_run_from_a_late_step_is_one_of_its_own(posterior: LCPFNPosterior) -> None:
    """Steps 100,010 to 100,150 of 100,300 say what 10 to 150 of 300 say."""
    y = [0.7 + 0.01 * k for k in range(15)]
    late, early = RunForecaster(posterior, 100_300), RunForecaster(posterior, 300)
    late.read({"a": ([100_000.0 + 10 * k for k in range(1, 16)], y)})
    early.read({"a": ([10.0 * k for k in range(1, 16)], y)})
    assert list(late.finals(["a"])["a"]) == pytest.approx(list(early.finals(["a"])["a"]), abs=1e-5)
    one, other = late.bands(["a"], (0.5,))["a"], early.bands(["a"], (0.5,))["a"]
    assert one.steps == pytest.approx([100_000 + s for s in other.steps])
    assert one.quantiles[0] == pytest.approx(other.quantiles[0], abs=1e-5)
    assert late.chances(["a"], 0.8) == pytest.approx(early.chances(["a"], 0.8), abs=1e-5)


def test_steps_ahead() -> None:
    assert steps_ahead(3, 3, 6) == [4, 5, 6]
    assert steps_ahead(30, 3, 60) == [40, 50, 60]
    assert steps_ahead(5.5, 2, 6) == [6]
    assert steps_ahead(1, 1, 100, points=3) == [2, 51, 100]
    assert steps_ahead(130, 3, 160, 100) == [140, 150, 160]


@given(st.integers(1, 2000), st.integers(10, 100))
def test_readings_that_are_looked_at(count: int, most: int) -> None:
    places, kept = looked_at(count, most)
    assert places[0] == 0 and places[-1] == count - 1 and len(places) <= most
    assert places == sorted(set(places)) and len(places) - kept in (0, 1)
    if count <= most:
        assert places == list(range(count))
    else:
        assert len(places) >= most / 2 - 1
    again, _ = looked_at(count + 1, most)
    if again[1:2] == places[1:2]:  # what stays is read once
        assert again[:kept] == places[:kept]


def test_problems(posterior: LCPFNPosterior) -> None:
    fleet = RunForecaster(posterior, 10)
    assert fleet.problem(([1.0], [0.5])) is None and fleet.problem(([], [])) is None
    assert "step 11" in (fleet.problem(([11.0], [0.5])) or "")
    assert "value 1.5" in (fleet.problem(([1.0], [1.5])) or "")
    assert RunForecaster(posterior, 10, bv.MetricScale(0, 2)).problem(([1.0], [1.5])) is None
    with pytest.raises(ValueError, match="LCPFN"):
        RunForecaster(torch.nn.Linear(1, 1), 10)
