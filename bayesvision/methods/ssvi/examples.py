"""What training examples are, and how they and new inputs are read."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayesvision.core.checks import LARGEST, as_tensor, check_classes, check_inputs, check_targets, columns_of
from bayesvision.core.data import Data, output_dtype
from bayesvision.training.batches import Examples, batches_of

__all__ = ["Inputs", "Source", "read"]


@dataclass(frozen=True)
class Inputs:
    """What a network takes and gives.

    Attributes:
        shape: of one input; a table has one axis.
        columns: names of a frame's columns; None for others.
        targets: shape of one target: () for a number or a label.
    """

    shape: tuple[int, ...]
    columns: tuple[str, ...] | None = None
    targets: tuple[int, ...] = ()

    def check(self, x: Any) -> tuple[Tensor, tuple[int, ...], torch.dtype]:
        """Inputs [n, *shape], the axes of the batch, and the type of predictions from them.

        Raises:
            ValueError: another shape, other columns, or numbers that are not finite.
        """
        if len(self.shape) == 1:
            x = check_inputs(x, self.shape[0], self.columns)
        else:
            x = as_tensor("x", x)
            if x.ndim <= len(self.shape) or tuple(x.shape[-len(self.shape) :]) != self.shape or not x.numel():
                raise ValueError(f"x must have the shape [*batch, {_axes(self.shape)}], got {tuple(x.shape)}")
            check_finite("x", x)
        batch = tuple(x.shape[: x.ndim - len(self.shape)])
        return x.reshape(-1, *self.shape), batch, output_dtype(x)


class Source(NamedTuple):
    """What was read.

    Attributes:
        examples: pairs (x, y).
        inputs: what they are.
        constant: the value of all targets, if they have but one.
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


def _axes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def check_finite(name: str, value: Tensor, first: int = 0) -> None:
    """Raise a `ValueError` for the first example with numbers that are not finite."""
    if not value.is_floating_point():
        return
    bad = ~(value.isfinite() & (value.abs() <= LARGEST))
    if bad.any():
        where = int(bad.flatten(1).any(1).nonzero()[0]) if bad.ndim > 1 else int(bad.nonzero()[0])
        raise ValueError(
            f"{name} must be finite and at most {LARGEST:g} in size, got {int(bad.sum())} other values, the first in "
            f"example {first + where}; drop or mend such examples"
        )


def read(source: Any, classes: int | None) -> Source:
    """All examples of `source`, read once, and what they are.

    Raises:
        TypeError, ValueError: as in `batches_of`; inputs or targets of several shapes, not finite, or labels
            that are not 0, ..., classes - 1.
    """
    examples, known, low, high = Examples(), None, torch.inf, -torch.inf
    columns = columns_of(source.x) if isinstance(source, Data) else None
    if isinstance(source, Data) and not getattr(source.x, "ndim", 0) > 2 and source.y is not None:
        source = Data(check_inputs(source.x), source.y)  # faults of a table are told by row and column
        if not classes:
            source = Data(source.x, _targets(source.y, source.x))
        else:
            source = Data(source.x, check_classes(source.y, source.x, classes))
    for x, y in batches_of(source):
        x = as_tensor("x", x)
        x = x.unsqueeze(-1) if x.ndim == 1 else x
        check_finite("x", x, len(examples))
        if x.ndim == 2 and not x.is_floating_point():
            x = x.double()
        y = check_classes(y, x.flatten(1), classes) if classes else _targets(y, x.flatten(1), len(examples) + 1)
        found = Inputs(tuple(x.shape[1:]), columns, tuple(y.shape[1:]))
        if known is not None and found != known:
            raise ValueError(
                f"x and y must have one shape in all examples, got {known.shape} and {known.targets} and then "
                f"{found.shape} and {found.targets}; resize or pad them"
            )
        known = found
        low, high = min(low, float(y.min())), max(high, float(y.max()))
        examples.add(x, y)
    assert known is not None
    return Source(examples, known, low if not classes and low == high and len(examples) > 1 else None)


def _targets(y: Any, x: Tensor, first: int = 0) -> Tensor:
    """Numbers [n] or [n, outputs]."""
    value = as_tensor("y", y)
    if value.ndim == 2 and value.shape[1] > 1 and len(value) == len(x):
        value = value if value.is_floating_point() else value.double()
        check_finite("y", value, first)
        return value
    return check_targets(value, x, constant=True)
