"""One log file on disk: what was added since the last look, and the readings that this makes."""

import bisect
import hashlib
import json
import math
import os
import stat
from array import array
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bayesvision.io.log_columns import Choice, Names, Row
from bayesvision.io.log_formats import CsvLines, EventFile, Format, JsonRecords, records

__all__ = ["OBJECTS", "TABLES", "Curve", "LogFile", "Readings"]

TABLES, OBJECTS, DOCUMENT = (".csv", ".tsv"), (".jsonl", ".ndjson"), ".json"
LONGEST = 1 << 20  # bytes of a line
CHUNK = 1 << 22  # bytes read of a file at one look; the rest waits for the next
WHOLE = 1 << 26  # bytes of a file that can be read only as a whole
COMPARED = 1 << 16  # bytes before the last read one that must be as they were
MOST_RUNS = 10_000
WIDE = (b"\xff\xfe", b"\xfe\xff")  # how a file in UTF-16 begins


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


class Readings:
    """Steps in increasing order and the value at each; what comes later replaces everything from its step on."""

    def __init__(self) -> None:
        self.steps, self.values, self.doubtful = array("d"), array("d"), array("b")
        self.back = self.repeats = 0  # how often the steps went back, or stood still under another value

    def put(self, step: float, value: float, doubtful: bool = False) -> None:
        """Take in a reading."""
        if self.steps and step <= self.steps[-1]:
            place = bisect.bisect_left(self.steps, step)
            self.back += step < self.steps[-1]
            self.repeats += step == self.steps[-1] and math.isfinite(value) and value != self.values[-1]
            for column in (self.steps, self.values, self.doubtful):
                del column[place:]
        self.steps.append(step)
        self.values.append(value)
        self.doubtful.append(doubtful)

    def curve(self) -> Curve:
        """Steps and values, without the rows where the metric was not evaluated.

        A NaN beside other metrics that are numbers may say that the metric was not evaluated there, or that the run
        diverged. It says the latter where more such rows follow each other than ever before in this run.
        """
        longest = current = evaluated = 0
        for doubt in self.doubtful:
            longest, current = (longest, current + 1) if doubt else (max(longest, current), 0)
            evaluated += not doubt
        first = len(self.steps) - current + longest if evaluated > 1 and current > longest else -1
        kept = [k for k, doubt in enumerate(self.doubtful) if not doubt or k == first]
        return Curve([self.steps[k] for k in kept], [self.values[k] for k in kept])


