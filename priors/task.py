"""`Task`: one batch of data sets drawn from a prior."""

from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Shaped
from torch import Tensor

__all__ = ["Task"]


class Task(NamedTuple):
    """A batch of data sets, each drawn with latent variables of its own.

    Attributes:
        x: inputs.
        y: targets, noise included; integer classes in a classification prior.
        theta: the latent variables behind each data set, batch axis first, where the prior exposes them.
        prior: the prior that drew the batch.
        categorical: which columns hold the codes 0, 1, ... of a category; none of them when left out.
    """

    x: Float[Tensor, "batch rows features"]
    y: Shaped[Tensor, "batch rows"]
    theta: dict[str, Tensor] | None = None
    prior: Any = None
    categorical: Bool[Tensor, "batch features"] | None = None
