"""Log files on disk: what was added since the last look, and the runs that this makes."""

import bisect
import hashlib
import math
import os
import stat
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from bayesvision.io.log_formats import CsvLines, EventFile, Format, JsonLines, Names, Row

__all__ = ["Curve", "Logs", "Problem", "read_logs"]

TABLES, OBJECTS = (".csv", ".tsv"), (".jsonl", ".ndjson")
LONGEST = 1 << 20  # bytes of a line
CHUNK = 1 << 22  # bytes read of a file at one look; the rest waits for the next
COMPARED = 1 << 16  # bytes before the last read one that must be as they were
MOST_FILES, MOST_RUNS = 20_000, 10_000


class Curve(NamedTuple):
    """Values of a run by increasing step, counted from 1; a value that is not finite says that the run diverged."""

    steps: list[float]
    values: list[float]

    @property
    def diverged(self) -> bool:
        """Whether the last value is not finite."""
        return bool(self.values) and not math.isfinite(self.values[-1])

    @property
    def finite(self) -> "Curve":
        """The part with finite values."""
        if all(map(math.isfinite, self.values)):
            return self
        rows = [(s, v) for s, v in zip(self.steps, self.values, strict=True) if math.isfinite(v)]
        return Curve([s for s, _ in rows], [v for _, v in rows])


class Problem(NamedTuple):
    """What could not be read in a file: how many lines, and what was wrong with the first."""

    file: str
    count: int
    first: str


class _Readings:
    """Steps in increasing order and the latest value at each."""

    def __init__(self) -> None:
        self.steps, self.values = array("d"), array("d")

    def put(self, step: float, value: float) -> None:
        place = len(self.steps) if not self.steps or step > self.steps[-1] else bisect.bisect_left(self.steps, step)
        if place < len(self.steps) and self.steps[place] == step:
            self.values[place] = value
        else:
            self.steps.insert(place, step)
            self.values.insert(place, value)


