"""Observations of a family: those that users hand in, and those to come."""

from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from bayesvision.core.checks import check_inputs, check_targets
from bayesvision.core.roles import Checked, Family
from bayesvision.distributions import Bernoulli, Continuous, Mixture, Normal, Predictive
from bayesvision.distributions.numerics import integrate

__all__ = ["Averaged", "check_no_design", "check_observations", "in_dtype", "joint_batch", "observation"]

KNOTS = 257  # of a quadrature over the range of an observation
HALVINGS = 60  # of the bracket of a quantile


def check_observations(
    family: Family, x: Any, y: Any, columns: tuple[str, ...] | None = None
) -> tuple[Float[Tensor, "*batch rows features"], Float[Tensor, "*batch rows"]]:
    """Designs and observations as tensors of their own.

    Args:
        family: says what a design is.
        x: designs; None where observations have none, or where y is a whole reading of the family.
        y: observations; a number is one.
        columns: names of the designs' columns, as seen before.

    Raises:
        ValueError: wrong shapes, values that are not finite, a design where there is none, or none where there is, and
            what the family itself refuses.
    """
    if y is None:
        raise ValueError("y must hold observations, got None")
    if family.features == 0:
        check_no_design(family, x)
        single = np.ndim(y) < 2  # one problem: `check_inputs` makes it a column
        y = check_inputs([y] if np.ndim(y) == 0 else y, name="y")
        y = y.squeeze(-1) if single else y
        return y.new_zeros(*y.shape, 0), y
    x = check_inputs(_reading(family, y) if x is None else x, family.features, columns)
    y = check_targets(y, x, constant=True)
    if isinstance(family, Checked):
        family.check(x, y)
    return x, y


def check_no_design(family: Family, x: Any) -> None:
    """Refuse a design of an observation that has none."""
    if x is not None:
        raise ValueError(f"x must be None: an observation of {type(family).__name__} has no design")


def joint_batch(prior: torch.Size, observations: torch.Size) -> torch.Size:
    """Batch axes of priors and observations together; a `ValueError` if they do not broadcast."""
    try:
        return torch.broadcast_shapes(prior, observations)
    except RuntimeError:
        raise ValueError(
            f"y must have batch axes that broadcast with the prior's {tuple(prior)}, got {tuple(observations)}"
        ) from None


def _reading(family: Family, y: Any) -> Float[Tensor, "*batch rows features"]:
    """The designs of whole readings, which need not be given."""
    if family.reading is None:
        raise ValueError(f"x must hold the designs of the observations, {family.features} columns, got None")
    if np.shape(y)[-1:] != (len(family.reading),):
        raise ValueError(
            f"without x, y must hold a whole reading of {len(family.reading)} observations, got the shape "
            f"{np.shape(y)}; say by x which ones they are"
        )
    return family.reading.double().expand(*np.shape(y)[:-1], *family.reading.shape)


def observation(
    family: Family,
    theta: Float[Tensor, "*batch points latents"],
    log_weights: Float[Tensor, "*batch points"],
    x: Float[Tensor, "*#batch rows features"],
    seen: tuple[Tensor, Tensor] | None = None,
) -> Predictive:
    """Distribution of an observation at every design: sum_i w_i p(y | theta_i, x, seen).

    Normal observations give a mixture of normals, observations that are 0 or 1 a `Bernoulli`, and others `Averaged`.
    """
    if seen is not None:
        seen = (seen[0].unsqueeze(-3), seen[1].unsqueeze(-2))
    law = family.observed(theta, x.unsqueeze(-3), seen)
    if isinstance(law, td.Normal):
        loc, scale = law.loc.mT, law.scale.mT
        logits = log_weights.unsqueeze(-2).expand(loc.shape)
        return Mixture.of(Normal(loc, scale, validate_args=False), logits)
    if isinstance(law, td.Bernoulli):
        chance = (log_weights.softmax(-1).unsqueeze(-1) * law.probs).sum(-2)
        return Bernoulli(probs=chance.clamp(0, 1), validate_args=False)
    rows = (*torch.broadcast_shapes(theta.shape[:-2], x.shape[:-2]), x.shape[-2])
    points = theta.unsqueeze(-3).expand(*rows, *theta.shape[-2:])
    weights = log_weights.softmax(-1).unsqueeze(-2).expand(*rows, log_weights.shape[-1])
    return Averaged(family, points, weights, x.expand(*rows, x.shape[-1]))


