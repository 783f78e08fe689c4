"""How well a predicted spread tells where the errors are, and which inputs are strange."""

import math
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.distributions import Continuous
from bayesvision.metrics.calibration import pit
from bayesvision.metrics.inputs import continuous, targets_of

__all__ = [
    "Correlation",
    "Sparsification",
    "ause",
    "error_correlation",
    "expected_normalized_calibration_error",
    "ood_auroc",
    "ood_fpr95",
    "sparsification",
    "uncertainty_calibration_error",
    "worst_group_coverage",
]


# Every score takes the targets y as a tensor or array of the prediction's shape.


def uncertainty_calibration_error(predictive: Continuous, y: Any, bins: int = 15) -> Float[Tensor, ""]:
    """Mean gap between predicted variance and squared error over bins of the predicted variance, in squared units of y.

    UCE = sum_b n_b / n |mean_b (y - mean)^2 - mean_b variance| (Laves et al. 2020, arXiv 2006.13092, eq. 13), over bins
    of equal counts by predicted variance. Bins by error, as some code has them, hardly tell the true variance from a
    constant.

    Raises:
        TypeError: the prediction is of classes.
        ValueError: targets that do not fit the prediction, or no bins.
    """
    variance, squared, counts = _binned(predictive, y, bins, "uncertainty_calibration_error")
    return (counts * (variance - squared).abs()).sum() / counts.sum()


def expected_normalized_calibration_error(predictive: Continuous, y: Any, bins: int = 15) -> Float[Tensor, ""]:
    """Mean relative gap between root mean variance and root mean squared error over bins of the predicted variance.

    ENCE = 1 / B sum_b |RMV_b - RMSE_b| / RMV_b over bins of equal counts (Levi et al. 2022, arXiv 1905.11659, eq. 8).

    Raises:
        TypeError: the prediction is of classes.
        ValueError: targets that do not fit the prediction, or no bins.
    """
    variance, squared, _ = _binned(predictive, y, bins, "expected_normalized_calibration_error")
    return ((variance.sqrt() - squared.sqrt()).abs() / variance.sqrt()).mean()


