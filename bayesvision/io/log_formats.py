"""What a log says: rows of run, step and value, from CSV, JSON or TensorBoard events.

Lines of a growing file are split by the standard library's `csv` and `json`: a reader of whole tables, as pandas has
one, knows neither where it stopped nor the number of a line that cannot be read. Event files go through tensorboard's
own loader, which follows a file that grows.
"""

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from bayesvision.io.log_columns import (
    METRICS,
    NOT_FINITE,
    RUNS,
    STEPS,
    Apart,
    Choice,
    Names,
    Row,
    StepColumn,
    candidates,
    choose_metric,
    find,
    held_out_of,
    is_metric,
    listed,
    number,
    row,
)
from bayesvision.io.tables import is_number

__all__ = ["CsvLines", "EventFile", "Format", "JsonRecords", "records"]

EXPORTED = re.compile(r"(?P<run>.+) - (?P<metric>.+)")  # a column of a table that W&B exports
BOUNDS = ("__MIN", "__MAX")  # its columns beside it
DEEPEST = 6  # nested objects


class Format(Protocol):
    """Turns a line of text into rows; a line that cannot be read raises a `ValueError`.

    Attributes:
        choice: the metric that is read, as far as it is known.
        steps: the column of steps.
        apart: what tells runs apart that are read as one.
        stale: whether what was read before has to be read again, since a later line told better what to read.
    """

    choice: Choice
    steps: StepColumn
    apart: Apart
    stale: bool

    def rows(self, line: str) -> list[Row]: ...


class CsvLines:
    """Lines under a header, separated by commas, semicolons or tabs.

    With a column for runs the table is long: run, step, value. Without one, the file is one run if it has one column of
    values or one that is held out from training, else each column is a run; but columns called after metrics are not
    runs. In a table that W&B exports, `run - metric` is a run, and the columns `__MIN` and `__MAX` are none.

    Args:
        header: the first line.
        names: columns to read.

    Raises:
        ValueError: the header does not say which columns are runs and steps, or there are no values.
    """

    def __init__(self, header: str, names: Names = Names()) -> None:  # noqa: B008 (immutable)
        bare = re.sub(r'"[^"]*"', "", header)  # a separator in quotes separates nothing
        self.delimiter = next((d for d in ",;\t" if d in bare), ",")
        self.header, self.stale, self.apart = header, False, Apart()
        columns = [c.strip() for c in self._cells(header)]
        while len(columns) > 1 and not columns[-1]:
            columns.pop()  # a separator at the end of the line
        self.columns = columns
        if all(is_number(c) for c in columns):
            raise ValueError("the first line holds numbers only; it must name the columns")
        for k, name in enumerate(columns):
            if name in columns[:k]:
                raise ValueError(f"two columns are called {name!r}; rename one")
        self.run = self._wanted("run", names.run) or find(columns, RUNS)
        self.steps = StepColumn(self._wanted("step", names.step))
        self.steps.learn(columns)
        if self.steps.name is None and (not columns[0] or columns[0].lower().startswith("unnamed")):
            self.steps.name = columns[0]  # the index that pandas writes
        if self.steps.name is None:
            raise ValueError(f"no column for steps among {listed(columns)}; name it with --step")
        self.wide = self._find_values(names.metric)

    def _cells(self, line: str) -> list[str]:
        try:
            return next(csv.reader([line], delimiter=self.delimiter, strict=True), [])
        except csv.Error as error:
            raise ValueError(str(error)) from None

    def _wanted(self, role: str, name: str | None) -> str | None:
        if name is not None and name not in self.columns:
            raise ValueError(f"no column {name!r} for --{role}, only {listed(self.columns)}")
        return name

    def _find_values(self, wanted: str | None) -> dict[str, str]:
        """The columns of values and the runs that they are, empty for the run of the line or file."""
        left = candidates(self.columns, (self.run, self.steps.name))
        exported = {c: m for c in left if not c.endswith(BOUNDS) and (m := EXPORTED.fullmatch(c))}
        if exported and self.run is None and (wanted is None or wanted not in left):
            self.choice = choose_metric(list(dict.fromkeys(m["metric"] for m in exported.values())), wanted)
            return {c: m["run"] for c, m in exported.items() if m["metric"] == self.choice.metric}
        if wanted is not None and wanted in self.columns:
            self.choice = Choice(wanted, "", tuple(name for name in left if name != wanted))
            return {wanted: ""}
        named = any(map(is_metric, left)) or len(held_out_of(left)) == 1
        if wanted is None and self.run is None and len(left) > 1 and not named:
            self.choice = Choice(None)
            return {name: name for name in left}
        self.choice = choose_metric(left, wanted)
        if not left:
            raise ValueError(f"{self.choice.problem} among {listed(self.columns)}")
        return {} if self.choice.metric is None else {self.choice.metric: ""}

    def rows(self, line: str) -> list[Row]:
        """The readings of one line; none where a cell is empty, or the header comes again."""
        if line == self.header:
            return []
        cells = self._cells(line)
        if len(cells) == len(self.columns) + 1 and not cells[-1].strip():
            cells.pop()
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} fields where the header has {len(self.columns)}")
        at, found = dict(zip(self.columns, cells, strict=True)), []
        for column, run in self.wide.items():
            value = self._number(at, column)
            if value is None:
                continue
            assert self.steps.name is not None
            name, step = run or (at[self.run] if self.run else ""), self._number(at, self.steps.name)
            doubtful = math.isnan(value) and not run and self._others_are_numbers(at)
            found.append(row(name, step, value, self.run is not None, doubtful))
            if not name and step is not None:
                known = {column, self.steps.name, self.steps.finer}
                self.apart.look(step, {c: v for c, v in at.items() if c not in known})
            if self.steps.finer is not None and step is not None and not doubtful:
                self.stale |= self.steps.stands_still(name, step, self._number(at, self.steps.finer))
        return found

    def _number(self, at: Mapping[str, str], column: str) -> float | None:
        return number(at[column], column, commas=self.delimiter != ",")

    def _others_are_numbers(self, at: Mapping[str, str]) -> bool:
        return any(is_number(at[name].strip()) and math.isfinite(float(at[name])) for name in self.choice.others)


