"""`Mixture`: a finite mixture of one family."""

from collections.abc import Iterator
from typing import Any, Self, cast

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Tensor

from bayesvision.distributions.bar import Bar
from bayesvision.distributions.base import Continuous
from bayesvision.distributions.normal import Normal, _expected_abs
from bayesvision.distributions.numerics import integrate, quantile

__all__ = ["Mixture"]

BLOCK = 1 << 17  # numbers of a block
KNOTS = 160  # of a quadrature, for mixtures of many
FEW = 8  # times as many are left as they are


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

    @property
    def epistemic_variance(self) -> Float[Tensor, "*batch"]:
        """Var[mean] over the components: of members or draws of a network, what is not known of the function."""
        spread = (self.component_distribution.mean - self.mean.unsqueeze(-1)).square()
        return (self.weights * spread).sum(-1)

    @property
    def aleatoric_variance(self) -> Float[Tensor, "*batch"]:
        """E[var] over the components: the noise that stays, however much is seen."""
        return (self.weights * self.component_distribution.variance).sum(-1)

    def _at(self, index: tuple[Any, ...]) -> Self:
        logits = self.mixture_distribution.logits[(*index, slice(None))]
        component = self.component_distribution[(*index, slice(None))]
        return type(self)(td.Categorical(logits=logits, validate_args=False), component, validate_args=False)

    def _blocks(self, size: int) -> Iterator[tuple[Tensor, Self]]:
        """The marginals in blocks of about `BLOCK` numbers where each takes `size` for a component; their places too.

        Numbers that stay in a core's cache are several times faster, and memory does not grow with the batch.
        """
        count = self.batch_shape.numel()
        if not self.batch_shape:
            yield torch.zeros(1, dtype=torch.long), self.expand((1,))
            return
        for places in torch.arange(count).split(max(1, BLOCK // (self._members * size))):
            yield places, self[torch.unravel_index(places, self.batch_shape)]

    @torch.no_grad()
    def icdf(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """Quantile between the extreme component quantiles (`numerics.quantile`); it carries no gradient."""
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        law = (
            self if shape[len(shape) - len(self.batch_shape) :] == self.batch_shape else cast(Self, self.expand(shape))
        )
        dtype = torch.promote_types(value.dtype, self.mean.dtype)
        levels = value.to(dtype).expand(shape).reshape(-1, law.batch_shape.numel())
        found = torch.empty_like(levels)
        for places, part in law._blocks(1):
            for rows in torch.arange(len(levels)).split(max(1, BLOCK // (len(places) * part._members))):
                found[rows.unsqueeze(-1), places] = part._solve(levels[rows.unsqueeze(-1), places])
        return found.reshape(shape)

    @property
    def _members(self) -> int:
        return self.component_distribution.batch_shape[-1]

    def _solve(self, level: Float[Tensor, "levels rows"]) -> Float[Tensor, "levels rows"]:
        ends = self.component_distribution.icdf(level.unsqueeze(-1).expand(*level.shape, self._members))
        start = self.mean + self.stddev * torch.special.ndtri(level)
        return quantile(self._law, start.to(level.dtype), ends.amin(-1), ends.amax(-1), level)

    def _law(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The cdf and the density."""
        parts, y = self.component_distribution, y.unsqueeze(-1)
        return (self.weights * parts.cdf(y)).sum(-1), (self.weights * parts.log_prob(y).exp()).sum(-1)

    def log_cdf(self, value: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log sum_k w_k P(Y_k <= y)."""
        below = self.component_distribution.log_cdf(self._value(value).unsqueeze(-1))
        return (self.mixture_distribution.logits + below).logsumexp(-1)

    def log_probability_above(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log sum_k w_k P(Y_k > t)."""
        above = self.component_distribution.log_probability_above(self._value(threshold).unsqueeze(-1))
        return (self.mixture_distribution.logits + above).logsumexp(-1)

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
        """E|Y - Y'| = 2 int F (1 - F): over pairs of normals or by the trapezoidal rule, else between quantiles."""
        normal = isinstance(self.component_distribution, Normal)
        size = 1 if normal else 4 * KNOTS
        blocks = [part._normal_difference() if normal else part._difference() for _, part in self._blocks(size)]
        return torch.cat(blocks).reshape(self.batch_shape)

    def _difference(self) -> Float[Tensor, " rows"]:
        def product(y: Tensor) -> Tensor:
            below = self.cdf(y)
            return below * (1 - below)

        return 2 * integrate(product, self.knots())

    def _normal_difference(self) -> Float[Tensor, " rows"]:
        """E|Y - Y'| of normals: sum_jk w_j w_k E|Y_j - Y_k|, or 2 int F (1 - F) by the trapezoidal rule if cheaper.

        The Fourier transform of F (1 - F) falls off like exp(-s^2 w^2 / 4), s the smallest scale, so that a step of
        s / 2 leaves exp(-4 pi^2) or 1e-17 of it.
        """
        parts, weights = self.component_distribution, self.weights
        assert isinstance(parts, Normal)
        with torch.no_grad():
            low, high = ((parts.loc + end * parts.scale).double() for end in (-8.0, 8.0))
            low, width = low.amin(-1), high.amax(-1) - low.amin(-1)
            points = int((2 * width / parts.scale.double().amin(-1)).amax().clamp(max=1e6).ceil()) + 1
        if points < 2 * self._members:
            total = torch.zeros_like(low)
            for k in range(points):
                y = low + width * k / (points - 1)
                below = (weights * parts.cdf(y.unsqueeze(-1))).sum(-1)
                total = total + below * (1 - below)
            return (2 * width / (points - 1) * total).to(self.mean.dtype)
        total = torch.zeros_like(self.mean)
        for k in range(self._members):  # one row of pairs at a time: memory stays linear
            mean = parts.loc - parts.loc[..., k : k + 1]
            stddev = torch.hypot(parts.scale, parts.scale[..., k : k + 1])
            total = total + weights[..., k] * (weights * _expected_abs(mean, stddev)).sum(-1)
        return total

    @torch.no_grad()
    def knots(self, levels: int = 256) -> Float[Tensor, "*batch knots"]:
        """Quantiles of every component, in increasing order, and the edges of bars; every few of them where many."""
        parts = self.component_distribution
        grid = parts.knots(max(5, levels // parts.batch_shape[-1]))
        if isinstance(parts, Bar):  # where F has its kinks
            grid = torch.cat([grid, parts.edges], -1)
            return grid.flatten(-2).sort(-1).values
        grid = grid.flatten(-2).sort(-1).values
        count = grid.shape[-1]
        if count <= FEW * KNOTS:
            return grid
        return grid[..., torch.linspace(0, count - 1, KNOTS, dtype=torch.float64).round().long()]
