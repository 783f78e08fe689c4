"""Pictures of learning curves."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesvision import plots
from bayesvision.core.data import Data
from bayesvision.distributions import Continuous
from bayesvision.plots.predictions import _band, _column, _continuous
from bayesvision.plots.style import INK, PALETTE, legend, new_axes, new_figure

if TYPE_CHECKING:
    from bayesvision.early_stopping.forecasts import RunForecaster
    from bayesvision.io.log_files import Curve

__all__ = ["Panel", "curve_fan", "curve_grid", "regret_lines"]


def curve_fan(
    predictive: Continuous,
    steps: Any,
    seen: Data,
    best: float | None = None,
    masses: Sequence[float] = (0.5, 0.9),
    ax: Axes | None = None,
) -> Axes:
    """A learning curve as far as it was seen, the fan of its forecast, and the value to beat.

    Args:
        predictive: prediction at n steps.
        steps: the n steps, in any order.
        seen: steps and values seen so far.
        best: value to beat, as a dashed line.
        masses: probabilities of the intervals.

    Raises:
        TypeError: the prediction is of classes.
        ValueError: steps and the prediction differ in length.
    """
    ax = new_axes(ax)
    _band(ax, _continuous(predictive), steps, masses, PALETTE[0])
    x, y = _column(seen.x, "seen.x"), _column(seen.y, "seen.y")
    ax.plot(x, y, "-o", color=INK, markersize=3, linewidth=1, label="seen", zorder=4)
    if best is not None:
        ax.axhline(best, color=PALETTE[1], linewidth=1.2, linestyle="--", label="best so far", zorder=3)
    ax.margins(x=0)
    ax.set(xlabel="step", ylabel="metric")
    legend(ax)
    return ax


class Panel(NamedTuple):
    """A run to draw: its name, finite readings, what is said of it, and whether it is forecast."""

    name: str
    curve: "Curve"
    said: str
    forecast: bool


def curve_grid(fleet: "RunForecaster", panels: list[Panel], best: float, metric: str) -> Figure:
    """One small picture a run, with the fan of its forecast, all on the same axes."""
    across = min(4, math.ceil(math.sqrt(len(panels))))
    down = math.ceil(len(panels) / across)
    figure = new_figure(figsize=(2.8 * across + 0.8, 2.1 * down + 1))
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for ax, panel in zip(grid.flat, panels, strict=False):
        steps, values = (torch.tensor(v, dtype=torch.float64) for v in panel.curve)
        if panel.forecast:
            ahead, law = fleet.fan(panel.name)
            plots.curve_fan(law, ahead, Data(steps, values), best, ax=ax)
        else:
            _style(ax).plot(steps, values, "-o", color=plots.INK, markersize=3, linewidth=1, label="seen")
            ax.axhline(best, color=plots.PALETTE[1], linewidth=1.2, linestyle="--", label="best so far")
        name = panel.name if len(panel.name) <= 32 else f"{panel.name[:31]}…"
        ax.set_title(name, fontsize=9, color=plots.INK, loc="left", parse_math=False, pad=16)
        ax.text(0, 1.03, panel.said, transform=ax.transAxes, fontsize=8, color=plots.MUTED)
        ax.set(xlabel="", ylabel="")
        ax.legend().remove()
    for ax in grid.flat[len(panels) :]:
        ax.set_visible(False)
    shown = [panel.curve.values for panel in panels]
    _limit(grid[0, 0], np.concatenate([*map(np.asarray, shown), [best]]))
    first = min(min(panel.curve.steps, default=0.0) for panel in panels)
    grid[0, 0].set_xlim(first if first > fleet.horizon / 2 else 0, fleet.horizon)  # runs that go on from a late step
    figure.get_layout_engine().set(w_pad=0.1)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue, reportCallIssue]
    figure.supxlabel("step", fontsize=10, color=plots.INK)
    figure.supylabel(metric, fontsize=10, color=plots.INK, parse_math=False)
    handles, labels = max((ax.get_legend_handles_labels() for ax in grid.flat), key=lambda pair: len(pair[0]))
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    return figure


def _limit(ax: Axes, values: np.ndarray) -> None:
    """Show what was seen and room around it, however far the fans reach and however bad the first values are."""
    low, high = np.quantile(values, [0.02, 0.98])
    low, high = min(low, values[-1]), max(high, values[-1])
    room = 0.25 * max(high - low, 1e-9 * max(abs(low), abs(high), 1e-9))
    ax.set_ylim(low - room, high + room)


def _style(ax: Axes) -> Axes:
    """The frame and grid of `bayesvision.plots`."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(color=plots.MUTED, linewidth=0.8)
    ax.tick_params(length=0, pad=6, labelcolor=plots.INK, labelsize=9)
    ax.grid(visible=True, color=plots.GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    return ax


def regret_lines(regrets: dict[str, np.ndarray], stride: float, orders: int) -> Figure:
    """Mean regret of each policy against the steps spent, on a logarithmic axis."""
    figure = new_figure(figsize=(7, 4.4))
    ax = _style(figure.add_subplot())
    least = min(float(r[r > 0].min()) for r in regrets.values() if (r > 0).any()) if regrets else 1.0
    for k, (name, regret) in enumerate(regrets.items()):
        steps = stride * np.arange(1, len(regret) + 1)
        there = np.isfinite(regret)
        ax.step(
            steps[there], np.maximum(regret[there], least / 2), where="post", label=name, linewidth=1.8,
            color=plots.PALETTE[k % len(plots.PALETTE)], linestyle=("-", "--", "-.", ":")[k % 4],
        )  # fmt: skip
    ax.set_yscale("log")
    ax.set_ylim(bottom=least / 2)
    ax.margins(x=0)
    ax.set_xlabel("steps spent", fontsize=10, color=plots.INK)
    over = f"mean of {orders} orders" if orders > 1 else "in file order"
    ax.set_ylabel(f"best run's value minus best found\n({over})", fontsize=10, color=plots.INK)
    ax.legend(frameon=False, fontsize=9, labelcolor=plots.INK)
    return figure
