"""Pictures of what was predicted at every pixel."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bayesvision.distributions import Continuous
from bayesvision.metrics.uncertainty import Sparsification
from bayesvision.plots.style import GRID, INK, MARKERS, MUTED, PALETTE, new_axes, new_figure

__all__ = ["sparsification_curve", "uncertainty_maps"]


def uncertainty_maps(predictive: Continuous, x: Any = None, y: Any = None, figure: Figure | None = None) -> Figure:
    """Of one image: what went in, what came out, the error and the predicted standard deviation, side by side.

    Error and spread share a scale, so equal colours say that they agree; of several channels it is their root mean
    square.

    Args:
        predictive: of an image, [channels, height, width] or [height, width].
        x: the input, to show.
        y: the target; without it there is no map of the error.
        figure: to draw on, such as pyplot's; a new one when left out.

    Raises:
        TypeError: the prediction is of classes.
        ValueError: not one image, or a target of another shape.
    """
    if not isinstance(predictive, Continuous):
        raise TypeError(f"uncertainty_maps needs a distribution over numbers, got {type(predictive).__name__}")
    if len(predictive.batch_shape) not in (2, 3):
        raise ValueError(
            "predictive must be of one image, [channels, height, width], "
            f"got the shape {tuple(predictive.batch_shape)}; predict one image, or index the parameters"
        )
    mean, stddev = predictive.mean.detach(), predictive.stddev.detach()
    pictures: dict[str, Any] = {} if x is None else {"input": _image(torch.as_tensor(x))}
    pictures["output"] = _image(mean)
    maps = {}
    if y is not None:
        y = torch.as_tensor(y).to(mean)
        if y.shape != mean.shape:
            raise ValueError(f"y must have the prediction's shape {tuple(mean.shape)}, got {tuple(y.shape)}")
        maps["absolute error"] = _size(y - mean)
    maps["standard deviation"] = _size(stddev)
    top = max(float(np.quantile(v, 0.99)) for v in maps.values()) or 1.0
    figure = new_figure() if figure is None else figure
    figure.set_size_inches(3.1 * (len(pictures) + len(maps)) + 0.6, 3.2)
    axes = np.atleast_1d(figure.subplots(1, len(pictures) + len(maps)))
    shown = None
    for ax, (name, picture) in zip(axes, {**pictures, **maps}.items(), strict=True):
        options = {"cmap": "inferno", "vmin": 0, "vmax": top} if name in maps else {"cmap": "gray"}
        shown = ax.imshow(picture, interpolation="nearest", **options)
        ax.set_title(name, color=INK, fontsize=10)
        ax.set_axis_off()
    assert shown is not None
    bar = figure.colorbar(shown, ax=list(axes), fraction=0.03, pad=0.01)
    bar.ax.tick_params(labelsize=8, color=MUTED)
    return figure


def _image(value: Tensor) -> np.ndarray:
    """[height, width] or [height, width, 3], in 0..1 for colours."""
    value = value.detach().float().cpu()
    if value.ndim == 3 and value.shape[0] != 3:
        value = value.mean(0)
    return value.clamp(0, 1).movedim(0, -1).numpy() if value.ndim == 3 else value.numpy()


def _size(value: Tensor) -> np.ndarray:
    value = value.float().cpu()
    return (value.square().mean(0).sqrt() if value.ndim == 3 else value.abs()).numpy()


def sparsification_curve(curves: Mapping[str, Sparsification], ax: Axes | None = None) -> Axes:
    """Error that is left against the share dropped by predicted spread, and the best that can be had, dashed.

    Args:
        curves: of `bayesvision.metrics.sparsification`, by name; the oracle shown is the first one's.

    Raises:
        ValueError: no curves.
    """
    if not curves:
        raise ValueError("curves must hold at least one Sparsification, got none")
    ax = new_axes(ax)
    for k, (name, curve) in enumerate(curves.items()):
        style = {"color": PALETTE[k % len(PALETTE)], "marker": MARKERS[k % len(MARKERS)], "markevery": 10}
        ax.plot(curve.dropped, curve.by_spread, label=name, linewidth=1.8, markersize=4, **style)
    first = next(iter(curves.values()))
    ax.plot(first.dropped, first.oracle, "--", color=MUTED, label="by the error itself")
    ax.set_xlabel("share dropped, greatest spread first")
    ax.set_ylabel("error of the rest, relative")
    ax.set_ylim(0, None)
    ax.grid(color=GRID)
    ax.legend(frameon=False, fontsize=9)
    return ax
