"""`save`, `load` and `pretrained`: one safetensors file for a posterior, the recipe as JSON in its header."""

import hashlib
import importlib
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayesvision.core.modules import outside_inference_mode
from bayesvision.core.recipes import build, to_json
from bayesvision.core.roles import Amortized, Posterior, Storable
from bayesvision.core.warn import warn
from bayesvision.io.tensors import read_tensors, write_tensors
from bayesvision.registry import POSTERIORS

__all__ = ["Shipped", "describe", "find", "load", "pretrained", "save", "shipped", "upgraded"]

FORMAT = 2
BOUNDED_1 = "RealisticLearningCurves"  # the prior of a metric in [0, 1], which format 1 did not say
TENSORS_1 = {"inward": "input_layer", "outward": "output_layer", "log_factor": "log_temperature"}  # of format 1 -> now
FIELDS_1 = {"clip": "max_grad_norm"}  # of recipes in format 1 -> now
PRIORS_1 = {
    "LearningCurvesPlus": "RealisticLearningCurves",
    "MixtureOf": "PriorMixture",
}  # in metadata of format 1 -> now
DROPPED_1 = ("folder", "interval", "device", "sharding", "compile")  # fields of Train that decided no number


class Shipped(NamedTuple):
    """A checkpoint that comes with the package."""

    file: str
    sha256: str
    summary: str


