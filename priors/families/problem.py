"""`Problem`: a batch of inference problems drawn from a family."""

from typing import Any, NamedTuple

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Generator, Tensor

from priors.draws import Draws

__all__ = ["MixtureParameters", "Problem", "Seen", "random_factors"]

Seen = tuple[Tensor, Tensor] | None  # x and y of observations before


class MixtureParameters(NamedTuple):
    """Gaussian mixtures over the latent variables.

    Attributes:
        logits: unnormalised log weights.
        loc: means.
        scale_tril: Cholesky factors of the covariances.
    """

    logits: Float[Tensor, "... components"]
    loc: Float[Tensor, "... components latents"]
    scale_tril: Float[Tensor, "... components latents latents"]

    def distribution(self) -> td.MixtureSameFamily:
        """The mixtures in float64."""
        logits, loc, tril = (value.double() for value in self)
        parts = td.MultivariateNormal(loc, scale_tril=tril, validate_args=False)
        return td.MixtureSameFamily(td.Categorical(logits=logits), parts, validate_args=False)

    def draw(self, draws: Draws) -> Float[Tensor, "batch latents"]:
        """One draw from each mixture of a batch."""
        mass = self.logits.softmax(-1).cumsum(-1)
        member = torch.searchsorted(mass, draws.uniform(1).to(mass)).clamp(max=mass.shape[-1] - 1).unsqueeze(-1)
        d = self.loc.shape[-1]
        loc = self.loc.gather(1, member.expand(-1, 1, d)).squeeze(1)
        tril = self.scale_tril.gather(1, member.unsqueeze(-1).expand(-1, 1, d, d)).squeeze(1)
        return loc + (tril @ draws.normal(d, 1).to(tril)).squeeze(-1)

    def draws(self, count: int, generator: Generator) -> Float[Tensor, "batch count latents"]:
        """Several draws from each mixture of a batch."""
        repeated = MixtureParameters(*(value.repeat_interleave(count, 0) for value in self))
        found = repeated.draw(Draws(len(repeated.loc), generator))
        return found.unflatten(0, (-1, count))


def random_factors(draws: Draws, components: int, latents: int) -> Float[Tensor, "batch components latents latents"]:
    """Cholesky factors of G G^T + s I, from nearly independent to nearly degenerate, of deviations about 1."""
    g = draws.normal(components, latents, latents) / latents**0.5 * draws.uniform(1, 1, 1)
    eye = torch.eye(latents, device=g.device, dtype=torch.float32)
    return torch.linalg.cholesky(g @ g.mT + draws.log_uniform(1, 1, 1, low=0.1, high=1.0) * eye)


class Problem(NamedTuple):
    """A batch of problems, each with a prior of its own.

    Attributes:
        x: designs of the observations; no columns where an observation has none.
        y: what was observed.
        theta: the latent variables behind it.
        prior: the family that drew the batch.
        hyper: what tells each prior, for families with a parametric kind of their own; None otherwise.
        mixture: each prior as a Gaussian mixture, for families of these; None otherwise.
        draws: draws from each prior, for families whose priors have no other form; None otherwise.
    """

    x: Float[Tensor, "batch rows features"]
    y: Float[Tensor, "batch rows"]
    theta: Float[Tensor, "batch latents"]
    prior: Any = None
    hyper: Float[Tensor, "batch hyper"] | None = None
    mixture: MixtureParameters | None = None
    draws: Float[Tensor, "batch n latents"] | None = None
