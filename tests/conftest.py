"""One thread, and every annotation of the library checked while the tests run."""

import signal
import sys
from typing import Any, Self

import jaxtyping
import pytest
import torch
from beartype import BeartypeConf, beartype

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell lets its background jobs, and their children, ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def typechecked(function: Any) -> Any:
    """beartype where an int is a float too, and without `Self`: methods are decorated alone, not in their class."""
    hints = getattr(function, "__annotations__", {})
    function.__annotations__ = {name: Any if hint is Self else hint for name, hint in hints.items()}
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)


jaxtyping.install_import_hook(["bayesvision", "priors"], "conftest.typechecked")


@pytest.fixture(autouse=True)
def close_figures() -> Any:
    """Forget the figures that a test drew."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
