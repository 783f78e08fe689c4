"""Pictures of a predictive distribution against inputs, targets and other distributions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
import torch
from matplotlib.axes import Axes
from torch import Tensor

from bayesvision.core.checks import columns_of
from bayesvision.core.data import Data
from bayesvision.distributions import Continuous
from bayesvision.plots.style import INK, MARKERS, MUTED, PALETTE, fraction_axes, legend, new_axes, percent

__all__ = [
    "calibration_curve",
    "comparison_bars",
    "pit_histogram",
    "predicted_against_actual",
    "predictive_band",
    "prior_and_posterior",
]

CHANCE = 0.99  # probability of the bands that calibrated predictions stay in


def predictive_band(
    predictive: Continuous,
    x: Any,
    data: Data | None = None,
    masses: Sequence[float] = (0.5, 0.9),
    ax: Axes | None = None,
) -> Axes:
    """Median and central intervals against one input column, with the data as dots.

    Args:
        predictive: prediction of n rows.
        x: their inputs, [n] or [n, 1], in any order.
        data: rows to show.
        masses: probabilities of the intervals.

    Raises:
        TypeError: the prediction is of classes.
        ValueError: more than one column, or x and the prediction differ in length.
    """
    ax = new_axes(ax)
    _band(ax, _continuous(predictive), x, masses, PALETTE[0])
    return _finish_band(ax, data)


def prior_and_posterior(
    prior_predictive: Continuous,
    posterior_predictive: Continuous,
    x: Any,
    data: Data | None = None,
    mass: float = 0.9,
    ax: Axes | None = None,
) -> Axes:
    """What was expected before the data, in grey, and after, in colour: median and central interval of both.

    Args:
        prior_predictive, posterior_predictive: predictions of the same n rows.
        x: their inputs, [n] or [n, 1], in any order.
        data: the rows that made the difference.
        mass: probability of the intervals.

    Raises:
        TypeError: a prediction is of classes.
        ValueError: more than one column, or x and a prediction differ in length.
    """
    ax = new_axes(ax)
    _band(ax, _continuous(prior_predictive), x, (mass,), MUTED, "prior ", "--", 0.14)
    _band(ax, _continuous(posterior_predictive), x, (mass,), PALETTE[0], "posterior ", "-", 0.3)
    return _finish_band(ax, data)


def calibration_curve(predictives: Mapping[str, Continuous], y: Any, ax: Axes | None = None) -> Axes:
    """Fraction of targets inside the central interval of every probability; calibrated predictions follow the diagonal.

    Below the diagonal intervals are too narrow, above it too wide. The shade is where 99 % of calibrated predictions
    of this many independent targets lie at each probability.

    Args:
        predictives: predictions of the same targets, by name.
        y: targets of the predictions' shape.

    Raises:
        TypeError: a prediction is of classes.
        ValueError: no predictions, or targets of another shape.
    """
    if not predictives:
        raise ValueError("predictives must hold at least one prediction: calibration_curve({name: predictive}, y)")
    ax = new_axes(ax, (4.6, 4.6))
    nominal = np.linspace(0, 1, 101)
    needed = {name: np.sort(np.abs(2 * _pit(p, y) - 1)) for name, p in predictives.items()}  # mass up to the target
    total = next(iter(needed.values())).size
    low, high = _chance(total, nominal) / total
    ax.fill_between(nominal, low, high, color=INK, alpha=0.08, linewidth=0, label="99 % of calibrated", zorder=1)
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--", zorder=2)
    for k, (name, mass) in enumerate(needed.items()):
        empirical = np.searchsorted(mass, nominal, side="right") / mass.size
        line = ax.plot(nominal, empirical, linewidth=1.8, markevery=(10, 20), markersize=5, label=name, zorder=3)[0]
        line.set(color=PALETTE[k % len(PALETTE)], marker=MARKERS[k % len(MARKERS)])
    fraction_axes(ax)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="nominal coverage", ylabel="empirical coverage")
    legend(ax, loc="upper left")
    return ax


def pit_histogram(predictive: Continuous, y: Any, bins: int = 20, ax: Axes | None = None) -> Axes:
    """Counts of F(y) in bins of equal width; calibrated predictions fill all bins alike.

    A hump says that intervals are too wide, a bowl too narrow, a slope that the location is off. The shade holds the
    count of each bin with probability 99 % under calibration, Binomial(n, 1 / bins), for independent targets; bins
    outside it stand out.

    Args:
        predictive: prediction of the targets.
        y: targets of the prediction's shape.
        bins: number of bins.

    Raises:
        TypeError: the prediction is of classes.
        ValueError: targets of another shape, or no bins.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    ax = new_axes(ax)
    values = _pit(predictive, y)
    counts, edges = np.histogram(values, bins, (0, 1))
    low, high = _chance(values.size, 1 / bins).tolist()
    outside = (counts < low) | (counts > high)
    colors = np.where(outside, PALETTE[1], PALETTE[0])
    ax.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colors, alpha=0.8, edgecolor="white", zorder=2)
    ax.axhspan(low, high, color=INK, alpha=0.08, linewidth=0, label="99 % of calibrated", zorder=1)
    ax.hlines([low, high], 0, 1, color=INK, linewidth=0.6, zorder=3)
    ax.axhline(values.size / bins, color=INK, linewidth=1, linestyle="--", zorder=3)
    ax.set(xlim=(0, 1), ylim=(0, 1.25 * max(counts.max(), high)), xlabel="F(y)", ylabel="targets")
    legend(ax, loc="upper right")
    return ax


