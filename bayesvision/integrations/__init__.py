"""Thin adapters to other libraries, each imported by its own name and each an extra."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

_ADAPTERS = ("arviz", "botorch", "keras", "lightning", "optuna", "ray", "sklearn", "transformers")

_BACKENDS = ("jax", "tensorflow")  # of Keras, chosen by KERAS_BACKEND and in no extra

__all__ = ["needs"]


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """A block of imports that the extra provides.

    Raises:
        ImportError: a module is missing; the message names the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("bayesvision", *_BACKENDS):
            raise
        raise ImportError(
            f'bayesvision.integrations.{extra} needs {error.name}: pip install "bayesvision[{extra}]"'
        ) from error


def __getattr__(name: str) -> Any:
    if name not in _ADAPTERS:
        raise AttributeError(f"module 'bayesvision.integrations' has no attribute {name!r}")
    return importlib.import_module(f"bayesvision.integrations.{name}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ADAPTERS])
