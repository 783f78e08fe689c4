"""Scores of predictions, calibration, simulation-based calibration, and a table that compares posteriors."""

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import scipy.stats
import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.core import Data, Posterior, Prior
from bayesvision.distributions import Continuous, Discrete, Predictive

if TYPE_CHECKING:
    import pandas

__all__ = [
    "accuracy",
    "brier",
    "compare",
    "coverage",
    "crps",
    "expected_calibration_error",
    "interval_width",
    "nll",
    "pit",
    "quantile_calibration_error",
    "rmse",
    "sharpness",
    "simulation_based_calibration",
    "uniformity",
]

# Every score takes the targets y as a tensor, array or frame column of the prediction's shape, and averages over them.


def nll(predictive: Predictive, y: Any) -> Float[Tensor, ""]:
    """Mean negative log-likelihood -log p(y), in nats; smaller is better, and differentiable.

    A density has the units 1 / y, so rescaling the target by s adds log s.

    Raises:
        TypeError: not a predictive distribution.
        ValueError: targets that do not fit the prediction.
    """
    if isinstance(predictive, Discrete):
        return -predictive.log_prob(_classes(predictive, y).to(predictive.class_probs.dtype)).mean()
    predictive = continuous_law(predictive, "nll", "pass what predict returned")
    return -predictive.log_prob(targets_of(predictive, y)).mean()


def crps(predictive: Continuous, y: Any) -> Float[Tensor, ""]:
    """Mean continuous ranked probability score, E|Y - y| - E|Y - Y'| / 2, in the units of y; smaller is better.

    For a certain prediction it is the absolute error (Gneiting and Raftery 2007, eq. 21).

    Raises:
        TypeError: the prediction is of classes.
        ValueError: targets that do not fit the prediction.
    """
    predictive = continuous_law(predictive, "crps", "use brier for classes")
    return predictive.crps(targets_of(predictive, y)).mean()


def rmse(predictive: Continuous, y: Any) -> Float[Tensor, ""]:
    """Root mean squared error of the predicted mean, in the units of y.

    Raises:
        TypeError: the prediction is of classes.
        ValueError: targets that do not fit the prediction.
    """
    predictive = continuous_law(predictive, "rmse", "use accuracy for classes")
    return (predictive.mean - targets_of(predictive, y)).square().mean().sqrt()


def pit(predictive: Continuous, y: Any) -> Float[Tensor, "*batch"]:
    """Probability integral transform F(y) of every target, uniform on (0, 1) if the prediction is calibrated.

    A hump says that intervals are too wide, a bowl too narrow, a slope that the location is off
    (Gneiting, Balabdaoui and Raftery 2007, section 3.1).

    Raises:
        TypeError: the prediction is of classes.
        ValueError: targets that do not fit the prediction.
    """
    predictive = continuous_law(predictive, "pit", "use expected_calibration_error for classes")
    return predictive.cdf(targets_of(predictive, y)).clamp(0, 1)  # a mixture's weights may add up to a little over 1


def coverage(predictive: Continuous, y: Any, mass: float = 0.9) -> Float[Tensor, ""]:
    """Share of targets inside the central interval of probability `mass`, |2 F(y) - 1| <= mass; ideally `mass`.

    Raises:
        TypeError: the prediction is of classes.
        ValueError: targets that do not fit the prediction, or `mass` lies outside (0, 1).
    """
    predictive = continuous_law(predictive, "coverage", "use expected_calibration_error for classes")
    if not 0 < mass < 1:
        raise ValueError(f"mass must lie strictly between 0 and 1, got {mass}")
    values = pit(predictive, y)
    return ((2 * values - 1).abs() <= mass).to(values.dtype).mean()


def interval_width(predictive: Continuous, mass: float = 0.9) -> Float[Tensor, ""]:
    """Mean width of the central interval of probability `mass`, in units of y; at equal coverage, smaller is better.

    Raises:
        TypeError: the prediction is of classes.
        ValueError: `mass` lies outside (0, 1).
    """
    lower, upper = continuous_law(predictive, "interval_width", "classes have no intervals").interval(mass)
    return (upper - lower).mean()


def sharpness(predictive: Continuous) -> Float[Tensor, ""]:
    """Mean predicted standard deviation, in the units of y; it does not look at targets.

    Raises:
        TypeError: the prediction is of classes.
    """
    return continuous_law(predictive, "sharpness", "classes have no standard deviation").stddev.mean()


