"""What several test files share."""

import contextlib
from collections.abc import Iterator

import jaxtyping
import pytest


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """The block runs as it does for users: annotations, whose checks would come first, are not checked."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@contextlib.contextmanager
def rejected(message: str) -> Iterator[None]:
    """The block raises a `ValueError` that says `message`; annotations are not checked."""
    with unchecked(), pytest.raises(ValueError, match=message):
        yield