def predicted_against_actual(predictive: Continuous, y: Any, mass: float = 0.9, ax: Axes | None = None) -> Axes:
    """Predicted median with its central interval against the target; intervals that miss the target stand out.

    Args:
        predictive: prediction of the targets, from any number of input columns.
        y: targets of the prediction's shape.
        mass: probability of the intervals.

    Raises:
        TypeError: the prediction is of classes.
        ValueError: targets of another shape, or `mass` lies outside (0, 1).
    """
    ax = new_axes(ax, (4.6, 4.6))
    actual = _targets(predictive, y).flatten()
    lower, upper = (_array(v).flatten() for v in predictive.interval(mass))
    middle = _array(predictive.quantile(0.5)).flatten()
    actual = _array(actual)
    inside = (lower <= actual) & (actual <= upper)
    total, hits = inside.size, int(inside.sum())
    for where, color, marker, label in (
        (inside, PALETTE[0], "o", f"{hits} of {total} in the {percent(mass)} interval"),
        (~inside, PALETTE[1], "D", f"{total - hits} outside"),
    ):
        if where.any():
            at = actual[where]
            ax.vlines(at, lower[where], upper[where], color=color, alpha=0.35, linewidth=1.2, zorder=2)
            ax.plot(at, middle[where], marker, color=color, markersize=4, markeredgewidth=0, label=label, zorder=3)
    ends = np.array([min(actual.min(), lower.min()), max(actual.max(), upper.max())])
    ends += 0.03 * np.ptp(ends) * np.array([-1, 1])
    ax.plot(ends, ends, color=MUTED, linewidth=1, linestyle="--", zorder=1)
    ax.set(xlim=ends, ylim=ends, aspect="equal", xlabel="actual", ylabel="predicted")
    legend(ax, loc="upper left")
    return ax


def comparison_bars(table: Any, metric: str, ax: Axes | None = None) -> Axes:
    """One score of several posteriors as labelled bars, in the order of the table.

    Args:
        table: what `metrics.compare` returns, or a mapping from names to mappings from metrics to numbers.
        metric: the column to show.

    Raises:
        ValueError: the table is empty or lacks the metric.
    """
    rows = table.to_dict(orient="index") if columns_of(table) is not None else table
    if not rows:
        raise ValueError("table must hold at least one row, got none")
    missing = [str(name) for name, row in rows.items() if metric not in row]
    if missing:
        known = sorted({str(key) for row in rows.values() for key in row})
        raise ValueError(f"table lacks {metric!r} for {missing}; it has {known}")
    ax = new_axes(ax, (5.4, 0.8 + 0.42 * len(rows)))
    bars = ax.barh([str(name) for name in rows], [float(row[metric]) for row in rows.values()], 0.62, color=PALETTE[0])
    ax.bar_label(bars, fmt=lambda v: f"{v:.3g}".replace("-", "\u2212"), padding=4, color=INK, fontsize=9)
    ax.axvline(0, color=MUTED, linewidth=0.8)
    ax.invert_yaxis()
    ax.margins(x=0.2)
    ax.spines["left"].set_visible(False)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel(metric.replace("_", " "))
    return ax


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)


