"""Mixtures as numbers for the network and back, in units of the prior."""

from typing import NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.methods.dt.linearized import Base

__all__ = ["Parts", "Units", "revised"]

FLOOR = 1e-3  # of a standard deviation, in units of the prior's
REACH = 6.0  # of log standard deviations
APART = 0.3  # deviations between copies of a component
LIGHTEST = 30.0  # minus log weight of a component that counts


class Parts(NamedTuple):
    """Gaussian mixtures: logits, means and Cholesky factors."""

    logits: Float[Tensor, "*batch components"]
    loc: Float[Tensor, "*batch components latents"]
    scale_tril: Float[Tensor, "*batch components latents latents"]

    def moments(self) -> "Units":
        """Mean and Cholesky factor of the covariance of the latent variables."""
        weights = self.logits.softmax(-1)
        mean = (weights.unsqueeze(-1) * self.loc).sum(-2)
        apart = (self.loc - mean.unsqueeze(-2)).unsqueeze(-1)
        covariance = (weights[..., None, None] * (self.scale_tril @ self.scale_tril.mT + apart @ apart.mT)).sum(-3)
        return Units(mean, torch.linalg.cholesky(covariance))

    def each(self) -> "Units":
        """Mean and Cholesky factor of every component."""
        return Units(self.loc, self.scale_tril)

    def detach(self) -> Self:
        """The same numbers without their gradients."""
        return type(self)(*(value.detach() for value in self))

    def filled(self, components: int) -> Self:
        """The same mixture, nearly, of exactly so many components: identical tokens would never part.

        The heaviest ones are split into copies with weights in the proportion 1 : 2 : ..., their means moved apart a
        little along the Cholesky factor. Components of no weight are dropped first.
        """
        k = self.logits.shape[-1]
        order = self.logits.argsort(-1, descending=True)
        copies = [components // k + (i < components % k) for i in range(k)]
        source = torch.tensor([i for i, n in enumerate(copies) for _ in range(n)], device=self.loc.device)
        number = torch.tensor([j for n in copies for j in range(n)], device=self.loc.device)
        of = torch.tensor([n for n in copies for _ in range(n)], device=self.loc.device)
        alive = self.logits.isfinite()
        heaviest = order[..., :1]
        order = torch.where(alive.gather(-1, order), order, heaviest)[..., source]
        first = (order == heaviest) & (source != 0)  # copies of the heaviest in place of what has no weight
        share = (2 * (number + 1) / (of * (of + 1))).log().to(self.logits)
        logits = self.logits.gather(-1, order) + share - 2.0 * first.to(share)
        loc = self.loc.gather(-2, order.unsqueeze(-1).expand(*order.shape, self.loc.shape[-1]))
        place = order[..., None, None].expand(*order.shape, *self.scale_tril.shape[-2:])
        tril = self.scale_tril.gather(-3, place)
        generator = torch.Generator().manual_seed(components)
        side = torch.randn(components, self.loc.shape[-1], 1, generator=generator, dtype=torch.float64).to(loc)
        several = ((of > 1) | first).unsqueeze(-1).to(tril)
        moved = loc + APART * several * (tril @ side).squeeze(-1)
        return type(self)(logits, moved, tril)


class Units(NamedTuple):
    """Mean and Cholesky factor of the covariance of a prior: what the network sees is relative to them.

    Attributes:
        loc: the mean.
        tril: the factor.
    """

    loc: Float[Tensor, "*batch latents"]
    tril: Float[Tensor, "*batch latents latents"]

    @property
    def scale(self) -> Float[Tensor, "*batch latents"]:
        """Standard deviations."""
        return self.tril.square().sum(-1).sqrt()

    def standardized(self, values: Float[Tensor, "*batch n latents"]) -> Float[Tensor, "*batch n latents"]:
        """Values in these units, of mean 0 and covariance I under the prior."""
        apart = (values - self.loc.unsqueeze(-2)).mT
        return torch.linalg.solve_triangular(self.tril, apart, upper=False).mT

    def numbers(self, parts: Parts) -> Float[Tensor, "*batch components shape"]:
        """Log weight, mean, log diagonal and other entries of the Cholesky factor of every component."""
        d = parts.loc.shape[-1]
        loc = self.standardized(parts.loc)
        tril = torch.linalg.solve_triangular(self.tril.unsqueeze(-3), parts.scale_tril, upper=False)
        rows, columns = torch.tril_indices(d, d, -1, device=loc.device)
        logits = parts.logits.log_softmax(-1).clamp(min=-20.0)
        diagonal = tril.diagonal(dim1=-2, dim2=-1).clamp(min=1e-12).log()
        return torch.cat([logits.unsqueeze(-1) / 3, loc, diagonal, tril[..., rows, columns]], -1)

    def copies(self, count: int) -> Parts:
        """As many normals with this mean and covariance, equally heavy."""
        shape = (*self.loc.shape[:-1], count)
        loc = self.loc.unsqueeze(-2).expand(*shape, self.loc.shape[-1])
        return Parts(loc.new_zeros(shape), loc, self.tril.unsqueeze(-3).expand(*shape, *self.tril.shape[-2:]))


def revised(prior: Parts, raw: Float[Tensor, "*batch components shape"], base: Base | None = None) -> Parts:
    """What the network's numbers make of every component, in units of its linear update `base`, or of its own.

    Weights by softmax, Cholesky factors with exp + floor on the diagonal.
    """
    logits, loc, tril = _told(raw, prior.loc.shape[-1])
    if base is not None:
        logits = logits + base.logits
        loc = base.loc + (base.tril @ loc.unsqueeze(-1)).squeeze(-1)
        tril = base.tril @ tril
    moved = (prior.scale_tril @ loc.unsqueeze(-1)).squeeze(-1)
    weights = prior.logits.log_softmax(-1).clamp(min=-LIGHTEST)
    return Parts(weights + logits, prior.loc + moved, prior.scale_tril @ tril)


def _told(raw: Float[Tensor, "*batch components shape"], d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, means and Cholesky factors."""
    logits, loc, diagonal, lower = raw.split([1, d, d, d * (d - 1) // 2], -1)
    tril = torch.diag_embed(diagonal.clamp(-REACH, REACH).exp() + FLOOR)
    rows, columns = torch.tril_indices(d, d, -1, device=raw.device)
    place = raw.new_zeros(len(rows), d * d)
    place[torch.arange(len(rows)), rows * d + columns] = 1.0
    return logits.squeeze(-1), loc, tril + (lower @ place).unflatten(-1, (d, d))