class JsonRecords:
    """JSON objects, one a line; lines without the metric are passed over. Nested keys are joined: `val/acc`.

    The metric is chosen among the numbers of all objects so far.

    Args:
        names: keys to read.
    """

    def __init__(self, names: Names = Names()) -> None:  # noqa: B008 (immutable)
        self.names, self.keys, self.stale, self.apart = names, dict[str, None](), False, Apart()
        self.choice, self.steps, self.seen = Choice(None, "no key of values"), StepColumn(names.step), False

    def rows(self, line: str) -> list[Row]:
        """The reading of one line, or none."""
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON ({str(error)[:80]})") from None
        if not isinstance(record, dict):
            raise ValueError(f"not a JSON object but a {type(record).__name__}")
        return self.record(record)

    def record(self, nested: Mapping[str, Any]) -> list[Row]:
        """The reading of one object, or none."""
        record = dict(_flat(nested))
        if new := [k for k, v in record.items() if k not in self.keys and _is_reading(v)]:
            self._learn(new)
        self.seen = True
        metric, run = self.choice.metric, self.names.run or find([k for k, v in record.items() if v is not None], RUNS)
        if metric is None or metric not in record:
            return []
        value = number(record[metric], metric, text=False)
        if value is None:
            return []
        step = self.steps.name if self.steps.name in record else find(list(record), STEPS)
        if step is None or (self.names.step is not None and self.names.step not in record):
            raise ValueError(f"no key {self.names.step or 'for steps'} among {listed(record)}; name it with --step")
        if self.names.run is not None and run not in record:
            raise ValueError(f"no key {run!r} for --run among {listed(record)}")
        at = number(record[step], step, text=False)
        doubtful = math.isnan(value) and any(_is_finite(record.get(name)) for name in self.choice.others)
        found = row("" if run is None else str(record[run]), at, value, run is not None, doubtful)
        if run is None:
            known = {metric, step, self.steps.finer}
            self.apart.look(found.step, {k: v for k, v in record.items() if k not in known})
        if self.steps.finer is not None and self.steps.finer in record and not doubtful:
            finer = number(record[self.steps.finer], self.steps.finer, text=False)
            self.stale |= self.steps.stands_still(found.run, found.step, finer)
        return [found]

    def _learn(self, new: list[str]) -> None:
        """Choose anew among more keys."""
        self.keys |= dict.fromkeys(new)
        before = self.choice.metric
        left = candidates(self.keys, (self.names.run, self.names.step))
        self.choice = choose_metric(left, self.names.metric, "key")
        if self.names.metric in self.keys:
            self.choice = Choice(self.names.metric, "", tuple(k for k in left if k != self.names.metric))
        moved = self.steps.learn(self.keys)
        self.stale |= self.seen and (moved or before != self.choice.metric)


