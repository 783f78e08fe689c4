"""Gram matrices of a deep kernel machine, layer by layer."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bayesvision.plots.style import INK, new_figure

__all__ = ["gram_matrices"]


def gram_matrices(machines: Mapping[str, Any], order: Any = None, figure: Figure | None = None) -> Figure:
    """How alike each layer takes inducing points to be: G_ij / sqrt(G_ii G_jj), a line for each machine.

    Args:
        machines: name -> posterior of a `DKM`, all with as many layers.
        order: of the inducing points, such as by class; as they are when left out.
        figure: to draw on, such as pyplot's; a new one when left out.

    Raises:
        ValueError: no machine, machines with other numbers of layers, or an `order` that is none of all points.
    """
    layers = {post.drift().shape[0] + 1 for post in machines.values()}
    if len(layers) != 1:
        raise ValueError(f"machines must be one or more with as many layers, got {sorted(layers)} Gram matrices")
    count = layers.pop()
    figure = new_figure() if figure is None else figure
    figure.set_size_inches(1.9 * count + 1.0, 1.9 * len(machines) + 0.4)
    grid = figure.subplots(len(machines), count, squeeze=False)
    drawn = None
    for number, (line, (name, post)) in enumerate(zip(grid, machines.items(), strict=True)):
        for layer, ax in enumerate(line):
            gram = post.gram(layer).cpu().numpy()
            chosen = np.arange(len(gram)) if order is None else np.asarray(order)
            if not np.array_equal(np.sort(chosen), np.arange(len(gram))):
                raise ValueError(f"order must hold each of {len(gram)} inducing points of a layer once")
            norm = np.sqrt(np.clip(np.diag(gram), 1e-300, None))
            alike = (gram / norm / norm[:, None])[np.ix_(chosen, chosen)]
            drawn = ax.imshow(alike, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            if not number:
                ax.set_title("inputs" if not layer else f"layer {layer}", color=INK, fontsize=10)
        line[0].set_ylabel(name, color=INK)
    if drawn is not None:
        figure.colorbar(drawn, ax=grid, shrink=0.6).set_label("cosine", color=INK)
    return figure
