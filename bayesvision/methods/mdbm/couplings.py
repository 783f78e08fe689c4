"""Interactions of a monotone Boltzmann machine: symmetric, and bounded so that mean field has one fixed point."""

import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.methods.mdbm.activation import CURVATURE

__all__ = ["DenseCoupling", "bounded_blocks"]


def bounded_blocks(blocks: Float[Tensor, "groups rank levels"], margin: float) -> Float[Tensor, "groups rank levels"]:
    """Each block scaled, where it has to be, to a spectral norm of at most sqrt(2 - margin).

    The scale is that of a whole block: A_i^T A_j stays what it is but for a number, so Phi stays symmetric.
    """
    largest = torch.linalg.eigvalsh((blocks.mT @ blocks).double())[..., -1].to(blocks)
    most = CURVATURE - margin
    scale = (most / largest.clamp(min=max(most, 1e-12))).sqrt()
    return blocks * scale.unsqueeze(-1).unsqueeze(-1)


class DenseCoupling:
    """Phi = blkdiag(A^T A) - A^T A of the columns A = (A_1, ..., A_n), a block a group, each with ||A_i||^2 <= 2 - m.

    Then 2 I - Phi = 2 I - blkdiag(A_i^T A_i) + A^T A >= m I, also for a part of the groups; arXiv 2307.04990, section
    3.1, has 1 for 2, which is half of what the entropy allows (see `activation`).

    Args:
        blocks: A_i, already bounded.
        margin: m.
    """

    def __init__(self, blocks: Float[Tensor, "groups rank levels"], margin: float) -> None:
        self.blocks, self.margin = blocks, margin
        self.own = blocks.mT @ blocks  # A_i^T A_i

    def __call__(self, z: Float[Tensor, "*batch groups levels"]) -> Float[Tensor, "*batch groups levels"]:
        """Phi z: every block sees the sum over all others."""
        whole = torch.einsum("grl,...gl->...r", self.blocks, z)
        mine = torch.einsum("gkl,...gl->...gk", self.own, z)
        return mine - torch.einsum("grl,...r->...gl", self.blocks, whole)

    def matrix(self) -> Float[Tensor, "n n"]:
        """Phi itself, for small machines."""
        groups, _, levels = self.blocks.shape
        columns = torch.eye(groups * levels, dtype=self.blocks.dtype, device=self.blocks.device)
        return self(columns.reshape(-1, groups, levels)).flatten(1)