def in_dtype(law: Predictive, dtype: torch.dtype) -> Predictive:
    """A mixture of normals in the precision of what was asked and seen; others stay as they are."""
    if not isinstance(law, Mixture):
        return law
    parts: Any = law.component_distribution
    logits = law.mixture_distribution.logits.to(dtype)
    return Mixture.of(Normal(parts.loc.to(dtype), parts.scale.to(dtype), validate_args=False), logits)


class Averaged(Continuous):
    """sum_i w_i p(y | theta_i, x) of observations between two bounds, where there may be probability at a bound itself.

    F is exact; moments, quantiles and scores are integrals of F or found from it by bisection. The density at a bound
    with probability of its own is that probability.

    Args:
        family: says what is observed given theta, a distribution with a cdf and an interval as its support.
        theta, weights: points and their weights, which sum to 1.
        x: the designs.
    """

    arg_constraints: ClassVar = {}  # pyright: ignore[reportAssignmentType] (torch's base declares properties)
    support = constraints.real  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        family: Family,
        theta: Float[Tensor, "*batch points latents"],
        weights: Float[Tensor, "*batch points"],
        x: Float[Tensor, "*batch features"],
    ) -> None:
        self.family, self.theta, self.weights, self.x = family, theta, weights, x
        self.law: Any = family.observed(theta, x.unsqueeze(-2).unsqueeze(-2))  # [*batch, points, 1]
        super().__init__(weights.shape[:-1], validate_args=False)

    def _at(self, index: tuple[Any, ...]) -> Self:
        kept = (slice(None),)
        at = (self.theta[(*index, *kept, *kept)], self.weights[(*index, *kept)], self.x[(*index, *kept)])
        return type(self)(self.family, *at)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        parts = (self.theta, 2), (self.weights, 1), (self.x, 1)
        wide = (value.expand(*batch_shape, *value.shape[value.ndim - own :]) for value, own in parts)
        return type(self)(self.family, *wide)

    def _averaged(self, values: Tensor) -> Float[Tensor, "*shape"]:
        return (values.squeeze(-1) * self.weights).sum(-1)

    def _ends(self) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """The bounds."""
        bounds: Any = self.law.support
        low, high = (torch.as_tensor(v).to(self.weights) for v in (bounds.lower_bound, bounds.upper_bound))
        shape = self.weights.shape
        return tuple(v.expand(*shape, 1)[..., 0, 0] for v in (low, high))  # pyright: ignore[reportReturnType]

    def log_prob(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        each = self.law.log_prob(value.unsqueeze(-1).unsqueeze(-1)).squeeze(-1)
        return (each + self.weights.log()).logsumexp(-1)

    def cdf(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        return self._averaged(self.law.cdf(value.unsqueeze(-1).unsqueeze(-1)))

    def icdf(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """The least y with F(y) >= value, by bisection."""
        low, high = (end.expand(torch.broadcast_shapes(value.shape, self.batch_shape)) for end in self._ends())
        at_low = self.cdf(low) >= value
        low, high = low.clone(), torch.where(at_low, low, high)
        for _ in range(HALVINGS):
            middle = low + (high - low) / 2
            enough = self.cdf(middle) >= value
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        return high

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        """Quantiles at uniforms."""
        return self.icdf(torch.rand(self._extended_shape(sample_shape)).to(self.weights))

    def _integral(self, function: Any, low: Tensor, high: Tensor) -> Float[Tensor, "*shape"]:
        """Of `function` of y and F(y), between two ends."""
        share = torch.linspace(0, 1, KNOTS).to(self.weights)
        knots = low.unsqueeze(-1) + share * (high - low).unsqueeze(-1)
        return integrate(lambda y: function(y, self.cdf(y)), knots)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        low, high = self._ends()
        return high - self._integral(lambda y, below: below, low, high)

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """int 2 (y - low) (1 - F) dy - (mean - low)^2."""
        low, high = self._ends()
        square = self._integral(lambda y, below: 2 * (y - low) * (1 - below), low, high)
        return (square - (self.mean - low).square()).clamp(min=0)

    def expected_absolute_error(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """int_low^y F + int_y^high (1 - F), and the way from y to the nearer bound if it lies beyond."""
        low, high = torch.broadcast_tensors(*self._ends(), value)[:2]
        y = torch.minimum(torch.maximum(value, low), high)
        below = self._integral(lambda _, f: f, low, y)
        return below + self._integral(lambda _, f: 1 - f, y, high) + (value - y).abs()

    @property
    def mean_difference(self) -> Float[Tensor, "*batch"]:
        """2 int F (1 - F)."""
        return 2 * self._integral(lambda _, f: f * (1 - f), *self._ends())