class _Source:
    """A file, what was read of it, and the readings that it gave to runs."""

    def __init__(self, path: Path, label: str, own: str, inside: str, names: Names) -> None:
        self.path, self.label, self.own, self.inside, self.names = path, label, own, inside, names
        self.runs: dict[str, _Readings] = {}
        self.identity, self.seen = (0, 0), (-1, -1)  # device and inode; size and time of change
        self.metric: str | None = None
        self.restart()

    def restart(self) -> None:
        """Forget everything, since the file was replaced."""
        self.runs, self.bad, self.first, self.broken = {}, 0, "", False
        self.offset, self.line, self.skipping, self.digest = 0, 0, False, b""
        self.format: Format | None = None
        self.events: EventFile | None = None

    def complain(self, text: str) -> None:
        """Count a line that cannot be read."""
        self.bad += 1
        self.first = self.first or text

    def take(self, rows: list[Row], changed: set[str]) -> None:
        """Put readings into their runs."""
        for run, step, value in rows:
            name = f"{self.inside}{run}" if run else self.own
            if name not in self.runs and len(self.runs) >= MOST_RUNS:
                raise ValueError(f"more than {MOST_RUNS} runs; the others are left out")
            self.runs.setdefault(name, _Readings()).put(step, value)
            changed.add(name)

    def poll(self, whole: bool) -> tuple[set[str], bool]:
        """Runs that changed, and whether there is more to read; `whole` takes a last line without an end too."""
        with _opened(self.path) as file:
            found = os.fstat(file.fileno())
            identity, seen = (found.st_dev, found.st_ino), (found.st_size, found.st_mtime_ns)
            if (identity, seen) == (self.identity, self.seen):
                return set(), False
            gone: set[str] = set()
            if identity != self.identity or found.st_size < self.offset or self._tail(file) != self.digest:
                gone = set(self.runs)
                self.restart()
            self.identity = identity
            if "tfevents" in self.path.name:
                changed, more = self._poll_events(found.st_size), False
            else:
                changed, more = self._poll_lines(file, whole)
            self.digest, self.seen = self._tail(file), (-1, -1) if more else seen
        return changed | gone, more

    def _tail(self, file: BinaryIO) -> bytes:
        """Digest of the bytes before the last one read."""
        start = max(0, self.offset - COMPARED)
        file.seek(start)
        return hashlib.blake2b(file.read(self.offset - start)).digest() if self.offset else b""

    def _poll_events(self, size: int) -> set[str]:
        changed: set[str] = set()
        try:
            self.events = self.events or EventFile(str(self.path), self.names)
            self.take(self.events.rows(), changed)
            self.metric = self.events.metric
        except (ValueError, ImportError) as error:
            self.complain(str(error))
        self.offset = min(size, 1024)  # appended or not: the head tells
        return changed

    def _poll_lines(self, file: BinaryIO, whole: bool) -> tuple[set[str], bool]:
        changed: set[str] = set()
        file.seek(self.offset)
        block = file.read(CHUNK)
        more = len(block) == CHUNK
        end = block.rfind(b"\n") + 1
        if whole and not more and end < len(block):
            block, end = block + b"\n", len(block) + 1
        for line in block[:end].split(b"\n")[:-1]:
            self._read_line(line, changed)
        self.offset = min(self.offset + end, file.tell())
        if len(block) - end > LONGEST:  # no use to wait for its end
            self.offset, self.skipping = self.offset + len(block) - end, True
        return changed, more

    def _read_line(self, line: bytes, changed: set[str]) -> None:
        self.line += 1
        if self.skipping or len(line) > LONGEST:
            self.skipping = False
            self.complain(f"line {self.line}: longer than {LONGEST:,} bytes")
            return
        if self.broken or not line.strip():
            return
        try:
            text = line.decode("utf-8-sig" if self.line == 1 else "utf-8").rstrip("\r")
            if "\0" in text:
                raise ValueError("NUL bytes, so this is no text file")
            if self.format is None and not self._begin(text):
                return
            assert self.format is not None
            self.take(self.format.rows(text), changed)
            self.metric = self.format.metric
        except UnicodeDecodeError:
            self.complain(f"line {self.line}: not UTF-8")
        except ValueError as error:
            self.broken = self.broken or self.format is None
            self.complain(f"line {self.line}: {error}")

    def _begin(self, text: str) -> bool:
        """Choose the format by the first line; whether that line holds data."""
        suffix = self.path.suffix.lower()
        if suffix in OBJECTS or (suffix not in TABLES and text.lstrip().startswith("{")):
            self.format = JsonLines(self.names)
            return True
        self.format = CsvLines(text, self.names)
        return False


