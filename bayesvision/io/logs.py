"""Log files on disk: the runs in a file or a folder, as far as they are written."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bayesvision.io.log_columns import Names, listed
from bayesvision.io.log_files import OBJECTS, TABLES, Curve, LogFile, Readings

__all__ = ["Found", "Logs", "Problem", "read_logs"]

MOST_FILES = 20_000
STATE = "trainer_state.json"  # of a Hugging Face trainer, in the folder of a checkpoint too
CHECKPOINT = re.compile(r"(?:(.*)/)?checkpoint-(\d+)/" + re.escape(STATE))
OFTEN, SHARE = 3, 0.1  # a run goes back: more than so many times, and so often among its readings, is no restart


class Problem(NamedTuple):
    """What could not be read in a file: how many lines, and what was wrong with the first."""

    file: str
    count: int
    first: str


class Found(NamedTuple):
    """The runs of a log, the name of their metric, and what the reader should know about how they were read."""

    curves: dict[str, Curve]
    metric: str
    notes: list[str]


class Logs:
    """The runs in a file, or in the logs of a folder and those below it, as far as they are written.

    Links inside the folder are not followed, and names that start with a dot are passed over. In a folder, a run is
    called after its file, and a run inside a file after both. A table beside an event file is of the same training, and
    is read in its place; of the states of a Hugging Face trainer the newest is read.

    Args:
        root: a CSV, JSON-lines, `trainer_state.json` or TensorBoard file, or a folder of them.
        names: columns to read.
        strict: raise at the first line that cannot be read, and take a last line that does not end yet; files of a
            folder that hold no runs are passed over.

    Raises:
        ValueError: there is no such file or folder.
    """

    def __init__(self, root: str | os.PathLike[str], names: Names = Names(), strict: bool = False) -> None:  # noqa: B008
        self.root, self.names, self.strict = Path(root), names, strict
        if not self.root.exists():
            raise ValueError(f"{root}: no such file or folder")
        self.home = self.root.resolve()
        self.sources: dict[str, LogFile] = {}
        self.owners: dict[str, list[str]] = {}  # of every run, the files that it is in
        self.twins: dict[str, str] = {}  # event files whose training is in a table

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
        self.twins, self.owners = self._find_twins(), {}
        for label, source in self.sources.items():
            for name in source.runs if label not in self.twins else ():
                self.owners.setdefault(name, []).append(label)
        return changed

    def _poll(self, source: LogFile) -> tuple[set[str], bool]:
        try:
            found, more = source.poll(self.strict)
        except OSError as error:
            found, more = set(), False
            source.bad, source.first = 1, error.strerror or str(error)
        lone = not self.home.is_dir()
        if self.strict and source.problem and (lone or source.runs or "tfevents" in source.label):
            raise ValueError(f"{self.root if lone else self.root / source.label}: {source.problem}")
        return found, more

    def _source(self, label: str, path: Path) -> LogFile:
        if self.home.is_file():
            return LogFile(path, label, path.stem, "", self.names)
        base = label.rsplit(".", 1)[0]
        if match := CHECKPOINT.fullmatch(label):
            base = match[1] or self.home.name
        elif "tfevents" in path.name or path.name == STATE:
            base = label.rpartition("/")[0] or self.home.name
        return LogFile(path, label, base, f"{base}/", self.names)

    def _files(self) -> dict[str, Path]:
        """The files that may be logs, by their place in the folder."""
        if not self.home.is_dir():
            return {self.home.name: self.home}
        found = dict(sorted(_walk(self.home)))
        newest: dict[str, tuple[int, int, str]] = {}
        for label in [label for label in found if label.endswith(STATE)]:
            match = CHECKPOINT.fullmatch(label)
            training = (match[1] or "") if match else label.rpartition("/")[0]
            written = found[label].stat(follow_symlinks=False).st_mtime_ns
            age = written, int(match[2]) if match else 0, label
            newest[training] = max(newest.get(training, age), age)
        kept = {label for *_, label in newest.values()}
        return {label: path for label, path in found.items() if not label.endswith(STATE) or label in kept}

    def _find_twins(self) -> dict[str, str]:
        """Event files beside the only table of their folder, which holds a single run."""
        tables: dict[str, list[str]] = {}
        for label, source in self.sources.items():
            if source.events is None and list(source.runs) == [source.own]:
                tables.setdefault(label.rpartition("/")[0], []).append(label)
        pairs = ((label, tables.get(label.rpartition("/")[0], [])) for label, s in self.sources.items() if s.events)
        return {label: beside[0] for label, beside in pairs if len(beside) == 1}

    @property
    def runs(self) -> list[str]:
        """Names of all runs, in the order of the files and of their lines."""
        return list(self.owners)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that were read."""
        used = {label for labels in self.owners.values() for label in labels}
        return sorted({s.choice.metric for label, s in self.sources.items() if label in used and s.choice.metric})

    @property
    def choices(self) -> list[str]:
        """Names of all metrics that may be read, those that are read included."""
        found = dict.fromkeys(self.metrics)
        for source in self.sources.values():
            found |= dict.fromkeys(source.choice.others)
        return list(found)

    @property
    def steps(self) -> list[str]:
        """Names of the columns that steps were read from."""
        return sorted({str(s.format.steps.name) for s in self.sources.values() if s.runs and s.format})

    @property
    def problems(self) -> list[Problem]:
        """What could not be read so far, one entry a file."""
        return [Problem(label, max(1, s.bad), s.problem) for label, s in self.sources.items() if s.problem]

    @property
    def notes(self) -> list[str]:
        """What was guessed, passed over and replaced, in words."""
        notes = [f"passed over {p.file}: {p.first}" for p in self.problems if not self.sources[p.file].runs]
        notes += [f"{table} and {label} are of one training; the first is read" for label, table in self.twins.items()]
        chosen = {s.choice.metric: s.choice.others for s in self.sources.values() if s.runs and s.choice.others}
        if self.names.metric is None:
            told = [(m, o) for m, o in chosen.items() if m is not None]
            notes += [f"read {m}, and not {listed(o)}; --metric NAME takes another one" for m, o in told]
        back = dict.fromkeys(name for s in self.sources.values() for name, r in s.runs.items() if r.back)
        back |= dict.fromkeys(name for name, held in self.owners.items() if len(held) > 1 and self._merged(name).back)
        if len(self.steps) > 1:
            notes.append(f"steps are counted by {listed(self.steps)}; --step NAME takes one of them")
        if back:
            notes.append(f"steps go back in {listed(back)}: what came later replaced what was there from its step on")
        return notes

    def updated(self, name: str) -> float:
        """When the files that hold the run changed last, in seconds since 1970."""
        return max(self.sources[label].seen[1] for label in self.owners[name]) / 1e9

    def curve(self, name: str, horizon: float | None = None) -> Curve:
        """The run called `name`, its steps counted from 1.

        A run whose first steps are 0 and 1 counts from 0, and 1 is added to its steps, unless that passes the horizon;
        so does one with a reading at step 0 alone, beside such a run. A reading at step 0 of any other is of the
        untrained state and left out. Of several files that hold the run, what comes later replaces what was there from
        its first step on.
        """
        steps, values = self._merged(name).curve()
        if not steps or steps[0] != 0:
            return Curve(steps, values)
        beside = self.sources[self.owners[name][0]].runs.values()
        from_zero = steps[1] == 1 if len(steps) > 1 else any(run.steps[:2].tolist() == [0, 1] for run in beside)
        if from_zero and (horizon is None or steps[-1] < horizon):
            return Curve([s + 1 for s in steps], values)
        return Curve(steps[1:], values[1:])

    def _merged(self, name: str) -> Readings:
        """The readings of a run from all files that hold it."""
        first, *more = [self.sources[label].runs[name] for label in self.owners[name]]
        if not more:
            return first
        merged = Readings()
        for part in (first, *more):
            for step, value, doubtful in zip(part.steps, part.values, part.doubtful, strict=True):
                merged.put(step, value, bool(doubtful))
        return merged