def _chance(total: int, probability: float | np.ndarray) -> np.ndarray:
    """Minimum and maximum number of `total` independent targets that fall into an event, in 99 % of cases."""
    tails = np.array([(1 - CHANCE) / 2, (1 + CHANCE) / 2]).reshape(2, *(1 for _ in np.shape(probability)))
    return np.asarray(scipy.stats.binom.ppf(tails, total, probability))


def _column(x: Any, name: str) -> np.ndarray:
    value = _array(x)
    if value.ndim == 2 and value.shape[1] == 1:
        value = value[:, 0]
    if value.ndim != 1 or not value.size:
        raise ValueError(
            f"{name} must be one column with at least one row, got the shape {value.shape}; "
            "for tables with more columns use predicted_against_actual"
        )
    return value


def _continuous(predictive: Any) -> Continuous:
    if not isinstance(predictive, Continuous):
        raise TypeError(
            "this picture needs a bayesvision distribution over numbers (Normal, Bar, Mixture, ...), "
            f"got {type(predictive).__name__}; pass what predict returned"
        )
    return predictive


def _targets(predictive: Continuous, y: Any) -> Tensor:
    mean, value = _continuous(predictive).mean, _array(y)
    if value.shape == (*mean.shape, 1):
        value = value[..., 0]
    if value.shape != tuple(mean.shape) or not value.size or not np.isfinite(value).all():
        raise ValueError(
            f"y must have one finite target for each predicted row, the shape {tuple(mean.shape)}, "
            f"got {value.shape} with {(~np.isfinite(value)).sum()} NaN or infinite values"
        )
    return torch.tensor(value).to(mean)  # a copy: an array may be read-only


def _pit(predictive: Continuous, y: Any) -> np.ndarray:
    return _array(predictive.cdf(_targets(predictive, y))).flatten().clip(0, 1)  # float32 sums may end a little over 1


def _band(
    ax: Axes,
    predictive: Continuous,
    x: Any,
    masses: Sequence[float],
    color: str,
    name: str = "",
    line: str = "-",
    alpha: float = 0.18,
) -> None:
    place = _column(x, "x")
    if tuple(predictive.batch_shape) != place.shape:
        raise ValueError(f"x has {place.size} rows and the prediction has the shape {tuple(predictive.batch_shape)}")
    order = np.argsort(place, kind="stable")
    place = place[order]
    for k, mass in enumerate(sorted(masses, reverse=True)):  # the widest first, the others on top of it
        lower, upper = (_array(v)[order] for v in predictive.interval(mass))
        patch = ax.fill_between(place, lower, upper, color=color, alpha=alpha + 0.14 * k, linewidth=0, zorder=2)
        patch.set_label(f"{name}{percent(mass)} interval")
    median = _array(predictive.quantile(0.5))[order]
    ax.plot(place, median, color=color, linewidth=1.8, linestyle=line, label=f"{name}median", zorder=3)


def _finish_band(ax: Axes, data: Data | None) -> Axes:
    if data is not None:
        x, y = (_column(value, name) for value, name in zip(data, ("data.x", "data.y"), strict=True))
        dots = ax.plot(x, y, "o", color=INK, markersize=5, label="data", zorder=4)[0]
        dots.set(markeredgecolor="white", markeredgewidth=0.7)
    ax.margins(x=0)
    ax.set(xlabel="x", ylabel="y")
    legend(ax)
    return ax
