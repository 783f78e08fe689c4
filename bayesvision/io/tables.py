"""Tables from files, in any usual dialect and encoding; every complaint names the file, and the line and the column."""

import csv
import gzip
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesvision.core.checks import LARGEST
from bayesvision.core.warn import warn

if TYPE_CHECKING:
    import pandas

__all__ = ["is_number", "read_table", "write_csv"]

MOST_COLUMNS = 5_000
SAMPLE = 200  # lines that tell the separator
SEPARATORS = (",", ";", "\t", "|")
SPACES = r"\s+"
MISSING = ("", "na", "nan", "n/a", "#n/a", "<na>", "null", "none", "?", "-")
MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # that a text may begin with


def read_table(path: str | os.PathLike[str]) -> "pandas.DataFrame":
    """The table in a CSV, TSV or Parquet file, or in a gzipped text; its index tells the line, or row, of the file.

    Of a text, the separator is a comma, semicolon, tab, bar or white space, whichever fits most lines; numbers may have
    decimal commas; empty cells, NA, NaN, null, None, ? and - are missing values.

    Raises:
        FileNotFoundError: no such file.
        ImportError: pandas is missing, or pyarrow for a Parquet file.
        ValueError: not a table, no header, columns of one name, lines of another length than the header, or numbers
            that are infinite or beyond 1e30.
    """
    pandas = _pandas()
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    frame = (_parquet if Path(path).suffix.lower() in (".parquet", ".pq") else _csv)(path)
    _check_names(path, [str(name) for name in frame.columns])
    if not len(frame):
        raise ValueError(f"{path}: a header but no rows")
    faults = []
    for k, name in enumerate(frame.columns):
        if pandas.api.types.is_float_dtype(frame.iloc[:, k]):
            values = frame.iloc[:, k].to_numpy(dtype=float, na_value=np.nan)
            wrong = np.flatnonzero(~np.isnan(values) & ~(np.abs(values) <= LARGEST))
            if len(wrong):
                place = f"{frame.index.name} {frame.index[wrong[0]]}, column {name!r}"
                faults.append(f"{place} is {values[wrong[0]]:g} (of {len(wrong)} such values)")
    if faults:
        raise ValueError(f"{path}: values must be finite and at most {LARGEST:g} in size: {'; '.join(faults[:5])}")
    return frame


def _pandas() -> Any:
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ImportError('tables are read with pandas: pip install "bayesvision[frame]"') from error
    return pandas


def _parquet(path: str | os.PathLike[str]) -> "pandas.DataFrame":
    try:
        frame = _pandas().read_parquet(path)
    except ImportError as error:
        raise ImportError("Parquet files are read with pyarrow: pip install pyarrow") from error
    except Exception as error:  # pyarrow's errors are its own
        raise ValueError(f"{path} is not a Parquet file that can be read ({error})") from None
    if type(frame.index).__name__ != "RangeIndex" and frame.index.name is not None:
        frame = frame.reset_index()
    frame.index = _pandas().RangeIndex(1, len(frame) + 1, name="row")
    return frame


def _csv(path: str | os.PathLike[str]) -> "pandas.DataFrame":
    pandas, text = _pandas(), _text(path)
    separator = _separator(text)
    if separator != SPACES:
        lines = (line for line in text.splitlines(keepends=True) if line.strip())
        header = next(csv.reader(lines, delimiter=separator))
        _check_header(path, [name.strip() for name in header])
    (_, width), *records = _records(path, text, separator)
    unnamed = bool(records) and all(count == width + 1 for _, count in records)  # row names, as R writes them
    ragged = [f"line {line} has {count}" for line, count in records if count != width + unnamed]
    if ragged:
        more = f" (and {len(ragged) - 5} more such lines)" if len(ragged) > 5 else ""
        raise ValueError(f"{path}: {', '.join(ragged[:5])} fields where the header has {width}{more}")
    frame = pandas.read_csv(io.StringIO(text), sep=separator, dtype=str, na_filter=False, skipinitialspace=True)
    if unnamed:
        frame = frame.reset_index(names="Unnamed: 0")
    names = [str(name).strip() for name in frame.columns]
    frame = pandas.DataFrame({k: _typed(frame.iloc[:, k]) for k in range(frame.shape[1])})
    frame.columns, frame.index = names, pandas.Index([line for line, _ in records], name="line")
    return frame


