"""`GeneralizedNormal`: the exponential-power distribution."""

import math
from typing import ClassVar

import numpy as np
import scipy.special
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from bayesvision.distributions.base import LocationFamily
from bayesvision.distributions.numerics import laguerre

__all__ = ["GeneralizedNormal"]

TINY = 1e-20  # below it, 1 - t is 1 in every dtype
FAR = 30.0  # of T, from where on the tail is an integral


class GeneralizedNormal(LocationFamily):
    """Generalised normal (exponential power) distribution.

    p(y) = beta / (2 alpha Gamma(1/beta)) exp(-(|y - loc| / alpha)^beta), so that beta = 2 is a normal
    with standard deviation alpha / sqrt 2 and beta = 1 a Laplace (Nadarajah 2005, eq. 1).
    With a = 1/beta, T = (|Y - loc| / alpha)^beta follows a Gamma(a, 1), which gives every formula here.
    """

    arg_constraints: ClassVar = {  # pyright: ignore[reportAssignmentType] (torch's base declares properties)
        "loc": constraints.real,
        "alpha": constraints.positive,
        "beta": constraints.positive,
    }
    support = constraints.real  # pyright: ignore[reportAssignmentType]
    has_rsample = True

    def __init__(self, loc, alpha, beta, validate_args: bool | None = None) -> None:
        self.loc, self.alpha, self.beta = broadcast_all(loc, alpha, beta)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """alpha^2 Gamma(3/beta) / Gamma(1/beta), through logarithms."""
        a = 1 / self.beta
        return torch.exp(2 * self.alpha.log() + torch.lgamma(3 * a) - torch.lgamma(a))

    def log_prob(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        if self._validate_args:
            self._validate_sample(value)
        # the least positive number in place of zero keeps the gradient of z^beta finite at the cusp of beta < 1
        z = ((value - self.loc).abs() / self.alpha).clamp(min=torch.finfo(self.loc.dtype).tiny)
        normaliser = math.log(2) + self.alpha.log() + torch.lgamma(1 + 1 / self.beta)
        return -z.pow(self.beta) - normaliser

    def entropy(self) -> Float[Tensor, "*batch"]:
        a = 1 / self.beta
        return a + math.log(2) + self.alpha.log() + torch.lgamma(1 + a)

    def cdf(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """Q(1/beta, |z|^beta) / 2 for z = (y - loc) / alpha < 0, else 1 minus it, with the upper incomplete gamma Q."""
        return self._below((value - self.loc) / self.alpha)

    def _below(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        tail = self._outside(torch.where(z < 0, -z, z)) / 2
        return torch.where(z < 0, tail, 1 - tail)

    def _outside(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """P(|Y - loc| > alpha z) = Q(a, z^beta), by 1 - z / Gamma(1 + a) where z^beta is tiny and might underflow."""
        a, t = torch.broadcast_tensors(1 / self.beta, z.pow(self.beta))
        return torch.where(
            t < TINY, 1 - z * torch.exp(-torch.lgamma(1 + a)), torch.special.gammaincc(a, t.clamp(min=TINY))
        )

    def icdf(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """loc +- alpha t^{1/beta} with Q(1/beta, t) = 2 min(u, 1 - u), Q as in `cdf`.

        Differentiable in `loc` and `alpha` only.
        """
        u, a = (v.detach().double().cpu().numpy() for v in (value, 1 / self.beta))
        t = scipy.special.gammainccinv(a, 2 * np.minimum(u, 1 - u))
        # P(a, t) = t^a / Gamma(1 + a) for small t, which underflows long before t^a does
        z = np.where(t < TINY, np.abs(2 * u - 1) * scipy.special.gamma(1 + a), t**a)
        return self.loc + self.alpha * torch.as_tensor(np.sign(u - 0.5) * z).to(self.loc)

    def rsample(self, sample_shape: tuple[int, ...] = ()) -> Float[Tensor, "..."]:
        """loc + alpha V G^{1/beta} with V ~ U(-1, 1) and G ~ Gamma(1 + 1/beta, 1).

        T = G U^beta follows a Gamma(1/beta, 1) for U ~ U(0, 1); T itself would underflow at a large beta.
        """
        a = (1 / self.beta).expand(self._extended_shape(sample_shape))
        return self.loc + self.alpha * (2 * torch.rand_like(a) - 1) * torch._standard_gamma(1 + a).pow(a)

    def probability_above(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """P(Y > threshold), which keeps its digits deep in the upper tail."""
        return self._below((self.loc - self._value(threshold)) / self.alpha)

    def log_cdf(self, value: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log Q(1/beta, |z|^beta) - log 2 for z < 0, else log(1 - Q / 2)."""
        return self._log_below((self._value(value) - self.loc) / self.alpha)

    def log_probability_above(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log P(Y > threshold), the reflected distribution's `log_cdf`."""
        return self._log_below((self.loc - self._value(threshold)) / self.alpha)

    def _log_below(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        log_outside = self._tail(z.double().abs())[0]
        below = torch.where(z < 0, log_outside - math.log(2), torch.log1p(-log_outside.exp() / 2))
        return below.to(z.dtype)

    def _tail(self, z: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        """log P(|Z| > z) and log E max(Z - z, 0) for z >= 0, with Z = (Y - loc) / alpha.

        With t = z^beta they are log Q(a, t) and log (Gamma(2a) Q(2a, t) - z Gamma(a) Q(a, t)) / 2 Gamma(a). From
        t = 30 on, where that would cancel and then underflow, u = t + w in Gamma(a, t) = int_t u^(a-1) e^-u du gives
        t^(a-1) e^-t int (1 + w/t)^(a-1) e^-w dw, and in the difference int [(1 + w/t)^(2a-1) - (1 + w/t)^(a-1)]
        e^-w dw, by Gauss-Laguerre rules.
        """
        a, t = torch.broadcast_tensors(1 / self.beta.double(), z.pow(self.beta.double()))
        near, far = t.clamp(TINY, FAR), t.clamp(min=FAR)
        outside = torch.where(t < TINY, 1 - z * torch.exp(-torch.lgamma(1 + a)), torch.special.gammaincc(a, near))
        moment = torch.exp(torch.lgamma(2 * a) - torch.lgamma(a)) * torch.special.gammaincc(2 * a, near)
        gain = (moment - z.where(t < FAR, 0.0) * outside) / 2
        nodes, weights = laguerre(t)
        step = torch.log1p(nodes / far.unsqueeze(-1))
        power = weights * torch.exp((a.unsqueeze(-1) - 1) * step)
        scale = (a - 1) * far.log() - far - torch.lgamma(a)
        log_outside = scale + power.sum(-1).log()
        log_gain = scale + a * far.log() + (power * torch.expm1(a.unsqueeze(-1) * step)).sum(-1).log() - math.log(2)
        return (
            torch.where(t < FAR, outside.clamp(min=TINY).log(), log_outside),
            torch.where(t < FAR, gain.clamp(min=TINY).log(), log_gain),
        )

    def log_expected_improvement(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log alpha E max(Z - z, 0) with z = (t - loc) / alpha; for z < 0 the expectation is that at -z, minus z."""
        z = ((self._value(threshold) - self.loc) / self.alpha).double()
        gain = self._tail(z.abs())[1]
        gain = torch.where(z < 0, torch.logaddexp(gain, (-z).clamp(min=TINY).log()), gain)
        return self.alpha.log() + gain.to(self.alpha.dtype)

    def expected_absolute_error(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """E|Y - y| = alpha (z P(a, z^beta) + Gamma(2a) / Gamma(a) Q(2a, z^beta)), z = |y - loc| / alpha."""
        a = 1 / self.beta
        z = (value - self.loc).abs() / self.alpha
        a, t = torch.broadcast_tensors(a, z.pow(self.beta))
        first_moment = torch.exp(torch.lgamma(2 * a) - torch.lgamma(a))
        return self.alpha * (z * (1 - self._outside(z)) + first_moment * torch.special.gammaincc(2 * a, t))

    @property
    def mean_difference(self) -> Float[Tensor, "*batch"]:
        """E|Y - Y'| = 2 alpha Gamma(2a) / Gamma(a) I_{1/2}(a, 2a).

        For symmetric Y, |Y - Y'| has the mean of max(|Y|, |Y'|) = 2 E[|Y|; |Y'| < |Y|]. In terms of T ~ Gamma(a)
        that is 2 Gamma(2a)/Gamma(a) P(T' < T~) with T~ ~ Gamma(2a), and T' / (T' + T~) ~ Beta(a, 2a).
        """
        a = 1 / self.beta
        shape = a.detach().double().cpu().numpy()
        share = torch.as_tensor(scipy.special.betainc(shape, 2 * shape, 0.5)).to(a)
        return 2 * self.alpha * torch.exp(torch.lgamma(2 * a) - torch.lgamma(a)) * share
