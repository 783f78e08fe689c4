"""Rows of levels with random masks, and what training minimises."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bayesvision.core.checks import check_count
from bayesvision.core.recipes import convert_fields
from bayesvision.methods.mdbm.inference import Exactness, elbo
from bayesvision.methods.mdbm.machine import Machine
from bayesvision.training.batches import places
from bayesvision.training.seeds import generator
from bayesvision.training.train import Train

__all__ = ["Learning", "MaskedBatch", "MaskedRows"]

LOOSE = (Exactness(0.3, 24, 3e-2), Exactness(0.03, 60, 1e-2))  # in training, at its start and at its end
TOLD = 0.1  # share of the rows whose label is observed
LEAST = 1e-12  # probability


@dataclass(frozen=True)
class Learning:
    """What all recipes of the method share: the machine's hidden side, and what it is trained for.

    Args:
        hidden: numbers of hidden variables, layer by layer.
        states: levels of each of them.
        margin: m of the strong concavity of mean field, in (0, 2]; 2 is no interaction, and 1 + m is the m of the
            paper.
        observed: least and largest share of a row that training observes.
        objective: `conditional`, the log-likelihood of what is not observed under the mean field (section 4.3), or
            `variational`, the mean-field bound of the log-likelihood of whole rows less that of the normaliser.
        focal: exponent gamma of the weights (1 - q)^gamma of the cells' log-likelihoods (Lin et al. 2017); 0 for none.
        balanced: whether every class of the label counts the same, whatever its share.
        train: how to train; `train.batch` counts rows.
    """

    hidden: tuple[int, ...] = ()
    states: int = 2
    margin: float = 0.05
    observed: tuple[float, float] = (0.1, 0.9)
    objective: Literal["conditional", "variational"] = "conditional"
    focal: float = 0.0
    balanced: bool = False
    train: Train = field(default_factory=lambda: Train(steps=500, batch=128, lr=1e-2))

    def __post_init__(self) -> None:
        convert_fields(self)
        check_count("states", self.states, 2)
        for count in self.hidden:
            check_count("hidden", count)
        if not 0 < self.margin <= 2:
            raise ValueError(f"margin must lie in (0, 2], got {self.margin}")
        low, high = self.observed
        if not 0 <= low <= high <= 1 or low == 1:
            raise ValueError(f"observed must be two shares 0 <= low <= high <= 1, low below 1, got {self.observed}")
        if not 0 <= self.focal <= 10:
            raise ValueError(f"focal must lie between 0 and 10, got {self.focal}")


class MaskedBatch(NamedTuple):
    """Rows, what is seen of them (NaN elsewhere), which of their cells are asked, and how exactly to answer."""

    codes: Float[Tensor, "rows variables"]
    seen: Float[Tensor, "rows variables"]
    asked: Bool[Tensor, "rows variables"]
    exactness: Exactness


class MaskedRows:
    """Mini-batches of the data with random masks: batch i is a pure function of (seed, i).

    Args:
        codes: levels, NaN where unknown.
        method: the recipe.
        label: number of the variable that counts as much as all others together; None if none does.
        grid: height and width of images, whose pixels come first; half of their masks are rectangles.
    """

    def __init__(
        self,
        codes: Float[Tensor, "rows variables"],
        method: Learning,
        label: int | None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        self.train, self.method, self.label, self.grid = method.train, method, label, grid
        self.device = method.train.execution.pick_device()
        self.codes = codes.to(self.device)
        self.size = method.train.batch // method.train.accumulate
        self.weights = None
        if method.balanced and label is not None:
            told = codes[~codes[:, label].isnan(), label].long()
            tally = torch.bincount(told, minlength=1).to(torch.float32).clamp(min=1)
            self.weights = (tally.mean() / tally).to(self.device)

    def batch(self, step: int, micro_batch: int) -> MaskedBatch:
        """Rows of a step."""
        number = step * self.train.accumulate + micro_batch
        codes = self.codes[places(self.train.seed, number, self.size, len(self.codes)).to(self.device)]
        rng = generator(self.device, self.train.seed, step, micro_batch)
        low, high = self.method.observed
        share = low + (high - low) * self._uniform((len(codes), 1), rng)
        there = ~codes.isnan()
        known = self._uniform(codes.shape, rng) < share
        if self.grid is not None:
            known = self._rectangles(known, share, rng)
        if self.label is not None:
            known[:, self.label] = self._uniform((len(codes),), rng) < TOLD
        done = step / max(1, self.train.steps - 1)
        exactness = (a * (b / a) ** done for a, b in zip(*LOOSE, strict=True))
        tolerance, most, gradient = exactness
        seen = codes.masked_fill(~known, torch.nan)
        return MaskedBatch(codes, seen, there & ~known, Exactness(tolerance, int(most), gradient))

    def _uniform(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        return torch.rand(shape, generator=rng, device=self.device, dtype=torch.float32)

    def _rectangles(self, known: Tensor, share: Tensor, rng: torch.Generator) -> Tensor:
        """In every second row a rectangle of the same area is hidden in place of single pixels, or all but one."""
        height, width = self.grid or (1, 1)
        u = self._uniform((5, len(known), 1), rng)
        turned = u[4] < 0.5
        area = torch.where(turned, share, 1 - share).clamp(min=0.02)
        tall = (area ** (0.2 + 0.6 * u[0])).clamp(max=1)
        wide = (area / tall).clamp(max=1)
        top, left = u[1] * (1 - tall), u[2] * (1 - wide)
        y = (torch.arange(height, device=self.device, dtype=torch.float32) + 0.5).repeat_interleave(width) / height
        x = (torch.arange(width, device=self.device, dtype=torch.float32) + 0.5).repeat(height) / width
        inside = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
        pixels = known.shape[1] // (height * width)
        block = torch.where(turned, inside, ~inside).repeat(1, pixels)
        chosen = torch.where(u[3] < 0.5, block, known[:, : block.shape[1]])
        return torch.cat([chosen, known[:, block.shape[1] :]], 1)

    def loss(self, machine: Machine, batch: MaskedBatch) -> Float[Tensor, ""]:
        """-log q of the cells that are asked, per cell; the label's counts as much as all others."""
        if self.method.objective == "variational":
            return _variational(machine, batch) / batch.codes.shape[1]
        q, _ = machine.field(batch.seen, batch.exactness)
        codes = torch.where(batch.codes.isnan(), 0.0, batch.codes).long()
        chance = machine.marginals(q).gather(-1, codes.unsqueeze(-1)).squeeze(-1).clamp(min=LEAST)
        losses = -chance.log() * (1 - chance) ** self.method.focal
        losses, asked = torch.where(batch.asked, losses, 0.0), batch.asked.to(losses.dtype)
        if self.label is None:
            return losses.sum() / asked.sum().clamp(min=1)
        if self.weights is not None:
            weight = self.weights[codes[:, self.label]]
            losses[:, self.label], asked[:, self.label] = (v[:, self.label] * weight for v in (losses, asked))
        is_label = torch.arange(codes.shape[1], device=codes.device) == self.label
        means = [losses[:, part].sum() / asked[:, part].sum().clamp(min=1) for part in (~is_label, is_label)]
        return (means[0] + means[1]) / 2


def _variational(machine: Machine, batch: MaskedBatch) -> Float[Tensor, ""]:
    """Mean of E with nothing seen less E with the whole row seen, whose derivatives pass the maximum by."""
    bounded = machine.bounded()
    nothing = torch.full_like(batch.codes[:1], torch.nan)
    with torch.no_grad():
        q, _ = machine.field(torch.cat([nothing, batch.codes]), batch.exactness, bounded)
    bounds = elbo(bounded.coupling, machine.bias, q)
    return bounds[0] - bounds[1:].mean()
