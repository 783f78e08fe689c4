"""Batches of tasks drawn from a prior, as the network takes them."""

import math
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import one_hot, pad

from bayesvision.core.checks import check_classes, draw
from bayesvision.core.roles import Prior
from bayesvision.core.standardize import Standardization
from bayesvision.distributions import Bar
from bayesvision.training.seeds import generator

__all__ = ["TaskStream", "context_inputs", "network_inputs", "network_targets"]

EMPTY = 0.1  # probability of an empty context, so that the prior predictive is learned too
TARGETS = 1_000_000  # sample that the borders are quantiles of
SPLITS = 256  # splits that it is drawn over
QUERIES = 16  # minimum number of queries of a training task
FAR = 1e12  # in the network's scaler; beyond, squares in its norms overflow float32, and nothing there was trained


def network_inputs(
    x: Float[Tensor, "*batch rows given"], scaler: Standardization, features: int, used: Tensor | int | None = None
) -> Float[Tensor, "*batch rows features"]:
    """Columns as the network takes them: standardised, scaled by features / used, and padded with zeros.

    `used` counts the columns that are not padding already; all that are given when left out.
    """
    given = x.shape[-1]
    scaled = scaler.inputs(x) * (features / (given if used is None else used))
    return pad(scaled.clamp(-FAR, FAR), (0, features - given))


def context_inputs(
    x: Float[Tensor, "*batch rows given"], seen: Float[Tensor, "*seen n given"], scaler: Standardization, features: int
) -> Float[Tensor, "*batch rows features"]:
    """`network_inputs` where columns that do not vary in the context `seen` count no more than those not given."""
    varies = torch.ones_like(seen[..., :1, :], dtype=torch.bool)
    if seen.shape[-2] > 1:
        varies = (seen != seen[..., :1, :]).any(-2, keepdim=True)
    if bool(varies.all()):
        return network_inputs(x, scaler, features)
    order = (~varies).to(torch.int8).argsort(dim=-1, stable=True)  # those that vary first, as in training
    used = varies.sum(-1, keepdim=True).clamp(min=1).to(x)
    scaled = torch.where(varies, scaler.inputs(x), 0.0).gather(-1, order.expand(x.shape)) * (features / used)
    return pad(scaled.clamp(-FAR, FAR), (0, features - x.shape[-1]))


def network_targets(
    y: Shaped[Tensor, "*batch rows"], scaler: Standardization, classes: int | None
) -> Float[Tensor, "*batch rows targets"]:
    """Targets as the network takes them: standardised, or a class as a one-hot vector."""
    if classes is not None:
        return one_hot(y, classes).to(scaler.y_loc.dtype)
    return scaler.targets(y).clamp(-FAR, FAR).unsqueeze(-1)


class TaskStream:
    """The endless stream of tasks of one run: micro-batch j of step i is a pure function of (seed, i, j)."""

    def __init__(self, method: Any, prior: Prior) -> None:
        self.method, self.prior = method, prior
        self.device = method.train.execution.pick_device()

    def sizes(self, step: int) -> tuple[int, int, int]:
        """Data sets of a micro-batch, their rows, and how many rows are context: one split for the whole step."""
        method, most = self.method, self.method.context
        source = generator("cpu", method.train.seed, step, 1 << 32)
        empty, u = torch.rand(2, generator=source, dtype=torch.float64).tolist()
        context = 0 if empty < EMPTY else min(most, int((most + 1) ** u))
        rows = context + max(context, QUERIES)
        part = method.train.batch // method.train.accumulate
        return min(8 * part, max(part, part * 2 * most // rows)), rows, context

    def tasks(self) -> int:
        """Data sets of the whole run."""
        train = self.method.train
        return sum(self.sizes(step)[0] for step in range(train.steps)) * train.accumulate

    def batch(self, step: int, part: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Network inputs of one micro-batch, context x and y and query x, and the targets as the head takes them."""
        return self._draw(step, part, self.device, self.sizes(step)[0])

    def _draw(
        self, step: int, part: int, device: torch.device | str, size: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        method = self.method
        _, rows, context = self.sizes(step)
        task = draw(self.prior, size, rows, generator(device, method.train.seed, step, part), (step, part))
        x, y = task.x, task.y
        x = x if x.dtype == torch.float64 else x.float()  # narrowed once it is standardised
        if x.shape[-1] > method.features:
            raise ValueError(f"features={method.features} is less than the {x.shape[-1]} columns that the prior draws")
        if method.classes is not None:
            y = check_classes(y, x, method.classes, "the prior's y")
        elif y.dtype != torch.float64:
            y = y.float()
        scaler = method.standardization(x[:, :context], y[:, :context])
        # a mixture of priors pads its narrower members with zero columns
        used = (x != 0).any(-2, keepdim=True).sum(-1, keepdim=True).clamp(min=1).to(x)
        inputs, targets = network_inputs(x, scaler, method.features, used), network_targets(y, scaler, method.classes)
        answers = y[:, context:] if method.classes is not None else targets[:, context:, 0]
        inputs, targets = inputs.float(), targets.float()
        answers = answers if method.classes is not None else answers.float()
        return inputs[:, :context], targets[:, :context], inputs[:, context:], answers

    def borders(self) -> Float[Tensor, " edges"]:
        """Quantiles of a large sample of the targets that training will see, in the network's scaler."""
        parts = []
        for step in range(1 << 40, (1 << 40) + SPLITS):  # steps that training does not reach
            _, rows, context = self.sizes(step)
            size = math.ceil(TARGETS / SPLITS / (rows - context))  # every split counts alike, as in the loss
            answers = self._draw(step, 0, "cpu", size)[-1]  # on the CPU, so that they are the same on every device
            parts.append(answers.flatten())
        return Bar.borders_of(torch.cat(parts), self.method.bars)
