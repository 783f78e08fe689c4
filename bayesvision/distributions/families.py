"""The closed-form predictive families: `Normal`, `GeneralizedNormal`, `Mixture`, `Categorical`, `Bernoulli`."""

import math
from typing import ClassVar, Self

import numpy as np
import scipy.special
import torch
import torch.distributions as td
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from bayesvision.distributions.bar import Bar
from bayesvision.distributions.base import Continuous, Discrete, Located, bisect, integrate

__all__ = ["Bernoulli", "Categorical", "GeneralizedNormal", "Mixture", "Normal"]

TINY = 1e-20  # below it, 1 - t is 1 in every dtype


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

    def absolute_error(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """E|Y - y| = (loc - y) erf(z / sqrt 2) + 2 scale phi(z), with z = (loc - y) / scale."""
        return _expected_abs(self.loc - value, self.scale)

    @property
    def mean_difference(self) -> Float[Tensor, "*batch"]:
        """E|Y - Y'| = 2 scale / sqrt pi."""
        return self.scale * (2 / math.sqrt(math.pi))


class GeneralizedNormal(Located):
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

    def absolute_error(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
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


class Mixture(Continuous, td.MixtureSameFamily):
    """Finite mixture of one continuous family, components on the last batch axis of `component`."""

    component_distribution: Continuous

    @classmethod
    def of(cls, component: Continuous, logits: Float[Tensor, "*#batch members"] | None = None) -> Self:
        """Mixture of the components along the last batch axis; equal weights without `logits`.

        Raises:
            ValueError: `component` has no batch axis to mix over.
        """
        if not component.batch_shape:
            raise ValueError("component needs a batch axis to mix over, got batch_shape ()")
        if logits is None:
            logits = torch.zeros_like(component.mean)
        # unexpanded logits pass every other method and fail in sample, so they are expanded here
        return cls(td.Categorical(logits=logits.expand(component.batch_shape), validate_args=False), component)

    @property
    def weights(self) -> Float[Tensor, "*batch members"]:
        """Weight of every component."""
        return self.mixture_distribution.probs

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """Law of total variance, E[var] + Var[mean], around the mixture's own mean."""
        parts = self.component_distribution
        spread = (parts.mean - self.mean.unsqueeze(-1)).square()
        return (self.weights * (parts.variance + spread)).sum(-1)

    def icdf(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """Quantile by bisection between the least and the greatest component quantile; it carries no gradient."""
        parts = self.component_distribution
        value = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape))
        ends = parts.icdf(value.unsqueeze(-1).expand(value.shape + parts.batch_shape[-1:]))
        return bisect(self.cdf, ends.amin(-1), ends.amax(-1), value)

    def probability_above(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """Weighted mean of the components' P(Y_k > threshold)."""
        above = self.component_distribution.probability_above(self._value(threshold).unsqueeze(-1))
        return (self.weights * above).sum(-1)

    def absolute_error(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """Weighted mean of the components' E|Y_k - y|."""
        return (self.weights * self.component_distribution.absolute_error(value.unsqueeze(-1))).sum(-1)

    @property
    def mean_difference(self) -> Float[Tensor, "*batch"]:
        """E|Y - Y'| = 2 int F (1 - F): exact over pairs of normals, else quadrature between component quantiles."""
        parts = self.component_distribution
        if isinstance(parts, Normal):
            total = torch.zeros_like(self.mean)
            for k in range(parts.batch_shape[-1]):  # one row of pairs at a time: memory stays linear
                mean = parts.loc - parts.loc[..., k : k + 1]
                stddev = torch.hypot(parts.scale, parts.scale[..., k : k + 1])
                total = total + self.weights[..., k] * (self.weights * _expected_abs(mean, stddev)).sum(-1)
            return total
        return 2 * integrate(lambda y: self.cdf(y) * self.probability_above(y), self.knots())

    @torch.no_grad()
    def knots(self, levels: int = 256) -> Float[Tensor, "*batch knots"]:
        """Quantiles of every component, in increasing order, and the edges of bars."""
        parts = self.component_distribution
        grid = parts.knots(max(5, levels // parts.batch_shape[-1]))
        if isinstance(parts, Bar):  # where F has its kinks
            grid = torch.cat([grid, parts.edges], -1)
        return grid.flatten(-2).sort(-1).values


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
