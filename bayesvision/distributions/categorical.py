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

    _members: Tensor | None = None  # log probabilities of members, if it is an average

    @classmethod
    def of_members(cls, logits: Float[Tensor, "members *batch classes"]) -> Self:
        """Average of the members' probabilities, in log space."""
        log_probs = torch.log_softmax(logits, -1)
        average = cls(logits=torch.logsumexp(log_probs, 0) - math.log(logits.shape[0]))
        average._members = log_probs.movedim(0, -2)
        return average

    def __getitem__(self, index: Any) -> Self:
        places = _batch_index(self.batch_shape, index)
        part = type(self)(logits=self.logits[(*places, slice(None))], validate_args=False)
        part._members = None if self._members is None else self._members[(*places, slice(None), slice(None))]
        return part

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """The distribution with its batch axes expanded, members included."""
        new: Any = super().expand(batch_shape, _instance)
        if self._members is not None:
            new._members = self._members.expand(*batch_shape, *self._members.shape[-2:])
        return new

    @property
    def members(self) -> "Categorical":
        """Each member's distribution on a last axis of the batch; one member, itself, if it is no average."""
        logits = self.logits.unsqueeze(-2) if self._members is None else self._members
        return type(self)(logits=logits, validate_args=False)

    @property
    def mutual_information(self) -> Float[Tensor, "*batch"]:
        """H(E p) - E H(p) over members: how much they disagree, in nats (Houlsby et al. 2011, eq. 2).

        What more data would teach; 0 without members. The rest of the entropy is noise.
        """
        return (self.entropy() - self.members.entropy().mean(-1)).clamp(min=0)

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
