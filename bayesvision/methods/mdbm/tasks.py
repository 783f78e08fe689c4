"""Rows of levels with random masks, and their loss."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bayesvision.core.checks import check_inputs
from bayesvision.training.batches import places
from bayesvision.training.seeds import generator

__all__ = ["MaskedBatch", "MaskedRows", "checked_codes", "loss"]

LOOSE = (1e-1, 1e-3)  # distance to the fixed point in training, at its start and at its end
MOST_LEVELS = 256  # of a variable


class MaskedBatch(NamedTuple):
    """Rows, which of their cells are observed, which are asked, and how exactly."""

    codes: Float[Tensor, "rows variables"]
    known: Bool[Tensor, "rows variables"]
    asked: Bool[Tensor, "rows variables"]
    tolerance: float


class MaskedRows:
    """Mini-batches of the data with random masks: batch i is a pure function of (seed, i)."""

    def __init__(self, codes: Float[Tensor, "rows variables"], method: Any) -> None:
        self.train, self.method = method.train, method
        self.device = method.train.execution.pick_device()
        self.codes = codes.to(self.device)
        self.size = method.train.batch // method.train.accumulate

    def batch(self, step: int, micro_batch: int) -> MaskedBatch:
        number = step * self.train.accumulate + micro_batch
        codes = self.codes[places(self.train.seed, number, self.size, len(self.codes)).to(self.device)]
        rng = generator(self.device, self.train.seed, step, micro_batch)
        low, high = self.method.observed
        share = low + (high - low) * torch.rand(len(codes), 1, generator=rng, device=self.device)
        there = ~codes.isnan()
        known = there & (torch.rand(codes.shape, generator=rng, device=self.device) < share)
        if self.method.label is not None:
            known[:, self.method.label] &= torch.rand(len(codes), generator=rng, device=self.device) < 0.1
        first, last = LOOSE
        return MaskedBatch(
            codes, known, there & ~known, first * (last / first) ** (step / max(1, self.train.steps - 1))
        )


def loss(posterior: Any, batch: MaskedBatch) -> Float[Tensor, ""]:
    """-log q of the cells that are asked, per cell; the label's counts as much as all others."""
    q, _ = posterior.field(batch.codes, batch.known, batch.tolerance)
    codes = torch.where(batch.codes.isnan(), 0.0, batch.codes).long().unsqueeze(-1)
    losses = -q[:, : codes.shape[1]].gather(-1, codes).squeeze(-1).clamp(min=1e-12).log()
    losses = torch.where(batch.asked, losses, 0.0)
    label = posterior.method.label
    if label is None:
        return losses.sum() / batch.asked.sum().clamp(min=1)
    others = torch.ones_like(batch.asked[0]).index_fill(0, torch.tensor([label], device=losses.device), False)
    mean = [(losses[:, part].sum() / batch.asked[:, part].sum().clamp(min=1)) for part in (others, ~others)]
    return (mean[0] + mean[1]) / 2


def checked_codes(rows: Any, levels: tuple[int, ...] | None, columns: tuple[str, ...] | None) -> Tensor:
    """Whole numbers [rows, variables] in float64, NaN where unknown."""
    codes = check_inputs(rows, None if levels is None else len(levels), columns, "rows", missing=True).double()
    there = torch.where(codes.isnan(), 0.0, codes)
    top = torch.tensor([MOST_LEVELS] * codes.shape[-1] if levels is None else levels)
    wrong = (there != there.round()) | (there < 0) | (there >= top)
    if wrong.any():
        row, column = (int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"rows must hold levels 0 to {int(top[column]) - 1} of variable {column} as whole numbers, "
            f"got {float(codes[row, column]):g} in row {row}; number the categories first"
        )
    return codes
