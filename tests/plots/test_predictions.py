"""The pictures by what is on the axes: artists, labels and numbers, never pixels."""

import io
import math

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas
import pytest
import scipy.stats
import torch
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bayesvision import plots
from bayesvision.core.data import Data
from bayesvision.distributions import Categorical, Mixture, Normal

ROWS = 60
X = torch.linspace(-1, 2, ROWS)
DATA = Data(torch.tensor([[0.0], [0.5], [1.0]]), torch.tensor([0.1, -0.2, 0.3]))
FRAME = pandas.DataFrame({"nll": [0.5, -0.25], "width_90": [1.0, 2.0]}, index=["pfn", "gp"])


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def normal():
    return Normal(X.sin(), 0.1 + X.abs())


def standard(scale=1.0, rows=ROWS):
    return Normal(torch.zeros(rows), torch.full((rows,), scale))


PICTURES = {
    "band": lambda ax: plots.predictive_band(normal(), X, DATA, ax=ax),
    "prior": lambda ax: plots.prior_and_posterior(standard(2.0), normal(), X, DATA, ax=ax),
    "calibration": lambda ax: plots.calibration_curve({"a": standard(), "b": standard(2.0)}, randn(ROWS), ax=ax),
    "pit": lambda ax: plots.pit_histogram(standard(), randn(ROWS), ax=ax),
    "actual": lambda ax: plots.predicted_against_actual(standard(), randn(ROWS), ax=ax),
    "bars": lambda ax: plots.comparison_bars(FRAME, "nll", ax=ax),
}
picture = pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES.keys())


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def bands(ax):
    """Label of every filled band, and its lower and upper ends at its places, by place."""
    found = {}
    for patch in ax.collections:
        if isinstance(patch, PolyCollection):
            corners = np.unique(patch.get_paths()[0].vertices, axis=0)
            places = np.unique(corners[:, 0])
            ends = [corners[corners[:, 0] == p, 1] for p in places]
            found[patch.get_label()] = np.array([e.min() for e in ends]), np.array([e.max() for e in ends])
    return found


# What all of them keep


@picture
def test_no_global_state_is_touched_but_in_a_notebook(draw, monkeypatch):
    numbers, settings = plt.get_fignums(), dict(matplotlib.rcParams)
    ax = draw(None)
    assert isinstance(ax.figure, Figure) and plt.get_fignums() == numbers
    monkeypatch.setattr("bayesvision.plots.style.in_notebook", lambda: True)
    assert draw(None).figure is plt.gcf()  # which is what a notebook's backend draws
    assert len(plt.get_fignums()) == len(numbers) + 1
    assert dict(matplotlib.rcParams) == settings


@picture
def test_given_axes_are_drawn_on(draw):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert draw(left) is left
    assert left.has_data() and not right.has_data()


@picture
def test_axes_are_labelled_and_figures_can_be_written(draw):
    ax = draw(None)
    assert ax.get_xlabel()
    assert ax.get_ylabel() or [t.get_text() for t in ax.get_yticklabels()] == ["pfn", "gp"]
    file = io.BytesIO()
    ax.figure.savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")


@picture
def test_style_is_an_open_frame_and_a_legend_without_one(draw):
    ax = draw(None)
    assert not ax.spines["top"].get_visible() and not ax.spines["right"].get_visible()
    assert ax.get_legend() is None or not ax.get_legend().get_frame_on()


def test_colours_differ():
    assert len(set(plots.PALETTE)) == len(plots.PALETTE) >= 6


# Bands


def test_band_shows_median_intervals_and_data():
    ax = plots.predictive_band(normal(), X, DATA, masses=(0.5, 0.9))
    assert legend(ax) == ["90 % interval", "50 % interval", "median", "data"]
    x, y = lines(ax)["median"].get_data()
    assert np.allclose(x, X) and np.allclose(y, X.sin(), atol=1e-5)
    for mass in (0.5, 0.9):
        lower, upper = bands(ax)[f"{100 * mass:g} % interval"]
        ends = normal().interval(mass)
        assert np.allclose(lower, ends[0], atol=1e-6) and np.allclose(upper, ends[1], atol=1e-6)
    assert np.allclose(np.transpose(lines(ax)["data"].get_data()), [[0.0, 0.1], [0.5, -0.2], [1.0, 0.3]])


def test_band_sorts_rows_by_place():
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    p = normal()
    shuffled = Normal(p.loc[order], p.scale[order])
    tidy, mixed = plots.predictive_band(p, X), plots.predictive_band(shuffled, X[order, None])
    assert np.allclose(lines(tidy)["median"].get_xydata(), lines(mixed)["median"].get_xydata())
    for label, ends in bands(tidy).items():
        assert np.allclose(ends, bands(mixed)[label])


