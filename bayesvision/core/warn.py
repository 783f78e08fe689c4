"""Warnings that point at the line of whoever called the library, however deep inside it they arise."""

import sys
import warnings

__all__ = ["warn"]

INSIDE = ("bayesvision", "jaxtyping", "torch.utils._contextlib", "contextlib")  # modules, and what they hold


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the innermost line that is not of this package, nor of a decorator that it uses."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _own(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _own(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in INSIDE)
