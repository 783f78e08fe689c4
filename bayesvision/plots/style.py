"""Colours, axes and legends that the pictures share."""

import sys
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

__all__ = ["PALETTE"]

# Okabe and Ito's colours, which stay apart under every common colour blindness, in the order they are taken.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")  # a second cue, for print in grey
INK, MUTED, GRID = "#262626", "#6E6E6E", "#E8E8E8"


def new_figure(**options: Any) -> Figure:
    """A figure of its own, which a notebook shows where a cell ends with it."""
    return Figure(layout="constrained", facecolor="white", **options)


def in_notebook() -> bool:
    """Whether IPython runs this."""
    shell: Any = sys.modules.get("IPython")
    return shell is not None and shell.get_ipython() is not None


def shown_figure(size: tuple[float, float]) -> Figure:
    """A figure for axes: in a notebook one that pyplot knows, as it shows no axes by themselves."""
    if not in_notebook():
        return new_figure(figsize=size)
    from matplotlib import pyplot

    return pyplot.figure(figsize=size, layout="constrained", facecolor="white")


def new_axes(ax: Axes | None, size: tuple[float, float] = (6.4, 4.0)) -> Axes:
    """Axes, of a fresh figure if none are given, in the style of this module: an open frame and a light grid behind."""
    ax = shown_figure(size).add_subplot() if ax is None else ax
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(color=MUTED, linewidth=0.8)
    ax.tick_params(length=0, pad=6, labelcolor=INK, labelsize=9)
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set(color=INK, fontsize=10)
    ax.grid(visible=True, color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    return ax


def legend(ax: Axes, loc: Literal["best", "upper left", "upper right"] = "best") -> None:
    ax.legend(loc=loc, frameon=False, fontsize=9, labelcolor=INK)


def percent(mass: float) -> str:
    return f"{100 * mass:g} %"


def fraction_axes(ax: Axes) -> None:
    """Label both axes in per cent."""
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