def test_band_of_a_mixture_has_its_median_and_takes_arrays_and_frames():
    p = Mixture.of(
        Normal(torch.tensor([[0.0, 4.0]]).expand(ROWS, 2), torch.full((ROWS, 2), 0.1)), torch.tensor([1.0, 0.0])
    )
    ax = plots.predictive_band(p, pandas.DataFrame({"x": X.numpy()}), Data(X.tolist(), X.numpy()), masses=(0.8,))
    assert np.allclose(lines(ax)["median"].get_ydata(), p.quantile(0.5))
    assert legend(ax) == ["80 % interval", "median", "data"]


def test_band_without_data_has_no_dots():
    assert "data" not in legend(plots.predictive_band(normal(), X))


def test_prior_and_posterior_are_told_apart():
    ax = plots.prior_and_posterior(standard(2.0), normal(), X, DATA, mass=0.8)
    names = ["prior 80 % interval", "prior median", "posterior 80 % interval", "posterior median", "data"]
    assert legend(ax) == names
    prior, posterior = (lines(ax)[f"{name} median"] for name in ("prior", "posterior"))
    assert np.allclose(prior.get_ydata(), 0, atol=1e-6) and np.allclose(posterior.get_ydata(), X.sin(), atol=1e-5)
    assert prior.get_color() != posterior.get_color() and prior.get_linestyle() != posterior.get_linestyle()
    assert np.allclose(bands(ax)["prior 80 % interval"][1], 2 * scipy.stats.norm.ppf(0.9), atol=1e-5)


@pytest.mark.parametrize(
    "x, message", [(X[:-1], "59 rows"), (torch.zeros(ROWS, 2), "one column"), (X[:0], "one column")]
)
def test_band_needs_one_column_of_the_right_length(x, message):
    with pytest.raises(ValueError, match=message):
        plots.predictive_band(normal(), x)


def test_band_data_have_one_column():
    with pytest.raises(ValueError, match=r"data\.x must be one column"):
        plots.predictive_band(normal(), X, Data(torch.zeros(3, 2), torch.zeros(3)))


def test_band_masses_are_probabilities():
    with pytest.raises(ValueError, match="mass"):
        plots.predictive_band(normal(), X, masses=(90.0,))


# Calibration


def test_calibration_curve_is_the_share_of_targets_inside():
    y = randn(ROWS)
    ax = plots.calibration_curve({"exact": standard(), "wide": standard(2.0)}, y)
    assert legend(ax) == ["99 % of calibrated", "exact", "wide"]
    for name, scale in (("exact", 1.0), ("wide", 2.0)):
        nominal, empirical = lines(ax)[name].get_data()
        for k in (10, 50, 90):
            lower, upper = standard(scale).interval(nominal[k])
            assert empirical[k] == pytest.approx(((lower <= y) & (y <= upper)).double().mean().item())
        assert empirical[0] == 0 and empirical[-1] == 1
    assert any(np.array_equal(line.get_xydata(), [[0, 0], [1, 1]]) for line in ax.get_lines())
    low, high = bands(ax)["99 % of calibrated"]
    assert low[50] == pytest.approx(scipy.stats.binom.ppf(0.005, ROWS, 0.5) / ROWS)
    assert high[50] == pytest.approx(scipy.stats.binom.ppf(0.995, ROWS, 0.5) / ROWS)


def test_many_curves_repeat_the_palette():
    ax = plots.calibration_curve({str(k): standard() for k in range(8)}, randn(ROWS))
    assert lines(ax)["6"].get_color() == lines(ax)["0"].get_color() == plots.PALETTE[0]


def test_calibration_curve_needs_a_prediction():
    with pytest.raises(ValueError, match="at least one prediction"):
        plots.calibration_curve({}, randn(ROWS))


@pytest.mark.parametrize("bins", [1, 7, 20])
def test_pit_histogram_counts_targets(bins):
    y = randn(ROWS)
    ax = plots.pit_histogram(standard(), y, bins)
    expected, edges = np.histogram(scipy.stats.norm.cdf(y), bins, (0, 1))
    heights = [patch.get_height() for patch in ax.patches[:bins]]
    assert heights == expected.tolist() and sum(heights) == ROWS
    assert np.allclose([patch.get_x() for patch in ax.patches[:bins]], edges[:-1])