def _binned(predictive: Any, y: Any, bins: int, score: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mean variance and squared error of each bin of equal counts, by increasing variance, and the counts."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    error, stddev = _errors(predictive, y, score)
    order = stddev.argsort()
    parts = [p for p in order.tensor_split(bins) if len(p)]
    means = [[v[p].square().mean() for p in parts] for v in (stddev, error)]
    counts = torch.tensor([len(p) for p in parts], dtype=torch.float64)
    return torch.stack(means[0]), torch.stack(means[1]), counts


def _errors(predictive: Any, y: Any, score: str) -> tuple[Tensor, Tensor]:
    """Errors of the mean and predicted standard deviations, flat and in float64."""
    predictive = continuous(predictive, score, "it has no standard deviation for classes")
    error = targets_of(predictive, y) - predictive.mean
    return error.detach().double().flatten().cpu(), predictive.stddev.detach().double().flatten().cpu()


class Sparsification(NamedTuple):
    """Root mean squared error of what is left when a fraction of the targets is dropped, over that of all of them.

    Attributes:
        dropped: shares, from 0 to below 1.
        by_spread: dropping the largest predicted standard deviations first.
        oracle: dropping the largest errors first.
    """

    dropped: Float[Tensor, " shares"]
    by_spread: Float[Tensor, " shares"]
    oracle: Float[Tensor, " shares"]


def sparsification(predictive: Continuous, y: Any, shares: int = 100) -> Sparsification:
    """Sparsification curves (Ilg et al. 2018, arXiv 1802.07095, section 4).

    Raises:
        TypeError: the prediction is of classes.
        ValueError: targets that do not fit the prediction, or no shares.
    """
    if shares < 1:
        raise ValueError(f"shares must be at least 1, got {shares}")
    error, stddev = _errors(predictive, y, "sparsification")
    dropped = torch.arange(shares, dtype=torch.float64) / shares
    kept = (len(error) - (dropped * len(error)).floor()).long()
    whole = error.square().mean().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    curves = []
    for rank in (stddev, error.abs()):
        total = error[rank.argsort(stable=True)].square().cumsum(0)
        curves.append((total[kept - 1] / kept).sqrt() / whole)
    return Sparsification(dropped, *curves)


def ause(predictive: Continuous, y: Any, shares: int = 100) -> Float[Tensor, ""]:
    """Area under the sparsification error, the mean of by_spread - oracle over the shares dropped; 0 is perfect.

    Raises:
        TypeError: the prediction is of classes.
        ValueError: targets that do not fit the prediction, or no shares.
    """
    curves = sparsification(predictive, y, shares)
    return (curves.by_spread - curves.oracle).mean()


class Correlation(NamedTuple):
    """Of the absolute error with the predicted standard deviation; NaN where one of them is constant."""

    pearson: float
    spearman: float


def error_correlation(predictive: Continuous, y: Any) -> Correlation:
    """Pearson's and Spearman's correlation of the absolute error with the predicted standard deviation.

    Raises:
        TypeError: the prediction is of classes.
        ValueError: targets that do not fit the prediction.
    """
    error, stddev = (v.numpy() for v in _errors(predictive, y, "error_correlation"))
    error = np.abs(error)
    if len(error) < 2 or np.ptp(error) == 0 or np.ptp(stddev) <= 1e-6 * stddev.mean():
        return Correlation(math.nan, math.nan)
    ranked: Any = scipy.stats.spearmanr(error, stddev)
    return Correlation(float(np.corrcoef(error, stddev)[0, 1]), float(ranked.statistic))


def worst_group_coverage(predictive: Continuous, y: Any, groups: Any, mass: float = 0.9) -> Float[Tensor, ""]:
    """The least coverage of the central interval of probability `mass` over the groups, ideally `mass`.

    Args:
        groups: a whole number for each target, of the prediction's shape or broadcast to it.

    Raises:
        TypeError: the prediction is of classes.
        ValueError: targets or groups that do not fit the prediction, or `mass` lies outside (0, 1).
    """
    if not 0 < mass < 1:
        raise ValueError(f"mass must lie strictly between 0 and 1, got {mass}")
    inside = ((2 * pit(predictive, y) - 1).abs() <= mass).double().flatten().cpu()
    groups = torch.as_tensor(np.asarray(groups.cpu() if isinstance(groups, Tensor) else groups))
    try:
        groups = groups.expand(predictive.batch_shape).flatten()
    except RuntimeError:
        raise ValueError(
            f"groups must have the prediction's shape {tuple(predictive.batch_shape)} or expand to it, "
            f"got {tuple(groups.shape)}"
        ) from None
    return torch.stack([inside[groups == group].mean() for group in groups.unique()]).min()


def _scores(inside: Any, outside: Any) -> tuple[np.ndarray, np.ndarray]:
    arrays = [
        np.asarray(v.detach().cpu() if isinstance(v, Tensor) else v, np.float64).ravel() for v in (inside, outside)
    ]
    for name, array in zip(("inside", "outside"), arrays, strict=True):
        if not len(array) or not np.isfinite(array).all():
            raise ValueError(f"{name} must hold at least one score and only finite ones, got {len(array)} scores")
    return arrays[0], arrays[1]


def ood_auroc(inside: Any, outside: Any) -> float:
    """Probability that a strange input has the greater score than a usual one, ties counting half.

    The area under the ROC curve, as the Mann-Whitney statistic U / (n m); 1 is perfect and 1/2 chance.

    Args:
        inside, outside: scores of usual and of strange inputs, greater for stranger ones.

    Raises:
        ValueError: no scores, or some that are not finite.
    """
    usual, strange = _scores(inside, outside)
    wins: Any = scipy.stats.mannwhitneyu(strange, usual)
    return float(wins.statistic / (len(usual) * len(strange)))


def ood_fpr95(inside: Any, outside: Any) -> float:
    """Fraction of the usual inputs flagged by the threshold that flags 95 % of the strange ones; 0 is perfect.

    Raises:
        ValueError: no scores, or some that are not finite.
    """
    usual, strange = _scores(inside, outside)
    return float((usual >= np.quantile(strange, 0.05, method="lower")).mean())
