"""What a line of a log says: rows of run, step and value, from CSV, JSON lines or TensorBoard events."""

import csv
import json
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from bayesvision.io.tables import is_number

__all__ = ["CsvLines", "EventFile", "Format", "JsonLines", "Names", "Row"]

# Names that are understood without being told, the most telling first; case does not matter.
RUNS = ("run", "run_id", "run_name", "trial", "trial_id", "trial_name", "config", "config_id", "experiment")
STEPS = ("epoch", "step", "iteration", "iter", "global_step", "training_iteration", "_step", "epochs", "steps", "t")
METRICS = ("value", "metric", "score", "objective")
OTHER = ("time", "timestamp", "wall_time", "walltime", "date", "elapsed", "seconds", "_runtime", "_timestamp", "lr")
WORDS = {"loss", "acc", "accuracy", "error", "err", "auc", "f1", "map", "bleu", "rmse", "mse", "mae", "nll"}
WORDS |= {"perplexity", "ppl", "precision", "recall", "wer", "ssim", *METRICS}  # a column with one of these is a metric
ABSENT = ("", "na", "n/a", "null", "none")  # no reading; nan and inf are readings of a diverged run
LONGEST_NAME = 200


class Names(NamedTuple):
    """Names of the columns (keys, tags) to read; those that are None are found out."""

    run: str | None = None
    step: str | None = None
    metric: str | None = None


class Row(NamedTuple):
    """One reading; `run` is empty where the file is one run."""

    run: str
    step: float
    value: float


class Format(Protocol):
    """Turns a line of text into rows; a line that cannot be read raises a `ValueError`."""

    metric: str | None

    def rows(self, line: str) -> list[Row]: ...


class CsvLines:
    """Lines under a header, separated by commas, semicolons or tabs.

    With a column for runs the table is long: run, step, value. Without one, the file is one run if it has one column of
    values or the metric is named, else each column is a run; but columns called after metrics are not runs.

    Args:
        header: the first line.
        names: columns to read.

    Raises:
        ValueError: the header does not say which columns are runs, steps and values.
    """

    def __init__(self, header: str, names: Names = Names()) -> None:  # noqa: B008 (immutable)
        self.delimiter = next((d for d in ",;\t" if d in header), ",")
        self.columns = [c.strip() for c in self._cells(header)]
        if all(is_number(c) for c in self.columns):
            raise ValueError("the first line holds numbers only; it must name the columns")
        for k, name in enumerate(self.columns):
            if name in self.columns[:k]:
                raise ValueError(f"two columns are called {name!r}; rename one")
        self.run = self._find("run", names.run, RUNS)
        self.step = self._find("step", names.step, STEPS)
        if self.step is None and (not self.columns[0] or self.columns[0].lower().startswith("unnamed")):
            self.step = 0  # the index that pandas writes
        if self.step is None:
            raise ValueError(f"no column for steps among {_listed(self.columns)}; name it with --step")
        self.values = self._find_values(names.metric)
        self.metric = None if len(self.values) > 1 else self.columns[self.values[0]]

    def _cells(self, line: str) -> list[str]:
        try:
            return next(csv.reader([line], delimiter=self.delimiter, strict=True), [])
        except csv.Error as error:
            raise ValueError(str(error)) from None

    def _find(self, role: str, wanted: str | None, known: tuple[str, ...]) -> int | None:
        if wanted is not None:
            if wanted not in self.columns:
                raise ValueError(f"no column {wanted!r} for --{role}, only {_listed(self.columns)}")
            return self.columns.index(wanted)
        lower = [c.lower() for c in self.columns]
        return next((lower.index(name) for name in known if name in lower), None)

    def _find_values(self, wanted: str | None) -> list[int]:
        place = self._find("metric", wanted, METRICS)
        if place is not None:
            return [place]
        known = STEPS + OTHER
        left = [k for k, c in enumerate(self.columns) if k not in (self.run, self.step) and c.lower() not in known]
        if not left:
            raise ValueError(f"no column of values among {_listed(self.columns)}")
        names = [self.columns[k] for k in left]
        if len(left) > 1 and (self.run is not None or any(_is_metric(n) for n in names)):
            raise ValueError(f"the metric may be any of {_listed(names)}; name one with --metric")
        return left

    def rows(self, line: str) -> list[Row]:
        """The readings of one line; none where a cell is empty."""
        cells = self._cells(line)
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} fields where the header has {len(self.columns)}")
        assert self.step is not None
        found, wide = [], len(self.values) > 1
        for k in self.values:
            value = _parse(cells[k], self.columns[k])
            if value is not None:
                run = self.columns[k] if wide else "" if self.run is None else cells[self.run]
                found.append(_row(run, _parse(cells[self.step], self.columns[self.step]), value, self.run is not None))
        return found