def quantile_calibration_error(predictive: Continuous, y: Any, levels: int = 99) -> Float[Tensor, ""]:
    """Mean gap between nominal and empirical quantile levels, from 0 to 1/2.

    With p_j = j / (levels + 1) and q_j the share of targets with F(y) <= p_j, it is sum_j |p_j - q_j| / levels: the
    calibration error of Kuleshov et al. 2018 (arXiv 1807.00263) with absolute gaps in place of squared ones. Chance
    alone makes it about 0.31 / sqrt(n) for n independent targets: sqrt(2 / pi) int sqrt(p (1 - p)) dp = sqrt(pi / 32).

    Raises:
        TypeError: the prediction is of classes.
        ValueError: targets that do not fit the prediction, or no levels.
    """
    predictive = continuous_law(predictive, "quantile_calibration_error", "use expected_calibration_error for classes")
    if levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}")
    values = pit(predictive, y).double().flatten().sort().values
    nominal = torch.arange(1, levels + 1, dtype=torch.float64, device=values.device) / (levels + 1)
    empirical = torch.searchsorted(values, nominal, right=True).double() / values.numel()
    return (nominal - empirical).abs().mean()


def expected_calibration_error(predictive: Discrete, y: Any, bins: int = 15) -> Float[Tensor, ""]:
    """Mean gap between confidence and accuracy over bins of equal width, from 0 to 1.

    sum_m n_m / n |acc_m - conf_m| over the bins ((m - 1) / bins, m / bins] of the greatest class probability (Guo et
    al. 2017, arXiv 1706.04599, eq. 3). Few targets in a bin bias it upwards.

    Raises:
        TypeError: the prediction is not of classes.
        ValueError: targets that do not fit the prediction, or no bins.
    """
    predictive = _discrete(predictive, "expected_calibration_error", "use quantile_calibration_error for numbers")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    right = predictive.mode == _classes(predictive, y)
    confidence = predictive.class_probs.amax(-1).double().flatten().clamp(max=1)
    index = ((confidence * bins).ceil().long() - 1).clamp(min=0)
    gap = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    return gap.index_add(0, index, right.double().flatten() - confidence).abs().sum() / confidence.numel()


def brier(predictive: Discrete, y: Any) -> Float[Tensor, ""]:
    """Mean Brier score sum_k (p_k - 1[y = k])^2, from 0 to 2; smaller is better (Brier 1950).

    Raises:
        TypeError: the prediction is not of classes.
        ValueError: targets that do not fit the prediction.
    """
    predictive = _discrete(predictive, "brier", "use crps for numbers")
    return predictive.brier(_classes(predictive, y)).mean()


def accuracy(predictive: Discrete, y: Any) -> Float[Tensor, ""]:
    """Share of targets that are the most probable class.

    Raises:
        TypeError: the prediction is not of classes.
        ValueError: targets that do not fit the prediction.
    """
    predictive = _discrete(predictive, "accuracy", "use rmse for numbers")
    return (predictive.mode == _classes(predictive, y)).to(predictive.class_probs.dtype).mean()


def simulation_based_calibration(
    posterior_of: Callable[[Tensor, Tensor], Posterior],
    prior: Prior,
    *,
    tasks: int = 500,
    rows: int = 20,
    seed: int = 0,
) -> Float[Tensor, " tasks"]:
    """PIT of one held-out target for each of many data sets drawn from the prior; hand it to `uniformity`.

    A posterior that is right for `prior` makes u = F(y_rows | x_rows, the other rows) exactly uniform, and independent
    over data sets: theorem 1 of Talts et al. 2018 (arXiv 1804.06788), with the held-out target as the quantity of
    interest and infinitely many posterior draws. It is necessary and not sufficient, since the prior predictive passes
    too; compare `nll` as well.

    Args:
        posterior_of: the posterior given x [rows - 1, features] and y [rows - 1]: `trained.condition` of a PFN, or
            `lambda x, y: GP().fit(Data(x, y))`.
        prior: what the data sets are drawn from, one at a time, on the CPU.
        tasks: number of data sets.
        rows: rows of each data set, the last of which is held out.
        seed: of the draws from the prior.

    Raises:
        TypeError: the predictions are of classes.
        ValueError: no tasks, or fewer than two rows.
    """
    if tasks < 1 or rows < 2:
        raise ValueError(f"tasks must be at least 1 and rows at least 2, got {tasks} and {rows}")
    source, values = torch.Generator().manual_seed(seed), []
    for _ in range(tasks):
        task = prior.sample(1, rows, generator=source)
        x, y = task.x[0], task.y[0]
        posterior = posterior_of(x[:-1], y[:-1])
        with torch.no_grad():
            values.append(pit(cast(Continuous, posterior.predict(x[-1:])), y[-1:]).double().cpu())
    return torch.cat(values)


