"""Pictures of beliefs over latent variables."""

import math
from typing import Any

import numpy as np
import torch
import torch.distributions as td
from matplotlib.axes import Axes

from bayesvision.distributions import GaussianMixture, WeightedDraws
from bayesvision.plots.style import INK, PALETTE, new_axes

__all__ = ["belief"]

GRID = 160  # points along a side
REACH = 4.0  # deviations shown
MASSES = (0.5, 0.9, 0.99)  # inside the contours


def belief(
    latent: GaussianMixture | WeightedDraws,
    variables: tuple[int, int] = (0, 1),
    truth: Any = None,
    extent: tuple[float, float, float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Two latent variables of one problem: the density, with lines around 50, 90 and 99 % of it, or weighted draws.

    Args:
        latent: the posterior, over real latent variables; without batch axes.
        variables: which two.
        truth: latent variables to mark with a cross.
        extent: left, right, bottom and top; four deviations about the mean when left out.

    Raises:
        ValueError: a batch of posteriors, or latent variables that are not real.
    """
    mean, covariance = latent.mean.detach(), latent.covariance_matrix.detach()
    if mean.ndim != 1:
        raise ValueError(f"latent must be of one problem, got the batch {tuple(mean.shape[:-1])}; index it")
    i, j = variables
    ax = new_axes(ax)
    if extent is None:
        half = [REACH * float(covariance[k, k].sqrt()) for k in (i, j)]
        extent = (*(float(mean[i]) + s * half[0] for s in (-1, 1)), *(float(mean[j]) + s * half[1] for s in (-1, 1)))  # pyright: ignore[reportAssignmentType]
    assert extent is not None
    if isinstance(latent, GaussianMixture):
        _density(ax, latent, [i, j], extent)
    else:
        size = 200 * latent.weights / latent.weights.max()
        ax.scatter(latent.values[:, i], latent.values[:, j], s=size.clamp(min=0.2), color=PALETTE[0], alpha=0.2, lw=0)
    if truth is not None:
        point = torch.as_tensor(truth)
        ax.plot(float(point[i]), float(point[j]), "x", color=INK, markersize=8, markeredgewidth=2)
    ax.set_xlim(*extent[:2])
    ax.set_ylim(*extent[2:])
    return ax


def _density(ax: Axes, latent: GaussianMixture, pair: list[int], extent: tuple[float, float, float, float]) -> None:
    if any(latent.supports[k] != "real" for k in pair):
        raise ValueError(f"variables must be two real ones, got {', '.join(latent.supports[k] for k in pair)}")
    across, up = (torch.linspace(*ends, GRID, dtype=torch.float64) for ends in (extent[:2], extent[2:]))
    points = torch.stack(torch.meshgrid(across, up, indexing="xy"), -1)
    loc = latent.loc.detach().double().cpu()[:, pair]
    tril = latent.scale_tril.detach().double().cpu()
    covariance = (tril @ tril.mT)[:, pair][:, :, pair]
    parts = td.MultivariateNormal(loc, covariance, validate_args=False)
    logits = latent.logits.detach().double().cpu()
    density = (logits + parts.log_prob(points.unsqueeze(-2))).logsumexp(-1).exp().numpy()
    ax.imshow(density, extent=extent, origin="lower", cmap="Blues", aspect="auto", vmin=0, interpolation="bilinear")
    order = np.sort(density.ravel())[::-1]
    mass = order.cumsum() / max(order.sum(), math.ulp(0.0))
    lines = [float(order[np.searchsorted(mass, share)]) for share in MASSES if mass[-1] > share]
    if len(set(lines)) == len(MASSES):
        ax.contour(density, sorted(lines), extent=extent, colors=PALETTE[0], linewidths=(0.8, 1.0, 1.4))
