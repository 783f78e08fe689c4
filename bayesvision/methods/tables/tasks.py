"""Batches of tables drawn from a prior, as the network takes them."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from bayesvision.core.checks import draw
from bayesvision.core.roles import Prior
from bayesvision.methods.tables.encoding import Encoding, target_features
from bayesvision.training.seeds import generator

__all__ = ["TableBatch", "TableStream", "encoded"]

EMPTY = 0.03  # probability of an empty context, so that the prior predictive is learned too
QUERIES = (16, 128)  # minimum and maximum number of queries of a table
FARTHEST = 30.0  # standard deviations of a target: next to equal ones, another can be as far as one likes
ROWS = 256  # of a table in a step of `batch` tables: shorter ones come in greater number


class TableBatch(NamedTuple):
    """Network inputs of a context and its queries, and what the process predicts for these.

    Attributes:
        cells, target: what context rows say.
        query, asked: what queries say.
        mean, stddev: of the process at the queries, in standardised units; of classes their probabilities.
        answers: targets of the queries in these units, or their classes.
        classes: number of classes of each table.
    """

    cells: Float[Tensor, "*batch n columns cell_features"]
    target: Float[Tensor, "*batch n target_features"]
    query: Float[Tensor, "*batch m columns cell_features"]
    asked: Float[Tensor, "*batch m target_features"]
    mean: Float[Tensor, "*batch m outputs"]
    stddev: Float[Tensor, "*batch m"]
    answers: Shaped[Tensor, "*batch m"] | None
    classes: Shaped[Tensor, "*batch"] | None


def encoded(
    encoding: Encoding,
    x: Float[Tensor, "*batch n columns"],
    y: Shaped[Tensor, "*batch n"],
    query: Float[Tensor, "*batch m columns"],
    classes: int | None,
) -> TableBatch:
    """What the network is told of the context (x, y) and of the queries."""
    asked = encoding.predicted(query, classes)
    known = target_features(encoding.outputs(y, classes), encoding.seen(x, classes))
    unknown = target_features(None, asked)
    mean = asked.mean
    if classes is not None:  # probabilities, from what they are above the classes' frequencies
        mean = mean + encoding.y_loc.unsqueeze(-2)
    return TableBatch(encoding.cells(x), known, encoding.cells(query), unknown, mean, asked.stddev, None, None)


class TableStream:
    """The endless stream of tables of one run: micro-batch j of step i is a pure function of (seed, i, j)."""

    def __init__(
        self, prior: Prior, columns: int, classes: int | None, context: int, process: bool, train: Any
    ) -> None:
        self.prior, self.columns, self.classes, self.context = prior, columns, classes, context
        self.process, self.train, self.device = process, train, train.execution.pick_device()

    def sizes(self, step: int) -> tuple[int, int, int]:
        """Tables of a micro-batch, their rows, and how many rows are context: one split for the whole step."""
        rng = generator("cpu", self.train.seed, step, 1 << 32)
        empty, u = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
        context = 0 if empty < EMPTY else min(self.context, int((self.context + 1) ** u))
        rows = context + min(max(context, QUERIES[0]), QUERIES[1])
        micro = self.train.batch // self.train.accumulate
        return max(1, min(8 * micro, micro * ROWS // rows)), rows, context

    def tasks(self) -> int:
        """Tables of the whole run."""
        return sum(self.sizes(step)[0] for step in range(self.train.steps)) * self.train.accumulate

    def batch(self, step: int, micro_batch: int) -> TableBatch:
        """Network inputs of one micro-batch."""
        size, rows, context = self.sizes(step)
        rng = generator(self.device, self.train.seed, step, micro_batch)
        task = draw(self.prior, size, rows, rng, (step, micro_batch), missing=True)
        x = task.x.double()
        if x.shape[-1] > self.columns:
            raise ValueError(f"columns={self.columns} is less than the {x.shape[-1]} columns that the prior draws")
        y = task.y.double() if self.classes is None else task.y
        categorical = getattr(task, "categorical", None)
        categorical = torch.zeros_like(x[:, 0], dtype=torch.bool) if categorical is None else categorical
        with torch.no_grad():
            seen = x[:, :context], y[:, :context]
            encoding = Encoding.of(*seen, categorical, self.classes, self.process)
            batch = encoded(encoding, *seen, x[:, context:], self.classes)
        answers = y[:, context:]
        if self.classes is None:
            answers = ((answers - encoding.y_loc) / encoding.y_scale).clamp(-FARTHEST, FARTHEST)
        count = None if self.classes is None else y.amax(1) + 1
        answers = answers.float() if self.classes is None else answers
        return TableBatch(*(v.float() for v in batch[:6]), answers, count)  # pyright: ignore[reportCallIssue]