def test_pit_histogram_marks_the_band_of_uniform_counts_and_what_leaves_it():
    rows, bins = 2000, 20
    y = randn(rows)
    limits = [scipy.stats.binom.ppf(q, rows, 1 / bins) for q in (0.005, 0.995)]
    ax = plots.pit_histogram(standard(0.5, rows), y, bins)
    ends = [segment[0, 1] for c in ax.collections if isinstance(c, LineCollection) for segment in c.get_segments()]
    assert np.allclose(sorted(ends), limits)
    colors = [to_hex(patch.get_facecolor()).upper() for patch in ax.patches[:bins]]
    assert colors[0] == colors[-1] == plots.PALETTE[1]  # a bowl: intervals are too narrow
    inside = [limits[0] <= patch.get_height() <= limits[1] for patch in ax.patches[:bins]]
    assert [c == plots.PALETTE[0] for c in colors] == inside
    assert legend(ax) == ["99 % of calibrated"]


def test_pit_histogram_keeps_targets_far_outside():
    ax = plots.pit_histogram(standard(rows=2), [-50.0, 50.0], 4)
    assert [patch.get_height() for patch in ax.patches[:4]] == [1, 0, 0, 1]


def test_pit_histogram_has_bins():
    with pytest.raises(ValueError, match="bins"):
        plots.pit_histogram(standard(), randn(ROWS), 0)


# Actual against predicted, and scores


def test_predicted_against_actual_shows_every_row_with_its_interval():
    p, y = normal(), 2 * randn(ROWS)
    ax = plots.predicted_against_actual(p, y, mass=0.8)
    lower, upper = p.interval(0.8)
    inside = (lower <= y) & (y <= upper)
    hits = int(inside.sum())
    assert 0 < hits < ROWS
    assert legend(ax) == [f"{hits} of {ROWS} in the 80 % interval", f"{ROWS - hits} outside"]
    for label, where in zip(legend(ax), (inside, ~inside), strict=True):
        assert np.allclose(lines(ax)[label].get_data(), [y[where], p.quantile(0.5)[where]], atol=1e-6)
    bars = np.concatenate([c.get_segments() for c in ax.collections if isinstance(c, LineCollection)])
    assert np.allclose(np.sort(bars[:, 0, 1]), lower.sort().values, atol=1e-6)
    assert np.allclose(np.sort(bars[:, 1, 1]), upper.sort().values, atol=1e-6)
    assert ax.get_xlim() == ax.get_ylim()


def test_predicted_against_actual_when_all_are_inside():
    assert legend(plots.predicted_against_actual(standard(rows=3), [0.0, 0.1, 0.2])) == ["3 of 3 in the 90 % interval"]


@pytest.mark.parametrize("table", [FRAME, FRAME.to_dict(orient="index")], ids=["frame", "mapping"])
def test_comparison_bars_keep_the_order(table):
    ax = plots.comparison_bars(table, "nll")
    assert [patch.get_width() for patch in ax.patches] == [0.5, -0.25]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["pfn", "gp"]
    assert [text.get_text() for text in ax.texts] == ["0.5", "\u22120.25"]
    assert ax.yaxis_inverted()  # the first row on top
    assert plots.comparison_bars(table, "width_90").get_xlabel() == "width 90"


def test_comparison_bars_name_the_metrics_there_are():
    with pytest.raises(ValueError, match=r"'crps' for \['pfn', 'gp'\]; it has \['nll', 'width_90'\]"):
        plots.comparison_bars(FRAME, "crps")
    with pytest.raises(ValueError, match="at least one row"):
        plots.comparison_bars({}, "nll")


# What may be handed in

WITH_TARGETS = {
    "calibration": lambda p, y: plots.calibration_curve({"a": p}, y),
    "pit": plots.pit_histogram,
    "actual": plots.predicted_against_actual,
}


@pytest.mark.parametrize("draw", WITH_TARGETS.values(), ids=WITH_TARGETS.keys())
@pytest.mark.parametrize(
    "y", [torch.zeros(ROWS + 1), torch.zeros(1, ROWS), torch.zeros(()), torch.full((ROWS,), math.nan)]
)
def test_targets_that_do_not_fit_are_refused(draw, y):
    with pytest.raises(ValueError, match="one finite target for each predicted row"):
        draw(standard(), y)


@pytest.mark.parametrize("draw", WITH_TARGETS.values(), ids=WITH_TARGETS.keys())
def test_targets_may_be_a_column(draw):
    column = pandas.DataFrame({"y": randn(ROWS).numpy()})
    assert draw(standard(), column).has_data()


CLASSES = Categorical(logits=torch.zeros(ROWS, 3))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.predictive_band(CLASSES, X),
        lambda: plots.prior_and_posterior(normal(), CLASSES, X),
        lambda: plots.calibration_curve({"a": CLASSES}, torch.zeros(ROWS)),
        lambda: plots.pit_histogram(CLASSES, torch.zeros(ROWS)),
        lambda: plots.predicted_against_actual(CLASSES, torch.zeros(ROWS)),
    ],
)
def test_classes_are_refused(draw):
    with pytest.raises(TypeError):
        draw()
