"""Files that hold data only: tensors as safetensors with JSON in the header, written whole or not at all."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["read_tensors", "replacing", "write_tensors"]

KEY = "bayesvision"


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, remove it if not."""
    target = Path(path)
    temporary = target.with_name(f".{target.stem}-{secrets.token_hex(8)}{target.suffix}")
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode  # as the umask has it; who writes into the file may change it
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors and a JSON header as one safetensors file."""
    with replacing(path) as temporary:
        # copies, because the format refuses tensors that share memory, as tied weights do
        copies = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
        save_file(copies, temporary, {KEY: json.dumps(header)})


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file that `write_tensors` wrote; nothing in it is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not safetensors (a renamed pickle, say), is cut short, or has no header of ours.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); save it again or copy it anew") from None
    if header is None:
        raise ValueError(f"{path} is safetensors, but bayesvision did not write it: its header has no recipe")
    try:
        parsed = json.loads(header)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has a broken header ({error}); save it again") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"{path} has a broken header ({type(parsed).__name__}, not an object); save it again")
    return tensors, parsed