class JsonLines:
    """One JSON object a line; lines without the metric are passed over.

    Args:
        names: keys to read; the metric that is found first stays the metric.
    """

    def __init__(self, names: Names = Names()) -> None:  # noqa: B008 (immutable)
        self.names, self.metric = names, names.metric

    def rows(self, line: str) -> list[Row]:
        """The reading of one line, or none."""
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON ({str(error)[:80]})") from None
        if not isinstance(record, dict):
            raise ValueError(f"not a JSON object but a {type(record).__name__}")
        run = self.names.run or next((k for k in record if k.lower() in RUNS), None)
        step = self.names.step or min((k for k in record if k.lower() in STEPS), key=_rank, default=None)
        metric = self._find_metric(record, run, step)
        if metric is None or record.get(metric) is None:
            return []
        if step is None or step not in record:
            raise ValueError(f"no key {step or 'for steps'} among {_listed(list(record))}; name it with --step")
        if self.names.run is not None and run not in record:
            raise ValueError(f"no key {run!r} for --run among {_listed(list(record))}")
        return [_row(str(record.get(run, "")), _take(record, step), _take(record, metric), run is not None)]

    def _find_metric(self, record: dict[str, Any], run: str | None, step: str | None) -> str | None:
        if self.metric is not None:
            return self.metric
        numbers = [k for k, v in record.items() if isinstance(v, int | float) and not isinstance(v, bool)]
        left = [k for k in numbers if k not in (run, step) and k.lower() not in STEPS + OTHER]
        known = [k for k in left if k.lower() in METRICS]
        if len(left) > 1 and not known:
            raise ValueError(f"the metric may be any of {_listed(left)}; name one with --metric")
        self.metric = next(iter(known or left), None)
        return self.metric


class EventFile:
    """Scalars of one TensorBoard file, as far as it is written; nothing in it is executed.

    Args:
        path: the file.
        names: `metric` is the tag to read; the only one if left out.

    Raises:
        ImportError: the package tensorboard is missing.
    """

    def __init__(self, path: str, names: Names = Names()) -> None:  # noqa: B008 (immutable)
        try:
            from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        except ImportError as error:
            lost = (error.name or "").partition(".")[0]
            raise ImportError(f'TensorBoard files need {lost}: pip install "bayesvision[tensorboard]"') from None
        self.loader, self.metric = EventFileLoader(path), names.metric

    def rows(self) -> list[Row]:
        """The readings that were added since the last call.

        Raises:
            ValueError: several tags and none named, or damaged records.
        """
        found: dict[str, list[Row]] = {}
        try:
            for event in self.loader.Load():
                for entry in event.summary.value:
                    value = _scalar(entry)
                    if value is not None:
                        found.setdefault(entry.tag, []).append(Row("", float(event.step), value))
        except Exception as error:  # protobuf's and tensorboard's own kinds, for damaged files
            raise ValueError(f"not a whole TensorBoard file ({str(error)[:80]})") from None
        if self.metric is None and found:
            known = [tag for tag in found if tag.lower() in METRICS]
            if len(found) > 1 and not known:
                raise ValueError(f"the metric may be any of the tags {_listed(list(found))}; name one with --metric")
            self.metric = next(iter(known or found))
        return [row for row in found.get(self.metric or "", []) if row.step >= 0]


def _scalar(entry: Any) -> float | None:
    """The number in a summary: as old writers kept it, as new ones do, or None if there is none."""
    if entry.HasField("simple_value"):
        return float(entry.simple_value)
    if not entry.HasField("tensor"):
        return None
    from tensorboard.util.tensor_util import make_ndarray

    array = make_ndarray(entry.tensor)
    return float(array.item()) if array.size == 1 and array.dtype.kind in "fiu" else None


def _is_metric(name: str) -> bool:
    return bool(WORDS & set(re.split(r"[^a-z0-9]+", name.lower())))


def _rank(name: str) -> int:
    return STEPS.index(name.lower())


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(n[:40] for n in names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _parse(cell: str, column: str) -> float | None:
    text = cell.strip()
    if text.lower() in ABSENT:
        return None
    if not is_number(text):
        raise ValueError(f"column {column!r} is text ({cell[:40]!r}) where a number was expected")
    return float(text)


def _take(record: dict[str, Any], key: str) -> float | None:
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise ValueError(f"{key!r} is {str(value)[:40]!r} where a number was expected")
    try:
        return None if value is None else float(value)
    except OverflowError:
        raise ValueError(f"{key!r} is a number of too many digits") from None


def _row(run: str, step: float | None, value: float | None, named: bool) -> Row:
    """A reading whose step is a number of at least 0 and whose run has a name, without what a terminal would obey."""
    if step is None or not math.isfinite(step) or step < 0:
        raise ValueError(f"the step is {'missing' if step is None else f'{step:g}'}; it must be a number of at least 0")
    name = "".join(c if c.isprintable() else "\ufffd" for c in run.strip())[:LONGEST_NAME]
    if named and not name:
        raise ValueError("the run has no name")
    return Row(name, step, math.nan if value is None else value)
