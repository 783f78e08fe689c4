"""`Categorical` and `Bernoulli`: distributions over classes."""

import math
from typing import Any, Self

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Tensor

from bayesvision.distributions.base import Discrete, _batch_index

__all__ = ["Bernoulli", "Categorical"]


class Categorical(Discrete, td.Categorical):
    """Distribution over the classes 0, ..., K - 1."""

    @classmethod
    def of_members(cls, logits: Float[Tensor, "members *batch classes"]) -> Self:
        """Average of the members' probabilities, in log space."""
        log_probs = torch.log_softmax(logits, -1)
        return cls(logits=torch.logsumexp(log_probs, 0) - math.log(logits.shape[0]))

    def __getitem__(self, index: Any) -> Self:
        return type(self)(
            logits=self.logits[(*_batch_index(self.batch_shape, index), slice(None))], validate_args=False
        )

    def log_prob(self, value: Any) -> Float[Tensor, "*shape"]:
        """log P(Y = value), for classes given as numbers of any kind."""
        return super().log_prob(torch.as_tensor(value, device=self.logits.device))

    @property
    def class_probs(self) -> Float[Tensor, "*batch classes"]:
        return self.probs


class Bernoulli(Discrete, td.Bernoulli):
    """Distribution over the classes 0 and 1."""

    def __getitem__(self, index: Any) -> Self:
        return type(self)(logits=self.logits[_batch_index(self.batch_shape, index)], validate_args=False)

    @property
    def class_probs(self) -> Float[Tensor, "*batch 2"]:
        return torch.stack([1 - self.probs, self.probs], -1)

    def log_prob(self, value: Any) -> Float[Tensor, "*shape"]:
        """log P(Y = value), for classes given as numbers of any kind."""
        return super().log_prob(torch.as_tensor(value, device=self.probs.device).to(self.probs.dtype))
