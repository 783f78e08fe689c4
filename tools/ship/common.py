"""What the scripts that put a network into the package share: the float16 file that is measured, and the index."""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import bayesvision as bv
from bayesvision.io.tensors import replacing
from benchmarks.common import machine

PLACE = Path(bv.__file__).parent / "pretrained"


def as_stored(posterior: Any) -> Any:
    """The posterior as its float16 file gives it back: what is shipped is what is measured."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stored.safetensors"
        bv.save(posterior, path, torch.float16)
        return bv.load(path)


def ship(posterior: Any, name: str, summary: str) -> Path:
    """Write the posterior in float16 into the package, and its digest into the index."""
    train = posterior.method.train
    if train.start is not None:  # of a file on somebody's machine its name is enough; the digest is in the metadata
        posterior.method = replace(posterior.method, train=replace(train, start=Path(train.start).name))
    path = PLACE / f"{name}.safetensors"
    bv.save(posterior, path, torch.float16)
    index = json.loads((PLACE / "index.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    index[name] = {"file": path.name, "sha256": digest, "summary": summary}
    with replacing(PLACE / "index.json") as temporary:
        temporary.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return path


def run(text: str | None, of: str, count: int, measure: Callable[[Any, int], dict[str, Any]]) -> None:
    """The command that ships a checkpoint: what `measure` finds on `count` of something goes into its metadata."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--summary", required=True)
    parser.add_argument(f"--{of}", dest="count", type=int, default=count)
    a = parser.parse_args()
    torch.set_num_threads(1)
    posterior: Any = bv.load(a.checkpoint)
    posterior.metadata |= {"measured": measure(as_stored(posterior), a.count), "measured on": machine()}
    path = ship(posterior, a.name, a.summary)
    print(f"wrote {path}, {path.stat().st_size / 1e6:.2f} MB")
