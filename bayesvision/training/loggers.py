"""Loggers: metrics as JSON lines, and a progress bar."""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from typing import Any, Self, TextIO

from bayesvision.core.roles import Following, Log

__all__ = ["JsonLines", "Progress", "following"]


class JsonLines:
    """Appends metrics to a file, one JSON object a line; what is not finite becomes null.

    Example:
        >>> bv.PFN().fit(prior, bv.JsonLines("log.jsonl"))
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file: TextIO = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (kept open for the run)

    def log(self, metrics: dict[str, float], step: int, /) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Progress:
    """A progress bar on standard error or in a notebook, with the last metric that it was told.

    Example:
        >>> bv.PFN().fit(prior, log="progress")

    Args:
        steps: of the whole run.
        text: what is going on.
    """

    def __init__(self, steps: int, text: str = "training") -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        words = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}")]
        clocks = [TimeElapsedColumn(), TimeRemainingColumn()]
        self._bars: Any = Bars(*words, *clocks, console=Console(stderr=True))
        self._task = self._bars.add_task(text, total=steps, told="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def log(self, metrics: dict[str, float], step: int, /) -> None:
        name, value = next(iter(metrics.items()))
        self._bars.update(self._task, completed=step, told=f"{name} {value:.4g}")


@contextlib.contextmanager
def following(log: Following, steps: int) -> Iterator[Log | None]:
    """The log that `fit(..., log=...)` names, open for a run of so many steps.

    Raises:
        ValueError: a word that is none.
    """
    if not isinstance(log, str):
        yield log
        return
    if log != "progress":
        raise ValueError(f"log must be None, 'progress', or an object with a method log(metrics, step), got {log!r}")
    with Progress(steps) as bar:
        yield bar
