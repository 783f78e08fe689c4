"""Loggers: metrics as JSON lines."""

import json
import math
import os
from typing import TextIO

__all__ = ["JsonLines"]


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
