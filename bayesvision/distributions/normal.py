"""`Normal`: the normal distribution."""

import math

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Tensor

from bayesvision.distributions.base import Continuous

__all__ = ["Normal"]


def _expected_abs(mean: Tensor, stddev: Tensor) -> Tensor:
    """E|W| of W ~ N(mean, stddev^2)."""
    z = mean / stddev
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return mean * torch.erf(z / math.sqrt(2)) + 2 * stddev * density


class Normal(Continuous, td.Normal):
    """Normal distribution N(loc, scale^2)."""

    def cdf(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """erfc(-z / sqrt 2) / 2 with z = (y - loc) / scale, which keeps its digits deep in the lower tail."""
        if self._validate_args:
            self._validate_sample(value)
        return torch.erfc((self.loc - value) / (self.scale * math.sqrt(2))) / 2

    def icdf(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        return self.loc + self.scale * torch.special.ndtri(value)

    def probability_above(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """P(Y > threshold), which keeps its digits deep in the upper tail."""
        return torch.erfc((self._value(threshold) - self.loc) / (self.scale * math.sqrt(2))) / 2

    def expected_absolute_error(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """E|Y - y| = (loc - y) erf(z / sqrt 2) + 2 scale phi(z), with z = (loc - y) / scale."""
        return _expected_abs(self.loc - value, self.scale)

    @property
    def mean_difference(self) -> Float[Tensor, "*batch"]:
        """E|Y - Y'| = 2 scale / sqrt pi."""
        return self.scale * (2 / math.sqrt(math.pi))