def _text(path: str | os.PathLike[str]) -> str:
    """The content of a text file, whatever its encoding."""
    content = Path(path).read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as error:
            raise ValueError(f"{path}: the file is damaged gzip ({error})") from None
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
        if "\0" not in text:
            warn(f"{path} is not in UTF-8; it was read as Windows-1252 text")
    if "\0" in text:
        raise ValueError(f"{path}: the file holds NUL bytes, so it is not a text file; give CSV, TSV or Parquet")
    if not text.strip():
        raise ValueError(f"{path}: the file is empty; it needs a header line and rows")
    return text


def _separator(text: str) -> str:
    """What separates the cells: with it, most lines have as many cells as the first, and as many as can be."""
    lines = [line for line in text.splitlines() if line.strip()][:SAMPLE]
    best, chosen = (0.0, 1), ","
    for separator in (*SEPARATORS, SPACES):
        try:
            split = csv.reader(lines, delimiter=separator) if separator != SPACES else map(str.split, lines)
            rows = list(split)
        except csv.Error:  # a cell of more than 131,072 characters
            continue
        width = max(set(map(len, rows[1:] or rows)), key=[len(row) for row in rows[1:] or rows].count)
        fits = sum(len(row) == width for row in rows) / len(rows)
        named = width - 1 <= len(rows[0]) <= width and len(rows[0]) > 1  # R leaves the row names without a name
        if named and (round(fits, 1), width) > best and (separator != SPACES or best[1] == 1):
            best, chosen = (round(fits, 1), width), separator
    return chosen


def _records(path: str | os.PathLike[str], text: str, separator: str) -> list[tuple[int, int]]:
    """Number of the line where each record ends, and of its cells."""
    if separator == SPACES:
        return [(k, len(line.split())) for k, line in enumerate(text.splitlines(), 1) if line.strip()]
    reader = csv.reader(text.splitlines(keepends=True), delimiter=separator)
    try:
        return [(reader.line_num, len(row)) for row in reader if len(row) > 1 or (row and row[0].strip())]
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}") from None


def _check_header(path: str | os.PathLike[str], names: list[str]) -> None:
    if all(is_number(name) for name in names):
        raise ValueError(f"{path}: line 1 holds numbers only; the first line must name the columns")
    _check_names(path, [name for name in names if name])


def _check_names(path: str | os.PathLike[str], names: list[str]) -> None:
    if len(names) > MOST_COLUMNS:
        raise ValueError(f"{path}: {len(names)} columns, and at most {MOST_COLUMNS} are read; keep the useful ones")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: two columns are called {', '.join(map(repr, twice[:5]))}; rename one of each")


def _typed(cells: "pandas.Series") -> "pandas.Series":
    """Numbers where every cell that is there holds one, text otherwise; missing cells are NaN or None."""
    pandas = _pandas()
    text = cells.str.strip()
    there = ~text.str.lower().isin(MISSING)
    for written in (text, text.str.replace(",", ".", regex=False)):
        numbers = pandas.to_numeric(written.where(there), errors="coerce")
        if numbers.notna().equals(there) and not text.str.contains("_", regex=False).any():
            return numbers.astype(float)
        if not text[there].str.fullmatch(r"[-+]?\d*(,\d+)?([eE][-+]?\d+)?").all():
            break  # not decimal commas
    return text.astype(object).where(there, None)


def is_number(text: str) -> bool:
    """Whether a cell holds a number."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # 1_000 is a number to Python alone


def write_csv(path: str | os.PathLike[str], columns: Mapping[str, Sequence[Any] | np.ndarray]) -> None:
    """Write named columns, numbers with nine significant digits, all else as it is; no value is an empty cell."""

    def cell(value: Any) -> Any:
        if value is None or value != value:
            return ""
        return f"{value:.9g}" if isinstance(value, float | np.floating) else value

    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow([cell(value) for value in row])
