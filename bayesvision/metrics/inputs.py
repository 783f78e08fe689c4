"""The checks that all scores share."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesvision.core.roles import Posterior
from bayesvision.distributions import Continuous, Discrete, Predictive


def continuous(predictive: Any, score: str, instead: str) -> Continuous:
    """`predictive`, where it is a distribution over numbers; a TypeError that says what to call `instead` otherwise."""
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
        value = y if isinstance(y, Tensor) else torch.from_numpy(np.array(y, dtype=np.float64))
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
    """`y` as a tensor of the prediction's shape and device, in the finer of both precisions: nothing is rounded."""
    mean, value = predictive.mean, _numbers(predictive, y)
    return value.to(mean.device, torch.promote_types(mean.dtype, value.dtype))


def _classes(predictive: Discrete, y: Any) -> Tensor:
    probs = predictive.class_probs
    value = _numbers(predictive, y).to(probs.device)
    classes = probs.shape[-1]
    if not ((value == value.round()) & (value >= 0) & (value < classes)).all():
        raise ValueError(
            f"y must hold the classes 0 to {classes - 1} as numbers, got values from {value.min()} to {value.max()}"
        )
    return value.long()
