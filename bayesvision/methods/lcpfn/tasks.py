"""Batches of curves drawn from a prior, with the prefixes and the rows to predict from each."""

import math
from typing import Any

import torch
from torch import Tensor

from bayesvision.core.checks import draw
from bayesvision.core.roles import Prior
from bayesvision.training.seeds import generator

__all__ = ["TaskStream"]

EMPTY = 8  # of so many prefixes one more is empty, so that the prior predictive is learned too
PAST = 0.05  # fraction of the targets at any epoch, so that epochs already seen can be asked for as well


class TaskStream:
    """The endless stream of curves of one run: micro-batch j of step i is a pure function of (seed, i, j)."""

    def __init__(self, method: Any, prior: Prior) -> None:
        self.method, self.prior = method, prior
        self.device = method.train.execution.pick_device()

    def sizes(self, step: int) -> tuple[int, int]:
        """Curves of a micro-batch and their rows."""
        least, most = self.method.rows
        u = torch.rand((), generator=generator("cpu", self.method.train.seed, step, 1 << 32), dtype=torch.float64)
        rows = int(math.exp(math.log(least) + float(u) * math.log((most + 1) / least)))
        rows = min(rows, most)
        part = self.method.train.batch // self.method.train.accumulate
        return min(4 * part, part * most // rows), rows

    def curves(self) -> int:
        """Curves of the whole run."""
        train = self.method.train
        return sum(self.sizes(step)[0] for step in range(train.steps)) * train.accumulate

    def batch(self, step: int, part: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Epochs and values of whole curves; for every prefix its length and the rows to predict from it."""
        method, (size, rows) = self.method, self.sizes(step)
        source = generator(self.device, method.train.seed, step, part)
        task = draw(self.prior, size, rows, source, (step, part), features=1)
        prefixes = torch.arange(rows, device=self.device)
        # the empty prefix and the short ones once more: they are few, and there is most to learn from each
        prefixes = torch.cat([prefixes.new_zeros(-(-rows // EMPTY)), prefixes[: rows // 3], prefixes])
        shape = 2, size, len(prefixes), method.targets
        u = torch.rand(shape, generator=source, device=self.device, dtype=torch.float32)
        least = prefixes.unsqueeze(-1) * (u[1] >= PAST)
        targets = least + (u[0] * (rows - least)).long()
        return task.x[..., 0].float(), task.y.float(), prefixes, targets.clamp(max=rows - 1)
