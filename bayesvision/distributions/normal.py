"""`Normal`: the normal distribution."""

import math
from typing import Any, Self

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Tensor

from bayesvision.distributions.base import Continuous, reshaped

__all__ = ["Normal"]


def _expected_abs(mean: Tensor, stddev: Tensor) -> Tensor:
    """E|W| of W ~ N(mean, stddev^2)."""
    z = mean / stddev
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return mean * torch.erf(z / math.sqrt(2)) + 2 * stddev * density


def log_gain(z: Tensor) -> Tensor:
    """log E max(Z + z, 0) of Z ~ N(0, 1), that is log(phi(z) + z Phi(z)), to the last digits for any z.

    For z < 0 it is log phi(z) + log(1 - a m(a)) with a = -z and the Mills ratio m(a) = sqrt(pi / 2) erfcx(a / sqrt 2),
    and the difference is 1 / a^2 - 3 / a^4 + 15 / a^6 from a = 100 on (Ament et al. 2023, arXiv 2310.20708, eq. 14).
    """
    a = (-z).clamp(min=0)
    near, far = a.clamp(max=100), a.clamp(min=100)
    below = (1 - near * math.sqrt(math.pi / 2) * torch.special.erfcx(near / math.sqrt(2))).log()
    beyond = -2 * far.log() + torch.log1p(-3 / far.square() + 15 / far.square().square())
    tail = -a.square() / 2 - math.log(2 * math.pi) / 2 + torch.where(a < 100, below, beyond)
    up = z.clamp(min=0)
    above = torch.exp(-up.square() / 2) / math.sqrt(2 * math.pi) + up * torch.special.ndtr(up)
    return torch.where(z < 0, tail, above.log())


class Normal(Continuous, td.Normal):
    """Normal distribution N(loc, scale^2)."""

    def cdf(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """erfc(-z / sqrt 2) / 2 with z = (y - loc) / scale, which keeps its digits deep in the lower tail."""
        if self._validate_args:
            self._validate_sample(value)
        return torch.erfc((self.loc - value) / (self.scale * math.sqrt(2))) / 2

    def _at(self, index: tuple[Any, ...]) -> Self:
        return reshaped(self, lambda parameter: parameter[index])

    def log_cdf(self, value: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log Phi(z) with z = (y - loc) / scale."""
        return torch.special.log_ndtr((self._value(value) - self.loc) / self.scale)

    def log_probability_above(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log Phi(-z) with z = (t - loc) / scale."""
        return torch.special.log_ndtr((self.loc - self._value(threshold)) / self.scale)

    def icdf(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        return self.loc + self.scale * torch.special.ndtri(value)

    def probability_above(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """P(Y > threshold), which keeps its digits deep in the upper tail."""
        return torch.erfc((self._value(threshold) - self.loc) / (self.scale * math.sqrt(2))) / 2

    def log_expected_improvement(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log scale + log(phi(z) + z Phi(z)) with z = (loc - t) / scale, without cancellation."""
        z = (self.loc - self._value(threshold)) / self.scale
        return self.scale.log() + log_gain(z.double()).to(z.dtype)

    def expected_absolute_error(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """E|Y - y| = (loc - y) erf(z / sqrt 2) + 2 scale phi(z), with z = (loc - y) / scale."""
        return _expected_abs(self.loc - value, self.scale)

    @property
    def mean_difference(self) -> Float[Tensor, "*batch"]:
        """E|Y - Y'| = 2 scale / sqrt pi."""
        return self.scale * (2 / math.sqrt(math.pi))
