"""`ToldPrior`: the prior of a problem in whichever way it was told; `MetaPrior`: what training saw of them."""

import importlib
from collections.abc import Callable
from typing import Any, Self

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Generator, Tensor, nn

from bayesvision.core.checks import check_inputs
from bayesvision.core.roles import Family, Parametric
from bayesvision.distributions import GaussianMixture
from bayesvision.distributions.gaussian_mixture import unconstrained
from bayesvision.io.recipes import build_prior
from bayesvision.methods.dt.network import ComponentTransformer
from bayesvision.methods.dt.tasks import parametric, units_of_draws
from bayesvision.methods.dt.tokens import Parts, Units

__all__ = ["TOLD", "MetaPrior", "ToldPrior", "packaged"]

FEWEST = 16  # draws that tell a prior, for each component
RARE = 0.999  # quantile of the distances of priors in training, beyond which another is called far
TOLD = ("hyper", "draws", "logits", "loc", "scale_tril")


class ToldPrior(nn.Module):
    """A prior by the numbers that tell one of the family's kind, as a Gaussian mixture, or by draws.

    Attributes:
        hyper: numbers that tell it; None if it is told otherwise, as the others are.
        draws: unconstrained draws.
        logits, loc, scale_tril: the mixture, over unconstrained latent variables.
    """

    hyper: Tensor | None
    draws: Tensor | None
    logits: Tensor | None
    loc: Tensor | None
    scale_tril: Tensor | None

    def __init__(self, **told: Tensor | None) -> None:
        super().__init__()
        for name in TOLD:
            self.register_buffer(name, told.get(name), persistent=False)

    @classmethod
    def of(cls, prior: Any, family: Family, components: int) -> Self:
        """What somebody handed in.

        Raises:
            ValueError: another kind of distribution, more than `components` Gaussians, parameters that are not finite
                or positive, or too few draws.
        """
        mixture = _as_mixture(prior, family)
        if mixture is not None:
            if mixture.logits.shape[-1] > components:
                raise ValueError(
                    f"the prior has {mixture.logits.shape[-1]} components and the network takes {components}; "
                    "give draws from it instead"
                )
            return cls(**{name: value.double() for name, value in zip(TOLD[2:], mixture, strict=True)})
        if not isinstance(prior, td.Distribution):
            return cls(draws=_checked_draws(prior, family, components))
        if not isinstance(family, Parametric):
            raise ValueError(f"the prior must be a Gaussian mixture or draws, got {type(prior).__name__}")
        hyper = family.describe(prior).double()
        if not hyper.isfinite().all():
            raise ValueError(f"the parameters of the prior must be finite and positive, got {prior}")
        return cls(hyper=hyper)

    @property
    def mixture(self) -> Parts | None:
        """The Gaussian mixture, if it is told as one."""
        if self.logits is None or self.loc is None or self.scale_tril is None:
            return None
        return Parts(self.logits, self.loc, self.scale_tril)

    def units(self, family: Family) -> Units:
        """Mean and covariance of the unconstrained latent variables."""
        if self.hyper is not None:
            loc, scale = parametric(family).moments(self.hyper)
            return Units(loc, torch.diag_embed(scale))
        if self.mixture is not None:
            return self.mixture.moments()
        assert self.draws is not None
        return units_of_draws(self.draws)

    def tokens(self, network: ComponentTransformer, units: Units) -> Float[Tensor, "*batch components width"]:
        """The prior as the network takes it."""
        kind = network.prior_token.dtype
        if self.hyper is not None:
            return network.of_hyper(self.hyper.to(kind))
        if self.mixture is not None:
            return network.of_mixture(units.numbers(self.mixture.filled(network.components)).to(kind))
        assert self.draws is not None
        return network.of_draws(units.standardized(self.draws).to(kind))

    def log_density(self, family: Family) -> Callable[[Tensor], Tensor]:
        """Log density as a function of theta.

        Raises:
            ValueError: it is told by draws.
        """
        if self.hyper is not None:
            return parametric(family).distribution(self.hyper).log_prob
        if self.mixture is not None:
            return GaussianMixture(*self.mixture, family.supports).log_prob
        raise ValueError("nobody knows the density of a prior that draws tell; give a distribution to with_prior")

    def sample(self, family: Family, count: int, rng: Generator) -> Float[Tensor, "count latents"]:
        """Draws of theta from a prior without batch axes that was not told by draws."""
        if self.hyper is not None:
            return parametric(family).draws(self.hyper.unsqueeze(0), count, rng)[0].double()
        assert self.mixture is not None
        return GaussianMixture(*self.mixture, family.supports).sample((count,), rng)

    def told(self) -> dict[str, Tensor]:
        """The tensors that tell it."""
        return {name: value for name in TOLD if (value := getattr(self, name)) is not None}

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(lambda value: value.to(fn(value).device), recurse)  # a rounded prior would be another one
        return self


