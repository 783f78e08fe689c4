"""Holes and what they were filled with: images beside their masks, and tables."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesvision.plots.style import INK, MUTED, PALETTE, new_axes, new_figure

__all__ = ["completions", "holes"]

ROWS = 60  # of a table that are drawn


def completions(images: Any, mask: Any, completion: Any, columns: int = 8, figure: Figure | None = None) -> Figure:
    """For each image: what it is, what was seen, the mean of the completion, its deviation, and the class.

    Args:
        images: [n, channels, height, width] between 0 and 1.
        mask: True where a pixel was seen, the same shape or that of one image.
        completion: `complete(images, mask)` of an `ImageMDBM`'s posterior.
        columns: images that are drawn.
        figure: to draw on, such as pyplot's; a new one when left out.

    Raises:
        ValueError: there is no image.
    """
    shown = np.asarray(images, dtype=float)[:columns]
    if shown.ndim < 3 or not len(shown):
        raise ValueError(f"images must hold at least one image, got the shape {shown.shape}")
    shown = shown.reshape(len(shown), *completion.mean.shape[-3:])
    seen = np.broadcast_to(np.asarray(mask).reshape(-1, *shown.shape[-2:])[:columns, None], shown.shape)
    known = np.where(seen, shown, np.nan)
    lines = {
        "image": shown,
        "seen": known,
        "mean": completion.mean[:columns].cpu().numpy(),
        "deviation": completion.stddev[:columns].cpu().numpy(),
    }
    count = len(lines) + (completion.label is not None)
    figure = new_figure() if figure is None else figure
    figure.set_size_inches(1.15 * len(shown) + 0.9, 1.15 * count)
    grid = figure.subplots(count, len(shown), squeeze=False)
    for line, (name, pictures) in zip(grid, lines.items(), strict=False):
        top = 0.5 if name == "deviation" else 1.0
        for ax, picture in zip(line, pictures, strict=True):
            ax.set_facecolor("#d8d4cc")
            ax.imshow(_picture(picture), cmap="magma" if name == "deviation" else "gray", vmin=0, vmax=top)
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, color=INK)
    if completion.label is not None:
        for ax, probs in zip(grid[-1], completion.label.probs[:columns].cpu().numpy(), strict=True):
            _classes(ax, probs)
        grid[-1][0].set_ylabel("class", color=INK)
    return figure


def _picture(image: np.ndarray) -> np.ndarray:
    return image[0] if len(image) != 3 else np.moveaxis(image, 0, -1)


def _classes(ax: Axes, probs: np.ndarray) -> None:
    best = probs.argmax()
    colors = [PALETTE[0] if k == best else MUTED for k in range(len(probs))]
    ax.bar(np.arange(len(probs)), probs, color=colors)
    ax.set(ylim=(0, 1), yticks=[], xticks=[best])
    ax.tick_params(labelsize=8, colors=INK)
    ax.spines[["top", "right", "left"]].set_visible(False)


def holes(imputation: Any, ax: Axes | None = None) -> Axes:
    """Where a table had holes, and how probable what they were filled with is; the first 60 rows with a hole.

    Args:
        imputation: `impute(rows)` of an `MDBM`'s posterior.
    """
    gaps, chance = (np.asarray(value) for value in (imputation.holes, imputation.chance))
    rows = np.flatnonzero(gaps.any(1))[:ROWS]
    names = list(imputation.coding.names) if imputation.coding else [str(k) for k in range(gaps.shape[1])]
    ax = new_axes(ax, (1.5 + 0.45 * len(names), 1.2 + 0.09 * max(len(rows), 10)))
    drawn = np.where(gaps[rows], chance[rows], np.nan)
    picture = ax.imshow(drawn, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    ax.grid(False)
    ax.set_facecolor("#eeece6")
    ax.set_xticks(np.arange(len(names)), names, rotation=90)
    ax.set_yticks([])
    ax.set_ylabel(f"{len(rows)} rows with holes", color=INK)
    bar = ax.figure.colorbar(picture, ax=ax, shrink=0.8)
    bar.set_label("probability of the value filled in", color=INK)
    return ax
