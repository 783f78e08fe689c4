"""`Mixture`: a finite mixture of one family."""

from typing import Self

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Tensor

from bayesvision.distributions.bar import Bar
from bayesvision.distributions.base import Continuous
from bayesvision.distributions.normal import Normal, _expected_abs
from bayesvision.distributions.numerics import bisect, integrate

__all__ = ["Mixture"]


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

    def expected_improvement(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """Weighted mean of the components' E max(Y_k - threshold, 0)."""
        gain = self.component_distribution.expected_improvement(self._value(threshold).unsqueeze(-1))
        return (self.weights * gain).sum(-1)

    def log_expected_improvement(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log sum_k w_k E max(Y_k - threshold, 0)."""
        gain = self.component_distribution.log_expected_improvement(self._value(threshold).unsqueeze(-1))
        return (self.mixture_distribution.logits + gain).logsumexp(-1)

    def expected_absolute_error(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """Weighted mean of the components' E|Y_k - y|."""
        return (self.weights * self.component_distribution.expected_absolute_error(value.unsqueeze(-1))).sum(-1)

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