def _opened(path: Path) -> BinaryIO:
    """The file, if it is a regular one and no link, so that nothing outside its folder is read and nothing blocks."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{path} is not a regular file")
    return os.fdopen(handle, "rb")


class Logs:
    """The runs in a file, or in the logs of a folder and those below it, as far as they are written.

    Links inside the folder are not followed, and names that start with a dot are passed over. In a folder, a run is
    called after its file, and a run inside a file after both.

    Args:
        root: a CSV, JSON-lines or TensorBoard file, or a folder of them.
        names: columns to read.
        strict: raise at the first line that cannot be read, and take a last line that does not end yet.

    Raises:
        ValueError: there is no such file or folder.
    """

    def __init__(self, root: str | os.PathLike[str], names: Names = Names(), strict: bool = False) -> None:  # noqa: B008
        self.root, self.names, self.strict = Path(root), names, strict
        if not self.root.exists():
            raise ValueError(f"{root}: no such file or folder")
        self.home = self.root.resolve()
        self.sources: dict[str, _Source] = {}
        self.owners: dict[str, list[str]] = {}  # of every run, the files that it is in

    def poll(self) -> set[str]:
        """Read what was added since the last call; the names of the runs that changed, those that are gone included.

        Raises:
            ValueError: `strict`, and a line cannot be read; the message names the file and the line.
        """
        changed, more = set(), True
        while more:
            more, files = False, self._files()
            for label in [label for label in self.sources if label not in files]:
                changed |= set(self.sources.pop(label).runs)
            for label, path in files.items():
                if label not in self.sources:
                    self.sources[label] = self._source(label, path)
                found, unfinished = self._poll(self.sources[label])
                changed, more = changed | found, more or unfinished
        self.owners = {}
        for label, source in self.sources.items():
            for name in source.runs:
                self.owners.setdefault(name, []).append(label)
        return changed

    def _poll(self, source: _Source) -> tuple[set[str], bool]:
        try:
            found, more = source.poll(self.strict)
        except OSError as error:
            found, more = set(), False
            source.bad, source.first = 1, error.strerror or str(error)
        if self.strict and source.bad:
            raise ValueError(f"{self.root / source.label if self.home.is_dir() else self.root}: {source.first}")
        return found, more

    def _source(self, label: str, path: Path) -> _Source:
        if self.home.is_file():
            return _Source(path, label, path.stem, "", self.names)
        base = label.rsplit(".", 1)[0]
        if "tfevents" in path.name:
            base = label.rpartition("/")[0] or self.home.name
        return _Source(path, label, base, f"{base}/", self.names)

    def _files(self) -> dict[str, Path]:
        """The files that may be logs, by their place in the folder."""
        if not self.home.is_dir():
            return {self.home.name: self.home}
        return dict(sorted(_walk(self.home)))

    @property
    def runs(self) -> list[str]:
        """Names of all runs, in the order of the files and of their lines."""
        return list(self.owners)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that were read."""
        return sorted({s.metric for s in self.sources.values() if s.metric and s.runs})

    @property
    def problems(self) -> list[Problem]:
        """What could not be read so far, one entry a file."""
        return [Problem(label, s.bad, s.first) for label, s in self.sources.items() if s.bad]

    def curve(self, name: str) -> Curve:
        """The run called `name`, its steps counted from 1.

        A run whose first steps are 0 and 1 counts from 0, and 1 is added to its steps; so does one with a reading at
        step 0 alone, beside such a run. A reading at step 0 of any other is of the untrained state and left out. Of
        several files that hold the run, the last one's value counts.
        """
        merged = self.sources[self.owners[name][0]].runs[name]
        if len(self.owners[name]) > 1:
            parts = [self.sources[label].runs[name] for label in self.owners[name]]
            merged = _Readings()
            for part in parts:
                for step, value in zip(part.steps, part.values, strict=True):
                    merged.put(step, value)
        steps, values = merged.steps.tolist(), merged.values.tolist()
        if steps[0] == 0:
            beside = self.sources[self.owners[name][0]].runs.values()
            if steps[1] == 1 if len(steps) > 1 else any(run.steps[:2].tolist() == [0, 1] for run in beside):
                return Curve([s + 1 for s in steps], values)
            return Curve(steps[1:], values[1:])
        return Curve(steps, values)


def _walk(home: Path) -> Iterator[tuple[str, Path]]:
    count = 0
    for folder, below, files in os.walk(home, followlinks=False):
        below[:] = sorted(b for b in below if not b.startswith("."))
        for file in files:
            path = Path(folder, file)
            known = path.suffix.lower() in TABLES + OBJECTS or "tfevents" in file
            if known and not file.startswith(".") and not path.is_symlink():
                count += 1
                if count > MOST_FILES:
                    return
                yield path.relative_to(home).as_posix(), path


def read_logs(path: str | os.PathLike[str], names: Names = Names()) -> tuple[dict[str, Curve], str]:  # noqa: B008
    """All runs of a file or folder that has stopped growing, by name, and the name of the metric.

    Raises:
        ValueError: no file, no runs in it, or a line that cannot be read; the message names the file and the line.
    """
    logs = Logs(path, names, strict=True)
    logs.poll()
    curves = {name: logs.curve(name) for name in logs.runs}
    curves = {name: curve for name, curve in curves.items() if curve.steps}
    if not curves:
        raise ValueError(f"{path}: no runs; expected CSV, JSON lines or TensorBoard files with steps and values")
    return curves, logs.metrics[0] if len(logs.metrics) == 1 else "metric"
