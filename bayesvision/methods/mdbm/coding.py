"""Columns of a frame as variables with levels: categories as they are, numbers in bins."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.core.columns import DAY, Column, Columns
from bayesvision.core.warn import warn
from bayesvision.distributions import Bar, Categorical

if TYPE_CHECKING:
    import pandas

__all__ = ["Coding"]

FEW = 8  # different numbers of a column that keeps them
TOGETHER, LEAST = 1_024, 8  # bins of all columns, and of each however many there are


@dataclass(frozen=True)
class Coding:
    """The columns that were kept, and how their values become levels.

    Attributes:
        columns: what each column of the frame is.
        values: for each column kept that holds few different numbers, these; else None.
        borders: for each column kept that holds many, the borders of their bins; else None.
    """

    columns: Columns
    values: tuple[tuple[float, ...] | None, ...]
    borders: tuple[tuple[float, ...] | None, ...]

    @classmethod
    def of(cls, frame: "pandas.DataFrame", bins: int, kinds: dict[str, str]) -> Self:
        """What to make of the columns of `frame`.

        Raises:
            ValueError: as `Columns.of`, or a column of numbers that are not finite.
        """
        columns = Columns.of(frame, kinds)
        count = sum(column.kind != "category" for column in columns.kept)
        bins = min(bins, max(LEAST, TOGETHER // max(1, count)))
        values, borders = [], []
        for column, numbers in zip(columns.kept, columns.encode(frame).T, strict=True):
            there = numbers[~np.isnan(numbers)]
            if np.isinf(there).any():
                raise ValueError(f"column {column.name!r} must hold finite numbers; leave infinite ones out")
            different = np.unique(there)
            few = column.kind != "category" and len(different) <= FEW
            many = column.kind != "category" and not few
            values.append(tuple(different.tolist()) if few else None)
            borders.append(tuple(Bar.borders_of(torch.as_tensor(there), bins).tolist()) if many else None)
        return cls(columns, tuple(values), tuple(borders))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns kept."""
        return self.columns.names

    @property
    def levels(self) -> tuple[int, ...]:
        """Number of levels of each column kept."""
        found = []
        for column, values, borders in zip(self.columns.kept, self.values, self.borders, strict=True):
            found.append(len(values) if values else len(borders) - 1 if borders else len(column.levels))
        return tuple(found)

    @property
    def ordered(self) -> tuple[bool, ...]:
        """Which columns kept hold numbers."""
        return tuple(column.kind != "category" for column in self.columns.kept)

    def series(self, frame: "pandas.DataFrame") -> "list[pandas.Series]":
        """The columns kept as they stand in `frame`."""
        names = [str(c) for c in frame.columns]
        return [frame.iloc[:, names.index(name)] for name in self.names]

    def encode(self, frame: "pandas.DataFrame") -> Float[Tensor, "rows variables"]:
        """Levels of the columns kept, NaN where a value is missing, or a category that was not there in training.

        Raises:
            ValueError: a column is missing, or a number cannot be read.
        """
        given = self.columns.encode(frame)
        codes = [self._codes(k, column) for k, column in enumerate(given.T)]
        for column, code, series in zip(self.columns.kept, codes, self.series(frame), strict=True):
            new: Any = series[series.notna().to_numpy() & np.isnan(code)]
            if len(new):
                warn(
                    f"column {column.name!r}: {len(new)} cells, such as {new.iloc[0]!r}, hold none of the values that "
                    "were there in training; they are left as they are and tell nothing of the others",
                )
        return torch.as_tensor(np.stack(codes, -1))

    def value(self, k: int, y: Any) -> float:
        """The level of one value of column k; a `ValueError` if it has none."""
        import pandas as pd

        name = self.names[k]
        one = {other: [None] for other in self.names} | {name: [y]}
        code = float(self._codes(k, self.columns.encode(pd.DataFrame(one))[:, k])[0])
        if np.isnan(code):
            known = ", ".join(self.columns.kept[k].levels[:10]) or "finite numbers"
            raise ValueError(f"y must hold values of column {name!r} ({known}), got {y!r}")
        return code

    def _codes(self, k: int, given: np.ndarray) -> np.ndarray:
        values, borders = self.values[k], self.borders[k]
        if values is not None:  # the nearest of them
            edges = (np.array(values[1:]) + np.array(values[:-1])) / 2
        elif borders is not None:
            edges = np.array(borders[1:-1])
        else:
            return given
        return np.where(np.isnan(given), np.nan, np.searchsorted(edges, given, side="right").astype(float))

    def law(self, k: int, probs: Float[Tensor, "*rows most"]) -> Categorical | Bar:
        """Distribution of column k: over numbers if it was binned, else over its levels."""
        probs, borders = probs[..., : self.levels[k]], self.borders[k]
        if borders is None:
            return Categorical(probs=probs, validate_args=False)
        return Bar(probs.clamp(min=1e-300).log(), torch.tensor(borders, dtype=probs.dtype), validate_args=False)

    def likely(self, k: int, probs: Float[Tensor, "rows most"]) -> tuple[list[Any], Float[Tensor, " rows"]]:
        """Median of binned numbers, the most probable of other values, and the probability of its level."""
        column, law = self.columns.kept[k], self.law(k, probs)
        if isinstance(law, Bar):
            number = law.icdf(torch.tensor(0.5, dtype=probs.dtype))
            code = torch.as_tensor(self._codes(k, number.numpy())).long()
            values: list[Any] = number.tolist()
        else:
            code = law.probs.argmax(-1)
            names: Any = column.levels or self.values[k]
            values = [names[int(i)] for i in code]
        chance = probs.gather(-1, code.unsqueeze(-1)).squeeze(-1)
        return [_date(v) if column.kind == "date" else v for v in values], chance

    def fill(self, frame: "pandas.DataFrame", found: dict[str, list[Any]], holes: np.ndarray) -> "pandas.DataFrame":
        """A copy of the frame with `found` in the holes [rows, variables] of its columns."""
        import pandas as pd

        new = frame.copy()
        for k, (values, series) in enumerate(zip(found.values(), self.series(frame), strict=True)):
            hole = holes[:, k]
            if not hole.any():
                continue
            whole = [v if gap else old for v, gap, old in zip(values, hole, series, strict=True)]
            filled = pd.Series(_typed(whole, series, self.columns.kept[k]), index=new.index)
            new[series.name] = _like(filled, series)
        return new

    # Files

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {"columns": self.columns.to_json(), "values": self.values, "borders": self.borders}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Self:
        """The coding that `to_json` described."""
        values, borders = (tuple(v and tuple(v) for v in given[name]) for name in ("values", "borders"))
        return cls(Columns.from_json(given["columns"]), values, borders)


