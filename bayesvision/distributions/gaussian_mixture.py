"""`GaussianMixture`: a mixture of multivariate normals over latent variables, some of them positive."""

from typing import Any, ClassVar, Self

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from bayesvision.distributions.base import Continuous
from bayesvision.distributions.mixture import Mixture
from bayesvision.distributions.normal import Normal
from bayesvision.distributions.transformed import TruncatedTransformed

__all__ = ["GaussianMixture", "unconstrained"]


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


def unconstrained(theta: Float[Tensor, "*shape latents"], supports: tuple[str, ...]) -> Float[Tensor, "*shape latents"]:
    """log theta_i of what is positive, minus infinity where it is not; theta_i of the rest."""
    return torch.where(_positive(supports, theta.device), theta.clamp(min=0).log(), theta)


def _positive(supports: tuple[str, ...], device: torch.device) -> Tensor:
    return torch.tensor([s == "positive" for s in supports], device=device)


class GaussianMixture(td.Distribution):
    """Mixture of K normals of u, where u_i = theta_i, or log theta_i for a variable that is positive.

    p(theta) = sum_k w_k N(u(theta); m_k, L_k L_k^T) prod_{positive i} 1 / theta_i.

    Example:
        >>> law = GaussianMixture(torch.zeros(2), torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1, 1))
        >>> law.marginal(0).interval(0.9)

    Args:
        logits: unnormalised log weights.
        loc: means of u.
        scale_tril: Cholesky factors of the covariances of u.
        supports: `real` or `positive` for each variable; all real when left out.

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
        if len(self.supports) != loc.shape[-1] or not set(self.supports) <= {"real", "positive"}:
            raise ValueError(
                f"supports must be real or positive for each of the {loc.shape[-1]} latents, got {supports}"
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

    @property
    def _positive(self) -> Tensor:
        return _positive(self.supports, self.loc.device)

    def __getitem__(self, index: Any) -> Self:
        """The mixtures that `index` selects along the batch axes."""
        torch.empty(()).expand(self.batch_shape)[index]
        return type(self)(self.logits[index], self.loc[index], self.scale_tril[index], self.supports)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        logits = self.logits.expand(*batch_shape, self.logits.shape[-1])
        return type(self)(logits, self.loc, self.scale_tril, self.supports)

    def constrained(self, u: Float[Tensor, "*shape latents"]) -> Float[Tensor, "*shape latents"]:
        """theta(u)."""
        return torch.where(self._positive, u.exp(), u)

    def log_prob(self, value: Float[Tensor, "*shape latents"]) -> Float[Tensor, "*shape"]:
        u = unconstrained(value, self.supports)
        inside = u.isfinite().all(-1)
        u = torch.where(inside.unsqueeze(-1), u, torch.zeros_like(u))
        jacobian = torch.where(self._positive, u, torch.zeros_like(u)).sum(-1)
        parts = td.MultivariateNormal(self.loc, scale_tril=self.scale_tril, validate_args=False)
        found = (self.logits + parts.log_prob(u.unsqueeze(-2))).logsumexp(-1) - jacobian
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
        """Of theta in each component: m, or exp(m + s^2 / 2) of a log-normal one."""
        half = self._covariances.diagonal(dim1=-2, dim2=-1) / 2
        return torch.where(self._positive, (self.loc + half).exp(), self.loc)

    @property
    def covariance_matrix(self) -> Float[Tensor, "*batch latents latents"]:
        """E[theta theta^T] - E[theta] E[theta]^T.

        Within a component, S_ij between real variables, mean_j S_ij of a real and a positive one, and
        mean_i mean_j (exp S_ij - 1) between positive ones.
        """
        cov, means, positive = self._covariances, self._means, self._positive
        both = positive & positive.unsqueeze(-1)
        scale = torch.where(positive, means, torch.ones_like(means))
        within = torch.where(both, torch.expm1(cov), cov) * scale.unsqueeze(-1) * scale.unsqueeze(-2)
        apart = means - self.mean.unsqueeze(-2)
        between = apart.unsqueeze(-1) * apart.unsqueeze(-2)
        return (self.weights[..., None, None] * (within + between)).sum(-3)

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
        return TruncatedTransformed(law, _Log(), validate_args=False)

    def interval(self, mass: float) -> tuple[Float[Tensor, "*batch latents"], Float[Tensor, "*batch latents"]]:
        """Central interval of every latent variable by itself.

        Raises:
            ValueError: `mass` lies outside (0, 1).
        """
        ends = [self.marginal(i).interval(mass) for i in range(self.loc.shape[-1])]
        return torch.stack([low for low, _ in ends], -1), torch.stack([high for _, high in ends], -1)