class LogFile:
    """A file, what was read of it, and the readings that it gave to runs.

    Args:
        path: the file.
        label: its place in the folder.
        own: name of the run that it is.
        inside: what the names of runs in it begin with.
        names: columns to read.
    """

    def __init__(self, path: Path, label: str, own: str, inside: str, names: Names) -> None:
        self.path, self.label, self.own, self.inside, self.names = path, label, own, inside, names
        self.identity, self.seen = (0, 0), (-1, -1)  # device and inode; size and time of change
        self.restart()

    def restart(self) -> None:
        """Forget everything, since the file was replaced."""
        self.format: Format | None = None
        self.events: EventFile | None = None
        self._reread()

    def _reread(self) -> None:
        """Forget the readings, and keep what is known of the columns."""
        self.runs: dict[str, Readings] = {}
        self.bad, self.first, self.broken = 0, "", False
        self.offset, self.line, self.skipping, self.digest = 0, 0, False, b""

    @property
    def choice(self) -> Choice:
        """The metric that is read, as far as it is known."""
        known = self.format or self.events
        return Choice(None) if known is None else known.choice

    @property
    def problem(self) -> str:
        """What is wrong with the file, in words; nothing if it can be read."""
        return self.first or ("" if self.runs else self.choice.problem)

    def complain(self, text: str) -> None:
        """Count a line that cannot be read."""
        self.bad += 1
        self.first = self.first or text

    def take(self, rows: list[Row], changed: set[str]) -> None:
        """Put readings into their runs."""
        for run, step, value, doubtful in rows:
            name = f"{self.inside}{run}" if run else self.own
            if name not in self.runs and len(self.runs) >= MOST_RUNS:
                raise ValueError(f"more than {MOST_RUNS} runs; the others are left out")
            self.runs.setdefault(name, Readings()).put(step, value, doubtful)
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
            changed, more = self._poll(file, found.st_size, whole)
            for _ in range(3):  # a later line may tell better what to read
                if self.format is None or not self.format.stale or more:
                    break
                changed |= set(self.runs)
                self.format.stale = False
                self._reread()
                while True:
                    found_more, more = self._poll(file, found.st_size, whole)
                    changed |= found_more
                    if not more:
                        break
            self.digest, self.seen = self._tail(file), (-1, -1) if more else seen
        return changed | gone, more

    def _poll(self, file: BinaryIO, size: int, whole: bool) -> tuple[set[str], bool]:
        file.seek(0)
        if "tfevents" in self.path.name:
            return self._poll_events(size), False
        if self.path.suffix.lower() == DOCUMENT or file.read(2) in WIDE:
            return self._poll_whole(file, size), False
        return self._poll_lines(file, whole)

    def _tail(self, file: BinaryIO) -> bytes:
        """Digest of the bytes before the last one read."""
        start = max(0, self.offset - COMPARED)
        file.seek(start)
        return hashlib.blake2b(file.read(self.offset - start)).digest() if self.offset else b""

    def _poll_events(self, size: int) -> set[str]:
        changed: set[str] = set()
        try:
            self.events = self.events or EventFile(str(self.path), self.names)
            rows = self.events.rows()
            if self.events.stale:
                changed, self.runs = set(self.runs), {}
            self.take(rows, changed)
        except (ValueError, ImportError) as error:
            self.complain(str(error))
        self.offset = min(size, 1024)  # appended or not: the head tells
        return changed

    def _poll_whole(self, file: BinaryIO, size: int) -> set[str]:
        """A file that does not grow line by line: a JSON document, or text in UTF-16."""
        changed = set(self.runs)
        if size > WHOLE:
            self.complain(f"larger than {WHOLE:,} bytes")
            return changed
        file.seek(0)
        data = file.read()
        try:
            text = data.decode("utf-16" if data[:2] in WIDE else "utf-8-sig")
            found = records(text) if self.path.suffix.lower() == DOCUMENT and not _is_lines(text) else None
        except (ValueError, UnicodeError) as error:
            if not self.runs:  # else it is being written anew, and what was read stands
                self.complain(str(error))
            return set()
        self.restart()
        for _ in range(3):  # the first time may tell what to read
            self._reread()
            if found is None:
                for line in text.splitlines():
                    self._read_line(line.encode(), changed)
            else:
                self._take_records(found, changed)
            if self.format is None or not self.format.stale:
                break
            self.format.stale = False
        return changed

    def _take_records(self, found: list[dict[str, Any]], changed: set[str]) -> None:
        """The objects of a document."""
        format = self.format if isinstance(self.format, JsonRecords) else JsonRecords(self.names)
        self.format = format
        try:
            for record in found:
                self.take(format.record(record), changed)
        except ValueError as error:
            self.complain(str(error))

    def _poll_lines(self, file: BinaryIO, whole: bool) -> tuple[set[str], bool]:
        changed: set[str] = set()
        file.seek(self.offset)
        block = file.read(CHUNK)
        more = len(block) == CHUNK
        if b"\r" in block and b"\n" not in block:
            block = block.replace(b"\r", b"\n")  # lines as they were ended long ago
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
        except UnicodeDecodeError:
            self.complain(f"line {self.line}: not UTF-8")
        except ValueError as error:
            self.broken = self.broken or self.format is None
            self.complain(f"line {self.line}: {error}")

    def _begin(self, text: str) -> bool:
        """Choose the format by the first line; whether that line holds data."""
        suffix = self.path.suffix.lower()
        if suffix in (*OBJECTS, DOCUMENT) or (suffix not in TABLES and text.lstrip().startswith("{")):
            self.format = JsonRecords(self.names)
            return True
        self.format = CsvLines(text, self.names)
        return False


def _is_lines(text: str) -> bool:
    """Whether a JSON file holds an object a line, as some loggers call `.log.json`."""
    lines = [line for line in text.splitlines()[:3] if line.strip()]
    if len(lines) < 2:
        return False
    try:
        return all(isinstance(json.loads(line), dict) for line in lines[:2])
    except ValueError:
        return False


def _opened(path: Path) -> BinaryIO:
    """The file, if it is a regular one and no link, so that nothing outside its folder is read and nothing blocks."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{path} is not a regular file")
    return os.fdopen(handle, "rb")
