"""How well probabilities match frequencies."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import scipy.stats
import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.core.checks import draw
from bayesvision.core.roles import Posterior, Prior
from bayesvision.distributions import Continuous, Discrete
from bayesvision.metrics.inputs import _classes, _discrete, _summary, continuous, targets_of

__all__ = [
    "coverage",
    "expected_calibration_error",
    "ks_pvalue",
    "pit",
    "quantile_calibration_error",
    "simulation_based_calibration",
]


def pit(predictive: Continuous, y: Any) -> Float[Tensor, "*batch"]:
    """Probability integral transform F(y) of every target, uniform on (0, 1) if the prediction is calibrated.

    A hump says that intervals are too wide, a bowl too narrow, a slope that the location is off
    (Gneiting, Balabdaoui and Raftery 2007, section 3.1).

    Raises:
        TypeError: the prediction is of classes.
        ValueError: targets that do not fit the prediction.
    """
    predictive = continuous(predictive, "pit", "use expected_calibration_error for classes")
    return predictive.cdf(targets_of(predictive, y)).clamp(0, 1)  # a mixture's weights may add up to a little over 1


def coverage(predictive: Continuous, y: Any, mass: float = 0.9) -> Float[Tensor, ""]:
    """Fraction of targets inside the central interval of probability `mass`, |2 F(y) - 1| <= mass; ideally `mass`.

    Raises:
        TypeError: the prediction is of classes.
        ValueError: targets that do not fit the prediction, or `mass` lies outside (0, 1).
    """
    predictive = continuous(predictive, "coverage", "use expected_calibration_error for classes")
    if not 0 < mass < 1:
        raise ValueError(f"mass must lie strictly between 0 and 1, got {mass}")
    values = pit(predictive, y)
    return ((2 * values - 1).abs() <= mass).to(values.dtype).mean()


def quantile_calibration_error(predictive: Continuous, y: Any, levels: int = 99) -> Float[Tensor, ""]:
    """Mean gap between nominal and empirical quantile levels, from 0 to 1/2.

    With p_j = j / (levels + 1) and q_j the fraction of targets with F(y) <= p_j, it is sum_j |p_j - q_j| / levels: the
    calibration error of Kuleshov et al. 2018 (arXiv 1807.00263) with absolute gaps in place of squared ones. Chance
    alone makes it about 0.31 / sqrt(n) for n independent targets: sqrt(2 / pi) int sqrt(p (1 - p)) dp = sqrt(pi / 32).

    Raises:
        TypeError: the prediction is of classes.
        ValueError: targets that do not fit the prediction, or no levels.
    """
    predictive = continuous(predictive, "quantile_calibration_error", "use expected_calibration_error for classes")
    if levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}")
    values = pit(predictive, y).double().flatten().sort().values
    nominal = torch.arange(1, levels + 1, dtype=torch.float64, device=values.device) / (levels + 1)
    empirical = torch.searchsorted(values, nominal, right=True).double() / values.numel()
    return (nominal - empirical).abs().mean()


def expected_calibration_error(predictive: Discrete, y: Any, bins: int = 15) -> Float[Tensor, ""]:
    """Mean gap between confidence and accuracy over bins of equal width, from 0 to 1.

    sum_m n_m / n |acc_m - conf_m| over the bins ((m - 1) / bins, m / bins] of the largest class probability (Guo et
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


def simulation_based_calibration(
    posterior_of: Callable[[Tensor, Tensor], Posterior],
    prior: Prior,
    *,
    tasks: int = 500,
    rows: int = 20,
    seed: int = 0,
) -> Float[Tensor, " tasks"]:
    """PIT of one held-out target for each of many data sets drawn from the prior; hand it to `ks_pvalue`.

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
        task = draw(prior, 1, rows, source)
        x, y = task.x[0], task.y[0]
        posterior = posterior_of(x[:-1], y[:-1])
        with torch.no_grad():
            values.append(pit(cast(Continuous, posterior.predict(x[-1:])), y[-1:]).double().cpu())
    return torch.cat(values)


def ks_pvalue(values: Any) -> float:
    """Kolmogorov-Smirnov p-value of independent PIT values under U(0, 1); a small one says that they are not uniform.

    Values of one data set share its context and so are not independent; those of `simulation_based_calibration` are.

    Raises:
        ValueError: no values, or some outside [0, 1].
    """
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64).ravel()
    if not array.size or not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"values must hold at least one number and only numbers from 0 to 1, got {_summary(array)}")
    return float(scipy.stats.kstest(array, "uniform").pvalue)