def _typed(values: list[Any], series: "pandas.Series", column: Column) -> list[Any]:
    """Levels of a category as what they are in the frame: its own objects, not their names."""
    if column.kind == "date" and series.dtype == object:  # dates in writing
        whole = series.dropna().astype(str).str.len().max() <= len("2024-01-01")
        return [v if not hasattr(v, "isoformat") else str(v.date()) if whole else str(v) for v in values]
    if column.kind != "category":
        return values
    own = {str(v).strip(): v for v in series.dropna().unique()}
    return [own.get(v, v) if isinstance(v, str) else v for v in values]


def _like(filled: "pandas.Series", series: "pandas.Series") -> "pandas.Series":
    """The values in the type of the column that they fill, where it can hold them."""
    import pandas as pd

    whole = pd.api.types.is_integer_dtype(series.dtype) and (filled % 1 != 0).any()
    if pd.api.types.is_object_dtype(series.dtype) or whole:
        return filled
    if isinstance(series.dtype, pd.DatetimeTZDtype):
        return pd.to_datetime(filled, utc=True).astype(series.dtype)
    return filled.astype(series.dtype)


def _date(days: float) -> Any:
    import pandas as pd

    return pd.Timestamp("1970-01-01") + pd.Timedelta(seconds=days * DAY)