def _walk(home: Path) -> Iterator[tuple[str, Path]]:
    count = 0
    for folder, below, files in os.walk(home, followlinks=False):
        below[:] = sorted(b for b in below if not b.startswith("."))
        for file in files:
            path = Path(folder, file)
            known = path.suffix.lower() in TABLES + OBJECTS or "tfevents" in file or file == STATE
            if known and not file.startswith(".") and not path.is_symlink():
                count += 1
                if count > MOST_FILES:
                    return
                yield path.relative_to(home).as_posix(), path


def read_logs(path: str | os.PathLike[str], names: Names = Names(), horizon: float | None = None) -> Found:  # noqa: B008
    """All runs of a file or folder that has stopped growing, by name, the name of the metric, and notes.

    Raises:
        ValueError: no file, no runs in it, runs under several metrics, rows that are in no order, or a line that cannot
            be read; the message names the file and the line.
    """
    logs = Logs(path, names, strict=True)
    logs.poll()
    curves = {name: logs.curve(name, horizon) for name in logs.runs}
    curves = {name: curve for name, curve in curves.items() if curve.steps}
    if not curves:
        why = "; ".join(f"{p.file}: {p.first}" for p in logs.problems[:3])
        raise ValueError(
            f"{path}: no runs{f' ({why})' if why else ''}; expected CSV, JSON lines, trainer_state.json or TensorBoard "
            "files with steps and values"
        )
    if len(logs.metrics) > 1:
        raise ValueError(f"{path}: the files hold the metrics {listed(logs.metrics)}; name one with --metric")
    _check_order(path, logs)
    return Found(curves, logs.metrics[0] if logs.metrics else "metric", logs.notes)


def _check_order(path: str | os.PathLike[str], logs: Logs) -> None:
    """Refuse rows of several runs that are read as one, rows in no order, and files that count their steps unlike."""
    for source in logs.sources.values():
        apart = source.format.apart.names if source.format and source.runs else []
        if apart:
            raise ValueError(
                f"{path}: {listed(apart)} changes where the steps go back or repeat, so several runs would be read as "
                f"one; say --run {apart[0]!r}, or name another column"
            )
        for name, readings in source.runs.items():
            odd = readings.back + readings.repeats
            if odd > max(OFTEN, SHARE * (len(readings.steps) + odd)):
                raise ValueError(
                    f"{path}: the steps of run {name!r} go back {readings.back} times and repeat {readings.repeats} "
                    "times; sort the rows by step, name the column that tells the runs apart with --run, or another "
                    "column of steps with --step"
                )
    if len(logs.steps) > 1 and any(s.format.steps.still > 1 for s in logs.sources.values() if s.format):
        several = " and some by ".join(logs.steps)
        raise ValueError(f"{path}: some files count steps by {several}; name one with --step")