class MetaPrior(nn.Module):
    """Where the priors of training lie: mean and covariance of their means and log standard deviations."""

    mean: Tensor
    factor: Tensor
    far: Tensor

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2 * latents, dtype=torch.float64))
        self.register_buffer("factor", torch.eye(2 * latents, dtype=torch.float64))
        self.register_buffer("far", torch.full((), torch.inf, dtype=torch.float64))

    def remember(self, units: Units) -> None:
        """Note where a sample of priors lies."""
        place = _place(units)
        self.mean = place.mean(0)
        covariance = torch.cov(place.mT).reshape(len(self.mean), -1)
        self.factor = torch.linalg.cholesky(covariance + 1e-8 * torch.eye(len(self.mean), dtype=torch.float64))
        self.far = torch.ones((), dtype=torch.float64)
        self.far = self.distance(units).quantile(RARE)

    def distance(self, units: Units) -> Float[Tensor, "*batch"]:
        """Mahalanobis distance of priors, in units of the distance that all but 1 in 1,000 of training stay within."""
        apart = (_place(units) - self.mean).unsqueeze(-1)
        return torch.linalg.solve_triangular(self.factor, apart, upper=False).squeeze(-1).norm(dim=-1) / self.far

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(lambda value: value.to(fn(value).device), recurse)  # as exact as they were
        return self


def _place(units: Units) -> Float[Tensor, "*batch numbers"]:
    return torch.cat([units.loc, units.scale.log()], -1).double()


def _checked_draws(prior: Any, family: Family, components: int) -> Float[Tensor, "*batch n latents"]:
    draws = check_inputs(prior, family.latents, name="prior").double()
    if draws.shape[-2] < FEWEST * components:
        raise ValueError(
            f"prior must hold at least {FEWEST * components} draws for {components} components, got {draws.shape[-2]}; "
            "draw more, or give the distribution"
        )
    found = unconstrained(draws, family.supports)
    if not found.isfinite().all():
        raise ValueError(
            f"prior must hold draws within the bounds of the latent variables {', '.join(family.supports)}, "
            "positive draws of positive ones, got some at a bound or beyond"
        )
    if (found.std(-2) == 0).any():
        raise ValueError("prior must hold draws that differ, got a latent variable that is always the same")
    return found


def _as_mixture(prior: Any, family: Family) -> Parts | None:
    """A Gaussian mixture over unconstrained latent variables, if the prior is one."""
    if isinstance(prior, GaussianMixture):
        if prior.supports != tuple(family.supports):
            raise ValueError(f"the prior must have the latent variables {family.supports}, got {prior.supports}")
        return Parts(prior.logits, prior.loc, prior.scale_tril)
    if set(family.supports) != {"real"} or not isinstance(prior, td.Distribution):
        return None
    if isinstance(prior, td.Independent) and isinstance(prior.base_dist, td.Normal):
        prior = td.MultivariateNormal(prior.mean, scale_tril=torch.diag_embed(prior.stddev))
    if isinstance(prior, td.MultivariateNormal):
        loc, tril = prior.loc.unsqueeze(-2), prior.scale_tril.unsqueeze(-3)
        parts = Parts(torch.zeros_like(loc[..., 0]), loc, tril)
    elif isinstance(prior, td.MixtureSameFamily) and isinstance(prior.component_distribution, td.MultivariateNormal):
        members = prior.component_distribution
        parts = Parts(prior.mixture_distribution.logits, members.loc, members.scale_tril)
    elif isinstance(family, Parametric):
        return None
    else:
        raise ValueError(
            f"the prior must be a multivariate normal, a mixture of them, or draws, got {type(prior).__name__}"
        )
    if parts.loc.shape[-1] != family.latents:
        raise ValueError(f"the prior must have {family.latents} latent variables, got {parts.loc.shape[-1]}")
    GaussianMixture(*parts)  # which refuses what is not finite
    return parts


def packaged(description: dict[str, Any]) -> Any:
    """The family of the package `priors` that a file names: the one place where the library looks there."""
    try:
        return build_prior(description, importlib.import_module("priors"))
    except ValueError as error:
        raise ValueError(
            f"the family is none of the package's ({error}); give it with load(path, net=family)"
        ) from None
