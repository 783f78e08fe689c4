"""`Categorical` and `Bernoulli`: distributions over classes."""

import math
from typing import Self

import torch
import torch.distributions as td
from jaxtyping import Float, Shaped
from torch import Tensor

from bayesvision.distributions.base import Discrete

__all__ = ["Bernoulli", "Categorical"]


class Categorical(Discrete, td.Categorical):
    """Distribution over the classes 0, ..., K - 1."""

    @classmethod
    def of_members(cls, logits: Float[Tensor, "members *batch classes"]) -> Self:
        """Average of the members' probabilities, in log space."""
        log_probs = torch.log_softmax(logits, -1)
        return cls(logits=torch.logsumexp(log_probs, 0) - math.log(logits.shape[0]))

    @property
    def class_probs(self) -> Float[Tensor, "*batch classes"]:
        return self.probs


class Bernoulli(Discrete, td.Bernoulli):
    """Distribution over the classes 0 and 1."""

    @property
    def class_probs(self) -> Float[Tensor, "*batch 2"]:
        return torch.stack([1 - self.probs, self.probs], -1)

    def log_prob(self, value: Shaped[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log P(Y = value), for classes given as numbers of any kind."""
        return super().log_prob(value.to(self.probs.dtype))