def _flat(record: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterable[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, dict) and depth < DEEPEST:
            yield from _flat(value, f"{prefix}{key}/", depth + 1)
        elif not isinstance(value, dict | list):
            yield f"{prefix}{key}", value


def _is_reading(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in NOT_FINITE
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return not isinstance(value, str) and _is_reading(value) and math.isfinite(value)


def records(text: str) -> list[dict[str, Any]]:
    """The objects in a JSON document: the `log_history` of a Hugging Face trainer, a list, or lists by name (Keras).

    Raises:
        ValueError: none of these.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({str(error)[:80]})") from None
    found = document.get("log_history", document) if isinstance(document, dict) else document
    if isinstance(found, dict) and found and all(isinstance(v, list) for v in found.values()):
        longest = max(map(len, found.values()))
        columns = {name: [*values, *[None] * (longest - len(values))] for name, values in found.items()}
        found = [{"epoch": k + 1, **{n: v[k] for n, v in columns.items()}} for k in range(longest)]
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError("no log: expected a trainer_state.json, a list of JSON objects, or lists of numbers by name")
    return found


class EventFile:
    """Scalars of one TensorBoard file, as far as it is written; nothing in it is executed.

    Args:
        path: the file.
        names: `metric` is the tag to read; the only one, or the one held out from training, if left out.

    Raises:
        ImportError: the package tensorboard is missing.
    """

    def __init__(self, path: str, names: Names = Names()) -> None:  # noqa: B008 (immutable)
        try:
            from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        except ImportError as error:
            lost = (error.name or "").partition(".")[0]
            raise ImportError(f'TensorBoard files need {lost}: pip install "bayesvision[tensorboard]"') from None
        self.loader, self.names = EventFileLoader(path), names
        self.found: dict[str, list[Row]] = {}
        self.choice, self.stale, self.given = Choice(None), False, 0

    def rows(self) -> list[Row]:
        """The readings that were added since the last call; all of them where `stale` says so.

        Raises:
            ValueError: damaged records.
        """
        try:
            for event in self.loader.Load():
                for entry in event.summary.value:
                    value = _scalar(entry)
                    if value is not None:
                        self.found.setdefault(entry.tag, []).append(Row("", float(event.step), value))
        except Exception as error:  # protobuf's and tensorboard's own kinds, for damaged files
            raise ValueError(f"not a whole TensorBoard file ({str(error)[:80]})") from None
        before, left = self.choice.metric, candidates(self.found)
        if find(list(self.found), METRICS) is None and not left:
            left = list(self.found)
        self.choice = choose_metric(list(self.found) if self.names.metric else left, self.names.metric, "tag")
        self.stale = before is not None and self.choice.metric != before
        rows = self.found.get(self.choice.metric or "", [])
        start, self.given = 0 if self.stale else self.given, len(rows)
        return [one for one in rows[start:] if one.step >= 0]


def _scalar(entry: Any) -> float | None:
    """The number in a summary: as old writers kept it, as new ones do, or None if there is none."""
    if entry.HasField("simple_value"):
        return float(entry.simple_value)
    if not entry.HasField("tensor"):
        return None
    from tensorboard.util.tensor_util import make_ndarray

    array = make_ndarray(entry.tensor)
    return float(array.item()) if array.size == 1 and array.dtype.kind in "fiu" else None
