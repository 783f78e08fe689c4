"""Batches of curves drawn from a prior, with the prefixes and the rows to predict from each, and the loss of these."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.core.checks import draw
from bayesvision.core.roles import Prior
from bayesvision.methods.lcpfn.tokens import START, _questions, _tokens
from bayesvision.training.seeds import generator

__all__ = ["TaskStream", "loss"]

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


def loss(posterior: Any, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Float[Tensor, ""]:
    """-log q of the rows to predict from each prefix, in the mean."""
    t, y, prefixes, targets = batch
    last_t, last_y = (torch.cat([torch.full_like(v[:, :1], START), v], -1)[:, prefixes].unsqueeze(-1) for v in (t, y))
    asked_t, asked_y = (v.gather(1, targets.flatten(1)).view(targets.shape) for v in (t, y))
    states, _ = posterior.network.encode(_tokens(t[:, :-1], y[:, :-1]))
    raw = posterior.network.read(states[:, prefixes].unsqueeze(-2), _questions(asked_t, last_t))
    return -posterior.head(raw.float(), last_y).log_prob(asked_y).mean()
