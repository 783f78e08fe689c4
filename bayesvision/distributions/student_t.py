"""`StudentT`: a location-scale t distribution, whose tails fall off as a power."""

import math
from typing import Any, ClassVar

import numpy as np
import scipy.special
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from bayesvision.distributions.base import LocationFamily
from bayesvision.distributions.numerics import laguerre

__all__ = ["StudentT"]

FAR = 6.0  # standard deviations, from where on the tail is an integral


class _Tail(torch.autograd.Function):
    """P(T < z) of a standard t; differentiable in z, not in the degrees of freedom."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, df: Tensor) -> Tensor:
        ctx.save_for_backward(z, df)
        value, v = (t.detach().double().cpu().numpy() for t in (z, df))
        squared = value**2
        # the fraction of either tail, by whichever argument of the incomplete beta function keeps its digits
        far = scipy.special.betainc(v / 2, 0.5, v / (v + squared)) / 2
        near = 0.5 - scipy.special.betainc(0.5, v / 2, squared / (v + squared)) / 2
        tail = np.where(squared > 1, far, near)
        return torch.as_tensor(np.where(value < 0, tail, 1 - tail)).to(z)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        z, df = ctx.saved_tensors
        return gradients[0] * _log_density(z, df).exp(), None


def _log_density(z: Tensor, df: Tensor) -> Tensor:
    wide = df.double()  # the difference of two large logarithms
    normaliser = torch.lgamma((wide + 1) / 2) - torch.lgamma(wide / 2) - (wide * math.pi).log() / 2
    return normaliser.to(df) - (df + 1) / 2 * torch.log1p(z.square() / df)


def _far_tail(z: Tensor, df: Tensor) -> tuple[Tensor, Tensor]:
    """log P(T > z) and log E max(T - z, 0) of a standard t, for z > 6.

    With w = (v + 1) / 2 log((v + s^2) / (v + z^2)) the density is f(s) = f(z) e^-w, and int_z f(s) ds is
    f(z) int (v + s^2) / ((v + 1) s) e^-w dw, by a Gauss-Laguerre rule; likewise with the factor s - z.
    """
    z, v = z.clamp(min=FAR).unsqueeze(-1), df.unsqueeze(-1)
    nodes, weights = laguerre(z)
    rise = (v + z.square()) * torch.expm1(2 * nodes / (v + 1))  # s^2 - z^2
    s = (z.square() + rise).sqrt()
    parts = weights * (v + z.square() + rise) / ((v + 1) * s)
    density = _log_density(z.squeeze(-1), df)
    return density + parts.sum(-1).log(), density + (parts * rise / (s + z)).sum(-1).log()


class StudentT(LocationFamily):
    """Student's t with location, scale and more than two degrees of freedom.

    p(y) = Gamma((v + 1) / 2) / (Gamma(v / 2) sqrt(v pi) scale) (1 + z^2 / v)^(-(v + 1) / 2), z = (y - loc) / scale.
    """

    arg_constraints: ClassVar = {  # pyright: ignore[reportAssignmentType] (torch's base declares properties)
        "loc": constraints.real,
        "scale": constraints.positive,
        "df": constraints.greater_than(2),
    }
    support = constraints.real  # pyright: ignore[reportAssignmentType]
    has_rsample = True

    def __init__(self, loc, scale, df, validate_args: bool | None = None) -> None:
        self.loc, self.scale, self.df = broadcast_all(loc, scale, df)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """scale^2 v / (v - 2)."""
        return self.scale.square() * self.df / (self.df - 2)

    def log_prob(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        if self._validate_args:
            self._validate_sample(value)
        return _log_density((value - self.loc) / self.scale, self.df) - self.scale.log()

    def entropy(self) -> Float[Tensor, "*batch"]:
        half, more = self.df / 2, (self.df + 1) / 2
        log_beta = torch.lgamma(half) + math.lgamma(0.5) - torch.lgamma(more)
        return more * (torch.digamma(more) - torch.digamma(half)) + self.df.log() / 2 + log_beta + self.scale.log()

    def cdf(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """I_{v / (v + z^2)}(v / 2, 1 / 2) / 2 for z < 0, else 1 minus it; differentiable in all but `df`."""
        return self._below((value - self.loc) / self.scale)

    def _below(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return _Tail.apply(*torch.broadcast_tensors(z, self.df))  # pyright: ignore[reportReturnType]

    def icdf(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """Inverse of `cdf`, differentiable in `loc` and `scale` only."""
        u, v = (t.detach().double().cpu().numpy() for t in (value, self.df))
        both = 2 * np.minimum(u, 1 - u)
        with np.errstate(divide="ignore"):
            far = scipy.special.betaincinv(v / 2, 0.5, both)  # v / (v + z^2)
            near = scipy.special.betaincinv(0.5, v / 2, np.abs(1 - 2 * u))  # z^2 / (v + z^2)
            z = np.sqrt(v * np.where(both < 0.5, (1 - far) / far, near / (1 - near)))
        return self.loc + self.scale * torch.as_tensor(np.sign(u - 0.5) * z).to(self.loc)

    def rsample(self, sample_shape: tuple[int, ...] = ()) -> Float[Tensor, "..."]:
        """loc + scale Z sqrt(v / 2 / G) with Z ~ N(0, 1) and G ~ Gamma(v / 2, 1)."""
        half = (self.df / 2).expand(self._extended_shape(sample_shape))
        return self.loc + self.scale * torch.randn_like(half) * (half / torch._standard_gamma(half)).sqrt()

    def probability_above(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """P(Y > threshold), which keeps its digits deep in the upper tail."""
        return self._below((self.loc - self._value(threshold)) / self.scale)

    def log_cdf(self, value: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log P(Y <= value)."""
        return self._log_below((self._value(value) - self.loc) / self.scale)

    def log_probability_above(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log P(Y > threshold), the reflected distribution's `log_cdf`."""
        return self._log_below((self.loc - self._value(threshold)) / self.scale)

    def _log_below(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        wide, df = torch.broadcast_tensors(z.double(), self.df.double())
        near = _Tail.apply(wide.clamp(min=-FAR), df).log()  # pyright: ignore[reportOptionalMemberAccess]
        return torch.where(wide < -FAR, _far_tail(-wide, df)[0], near).to(z.dtype)

    def log_expected_improvement(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log scale (f(z) (v + z^2) / (v - 1) - z P(T > z)) with z = (t - loc) / scale; differentiable in all but `df`.

        From z = 6 on, where the difference loses digits, it is an integral (`_far_tail`).
        """
        z, v = torch.broadcast_tensors(
            ((self._value(threshold) - self.loc) / self.scale).double(), self.df.detach().double()
        )
        near = z.clamp(max=FAR)
        above: Any = _Tail.apply(-near, v)
        gain = _log_density(near, v).exp() * (v + near.square()) / (v - 1) - near * above
        return self.scale.log() + torch.where(z > FAR, _far_tail(z, v)[1], gain.log()).to(self.scale.dtype)

    def expected_absolute_error(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """E|Y - y| = scale (z (2 F(z) - 1) + 2 f(z) (v + z^2) / (v - 1)), F and f of the standard t.

        Differentiable in all but `df`.
        """
        z, v = torch.broadcast_tensors((value - self.loc) / self.scale, self.df.detach())
        density = _log_density(z, v).exp()
        return self.scale * (z * (1 - 2 * self._below(-z)) + 2 * density * (v + z.square()) / (v - 1))

    @property
    def mean_difference(self) -> Float[Tensor, "*batch"]:
        """E|Y - Y'| = 4 scale sqrt(v) / (v - 1) B(1/2, v - 1/2) / B(1/2, v/2)^2 (Jordan et al. 2019, appendix A)."""
        v, half = self.df.double(), math.lgamma(0.5)
        first = half + torch.lgamma(v - 0.5) - torch.lgamma(v)
        second = half + torch.lgamma(v / 2) - torch.lgamma((v + 1) / 2)
        return self.scale * (4 * v.sqrt() / (v - 1) * (first - 2 * second).exp()).to(self.scale)
