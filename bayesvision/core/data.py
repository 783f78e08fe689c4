"""`Data`, and the readings of it that methods share: one table, one curve."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.core.checks import check_inputs, check_targets
from bayesvision.core.roles import Following, Log

__all__ = ["Data", "SortedCurve", "asked_epochs", "check_epochs", "one_curve", "output_dtype", "rows_to_fit"]


class Data(NamedTuple):
    """Rows `x` and, for fitting, their targets `y`: tensors, NumPy arrays or pandas frames.

    Example:
        >>> bv.GP().fit(bv.Data(x, y)).predict(new)
    """

    x: Any
    y: Any = None


def rows_to_fit(source: Any, y: Any, log: Following) -> tuple[Any, Following]:
    """What `fit(Data(x, y))`, `fit(x, y)` and `fit(loader)` mean, each with a log by name or after the rows.

    Raises:
        TypeError: targets for rows that have theirs.
    """
    follows: Any = isinstance(y, str) or (isinstance(y, Log) and not hasattr(y, "__array__"))  # columns have a log, too
    if y is None or follows:
        found: Any = log if y is None else y
        return source, found
    if isinstance(source, Data):
        raise TypeError("y came twice, in Data(x, y) and beside it; call fit(Data(x, y)) or fit(x, y)")
    return Data(source, y), log


class SortedCurve(NamedTuple):
    """One curve.

    Attributes:
        t, y: epochs in ascending order and the values at them, in float64.
        dtype: of predictions from these values: at least float32.
    """

    t: Float[Tensor, " n"]
    y: Float[Tensor, " n"]
    dtype: torch.dtype


def one_curve(source: Data) -> SortedCurve:
    """The curve in `source`.

    Raises:
        TypeError, ValueError: it is no `Data`, holds several curves or no values, or an epoch below 0.
    """
    if not isinstance(source, Data):
        raise TypeError(
            f"source must be Data(x, y) with the epochs and values of one curve, got {type(source).__name__}"
        )
    x = check_inputs(source.x)
    if x.ndim != 2:
        raise ValueError(f"x must be the epochs of one curve, [n] or [n, 1], got {tuple(x.shape)}; fit them one by one")
    if source.y is None:
        raise ValueError("y must hold the values of the curve at the epochs x, got None")
    y = check_targets(source.y, x, constant=True).detach().cpu()
    t, order = check_epochs(x.detach().cpu()).sort(stable=True)
    return SortedCurve(t, y.double()[order], output_dtype(y))


def check_epochs(x: Any) -> Float[Tensor, "*batch m"]:
    """Epochs [m] or [*batch, m, 1], without the column axis and in float64."""
    t = check_inputs(x, 1).squeeze(-1).double()
    if (t <= 0).any():
        raise ValueError(f"x must hold epochs above 0, got {t[t <= 0][0].item():g}; count epochs from 1")
    return t


def asked_epochs(x: Any, seen: torch.dtype) -> tuple[Float[Tensor, "*batch m"], torch.dtype]:
    """`check_epochs`, and the dtype of predictions there from values that have the dtype `seen`."""
    return check_epochs(x), torch.promote_types(output_dtype(check_inputs(x)), seen)


def output_dtype(*values: Tensor | None) -> torch.dtype:
    """The dtype of predictions from `values`, inputs and targets seen: at least float32, float64 if one of them is."""
    dtype = torch.float32
    for value in values:
        if value is not None and value.is_floating_point():
            dtype = torch.promote_types(dtype, value.dtype)
    return dtype