def save(posterior: Storable, path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
    """Write a posterior, with what it was conditioned on, to `path`; the file appears whole or not at all.

    Args:
        dtype: store the floating-point weights in this type (float16 halves the file); as they are when left out.

    Raises:
        ValueError: `dtype` is not a floating-point type.
        TypeError: the posterior is not made of data alone, like one of an arbitrary program.
    """
    if not isinstance(posterior, Storable):
        raise TypeError(f"{type(posterior).__name__} cannot be kept in a file: it is not made of data alone")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type such as torch.float16, got {dtype}")
    from bayesvision import __version__

    weights, exact, rest = posterior.export()
    tensors = exact | {name: value.to(dtype or value.dtype) for name, value in weights.items()}
    recipe = {"method": type(posterior.method).__name__, "recipe": to_json(posterior.method)}
    header = {"format": FORMAT, "version": __version__, **recipe, **rest}
    write_tensors(path, tensors, {**header, "sha256": _digest(tensors, header)})


def _digest(tensors: dict[str, Tensor], header: dict[str, Any]) -> str:
    """SHA-256 over everything in a file: safetensors has no checksum of its own."""
    content = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        content.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        content.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


@outside_inference_mode
def load(path: str | os.PathLike[str], device: str | torch.device = "cpu", net: Any = None) -> Posterior:
    """The posterior in a file that `save` wrote; nothing in the file is executed.

    Args:
        net: the network that the posterior was learned around, for methods whose files do not hold it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, damaged, of a newer format or an unknown method, tensors that do not fit, or a
            method that needs `net` and was given none, or the other way round.
        ImportError: the method needs an extra that is not installed.
    """
    tensors, header = read_tensors(path)
    try:
        return _restored(tensors, header, net).to(device)
    except KeyError as error:
        raise ValueError(f"{path}: the file lacks {error}; save it again") from None
    except (TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _restored(tensors: dict[str, Tensor], header: dict[str, Any], net: Any) -> Posterior:
    if header.get("format") not in (1, FORMAT):
        raise ValueError(
            f"the format is {header.get('format')!r} and this version of bayesvision reads {FORMAT} and older; "
            f"it was written by version {header.get('version')!r}, so install that or a newer one"
        )
    if header.get("method") not in POSTERIORS:
        raise ValueError(f"the method is {header.get('method')!r}, which is none of {', '.join(POSTERIORS)}")
    known = header.pop("sha256", None)
    if known is not None and known != _digest(tensors, header):
        raise ValueError("the file is damaged: its content is not what was saved; copy it anew or save it again")
    tensors, header = upgraded(tensors, header)
    import bayesvision

    name = header["method"]
    recipe = getattr(bayesvision, name)  # an ImportError that names the extra, if one is missing
    place = POSTERIORS[name].alone if net is None else POSTERIORS[name].around
    if place is None and net is None:
        raise ValueError(f"the posterior of {name} is kept without its network; give it with load(path, net=net)")
    if place is None:
        raise ValueError(f"the posterior of {name} was not learned around a network; leave net out")
    posterior = getattr(importlib.import_module(place[0]), place[1])
    return posterior.restore(build(recipe, header["recipe"]), tensors, header, *([] if net is None else [net]))


def upgraded(tensors: dict[str, Tensor], header: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a file of any format holds, under the names of today."""
    if header.get("format") != 1:
        return tensors, header
    header = dict(header)
    header |= {"recipe": _upgraded_recipe(header["recipe"]), "metadata": _upgraded_prior(header.pop("card", {}))}
    if header["metadata"].get("prior", {}).get("name") == BOUNDED_1:
        header["bounds"] = [0.0, 1.0]
    names = {name: ".".join(TENSORS_1.get(part, part) for part in name.split(".")) for name in tensors}
    return {names[name]: value for name, value in tensors.items()}, header


def _upgraded_prior(described: Any) -> Any:
    """The same with priors under the names of today, wherever they stand."""
    if isinstance(described, list):
        return [_upgraded_prior(part) for part in described]
    if not isinstance(described, dict):
        return described
    new = {key: _upgraded_prior(part) for key, part in described.items()}
    return new | {"name": PRIORS_1.get(new["name"], new["name"])} if isinstance(new.get("name"), str) else new


def _upgraded_recipe(fields: dict[str, Any]) -> dict[str, Any]:
    new = {FIELDS_1.get(name, name): value for name, value in fields.items()}
    if isinstance(new.get("train"), dict):
        new["train"] = _upgraded_recipe({k: v for k, v in new["train"].items() if k not in DROPPED_1})
    return new


def shipped() -> dict[str, Shipped]:
    """The checkpoints that come with the package, by name."""
    index = (_folder() / "index.json").read_text(encoding="utf-8")
    return {name: Shipped(**entry) for name, entry in json.loads(index).items()}


def _folder() -> Path:
    # as a folder of the package: importing it as a module would hide the function bayesvision.pretrained
    return Path(str(resources.files("bayesvision"))) / "pretrained"


def shipped_file(name: str) -> Path:
    """Path of a shipped checkpoint, its SHA-256 checked.

    Raises:
        ValueError: an unknown name, or a file that is not the one that was shipped.
    """
    known = shipped()
    if name not in known:
        raise ValueError(f"name must be one of {', '.join(known)}, got {name!r}; for a file of your own use load(path)")
    path = _folder() / known[name].file
    if not path.is_file():
        raise ValueError(f"{path} is missing; install bayesvision again")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != known[name].sha256:
        raise ValueError(f"{path} was changed: its SHA-256 is {found}, not {known[name].sha256}; install again")
    return path


def pretrained(name: str, device: str | torch.device = "cpu") -> Posterior:
    """A shipped posterior, ready to predict; read from the package, never downloaded.

    Raises:
        ValueError: an unknown name, or a file that is not the one that was shipped.
    """
    return load(shipped_file(name), device)


def find(model: str | os.PathLike[str]) -> Posterior:
    """A network by its shipped name or, if there is none, by its file; for commands and estimators.

    It starts without rows: those that are in the file are left out, with a warning that says so.

    Raises:
        ValueError: neither a shipped name nor a file, a posterior that was fitted to data and so is none without its
            rows, or as in `load` and `pretrained`.
    """
    if str(model) in shipped():
        posterior: Any = pretrained(str(model))
    elif Path(model).is_file():
        posterior = load(model)
    else:
        raise ValueError(f"{str(model)!r} is neither a file nor one of the shipped models ({', '.join(shipped())})")
    if not isinstance(posterior, Amortized) or not isinstance(posterior, Posterior):
        raise ValueError(
            f"{model} holds a {type(posterior).__name__}, which was fitted to data and cannot start anew from other "
            "rows; predict with it by bayesvision.load(path).predict(x), or take a network such as a PFN"
        )
    if posterior.rows:
        warn(
            f"{model} was saved after it had seen {posterior.rows} rows; they are left out, and only the rows given "
            "now count (bayesvision.load keeps them)"
        )
    return posterior.unconditioned()


def describe(source: str | os.PathLike[str]) -> dict[str, Any]:
    """The header of a checkpoint, given by its file or by its shipped name, and under `seen` the size of its data.

    Raises:
        FileNotFoundError, ValueError: as in `load` and `pretrained`.
    """
    path = shipped_file(str(source)) if str(source) in shipped() else Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no file {source}, and no shipped network of that name: {', '.join(shipped())}")
    tensors, header = read_tensors(path)
    if "method" not in header:
        raise ValueError(f"{path} is not a checkpoint but an unfinished run; finish it with pretrain --resume")
    header = upgraded(tensors, header)[1] if header.get("format") == 1 else header
    return header | {"seen": _size_of_data(tensors)}


def _size_of_data(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Rows and columns of the data in a file; epochs of a curve are one column, whose axis is left out."""
    x, y = tensors.get("x"), tensors.get("y")
    if x is None or y is None:
        return {"rows": 0, "columns": 0}
    rows, columns = (y.shape[-1], 1) if x.ndim == y.ndim else (x.shape[-2], x.shape[-1])
    return {"rows": rows, "columns": columns}
