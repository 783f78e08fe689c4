"""What several test files share."""

import contextlib
from collections.abc import Iterator

import jaxtyping
import pytest


@contextlib.contextmanager
def rejected(message: str) -> Iterator[None]:
    """The block raises a `ValueError` that says `message`; annotations, whose checks come first, are not checked."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match=message):
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
