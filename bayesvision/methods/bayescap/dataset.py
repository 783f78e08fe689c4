"""`OutputDataset`: what a frozen network said and what was right, computed once and read often."""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from bayesvision.core.checks import (
    as_tensor,
    check_classes,
    check_finite_examples,
    check_inputs,
    check_targets,
    columns_of,
)
from bayesvision.core.data import Data
from bayesvision.core.warn import warn
from bayesvision.methods.bayescap.frozen import Frozen, stacked
from bayesvision.training.batches import LARGE, Examples, batches_of

__all__ = ["OutputDataset"]

GRID_EXAMPLES, GRID_VALUES = 64, 20_000  # that tell whether targets lie on a grid: examples, and values of each
GRID_LEVELS, GRID_OFTEN = 16, 8  # of a grid: levels at least, and how often each occurs on average


@dataclass(frozen=True)
class OutputSpec:
    """What the outputs are, and the inputs of the network.

    Attributes:
        form: maps or vectors.
        channels: of the output.
        inputs: channels of all that is read.
        scalar: whether the output is a single number, which has no channel.
        features, columns: of inputs that are tables, with the names of a frame's columns; None for others.
        divided: whether targets of 8 bits were divided by 255; None for others.
    """

    form: Literal["maps", "vectors"]
    channels: int
    inputs: int
    scalar: bool
    features: int | None = None
    columns: tuple[str, ...] | None = None
    divided: bool | None = None

    @property
    def axis(self) -> int:
        """Of the channels."""
        return -3 if self.form == "maps" else -1


def _grid_step(values: Float[Tensor, " n"]) -> float:
    """The step of the grid that `values` lie on; 0 if they do not, or on one of few levels only.

    A grid has at least 16 levels, each met 8 times on average, and steps that are whole numbers of the smallest one.
    """
    levels = values.unique()
    if len(levels) < GRID_LEVELS or len(levels) * GRID_OFTEN > len(values):
        return 0.0
    step = float(levels.diff().min())
    step = float((levels.diff() / (levels.diff() / step).round().clamp(min=1)).mean())
    off = (levels - levels[0]) / step
    return step if bool(((off - off.round()).abs() < 0.02).all()) else 0.0


