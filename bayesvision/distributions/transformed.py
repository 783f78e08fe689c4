"""`TruncatedTransformed`: a predictive distribution seen through a monotone map, back in the units of the target."""

import functools
import math
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Transform, constraints, identity_transform

from bayesvision.distributions.base import Continuous
from bayesvision.distributions.numerics import integrate, rule

__all__ = ["TruncatedTransformed", "within"]

SURE = 1e-6  # a mass whose digits a difference of cdfs keeps


class TruncatedTransformed(Continuous):
    """Distribution of Y in [lower, upper] where u(Y), for a monotone u, is `base` cut to the image (low, high) of it.

    With F the cdf of `base`, Z = F(high) - F(low) and an increasing u,

        P(Y <= y) = (F(u(y)) - F(low)) / Z  and  log p(y) = log f(u(y)) + log |u'(y)| - log Z;

    a decreasing u swaps the tails, so that the quantile at level q is u^{-1} of the one at 1 - q. Mean, variance and
    CRPS are integrals over u by Gauss-Legendre rules between quantiles of `base`. Beyond a bound the density is 0 and
    the cdf 0 or 1.

    Args:
        base: the distribution in the units of u.
        transform: the map y -> u, as one of torch's, bijective and monotone with a constant sign.
        lower, upper: bounds of Y; the whole real line if left out.
    """

    arg_constraints: ClassVar = {}  # pyright: ignore[reportAssignmentType] (torch's base declares properties)
    support = constraints.real  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        base: Continuous,
        transform: Transform,
        lower: float = -math.inf,
        upper: float = math.inf,
        validate_args: bool | None = None,
    ) -> None:
        self.base, self.lower, self.upper = base, lower, upper
        self.transform: Any = transform  # torch annotates what it returns as possibly None
        super().__init__(base.batch_shape, validate_args=validate_args)

    @functools.cached_property
    def _masses(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mass of `base` below low, above high, and between them."""
        low, high = self._ends()
        below, above = self.base.cdf(low).double(), self.base.probability_above(high).double()
        return below, above, (1 - below - above).clamp(min=torch.finfo(torch.float64).tiny)

    def expand(self, batch_shape, _instance=None) -> Self:
        new: Any = self._get_checked_instance(TruncatedTransformed, _instance)
        new.base, new.transform = self.base.expand(batch_shape), self.transform
        new.lower, new.upper = self.lower, self.upper
        Continuous.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _at(self, index: tuple[Any, ...]) -> Self:
        return type(self)(self.base[index], self.transform, self.lower, self.upper, validate_args=False)

    @property
    def _increasing(self) -> bool:
        return int(self.transform.sign) > 0

    def _ends(self) -> tuple[Tensor, Tensor]:
        """The image (low, high) of [lower, upper]."""
        ends = torch.tensor([self.lower, self.upper], dtype=torch.float64, device=self._like.device)
        low, high = self.transform(ends).sort().values.unbind()
        return low, high

    def _inside(self, y: Tensor) -> Tensor:
        """The value, or the bound that it lies beyond."""
        return y.clamp(self.lower, self.upper)

    @functools.cached_property
    def _like(self) -> Tensor:
        """A tensor of the dtype and on the device of the marginals."""
        return self.base.mean

    def _value(self, value: Any) -> Tensor:
        return torch.as_tensor(value, dtype=self._like.dtype, device=self._like.device)

    def _kind(self, value: Tensor) -> Tensor:
        return value.to(self._like.dtype)

    def log_prob(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        if self._validate_args:
            self._validate_sample(value)
        wide = self._inside(value.double())
        u = self.transform(wide)
        slope = self.transform.log_abs_det_jacobian(wide, u)
        found = self.base.log_prob(u).double() + slope - self._log_mass
        slack = 2 * torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0  # a bound rounded to its dtype
        inside = (wide - value).abs() <= slack * wide.abs()
        return self._kind(torch.where(u.isfinite() & inside, found, -torch.inf))

    @functools.cached_property
    def _log_mass(self) -> Tensor:
        """Log mass of `base` between low and high, by its log tails where little is left."""
        mass = self._masses[-1]
        return mass.log() if bool((mass > SURE).all()) else self._log_between(*self._ends())

    def cdf(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        y, (below, above, mass) = value.double(), self._masses
        u = self.transform(self._inside(y))
        share = self.base.cdf(u) - below if self._increasing else self.base.probability_above(u) - above
        return self._kind(self._settled(y, (share / mass).clamp(0, 1), 0.0, 1.0))

    def probability_above(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """P(Y > threshold), which keeps its digits deep in the upper tail."""
        y, (below, above, mass) = self._value(threshold).double(), self._masses
        u = self.transform(self._inside(y))
        share = self.base.probability_above(u) - above if self._increasing else self.base.cdf(u) - below
        return self._kind(self._settled(y, (share / mass).clamp(0, 1), 1.0, 0.0))

    def _settled(self, y: Tensor, inside: Tensor, before: float, after: float) -> Tensor:
        """`inside` between the bounds, `before` at the lower one and below, `after` at the upper one and above."""
        found = torch.where(y <= self.lower, before, inside) if math.isfinite(self.lower) else inside
        return torch.where(y >= self.upper, after, found) if math.isfinite(self.upper) else found

    def log_cdf(self, value: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log P(low < U < u(y)) - log P(low < U < high), with the tails swapped where u decreases."""
        (low, high), y = self._ends(), self._value(value).double()
        u = self.transform(self._inside(y))
        part = self._log_between(low, u) if self._increasing else self._log_between(u, high)
        return self._kind(self._settled(y, part - self._log_between(low, high), -torch.inf, 0.0))

    def log_probability_above(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log P(u(t) < U < high) - log P(low < U < high), with the tails swapped where u decreases."""
        (low, high), y = self._ends(), self._value(threshold).double()
        u = self.transform(self._inside(y))
        part = self._log_between(u, high) if self._increasing else self._log_between(low, u)
        return self._kind(self._settled(y, part - self._log_between(low, high), 0.0, -torch.inf))

    def _log_between(self, a: Tensor, b: Tensor) -> Tensor:
        """log P(a < U < b) of `base`: a difference of lower tails, or of upper ones if a is above the median."""
        a, b = torch.broadcast_tensors(a, b)
        upper = self.base.cdf(a) > 0.5
        more = torch.where(upper, self.base.log_probability_above(a), self.base.log_cdf(b)).double()
        less = torch.where(upper, self.base.log_probability_above(b), self.base.log_cdf(a)).double()
        rest = (less - more).clamp(max=0).nan_to_num(-torch.inf)
        return more + torch.where(rest < 0, torch.log(-torch.expm1(rest.where(rest < 0, -1.0))), -torch.inf)

    def log_expected_improvement(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log int (u^{-1}(v) - t) f(v) dv - log Z over the v with u^{-1}(v) > t, by quadrature beside u(t)."""
        t = self._value(threshold).double()
        edge, sign = self.transform(self._inside(t)).detach(), 1 if self._increasing else -1
        reach = self.base.stddev.detach().double()
        steps = torch.logspace(-6, 1.5, 40, dtype=torch.float64, device=t.device)
        edge, reach = torch.broadcast_tensors(edge, reach)
        knots = self._knots(edge, *(edge + sign * reach * step for step in steps))
        ends = edge.unsqueeze(-1)
        knots = torch.maximum(knots, ends) if sign > 0 else torch.minimum(knots, ends)
        points, weights = rule(knots)
        gain = (self.transform.inv(points) - t).clamp(min=torch.finfo(torch.float64).tiny)
        logs = weights.log() + gain.log() + self.base.log_prob(points).double()
        found = logs.logsumexp((0, 1)) - self._log_between(*self._ends())
        return self._kind(torch.where(t >= self.upper, -torch.inf, found))

    def icdf(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """u^{-1} of the quantile of `base` at F(low) + q Z, with 1 - q for q where u decreases."""
        below, _, mass = self._masses
        level = value.double() if self._increasing else 1 - value.double()
        low, high = self._ends()
        u = self.base.icdf(below + level * mass).double()
        return self._kind(self._inside(self.transform.inv(torch.minimum(torch.maximum(u, low), high))))

    @torch.no_grad()
    def sample(self, sample_shape: tuple[int, ...] = ()) -> Float[Tensor, "..."]:
        """Inverse transform `icdf(U)` of uniforms drawn in float64; it carries no gradient."""
        u = torch.rand(self._extended_shape(sample_shape), dtype=torch.float64, device=self._like.device)
        return self.icdf(u.clamp(min=torch.finfo(torch.float64).tiny))

    def _knots(self, *more: Tensor) -> Float[Tensor, "... knots"]:
        """Knots of `base`, more towards both ends, where u^{-1} has its logarithms, and others."""
        low, high = self._ends()
        knots = self.base.knots().double()
        near = torch.logspace(-14, -1, 14, dtype=torch.float64, device=low.device) * (high - low)
        ends = torch.cat([low.reshape(1), low + near, high - near, high.reshape(1)])
        ends = ends[ends.isfinite()]
        parts = torch.cat([ends.expand(*knots.shape[:-1], -1), knots], -1)
        if more:
            shape = torch.broadcast_shapes(parts.shape[:-1], more[0].shape)
            parts = torch.cat([parts.expand(*shape, -1), *(m.expand(shape).unsqueeze(-1) for m in more)], -1)
        return torch.minimum(torch.maximum(parts, low), high).sort(-1).values

    def _density(self, u: Tensor) -> Tensor:
        return self.base.log_prob(u).double().exp()

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        total = integrate(lambda u: self.transform.inv(u) * self._density(u), self._knots())
        return self._kind(total / self._masses[-1])

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        centre = self.mean.double()
        total = integrate(lambda u: (self.transform.inv(u) - centre).square() * self._density(u), self._knots())
        return self._kind(total / self._masses[-1])

    def expected_absolute_error(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """E|Y - y| = int |u^{-1}(v) - y| f(v) dv / Z, with a knot at u(y)."""
        y = value.double()
        knots = self._knots(self.transform(self._inside(y)).detach())
        total = integrate(lambda u: (self.transform.inv(u) - y).abs() * self._density(u), knots)
        return self._kind(total / self._masses[-1])

    @property
    def mean_difference(self) -> Float[Tensor, "*batch"]:
        """E|Y - Y'| = 2 int P(Y <= y) P(Y > y) dy, over u."""
        below, above, mass = self._masses

        def spread(u: Tensor) -> Tensor:
            y = self.transform.inv(u)
            slope = self.transform.log_abs_det_jacobian(y, u).exp()
            lower, upper = self.base.cdf(u) - below, self.base.probability_above(u) - above
            return lower.double() * upper.double() / slope

        return self._kind(2 * integrate(spread, self._knots()) / mass.square())


def within(law: Continuous, lower: float, upper: float) -> TruncatedTransformed:
    """The law of Y given lower <= Y <= upper; one that knows bounds of its own is left as it is."""
    if isinstance(law, TruncatedTransformed):
        return law
    return TruncatedTransformed(law, identity_transform, lower, upper, validate_args=False)
