"""What the columns of a table are: numbers, categories, dates, or nothing to learn from, and their codes."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from bayesvision.core.checks import columns_of

if TYPE_CHECKING:
    import pandas

__all__ = ["Column", "Columns", "Kind", "is_frame", "named_classes"]

Kind = Literal["number", "category", "date", "dropped"]
UNIQUE = 0.5  # fraction of the rows: text with more different values than this is free text
FEW = 20  # different values of a text that are always taken for categories
PARSED = 0.95  # fraction of the texts that must be numbers, or dates, for the column to be taken for one
DAY = 86_400.0  # seconds


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: as the table has it.
        kind: what it was taken for.
        levels: of a category, most frequent first; the code of a level is its index.
        why: why a column was dropped, or taken for what its values do not say.
    """

    name: str
    kind: Kind
    levels: tuple[str, ...] = ()
    why: str = ""

    @property
    def summary(self) -> str:
        """What was made of the column, in words."""
        if self.kind == "category":
            shown = ", ".join(self.levels[:4]) + (", ..." if len(self.levels) > 4 else "")
            return f"{len(self.levels)} levels: {shown}"
        return self.why


@dataclass(frozen=True)
class Columns:
    """The columns of a table in its order; `encode` turns a frame with these columns into numbers.

    Example:
        >>> columns = Columns.of(frame, kinds={"zip": "category"})
        >>> x = columns.encode(frame)  # float64 [rows, columns kept], NaN where a value is missing
    """

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, frame: "pandas.DataFrame", kinds: Mapping[str, str] | None = None) -> Self:
        """What the columns of `frame` are, by their values unless `kinds` says so.

        Numbers and text that reads as numbers are numbers; dates become days; other text is a category, or dropped
        where nearly every row has a value of its own. Columns with one value, without any, or that number the rows are
        dropped too.

        Raises:
            ValueError: two columns of one name, an unknown kind or column in `kinds`, cells that are no single values,
                or no column left.
        """
        wanted: dict[str, Any] = {**(kinds or {})}
        names = [str(c) for c in frame.columns]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"the table has two columns of the same name ({', '.join(twice[:5])}); rename one")
        unknown = [n for n in wanted if n not in names]
        if unknown:
            raise ValueError(f"kinds names columns that are not there: {', '.join(unknown)}; there are {_few(names)}")
        for name, kind in wanted.items():
            if kind not in get_args(Kind):
                raise ValueError(f"the kind of {name!r} must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        found = cls(tuple(_column(n, frame.iloc[:, k], wanted.get(n)) for k, n in enumerate(names)))
        if not found.kept:
            reasons = "; ".join(f"{c.name}: {c.why}" for c in found.columns[:5]) or "the table has none"
            raise ValueError(f"no column is left to predict from ({reasons})")
        return found

    @classmethod
    def from_json(cls, described: list[dict[str, Any]]) -> Self:
        """The columns that `to_json` described."""
        return cls(tuple(Column(**{**c, "levels": tuple(c["levels"])}) for c in described))

    def to_json(self) -> list[dict[str, Any]]:
        """The columns as JSON data."""
        return [{**vars(c), "levels": list(c.levels)} for c in self.columns]

    @property
    def kept(self) -> tuple[Column, ...]:
        """The columns that say something, in the order of the encoded table."""
        return tuple(c for c in self.columns if c.kind != "dropped")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns kept."""
        return tuple(c.name for c in self.kept)

    @property
    def categorical(self) -> np.ndarray:
        """Which of the columns kept hold codes of a category."""
        return np.array([c.kind == "category" for c in self.kept])

    def encode(self, frame: "pandas.DataFrame") -> np.ndarray:
        """The columns kept as float64 [rows, columns]: values, days, or codes; NaN for missing and unknown ones.

        Raises:
            ValueError: a column is missing from `frame`, or a number cannot be read.
        """
        given = [str(c) for c in frame.columns]
        missing = [c.name for c in self.kept if c.name not in given]
        if missing:
            raise ValueError(f"the table lacks the columns {_few(missing)} that were seen before; it has {_few(given)}")
        parts = [_encoded(c, frame.iloc[:, given.index(c.name)]) for c in self.kept]
        return np.stack(parts, -1)


def _few(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _column(name: str, series: "pandas.Series", wanted: Kind | None) -> Column:
    """What one column is."""
    import pandas as pd

    if wanted == "dropped":
        return Column(name, "dropped", why="you said so")
    there = series.dropna()
    if any(isinstance(v, list | dict | set | np.ndarray) for v in there):
        raise ValueError(f"the cells of column {name!r} must be single values, got a {type(there.iloc[0]).__name__}")
    if not len(there):
        return Column(name, "dropped", why="no value is there")
    if wanted == "category":
        return Column(name, "category", _level_names(there), why="you said so")
    if wanted is not None:
        return Column(name, wanted, why="you said so")
    if there.nunique() == 1:
        value = there.iloc[0]
        shown = f"{value:g}" if isinstance(value, float) else value
        return Column(name, "dropped", why=f"one value, {shown}")
    if pd.api.types.is_datetime64_any_dtype(there):
        return Column(name, "date", why="as days")
    if pd.api.types.is_bool_dtype(there) or isinstance(there.dtype, pd.CategoricalDtype):
        return Column(name, "category", _level_names(there))
    if pd.api.types.is_numeric_dtype(there):
        return _numeric(name, series, there)
    return _text(name, there)


def _numeric(name: str, series: "pandas.Series", there: "pandas.Series") -> Column:
    values = there.to_numpy(dtype=float)
    steps = np.diff(values)
    unnamed = not name or name.startswith("Unnamed:") or name.lower() in ("index", "rownames", "row_id")
    whole = len(values) == len(series) and (values == np.round(values)).all()
    if unnamed and whole and len(values) > 2 and (steps > 0).all():  # with gaps where rows were left out
        return Column(name, "dropped", why="it numbers the rows")
    return Column(name, "number")


def _text(name: str, there: "pandas.Series") -> Column:
    """A column of texts: numbers or dates in writing, a category, or free text."""

    text = there.astype(str).str.strip()
    numbers = _numbers(text)
    if numbers.notna().mean() >= PARSED:
        lost = text[numbers.isna()]
        also = f"; {len(lost)} others, such as {lost.iloc[0]!r}, count as missing" if len(lost) else ""
        return Column(name, "number", why=f"text that reads as numbers{also}")
    different = text.nunique()
    if _dates(text).notna().mean() >= PARSED:
        return Column(name, "date", why="as days")
    if different > max(FEW, UNIQUE * len(text)):
        return Column(name, "dropped", why=f"free text: {different} different values in {len(text)} rows")
    return Column(name, "category", _level_names(there))


def _dates(text: "pandas.Series") -> "pandas.Series":
    import pandas as pd

    if not text.head(20).str.contains(r"\d", regex=True).all():
        return pd.Series(pd.NaT, index=text.index)
    with warnings.catch_warnings():  # that the format of each is guessed
        warnings.simplefilter("ignore")
        return pd.to_datetime(text, errors="coerce", format="mixed", utc=True)


def _level_names(there: "pandas.Series") -> tuple[str, ...]:
    """Levels by falling frequency, equal ones by name."""
    counts = there.astype(str).str.strip().value_counts()
    return tuple(sorted(counts.index, key=lambda level: (-counts[level], level)))


def _encoded(column: Column, series: "pandas.Series") -> np.ndarray:
    import pandas as pd

    if column.kind == "category":
        codes = {level: float(k) for k, level in enumerate(column.levels)}
        text = series.astype(object).where(series.notna(), None)
        return np.array([np.nan if v is None else codes.get(str(v).strip(), np.nan) for v in text], dtype=float)
    if column.kind == "date":
        dates = series
        if not pd.api.types.is_datetime64_any_dtype(series):  # of missing cells the text would be none of a date
            dates = _dates(series.dropna().astype(str).str.strip()).reindex(series.index)
        dates = dates.dt.tz_convert(None) if getattr(dates.dt, "tz", None) is not None else dates
        days: pd.Series = (dates - pd.Timestamp("1970-01-01")).dt.total_seconds() / DAY
        return days.to_numpy(dtype=np.float64)
    if pd.api.types.is_numeric_dtype(series):
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    text = series.astype(object).where(series.notna(), None)
    return _numbers(text.map(lambda v: v.strip() if isinstance(v, str) else v)).to_numpy(dtype=np.float64)


def _numbers(text: "pandas.Series") -> "pandas.Series":
    import pandas as pd

    return pd.Series(pd.to_numeric(text, errors="coerce"), index=text.index)


def is_frame(x: Any) -> bool:
    """Whether `x` is a pandas frame."""
    return columns_of(x) is not None


def named_classes(y: Any) -> tuple[list[str], list[str] | None]:
    """Targets as texts, and the different ones in order, where they are texts or truth values; None for numbers."""
    if isinstance(y, Tensor) and y.dtype != torch.bool:
        return [], None
    array = np.asarray(y)
    array = array.reshape(len(array)) if array.ndim == 2 and array.shape[1] == 1 else array
    if array.ndim != 1:
        return [], None
    text = array.dtype.kind in "US" or (array.dtype == object and any(isinstance(v, str) for v in array.flat))
    if not text and array.dtype.kind != "b":
        return [], None
    values = [str(v) for v in array]
    return values, sorted(set(values))
