"""The update of normals by observations that are linearised about them: what is known in closed form is not learned."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Base", "Linearized", "updated"]

CLIPPED = 6.0  # standard deviations of an observation beyond which it pulls no harder


@runtime_checkable
class Linearized(Protocol):
    """A family whose observations can be linearised about a normal prior."""

    def linearized(self, x: Tensor, y: Tensor, loc: Tensor, tril: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes g [*batch, rows, latents] and residuals e [*batch, rows] of e = g^T u + N(0, 1).

        u = tril^-1 (theta - loc) is standard normal under the prior N(loc, tril tril^T).
        """
        ...


class Base(NamedTuple):
    """What observations make of N(0, I).

    Attributes:
        logits: log evidence, but for a constant.
        loc: mean.
        tril: Cholesky factor of the covariance.
    """

    logits: Float[Tensor, "..."]
    loc: Float[Tensor, "... latents"]
    tril: Float[Tensor, "... latents latents"]


def updated(
    slopes: Float[Tensor, "*batch rows latents"],
    residuals: Float[Tensor, "*batch rows"],
    trust: Float[Tensor, "*batch rows"],
) -> Base:
    """The posterior of u ~ N(0, I) given e_i = g_i^T u + N(0, 1 / w_i) with the trust w_i in each observation.

    The precision is A = I + sum_i w_i g_i g_i^T, the mean m = A^-1 sum_i w_i e_i g_i, and the log evidence, up to a
    constant, -(sum_i w_i e_i^2 - m^T A m + log det A - sum_i log w_i) / 2 (Bishop 2006, eqs. 3.50-3.51 and 3.86). In
    float64, where A, at least I, always has a Cholesky factor.
    """
    g, e, w = slopes.double(), residuals.double(), trust.double()
    most = CLIPPED * (1 + g.square().sum(-1)).sqrt()
    e = torch.minimum(torch.maximum(e, -most), most)
    weighted = w.unsqueeze(-1) * g
    eye = torch.eye(g.shape[-1], dtype=g.dtype, device=g.device)
    upper = torch.linalg.cholesky((eye + weighted.mT @ g).flip(-1, -2)).flip(-1, -2)  # A = U U^T, A^-1 = U^-T U^-1
    tril = torch.linalg.solve_triangular(upper.mT, eye.expand(upper.shape), upper=False)
    pull = (tril.mT @ (weighted.mT @ e.unsqueeze(-1))).squeeze(-1)
    loc = (tril @ pull.unsqueeze(-1)).squeeze(-1)
    missed = (w * e.square() - w.log()).sum(-1) - pull.square().sum(-1)
    logits = -missed / 2 - upper.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return Base(logits, loc, tril)
