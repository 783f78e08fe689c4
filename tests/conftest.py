"""One thread, and every annotation of the library checked while the tests run."""

from typing import Any, Self

import jaxtyping
import torch
from beartype import BeartypeConf, beartype

torch.set_num_threads(1)


def typechecked(function: Any) -> Any:
    """beartype where an int is a float too, and without `Self`: methods are decorated alone, not in their class."""
    hints = getattr(function, "__annotations__", {})
    function.__annotations__ = {name: Any if hint is Self else hint for name, hint in hints.items()}
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)


jaxtyping.install_import_hook(["bayesvision", "priors"], "conftest.typechecked")