def uniformity(values: Any) -> float:
    """Kolmogorov-Smirnov p-value of independent PIT values under the uniform law; a small one says not uniform.

    Values of one data set share its context and so are not independent; those of `simulation_based_calibration` are.

    Raises:
        ValueError: no values, or some outside [0, 1].
    """
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64).ravel()
    if not array.size or not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"values must hold at least one number and only numbers from 0 to 1, got {_summary(array)}")
    return float(scipy.stats.kstest(array, "uniform").pvalue)


def compare(posteriors: Mapping[str, Posterior], data: Data) -> "pandas.DataFrame":
    """Table of scores on `data`, a row for each posterior.

    For numbers the columns are nll, crps, rmse, coverage_90, width_90, calibration_error (of quantiles) and seconds,
    for classes nll, brier, accuracy, ece and seconds. `seconds` is the wall time of one `predict` of all rows, with
    no call before it to warm up.

    Raises:
        ImportError: pandas is missing.
        TypeError: some posteriors predict numbers and others classes.
        ValueError: no posteriors, no targets, or targets that do not fit the predictions.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ImportError('compare needs pandas: pip install "bayesvision[frame]"') from error
    x, y = data
    if not posteriors or y is None:
        raise ValueError("compare needs at least one posterior and data with targets: compare({name: ...}, Data(x, y))")
    rows = {name: _row(posterior, x, y) for name, posterior in posteriors.items()}
    if len({tuple(row) for row in rows.values()}) > 1:
        kinds = {name: "classes" if "ece" in row else "numbers" for name, row in rows.items()}
        raise TypeError(f"posteriors must all predict numbers or all predict classes, got {kinds}; compare them apart")
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("posterior")


@torch.no_grad()
def _row(posterior: Posterior, x: Any, y: Any) -> dict[str, float]:
    start = time.perf_counter()
    predictive = posterior.predict(x)
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    seconds = time.perf_counter() - start
    scores = {"nll": nll(predictive, y)}
    if isinstance(predictive, Discrete):
        scores |= {"brier": brier(predictive, y), "accuracy": accuracy(predictive, y)}
        scores |= {"ece": expected_calibration_error(predictive, y)}
    else:
        scores |= {"crps": crps(predictive, y), "rmse": rmse(predictive, y)}
        scores |= {"coverage_90": coverage(predictive, y, 0.9), "width_90": interval_width(predictive, 0.9)}
        scores |= {"calibration_error": quantile_calibration_error(predictive, y)}
    return {name: score.item() for name, score in scores.items()} | {"seconds": seconds}


def continuous_law(predictive: Any, score: str, instead: str) -> Continuous:
    if not isinstance(predictive, Continuous):
        raise TypeError(_wrong_kind(predictive, score, "numbers (Normal, Bar, Mixture, ...)", instead))
    return predictive


def _discrete(predictive: Any, score: str, instead: str) -> Discrete:
    if not isinstance(predictive, Discrete):
        raise TypeError(_wrong_kind(predictive, score, "classes (Categorical, Bernoulli)", instead))
    return predictive


def _wrong_kind(predictive: Any, score: str, kind: str, instead: str) -> str:
    hint = "call its predict first" if isinstance(predictive, Posterior) else instead
    return f"{score} needs a bayesvision distribution over {kind}, got {type(predictive).__name__}; {hint}"


def _summary(array: np.ndarray) -> str:
    return f"{array.size} values from {array.min():g} to {array.max():g}" if array.size else "none"


def _numbers(predictive: Predictive, y: Any) -> Tensor:
    """`y` as numbers of the prediction's shape, in their own type; a trailing axis of length 1 is dropped."""
    try:
        value = y if isinstance(y, Tensor) else torch.as_tensor(np.asarray(y, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"y must hold numbers, got {type(y).__name__} with other values ({error})") from None
    shape = predictive.batch_shape
    if value.shape == (*shape, 1):
        value = value.squeeze(-1)
    if value.shape != shape:
        raise ValueError(
            f"y must have one target for each predicted row, the shape {tuple(shape)}, got {tuple(value.shape)}"
        )
    if not math.prod(shape):
        raise ValueError("y must have at least one row, got none")
    if not torch.isfinite(value).all():
        count = int((~torch.isfinite(value)).sum())
        raise ValueError(f"y must be finite, got {count} NaN or infinite values; drop these rows before predict")
    return value


def targets_of(predictive: Continuous, y: Any) -> Tensor:
    mean = predictive.mean
    return _numbers(predictive, y).to(mean.device, mean.dtype)


def _classes(predictive: Discrete, y: Any) -> Tensor:
    probs = predictive.class_probs
    value = _numbers(predictive, y).to(probs.device)
    classes = probs.shape[-1]
    if not ((value == value.round()) & (value >= 0) & (value < classes)).all():
        raise ValueError(
            f"y must hold the classes 0 to {classes - 1} as numbers, got values from {value.min()} to {value.max()}"
        )
    return value.long()
