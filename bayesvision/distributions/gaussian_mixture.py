"""`GaussianMixture`: a mixture of multivariate normals over latent variables, some positive or between 0 and 1."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

from bayesvision.distributions.base import Continuous
from bayesvision.distributions.mixture import Mixture
from bayesvision.distributions.normal import Normal
from bayesvision.distributions.transformed import TruncatedTransformed

__all__ = ["GaussianMixture", "unconstrained"]


REACH, NODES = 8.5, 257  # of a trapezoidal rule over N(0, 1), whose error falls exponentially for analytic functions


class _Log(td.Transform):
    """u = log y of a positive y."""

    domain: Any = constraints.positive
    codomain: Any = constraints.real
    bijective = True
    sign: Any = 1

    def _call(self, x: Tensor) -> Tensor:
        return x.clamp(min=0).log()

    def _inverse(self, y: Tensor) -> Tensor:
        return y.exp()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -y


class _Logit(td.Transform):
    """u = log y / (1 - y) of a y between 0 and 1."""

    domain: Any = constraints.unit_interval
    codomain: Any = constraints.real
    bijective = True
    sign: Any = 1

    def _call(self, x: Tensor) -> Tensor:
        return x.clamp(0, 1).logit()

    def _inverse(self, y: Tensor) -> Tensor:
        return y.sigmoid()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return softplus(y) + softplus(-y)


TRANSFORMS: dict[str, Any] = {"real": td.transforms.identity_transform, "positive": _Log(), "unit": _Logit()}


def unconstrained(theta: Float[Tensor, "*shape latents"], supports: tuple[str, ...]) -> Float[Tensor, "*shape latents"]:
    """log theta_i of what is positive, log theta_i / (1 - theta_i) of what lies between 0 and 1, theta_i of the rest.

    Beyond these bounds it is infinite.
    """
    return _each(theta, supports, lambda transform, value: transform(value))


def _each(values: Tensor, supports: tuple[str, ...], apply: Callable[[Any, Tensor], Tensor]) -> Tensor:
    """`apply` of the transform and the values of every kind of latent variable."""
    found = values
    for kind in sorted(set(supports) - {"real"}):
        mine = torch.tensor([s == kind for s in supports], device=values.device)
        found = torch.where(mine, apply(TRANSFORMS[kind], values), found)
    return found


class GaussianMixture(td.Distribution):
    """Mixture of K normals of u, where u_i is theta_i, log theta_i of a positive one, or its logit between 0 and 1.

    p(theta) = sum_k w_k N(u(theta); m_k, L_k L_k^T) prod_i |du_i / dtheta_i|.

    Example:
        >>> law = GaussianMixture(torch.zeros(2), torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1, 1))
        >>> law.marginal(0).interval(0.9)

    Args:
        logits: unnormalised log weights.
        loc: means of u.
        scale_tril: Cholesky factors of the covariances of u.
        supports: `real`, `positive` or `unit` (between 0 and 1) for each variable; all real when left out.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or factors without a positive diagonal.
    """

    arg_constraints: ClassVar = {}  # pyright: ignore[reportAssignmentType] (torch's base declares properties)
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        logits: Float[Tensor, "*#batch components"],
        loc: Float[Tensor, "*#batch components latents"],
        scale_tril: Float[Tensor, "*#batch components latents latents"],
        supports: tuple[str, ...] | None = None,
    ) -> None:
        if loc.ndim < 2 or scale_tril.shape[-2:] != (*loc.shape[-1:], *loc.shape[-1:]):
            raise ValueError(
                f"loc must be [*batch, components, latents] and scale_tril [*batch, components, latents, latents], "
                f"got {tuple(loc.shape)} and {tuple(scale_tril.shape)}"
            )
        self.supports = supports or ("real",) * loc.shape[-1]
        if len(self.supports) != loc.shape[-1] or not set(self.supports) <= set(TRANSFORMS):
            raise ValueError(
                f"supports must be real, positive or unit for each of the {loc.shape[-1]} latents, got {supports}"
            )
        batch = torch.broadcast_shapes(logits.shape[:-1], loc.shape[:-2], scale_tril.shape[:-3])
        self.logits = logits.log_softmax(-1).expand(*batch, logits.shape[-1])
        self.loc = loc.expand(*batch, *loc.shape[-2:])
        self.scale_tril = scale_tril.expand(*batch, *scale_tril.shape[-3:])
        if self.logits.shape[-1] != loc.shape[-2] or scale_tril.shape[-3] != loc.shape[-2]:
            raise ValueError(f"logits, loc and scale_tril must have as many components, got {tuple(logits.shape)}")
        diagonal = scale_tril.diagonal(dim1=-2, dim2=-1)
        if not (loc.isfinite().all() and scale_tril.isfinite().all() and (diagonal > 0).all()):
            raise ValueError("loc and scale_tril must be finite, and the diagonal of scale_tril positive")
        super().__init__(torch.Size(batch), torch.Size(loc.shape[-1:]), validate_args=False)

    def __repr__(self) -> str:
        size = f"components={self.loc.shape[-2]}, supports={self.supports}"
        return f"{type(self).__name__}(batch_shape={tuple(self.batch_shape)}, {size})"

    @property
    def weights(self) -> Float[Tensor, "*batch components"]:
        """Weight of every component."""
        return self.logits.exp()

    def __getitem__(self, index: Any) -> Self:
        """The mixtures that `index` selects along the batch axes."""
        torch.empty(()).expand(self.batch_shape)[index]
        return type(self)(self.logits[index], self.loc[index], self.scale_tril[index], self.supports)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        logits = self.logits.expand(*batch_shape, self.logits.shape[-1])
        return type(self)(logits, self.loc, self.scale_tril, self.supports)

    def constrained(self, u: Float[Tensor, "*shape latents"]) -> Float[Tensor, "*shape latents"]:
        """theta(u)."""
        return _each(u, self.supports, lambda transform, value: transform.inv(value))

    def log_prob(self, value: Float[Tensor, "*shape latents"]) -> Float[Tensor, "*shape"]:
        u = unconstrained(value, self.supports)
        inside = u.isfinite().all(-1)
        u = torch.where(inside.unsqueeze(-1), u, torch.zeros_like(u))
        slope = _each(torch.zeros_like(u), self.supports, lambda transform, _: transform.log_abs_det_jacobian(u, u))
        parts = td.MultivariateNormal(self.loc, scale_tril=self.scale_tril, validate_args=False)
        found = (self.logits + parts.log_prob(u.unsqueeze(-2))).logsumexp(-1) + slope.sum(-1)
        return torch.where(inside, found, -torch.inf)

    @torch.no_grad()
    def sample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Float[Tensor, "..."]:
        """Draws [*sample_shape, *batch, latents]."""
        shape = torch.Size(sample_shape) + self.batch_shape
        kind: Any = {"generator": generator, "device": self.loc.device, "dtype": self.loc.dtype}
        cdf = self.weights.cumsum(-1)
        member = (torch.rand(*shape, 1, **kind) > cdf).sum(-1).clamp(max=cdf.shape[-1] - 1)
        z = torch.randn(*shape, self.loc.shape[-1], **kind)
        loc, tril = (v.expand(*shape, *v.shape[len(self.batch_shape) :]) for v in (self.loc, self.scale_tril))
        place = member[..., None, None]
        loc = loc.gather(-2, place.expand(*shape, 1, loc.shape[-1])).squeeze(-2)
        tril = tril.gather(-3, place.unsqueeze(-1).expand(*shape, 1, *tril.shape[-2:])).squeeze(-3)
        return self.constrained(loc + (tril @ z.unsqueeze(-1)).squeeze(-1))

    @property
    def mean(self) -> Float[Tensor, "*batch latents"]:
        return (self.weights.unsqueeze(-1) * self._means).sum(-2)

    @property
    def _covariances(self) -> Float[Tensor, "*batch components latents latents"]:
        return self.scale_tril @ self.scale_tril.mT

    @property
    def _means(self) -> Float[Tensor, "*batch components latents"]:
        """Of theta in each component: m, exp(m + s^2 / 2) of a log-normal one, by quadrature of a logit-normal one."""
        variance = self._covariances.diagonal(dim1=-2, dim2=-1)
        columns = [self._expected(i, self.loc[..., i], variance[..., i].sqrt()) for i in range(len(self.supports))]
        return torch.stack(columns, -1)

    def _expected(self, i: int, loc: Tensor, scale: Tensor) -> Float[Tensor, "*batch components"]:
        """E theta_i if u_i ~ N(loc, scale^2)."""
        if self.supports[i] == "unit":
            return _normal_mean(torch.sigmoid, loc, scale)
        return (loc + scale.square() / 2).exp() if self.supports[i] == "positive" else loc

    @property
    def covariance_matrix(self) -> Float[Tensor, "*batch latents latents"]:
        """E[theta theta^T] - E[theta] E[theta]^T, the means of `_means` and `_within` put together."""
        means, cov = self._means, self._covariances
        apart = means - self.mean.unsqueeze(-2)
        between = apart.unsqueeze(-1) * apart.unsqueeze(-2)
        d = len(self.supports)
        pairs = {(i, j): self._within(i, j, means, cov) for i in range(d) for j in range(i + 1)}
        rows = [torch.stack([pairs[max(i, j), min(i, j)] for j in range(d)], -1) for i in range(d)]
        return (self.weights[..., None, None] * (torch.stack(rows, -2) + between)).sum(-3)

    def _within(self, i: int, j: int, means: Tensor, cov: Tensor) -> Float[Tensor, "*batch components"]:
        """Covariance of theta_i and theta_j in each component, with S the covariance of u and mu the means of theta.

        S_ij E[dtheta_j / du_j] if theta_i is real (Stein's lemma); mu_i (E[theta_j | u_j moved by S_ij] - mu_j) if it
        is positive, since exp u_i tilts the density of u_j; otherwise by quadrature over both.
        """
        kinds = (self.supports[i], self.supports[j])
        if kinds[1] == "real" or kinds == ("unit", "positive"):
            i, j = j, i
        s, loc, scale = cov[..., i, j], self.loc[..., j], cov[..., j, j].sqrt()
        if self.supports[i] == "real":
            slopes = {"real": torch.ones_like(s), "positive": means[..., j]}
            return s * (slopes[self.supports[j]] if self.supports[j] in slopes else _normal_mean(_slope, loc, scale))
        if self.supports[i] == "positive":
            mu = means[..., i]
            if self.supports[j] == "positive":
                return mu * means[..., j] * torch.expm1(s)
            return mu * (self._expected(j, loc + s, scale) - means[..., j])
        slope = s / cov[..., i, i]
        rest = (cov[..., j, j] - slope * s).clamp(min=0).sqrt()  # of u_j given u_i

        def product(u: Tensor) -> Tensor:
            given = loc.unsqueeze(-1) + slope.unsqueeze(-1) * (u - self.loc[..., i].unsqueeze(-1))
            inner = _normal_mean(torch.sigmoid, given, rest.unsqueeze(-1)) if i != j else u.sigmoid()
            return (u.sigmoid() - means[..., i].unsqueeze(-1)) * (inner - means[..., j].unsqueeze(-1))

        return _normal_mean(product, self.loc[..., i], cov[..., i, i].sqrt())

    @property
    def variance(self) -> Float[Tensor, "*batch latents"]:
        return self.covariance_matrix.diagonal(dim1=-2, dim2=-1)

    def marginal(self, variable: int) -> Continuous:
        """The distribution of one latent variable.

        Raises:
            IndexError: no such variable.
        """
        loc = self.loc[..., variable]
        scale = self._covariances[..., variable, variable].sqrt()
        law = Mixture.of(Normal(loc, scale, validate_args=False), self.logits)
        if self.supports[variable] == "real":
            return law
        return TruncatedTransformed(law, TRANSFORMS[self.supports[variable]], validate_args=False)

    def interval(self, mass: float) -> tuple[Float[Tensor, "*batch latents"], Float[Tensor, "*batch latents"]]:
        """Central interval of every latent variable by itself.

        Raises:
            ValueError: `mass` lies outside (0, 1).
        """
        ends = [self.marginal(i).interval(mass) for i in range(self.loc.shape[-1])]
        return torch.stack([low for low, _ in ends], -1), torch.stack([high for _, high in ends], -1)


def _slope(u: Tensor) -> Tensor:
    """dtheta / du of theta = sigmoid u."""
    return u.sigmoid() * (-u).sigmoid()


def _normal_mean(function: Callable[[Tensor], Tensor], loc: Tensor, scale: Tensor) -> Tensor:
    """E f(u) for u ~ N(loc, scale^2), by the trapezoidal rule."""
    z = torch.linspace(-REACH, REACH, NODES, dtype=loc.dtype, device=loc.device)
    weight = (-z.square() / 2).exp() * (2 * REACH / (NODES - 1) / math.sqrt(2 * math.pi))
    return (function(loc.unsqueeze(-1) + scale.unsqueeze(-1) * z) * weight).sum(-1)
