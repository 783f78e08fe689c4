"""Numeric tables from CSV files, every complaint naming the line and the column."""

import csv
import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bayesvision.core.checks import LARGEST

__all__ = ["Table", "is_number", "read_csv", "write_csv"]

MOST_COLUMNS = 5_000


class Table(NamedTuple):
    """Numbers under column names, and the file that they are from."""

    source: str
    columns: tuple[str, ...]
    values: np.ndarray  # float64 [rows, columns]
    lines: np.ndarray  # of the file, where each row ends

    def split(self, target: str) -> tuple["Table", np.ndarray]:
        """The other columns, and the column `target`.

        Raises:
            ValueError: no such column, or no other.
        """
        if target not in self.columns:
            raise ValueError(f"{self.source}: no column {target!r} to predict, only {', '.join(self.columns[:20])}")
        if len(self.columns) == 1:
            raise ValueError(f"{self.source}: {target!r} is the only column; a prediction needs at least one more")
        place = self.columns.index(target)
        rest = tuple(c for c in self.columns if c != target)
        return self._replace(columns=rest, values=np.delete(self.values, place, axis=1)), self.values[:, place]

    def rows(self, index: np.ndarray) -> "Table":
        """The given rows."""
        return self._replace(values=self.values[index], lines=self.lines[index])

    def select(self, columns: tuple[str, ...]) -> "Table":
        """The given columns in the given order.

        Raises:
            ValueError: one of them is missing.
        """
        missing = [c for c in columns if c not in self.columns]
        if missing:
            lost, here = ", ".join(missing[:20]), ", ".join(self.columns[:20])
            raise ValueError(f"{self.source}: the columns {lost} are missing; it has {here}")
        return self._replace(columns=columns, values=self.values[:, [self.columns.index(c) for c in columns]])


def read_csv(path: str | os.PathLike[str]) -> Table:
    """A CSV file with a header and numbers, separated by commas, semicolons or tabs, in UTF-8.

    Raises:
        ValueError: not such a file; the message starts with the path and names the line and the column.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the file in that encoding") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    if not text.strip():
        raise ValueError(f"{path}: the file is empty; it needs a header line and rows of numbers")
    if "\0" in text:
        raise ValueError(f"{path}: the file holds NUL bytes, so it is not a text file")
    header = next(line for line in text.splitlines() if line.strip())
    reader = csv.reader(text.splitlines(keepends=True), delimiter=next((d for d in ",;\t" if d in header), ","))
    try:
        lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}") from None
    columns = _header(path, lines[0][1])
    if len(lines) == 1:
        raise ValueError(f"{path}: a header but no rows")
    values = [_numbers(path, line, row, columns) for line, row in lines[1:]]
    return Table(str(path), columns, np.array(values), np.array([line for line, _ in lines[1:]]))


def _header(path: str | os.PathLike[str], row: list[str]) -> tuple[str, ...]:
    columns = tuple(c.strip() for c in row)
    if len(columns) > MOST_COLUMNS:
        raise ValueError(f"{path}: {len(columns)} columns, and at most {MOST_COLUMNS} are read; keep the useful ones")
    if all(is_number(c) for c in columns):
        raise ValueError(f"{path}: line 1 holds numbers only; the first line must name the columns")
    for k, name in enumerate(columns):
        if not name:
            raise ValueError(f"{path}: column {k + 1} has no name in line 1")
        if name in columns[:k]:
            raise ValueError(f"{path}: two columns are called {name!r}; rename one")
    return columns


def is_number(text: str) -> bool:
    """Whether a cell holds a number."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # 1_000 is a number to Python alone


def _numbers(path: str | os.PathLike[str], line: int, row: list[str], columns: tuple[str, ...]) -> list[float]:
    if len(row) != len(columns):
        raise ValueError(f"{path}: line {line} has {len(row)} fields where the header has {len(columns)}")
    values = []
    for name, cell in zip(columns, row, strict=True):
        where = f"{path}: line {line}, column {name!r}"
        if cell.strip().lower() in ("", "na", "nan", "n/a", "null", "none", "?"):
            raise ValueError(f"{where} is missing ({cell!r}); drop the row or fill it in")
        if not is_number(cell):
            raise ValueError(f"{where} is text ({cell[:40]!r}); encode it as numbers or drop the column")
        value = float(cell)
        if not math.isfinite(value) or abs(value) > LARGEST:
            raise ValueError(f"{where} is {cell.strip()}; values must be finite and at most {LARGEST:g} in size")
        values.append(value)
    return values


def write_csv(path: str | os.PathLike[str], columns: dict[str, np.ndarray]) -> None:
    """Write named columns, numbers with nine significant digits, text as it is."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow([value if isinstance(value, str) else f"{value:.9g}" for value in row])
