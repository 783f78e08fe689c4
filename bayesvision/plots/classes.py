"""Pictures of predicted classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from bayesvision.distributions import Discrete
from bayesvision.plots.style import INK, MARKERS, MUTED, PALETTE, fraction_axes, legend, new_axes

__all__ = ["class_shares", "reliability_diagram", "true_class_probabilities"]

TOGETHER = 10  # rows of a bin, at least


def reliability_diagram(predictives: Mapping[str, Discrete], y: Any, bins: int = 8, ax: Axes | None = None) -> Axes:
    """Accuracy against confidence in bins of equal count; calibrated predictions lie on the diagonal.

    Below it predictions are too sure, above it not sure enough. Bars are one standard error, and bins hold at least ten
    rows (Guo et al. 2017, arXiv 1706.04599, figure 1, with bins of equal count).

    Args:
        predictives: predictions of the same targets, by name.
        y: classes of the predictions' shape.

    Raises:
        TypeError: a prediction is of numbers.
        ValueError: no predictions, or targets of another shape.
    """
    ax = new_axes(ax, (4.6, 4.6))
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--", zorder=2)
    for k, (name, (probs, truth)) in enumerate(_read(predictives, y).items()):
        confidence, right = probs.max(-1), probs.argmax(-1) == truth
        parts = np.array_split(confidence.argsort(), max(1, min(bins, len(truth) // TOGETHER)))
        x = np.array([confidence[part].mean() for part in parts])
        share = np.array([right[part].mean() for part in parts])
        size = np.array([len(part) for part in parts])
        error = np.sqrt((share * size + 1) * ((1 - share) * size + 1) / (size + 2) ** 2 / (size + 3))
        line = ax.errorbar(x, share, error, markersize=5, linewidth=1.6, elinewidth=0.8, zorder=3, label=name)
        line.lines[0].set_marker(MARKERS[k % len(MARKERS)])
        for part in (line.lines[0], *line.lines[2]):
            part.set_color(PALETTE[k % len(PALETTE)])
    fraction_axes(ax)
    ax.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal", xlabel="confidence", ylabel="accuracy")
    legend(ax, loc="upper left")
    return ax


def true_class_probabilities(predictives: Mapping[str, Discrete], y: Any, ax: Axes | None = None) -> Axes:
    """Probability that was given to the class of each row, the rows in rising order; higher is better.

    Args:
        predictives: predictions of the same targets, by name.
        y: classes of the predictions' shape.

    Raises:
        TypeError: a prediction is of numbers.
        ValueError: no predictions, or targets of another shape.
    """
    ax = new_axes(ax)
    for k, (name, (probs, truth)) in enumerate(_read(predictives, y).items()):
        given = np.sort(probs[np.arange(len(truth)), truth])
        rank = np.arange(1, len(truth) + 1) / len(truth)
        ax.plot(rank, given, color=PALETTE[k % len(PALETTE)], linewidth=1.8, label=name)
    fraction_axes(ax)
    ax.set(
        xlim=(0, 1), ylim=(0, 1.02), xlabel="rows, the most surprising first", ylabel="probability of the true class"
    )
    legend(ax)
    return ax


def class_shares(predictives: Mapping[str, Discrete], labels: Sequence[str], ax: Axes | None = None) -> Axes:
    """Mean predicted probability of every class.

    Raises:
        TypeError: a prediction is of numbers.
        ValueError: no predictions.
    """
    ax = new_axes(ax)
    read = {name: _probs(law) for name, law in _some(predictives).items()}
    width = 0.8 / len(read)
    for k, (name, probs) in enumerate(read.items()):
        place = np.arange(len(labels)) + (k - (len(read) - 1) / 2) * width
        ax.bar(place, probs.reshape(-1, len(labels)).mean(0), width, color=PALETTE[k % len(PALETTE)], label=name)
    ax.set_xticks(np.arange(len(labels)), labels)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    ax.set(ylabel="mean probability")
    ax.tick_params(axis="x", labelcolor=INK)
    legend(ax)
    return ax


def _some(predictives: Mapping[str, Discrete]) -> Mapping[str, Discrete]:
    if not predictives:
        raise ValueError("predictives must hold at least one prediction by its name: {name: predictive}")
    return predictives


def _probs(predictive: Any) -> np.ndarray:
    if not isinstance(predictive, Discrete):
        raise TypeError(
            f"this picture needs a bayesvision distribution over classes, got {type(predictive).__name__}; "
            "for numbers use calibration_curve"
        )
    return predictive.class_probs.detach().cpu().numpy()


def _read(predictives: Mapping[str, Discrete], y: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Probabilities [rows, classes] and classes [rows] of every prediction."""
    found, truth = {}, np.asarray(y)
    for name, law in _some(predictives).items():
        probs = _probs(law)
        if truth.shape != probs.shape[:-1] or not truth.size:
            raise ValueError(
                f"y must have one class for each predicted row, the shape {probs.shape[:-1]}, got {truth.shape}"
            )
        found[name] = probs.reshape(-1, probs.shape[-1]), truth.reshape(-1).astype(int)
    return found
