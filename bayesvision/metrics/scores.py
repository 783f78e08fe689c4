"""Scores of predictions, calibration, simulation-based calibration, and a table that compares posteriors."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from bayesvision.distributions import Continuous, Discrete, Predictive
from bayesvision.metrics.inputs import _classes, _discrete, continuous, targets_of

__all__ = ["accuracy", "brier", "crps", "interval_width", "nll", "rmse", "sharpness"]


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
    predictive = continuous(predictive, "nll", "pass what predict returned")
    return -predictive.log_prob(targets_of(predictive, y)).mean()


def crps(predictive: Continuous, y: Any) -> Float[Tensor, ""]:
    """Mean continuous ranked probability score, E|Y - y| - E|Y - Y'| / 2, in the units of y; smaller is better.

    For a certain prediction it is the absolute error (Gneiting and Raftery 2007, eq. 21).

    Raises:
        TypeError: the prediction is of classes.
        ValueError: targets that do not fit the prediction.
    """
    predictive = continuous(predictive, "crps", "use brier for classes")
    return predictive.crps(targets_of(predictive, y)).mean()


def rmse(predictive: Continuous, y: Any) -> Float[Tensor, ""]:
    """Root mean squared error of the predicted mean, in the units of y.

    Raises:
        TypeError: the prediction is of classes.
        ValueError: targets that do not fit the prediction.
    """
    predictive = continuous(predictive, "rmse", "use accuracy for classes")
    return (predictive.mean - targets_of(predictive, y)).square().mean().sqrt()


def interval_width(predictive: Continuous, mass: float = 0.9) -> Float[Tensor, ""]:
    """Mean width of the central interval of probability `mass`, in units of y; at equal coverage, smaller is better.

    Raises:
        TypeError: the prediction is of classes.
        ValueError: `mass` lies outside (0, 1).
    """
    lower, upper = continuous(predictive, "interval_width", "classes have no intervals").interval(mass)
    return (upper - lower).mean()


def sharpness(predictive: Continuous) -> Float[Tensor, ""]:
    """Mean predicted standard deviation, in the units of y; it does not look at targets.

    Raises:
        TypeError: the prediction is of classes.
    """
    return continuous(predictive, "sharpness", "classes have no standard deviation").stddev.mean()


def brier(predictive: Discrete, y: Any) -> Float[Tensor, ""]:
    """Mean Brier score sum_k (p_k - 1[y = k])^2, from 0 to 2; smaller is better (Brier 1950).

    Raises:
        TypeError: the prediction is not of classes.
        ValueError: targets that do not fit the prediction.
    """
    predictive = _discrete(predictive, "brier", "use crps for numbers")
    return predictive.brier(_classes(predictive, y)).mean()


def accuracy(predictive: Discrete, y: Any) -> Float[Tensor, ""]:
    """Fraction of targets that are the most probable class.

    Raises:
        TypeError: the prediction is not of classes.
        ValueError: targets that do not fit the prediction.
    """
    predictive = _discrete(predictive, "accuracy", "use rmse for numbers")
    return (predictive.mode == _classes(predictive, y)).to(predictive.class_probs.dtype).mean()
