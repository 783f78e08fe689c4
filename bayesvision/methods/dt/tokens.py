"""Mixtures as numbers for the network and back, in units of the prior."""

from typing import NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Parts", "Units"]

FLOOR = 1e-3  # of a standard deviation, in units of the prior's
REACH = 6.0  # of log standard deviations
APART = 0.3  # deviations between copies of a component


class Parts(NamedTuple):
    """Gaussian mixtures: logits, means and Cholesky factors."""

    logits: Float[Tensor, "*batch components"]
    loc: Float[Tensor, "*batch components latents"]
    scale_tril: Float[Tensor, "*batch components latents latents"]

    def moments(self) -> "Units":
        """Mean and standard deviation of every latent variable."""
        weights = self.logits.softmax(-1).unsqueeze(-1)
        mean = (weights * self.loc).sum(-2)
        variance = self.scale_tril.square().sum(-1) + (self.loc - mean.unsqueeze(-2)).square()
        return Units(mean, (weights * variance).sum(-2).sqrt())

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
    """Location and scale of the prior, [*batch, latents] each: what the network sees is relative to them."""

    loc: Tensor
    scale: Tensor

    def standardized(self, values: Float[Tensor, "*batch n latents"]) -> Float[Tensor, "*batch n latents"]:
        """Values in these units."""
        return (values - self.loc.unsqueeze(-2)) / self.scale.unsqueeze(-2)

    def numbers(self, parts: Parts) -> Float[Tensor, "*batch components shape"]:
        """Log weight, mean, log diagonal and other entries of the Cholesky factor of every component."""
        d = parts.loc.shape[-1]
        loc = self.standardized(parts.loc)
        tril = parts.scale_tril / self.scale[..., None, :, None]
        rows, columns = torch.tril_indices(d, d, -1, device=loc.device)
        logits = parts.logits.log_softmax(-1).clamp(min=-20.0)
        diagonal = tril.diagonal(dim1=-2, dim2=-1).clamp(min=1e-12).log()
        return torch.cat([logits.unsqueeze(-1) / 3, loc, diagonal, tril[..., rows, columns]], -1)

    def parts(self, raw: Float[Tensor, "*batch components shape"]) -> Parts:
        """The mixture that the network's numbers tell: weights by softmax, factors with exp + floor on the diagonal."""
        d = self.loc.shape[-1]
        logits, loc, diagonal, lower = raw.split([1, d, d, d * (d - 1) // 2], -1)
        tril = torch.diag_embed(diagonal.clamp(-REACH, REACH).exp() + FLOOR)
        rows, columns = torch.tril_indices(d, d, -1, device=raw.device)
        place = raw.new_zeros(len(rows), d * d)
        place[torch.arange(len(rows)), rows * d + columns] = 1.0
        tril = tril + (lower @ place).unflatten(-1, (d, d))
        loc = self.loc.unsqueeze(-2) + self.scale.unsqueeze(-2) * loc
        return Parts(logits.squeeze(-1), loc, self.scale[..., None, :, None] * tril)
