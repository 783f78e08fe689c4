"""The checks on what users hand in: every error says what was expected, what came, and what to do."""

import inspect
import math
import sys
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Generator, Tensor

from bayesvision.core.roles import Prior

__all__ = [
    "LARGEST",
    "as_tensor",
    "check_classes",
    "check_count",
    "check_finite_examples",
    "check_horizon",
    "check_inputs",
    "check_prior",
    "check_targets",
    "columns_of",
    "draw",
]


LARGEST = 1e30  # beyond this, squares overflow float32
CLASSIFIERS = "for classes take a network for them, such as pfn-classes (PFNClassifier in scikit-learn)"


def check_count(name: str, value: Any, minimum: int = 1) -> None:
    """Raise a `ValueError` unless `value` is a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, got {value!r}")


def check_horizon(value: Any) -> float:
    """A positive and finite number of steps.

    Raises:
        ValueError: it is none.
    """
    if not (isinstance(value, int | float) and 0 < value < math.inf):
        raise ValueError(f"horizon must be a positive number of steps, got {value!r}")
    return float(value)


def check_prior(source: Any) -> Prior:
    """The prior `source`, if it is one.

    Raises:
        TypeError: it is a class, or has no method `sample(batch, rows, *, generator)`.
    """
    try:
        inspect.signature(source.sample).bind(1, 1, generator=None)
    except (AttributeError, TypeError, ValueError):
        got = f"the class {source.__name__}" if isinstance(source, type) else type(source).__name__
        raise TypeError(
            f"source must be a prior, an object with a method sample(batch, rows, *, generator), got {got}; "
            "for rows take a network that is trained, bayesvision.pretrained('pfn-gp').condition(x, y), or fit GP()"
        ) from None
    return source


class Drawn(NamedTuple):
    """A batch of data sets of a prior that returns the plain tuple (x, y)."""

    x: Tensor
    y: Tensor


def draw(
    prior: Prior,
    batch: int,
    rows: int,
    rng: Generator,
    where: tuple[int, ...] = (),
    features: int | None = None,
    missing: bool = False,
) -> Any:
    """A batch of data sets from a prior, checked; a plain tuple (x, y) is taken as well.

    Args:
        where: step and micro-batch that the batch is for.
        features: number of columns, if only one will do.
        missing: whether NaN is taken in x.

    Raises:
        ValueError: neither an object with `x` and `y` nor a tuple of both, wrong shapes, or numbers that are not
            finite; it names the prior, the batch and the first entry at fault.
    """
    name, task = type(prior).__name__, prior.sample(batch, rows, generator=rng)
    if not (hasattr(task, "x") and hasattr(task, "y")):
        if not (isinstance(task, tuple | list) and len(task) == 2 and all(isinstance(part, Tensor) for part in task)):
            raise ValueError(
                f"the prior {name} must return an object with the tensors x and y, such as priors.Task(x, y), "
                f"or the tuple of both, got {type(task).__name__}"
            )
        task = Drawn(*task)
    x, y = task.x, task.y
    columns = x.shape[-1] if features is None and x.ndim == 3 else features or 1
    if x.shape != (batch, rows, columns) or y.shape != (batch, rows):
        axes = f"[{batch}, {rows}, {'features' if features is None else features}]"
        raise ValueError(
            f"the prior {name} must draw x {axes} and y [{batch}, {rows}], got {list(x.shape)} and {list(y.shape)}"
        )
    _check_draw(name, x, y, where, missing)
    return task


def _check_draw(prior: str, x: Tensor, y: Tensor, batch: tuple[int, ...], missing: bool) -> None:
    for name, values in (("x", x), ("y", y)):
        if not values.is_floating_point():
            continue
        wrong = values.isinf() if missing and name == "x" else ~values.isfinite()
        if wrong.any():
            place = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"the prior {prior} drew {name}{place} = {values[tuple(place)].item()} "
                f"in the batch {batch}; training needs finite numbers, so mend its sample"
            )


def columns_of(x: Any) -> tuple[str, ...] | None:
    """Column names of a pandas frame, None for anything else."""
    pandas = sys.modules.get("pandas")
    return tuple(map(str, x.columns)) if pandas is not None and isinstance(x, pandas.DataFrame) else None


def as_tensor(name: str, value: Any) -> Tensor:
    """A dense real tensor that shares no memory with `value`, so that later changes there reach no posterior."""
    tensor = value.clone() if isinstance(value, Tensor) else _of_array(name, value)
    if tensor.is_complex() or tensor.layout != torch.strided:
        raise ValueError(f"{name} must be real and dense, got {tensor.dtype} with the layout {tensor.layout}")
    return tensor


def _of_array(name: str, value: Any) -> Tensor:
    try:
        array = np.array(value, order="C")
        if array.dtype == object and any(isinstance(entry, str) for entry in array.flat):
            raise ValueError("text")
        if array.dtype.kind == "O" or array.dtype == np.longdouble:  # a frame of mixed number types, say
            array = array.astype(np.float64)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        cure = "encode text and categories as numbers first" if name != "y" else f"{CLASSIFIERS}, or encode them"
        raise ValueError(
            f"{name} must hold numbers, got {type(value).__name__} with other values ({error}); {cure}"
        ) from None


def _check_finite(name: str, value: Tensor, missing: bool = False) -> None:
    if not value.is_floating_point():
        return
    bad = ~(value.isfinite() & (value.abs() <= LARGEST))  # in half precision LARGEST itself is infinite
    bad = bad & ~value.isnan() if missing else bad
    if bad.any():
        place = [int(i) for i in bad.nonzero()[0]]
        raise ValueError(
            f"{name} must be finite and at most {LARGEST:g} in size, got {value[tuple(place)].item()} at index {place} "
            f"({int(bad.sum())} such values); drop or impute these rows, or rescale the column"
        )


def check_finite_examples(name: str, value: Tensor, first: int = 0) -> None:
    """Raise a `ValueError` that names the first example, counted from `first` on, with numbers that are not finite."""
    if not value.is_floating_point():
        return
    bad = ~(value.isfinite() & (value.abs() <= LARGEST))
    if bad.any():
        each = bad.reshape(len(bad), -1).sum(1)
        worst = int(each.nonzero()[0])
        raise ValueError(
            f"{name} must be finite and at most {LARGEST:g} in size, got {int(each[worst])} other values in example "
            f"{first + worst} and {int((each > 0).sum())} such examples in its batch; drop or mend them"
        )


def check_inputs(
    x: Any,
    features: int | None = None,
    columns: tuple[str, ...] | None = None,
    name: str = "x",
    missing: bool = False,
) -> Float[Tensor, "*batch rows features"]:
    """Inputs as a floating-point tensor [*batch, rows, features] of their own; a vector counts as one feature.

    The columns of a frame are put in the order of `columns`.

    Args:
        missing: whether NaN is taken, as a missing value.

    Raises:
        ValueError: not numbers, NaN or infinite, no rows, or not the expected columns.
    """
    given = columns_of(x)
    if given is not None and len(set(given)) < len(given):
        raise ValueError(f"{name} has two columns of the same name; rename one of {list(given)}")
    if columns is not None and given is not None:
        lost, unknown = [c for c in columns if c not in given], [c for c in given if c not in columns]
        if lost or unknown:
            raise ValueError(
                f"{name} must have the columns {list(columns)} as seen before; it lacks {lost} and has {unknown}"
            )
        x = x.iloc[:, [given.index(c) for c in columns]]
    value = as_tensor(name, x)
    value = value if value.is_floating_point() else value.double()
    value = value.unsqueeze(-1) if value.ndim == 1 else value
    if value.ndim < 2:
        raise ValueError(f"{name} must have the shape [rows, features], got {tuple(value.shape)}")
    if value.numel() == 0:
        raise ValueError(f"{name} must have at least one row and one column, got the shape {tuple(value.shape)}")
    if features is not None and value.shape[-1] != features:
        raise ValueError(f"{name} must have {features} columns as seen before, got {value.shape[-1]}")
    _check_finite(name, value, missing)
    return value


def _check_rows(y: Any, x: Tensor, name: str) -> Tensor:
    value = as_tensor(name, y).to(x.device)
    value = value.squeeze(-1) if value.ndim == x.ndim and value.shape[-1] == 1 else value
    if value.shape != x.shape[:-1]:
        raise ValueError(
            f"{name} must have one value for each row of x, {tuple(x.shape[:-1])}, got {tuple(value.shape)}"
        )
    return value


def check_targets(
    y: Any,
    x: Float[Tensor, "*batch rows features"],
    name: str = "y",
    seen: Tensor | None = None,
    constant: bool = False,
) -> Float[Tensor, "*batch rows"]:
    """Regression targets as a floating-point tensor of their own, one for each row of `x`.

    Args:
        seen: targets [*batch, earlier] that these join.
        constant: whether two or more rows may all be the same, those seen included.

    Raises:
        ValueError: wrong shape, NaN or infinite values, or constant targets where they may not be.
    """
    value = _check_rows(y, x, name)
    if value.dtype == torch.bool:
        raise ValueError(f"{name} must hold numbers, got truth values; {CLASSIFIERS}, or give them as 0.0 and 1.0")
    value = value if value.is_floating_point() else value.double()
    _check_finite(name, value)
    if constant:
        return value
    whole = value if seen is None else torch.cat([seen.double(), value.double()], -1)
    same = (whole == whole[..., :1]).all(-1)
    if whole.shape[-1] > 1 and same.any():
        raise ValueError(
            f"{name} is constant ({whole[..., 0][same][0].item():g} in all {whole.shape[-1]} rows); "
            "there is no scale to learn from, so check that this is the target"
        )
    return value


def check_classes(
    y: Any, x: Float[Tensor, "*batch rows features"], classes: int, name: str = "y"
) -> Shaped[Tensor, "*batch rows"]:
    """Class labels as integers, one for each row of `x`.

    Raises:
        ValueError: wrong shape, or labels other than 0, ..., classes - 1.
    """
    value = _check_rows(y, x, name)
    _check_finite(name, value)
    if value.is_floating_point() and not (value == value.round()).all():
        raise ValueError(f"{name} must hold whole class numbers, got {value[value != value.round()][0].item()}")
    if (value < 0).any() or (value >= classes).any():
        low, high = value.min().item(), value.max().item()
        raise ValueError(f"{name} must hold classes 0 to {classes - 1}, got values from {low:g} to {high:g}")
    return value.long()
