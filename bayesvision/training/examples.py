"""What training examples are, how they and new inputs are read, and in which units they are learned from."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayesvision.core.checks import (
    as_tensor,
    check_classes,
    check_finite_examples,
    check_inputs,
    check_targets,
    columns_of,
)
from bayesvision.core.data import Data, output_dtype
from bayesvision.core.standardize import statistics
from bayesvision.training.batches import Examples, batches_of
from bayesvision.training.seeds import seeded

__all__ = ["Inputs", "Scales", "Source", "read", "read_targets", "scales"]

SAMPLE = 100_000  # examples that tell the units


@dataclass(frozen=True)
class Inputs:
    """What a network takes and gives.

    Attributes:
        shape: of one input; a table has one axis.
        columns: names of a frame's columns; None for others.
        targets: shape of one target: () for a number or a label.
        tokens: whether inputs are whole numbers that an embedding reads.
    """

    shape: tuple[int, ...]
    columns: tuple[str, ...] | None = None
    targets: tuple[int, ...] = ()
    tokens: bool = False

    def check(self, x: Any) -> tuple[Tensor, tuple[int, ...], torch.dtype]:
        """Inputs [n, *shape], the axes of the batch, and the type of predictions from them.

        Raises:
            ValueError: another shape, other columns, or numbers that are not finite.
        """
        if self.tokens:
            x = _tokens(as_tensor("x", x))
        if len(self.shape) == 1 and not self.tokens:
            x = check_inputs(x, self.shape[0], self.columns)
        else:
            x = as_tensor("x", x)
            if x.ndim <= len(self.shape) or tuple(x.shape[-len(self.shape) :]) != self.shape or not x.numel():
                raise ValueError(f"x must have the shape [*batch, {_axes(self.shape)}], got {tuple(x.shape)}")
            check_finite_examples("x", x)
        batch = tuple(x.shape[: x.ndim - len(self.shape)])
        return x.reshape(-1, *self.shape), batch, output_dtype(x)


class Source(NamedTuple):
    """What was read.

    Attributes:
        examples: pairs (x, y).
        inputs: what they are.
        constant: the value of a column of targets that has but one.
    """

    examples: Examples
    inputs: Inputs
    constant: float | None

    def check_scale(self) -> None:
        """Raise a `ValueError` if all targets are the same."""
        if self.constant is not None:
            raise ValueError(
                f"y is constant ({self.constant:g} in all {len(self.examples)} rows); there is no scale to learn from, "
                "so check that this is the target"
            )


def _tokens(x: Tensor) -> Tensor:
    if x.is_floating_point() and not bool((x == x.round()).all()):
        raise ValueError("x must hold whole numbers, since the network reads them by an embedding, got fractions")
    return x.long()


def _axes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def read(source: Any, seed: int, classes: int | None, tokens: bool = False) -> Source:
    """All examples of `source`, read once, and what they are.

    Args:
        seed: of what the source draws, such as the order of a loader; the global generators stay as they are.
        tokens: whether inputs are whole numbers, which stay such.

    Raises:
        TypeError, ValueError: as in `batches_of`; inputs or targets of several shapes, not finite, or labels
            that are not 0, ..., classes - 1.
    """
    with seeded(seed):
        return _read(source, classes, tokens)


def _read(source: Any, classes: int | None, tokens: bool) -> Source:
    examples, known, ends = Examples(), None, None
    columns = columns_of(source.x) if isinstance(source, Data) else None
    if isinstance(source, Data) and not getattr(source.x, "ndim", 0) > 2 and source.y is not None and not tokens:
        x = check_inputs(source.x)  # faults of a table are told by row and column
        source = Data(x, check_classes(source.y, x, classes) if classes else read_targets(source.y, x))
    for x, y in batches_of(source):
        x = as_tensor("x", x)
        x = x.unsqueeze(-1) if x.ndim == 1 else x
        check_finite_examples("x", x, len(examples))
        if tokens:
            x = _tokens(x)
        elif x.ndim == 2 and not x.is_floating_point():
            x = x.double()
        rows = x.flatten(1).double()
        y = check_classes(y, rows, classes) if classes else read_targets(y, rows, len(examples))
        found = Inputs(tuple(x.shape[1:]), columns, tuple(y.shape[1:]), tokens)
        if known is not None and found != known:
            raise ValueError(
                f"x and y must have one shape in all examples, got {known.shape} and {known.targets} and then "
                f"{found.shape} and {found.targets}; resize or pad them"
            )
        known, flat = found, y.reshape(len(y), -1)
        low, high = flat.amin(0), flat.amax(0)
        ends = (low, high) if ends is None else (torch.minimum(low, ends[0]), torch.maximum(high, ends[1]))
        examples.add(x, y)
    assert known is not None and ends is not None
    same = ends[0][ends[0] == ends[1]]
    constant = float(same[0]) if len(same) and not classes and len(examples) > 1 else None
    return Source(examples, known, constant)


def read_targets(y: Any, x: Tensor, first: int = 0) -> Tensor:
    """Numbers [n] or [n, outputs]."""
    value = as_tensor("y", y)
    if value.ndim == 2 and value.shape[1] > 1 and len(value) == len(x):
        value = value if value.is_floating_point() else value.double()
        check_finite_examples("y", value, first)
        return value
    return check_targets(value, x, constant=True)


class Scales(NamedTuple):
    """Mean and standard deviation of each column of a table and of each target; None where they stay as they are."""

    x_loc: Tensor | None
    x_scale: Tensor | None
    y_loc: Tensor | None
    y_scale: Tensor | None


def scales(examples: Examples, inputs: Inputs, numbers: bool) -> Scales:
    """The units of the data; those of inputs only where these are a table."""
    table = len(inputs.shape) == 1 and not inputs.tokens
    if not table and not numbers:
        return Scales(None, None, None, None)
    count = min(len(examples), SAMPLE)
    places, xs, ys = torch.linspace(0, len(examples) - 1, count, dtype=torch.float64).round().long(), [], []
    for part in places.split(1_000):
        x, y = examples.take(part)
        xs += [x.double()] if table else []
        ys += [y.double()] if numbers else []
    found: list[Tensor | None] = [None] * 4
    if table:
        found[:2] = [v.squeeze(0) for v in statistics(torch.cat(xs), 0)]
    if numbers:
        found[2:] = [v.squeeze(0) for v in statistics(torch.cat(ys), 0)]
    return Scales(*found)
