"""Warnings that point at the line of whoever called the library, however deep inside it they arise."""

import sys
import warnings
from pathlib import Path

__all__ = ["warn"]

PACKAGE = str(Path(__file__).parents[1])
WRAPPERS = ("jaxtyping", "_contextlib.py")  # what decorators put between: checked annotations, torch.no_grad


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the innermost line that is not of this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _own(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _own(name: str) -> bool:
    return name.startswith((PACKAGE, "<@beartype")) or any(part in name for part in WRAPPERS)