class OutputDataset(Examples):
    """Examples (reads, y), each with a shape of its own.

    `reads` is [channels, *place] or [channels] and `y` what goes with its first channels; the axes after the first are
    places of a map.
    """

    def __init__(self, large: int = LARGE) -> None:
        super().__init__(large)
        self.low, self.high = math.inf, -math.inf  # of the targets
        self.divided: bool | None = None  # whether targets of 8 bits were brought from 0..255 to 0..1

    def add_outputs(self, reads: Tensor, outputs: Tensor, y: Any) -> None:
        """Take in a batch [batch, ...].

        Raises:
            ValueError: the shapes of outputs and targets differ, or some of them are not finite.
        """
        y = as_tensor("y", y)
        if y.shape != outputs.shape and y.shape == (*outputs.shape, 1):
            y = y.squeeze(-1)
        if y.shape != outputs.shape:
            raise ValueError(
                f"y must have the shape of the network's output, {tuple(outputs.shape)}, got {tuple(y.shape)}; "
                "crop or reshape the targets, or wrap the network"
            )
        if y.dtype == torch.uint8:
            y = self._dequantised(y, outputs)
        y = y.to("cpu", torch.float32)
        first = len(self)
        for name, value in (("the network's output", outputs), ("y", y)):
            check_finite_examples(name, value, first)
        self._take_in(reads, y)

    def add_labels(self, reads: Tensor, y: Any, classes: int) -> None:
        """Take in a batch [batch, entries] with its class labels [batch].

        Raises:
            ValueError: labels that are not 0, ..., classes - 1, or outputs that are not finite.
        """
        check_finite_examples("the network's output", reads, len(self))
        labels = check_classes(y, reads.cpu(), classes)
        self._take_in(reads, labels.float())

    def _take_in(self, reads: Tensor, y: Tensor) -> None:
        self.low, self.high = min(self.low, float(y.min())), max(self.high, float(y.max()))
        self.add(reads.float(), y)

    def _dequantised(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Targets of 8 bits in the units of the outputs: 0..1 where these are, else 0..255."""
        if self.divided is None:
            self.divided = bool(outputs.abs().max() <= 2)
            units = "divided by 255, as the outputs are in 0..1" if self.divided else "left as 0..255"
            warn(
                f"y is of 8 bits: it is {units}, and no standard deviation is below that of rounding, "
                f"1/{'(255 sqrt 12)' if self.divided else 'sqrt 12'}; give floating-point targets to choose yourself"
            )
        return y.float() / 255 if self.divided else y.float()

    @functools.cached_property
    def floor(self) -> float:
        """Standard deviation of the rounding of targets of 8 bits, or of others that lie on a grid; 0 elsewhere."""
        if self.divided is not None:
            return 12**-0.5 / (255 if self.divided else 1)
        wanted = max(GRID_EXAMPLES, GRID_VALUES // self[0][1].numel())
        places = torch.linspace(0, len(self) - 1, min(len(self), wanted), dtype=torch.float64).long().tolist()
        values = torch.cat([self[k][1].flatten()[:GRID_VALUES] for k in places]).double()
        return 12**-0.5 * _grid_step(values)

    def draw(self, count: int, crop: int, source: Generator) -> tuple[Tensor, Tensor]:
        """`count` examples with replacement, maps cut to squares of the side `crop` at even places, or to the least."""
        chosen = [self[int(k)] for k in torch.randint(len(self), (count,), generator=source)]
        if chosen[0][0].ndim < 3:
            return torch.stack([reads for reads, _ in chosen]), torch.stack([y for _, y in chosen])
        height, width = (min([crop, *(y.shape[axis] for _, y in chosen)]) for axis in (-2, -1))
        cut = []
        for reads, y in chosen:
            room = torch.tensor([y.shape[-2] - height, y.shape[-1] - width])
            top, left = ((torch.rand(2, generator=source) * (room // 2 + 1)).long() * 2).minimum(room).tolist()
            cut.append([v[..., top : top + height, left : left + width] for v in (reads, y)])
        return torch.stack([reads for reads, _ in cut]), torch.stack([y for _, y in cut])


def _ask(
    frozen: Frozen, source: Any, classes: int | None, known: OutputSpec | None = None
) -> tuple[OutputDataset, OutputSpec]:
    """What the network says and what is right, of the kind that is `known` or that the first batch has."""
    pairs, kind = OutputDataset(), None if known is None else replace(known, divided=None)
    if known is not None:
        pairs.divided = known.divided
    columns = columns_of(source.x) if isinstance(source, Data) else None
    if known is not None and columns is not None:
        source = Data(check_inputs(source.x, known.features, known.columns), source.y)
    for x, y in batches_of(source):
        table = not getattr(x, "ndim", 0) > 2
        x = check_inputs(x) if table else x
        with torch.no_grad():
            parts = frozen(x)
        scalar = not classes and parts[0].ndim == (x.ndim - 1 if table else 1)
        outputs = parts[0].unsqueeze(-1) if scalar else parts[0]
        form = "maps" if outputs.ndim == 4 and not classes else "vectors"
        reads = stacked(parts, form == "maps", scalar)
        axis = -3 if form == "maps" else -1
        names = known.columns if known is not None else columns
        found = OutputSpec(form, outputs.shape[axis], reads.shape[axis], scalar, x.shape[-1] if table else None, names)
        if kind is not None and found != kind:
            raise ValueError(f"x and net must give outputs of one kind, got {kind} and then {found}")
        kind = found
        if classes:
            pairs.add_labels(reads, y, classes)
        else:
            y = check_targets(y, x, constant=True) if table and scalar else y
            pairs.add_outputs(reads, outputs, _with_channel(y, outputs))
    assert kind is not None
    if classes and kind.channels != classes:
        raise ValueError(f"net must return one logit for each of {classes} classes, got {kind.channels}")
    return pairs, replace(kind, divided=pairs.divided)


def _with_channel(y: Any, outputs: Tensor) -> Any:
    y = as_tensor("y", y)
    return y.unsqueeze(-1) if y.shape == outputs.shape[:-1] and outputs.shape[-1] == 1 else y


def _thinned(
    tensors: list[Tensor], kind: OutputSpec, classes: int | None, count: int, source: Generator
) -> list[Tensor]:
    """About `count` of the places, the same of all tensors, each as an example of its own."""
    if classes:
        return tensors
    if kind.form == "maps":  # [1, channels, height, width] to [places, channels, 1, 1]
        tensors = [v.flatten(2)[0].T[..., None, None] for v in tensors]
    else:
        tensors = [v.flatten(0, -2) for v in tensors]
    size = max(8, count // kind.channels)
    chosen = torch.randperm(len(tensors[0]), generator=source)[:size].to(tensors[0].device)
    return [v[chosen] for v in tensors]
