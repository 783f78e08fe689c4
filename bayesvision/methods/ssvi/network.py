"""A copy of somebody's network whose linear and convolutional layers are sparse and Bayesian."""

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bayesvision.methods.ssvi.layers import SparseLayer, sparse_layer
from bayesvision.methods.ssvi.selection import Allocation, kept_counts, largest_places, random_places
from bayesvision.training.seeds import generator

__all__ = [
    "Initial",
    "check_same",
    "dense_gradients",
    "deterministic",
    "layers_of",
    "signature",
    "sparsified",
    "trainable",
]

Initial = Literal["random", "trained"]
DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d)  # these classes alone: what is derived from them may be read without a call
HALVES = (torch.float16, torch.bfloat16)
PLACES = 1 << 42  # tells the generators of places from others


def trainable(net: Any) -> list[str]:
    """Names of the layers of `net` that become sparse: those whose weights are not frozen.

    Raises:
        TypeError: `net` is no module.
        ValueError: no such layer, a layer that waits for its first input, weights that two places share, hooks on a
            layer, or weights that are not real and finite.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch module, got {type(net).__name__}")
    for name, part in net.named_modules():
        if any(isinstance(value, nn.UninitializedParameter) for value in part.parameters(recurse=False)):
            raise ValueError(f"net must know its sizes, and its layer {name!r} is lazy; call it with an example first")
    every: dict[str, Any] = {name: part for name, part in net.named_modules() if type(part) in DENSE}
    for name, part in every.items():
        if part._forward_hooks or part._forward_pre_hooks or "weight" not in part._parameters:
            raise ValueError(
                f"net must have plain layers, and {name!r} has hooks (of spectral_norm, weight_norm or prune, say), "
                "which a sparse layer would lose; remove them first"
            )
        if not part.weight.is_floating_point() or part.weight.is_meta:
            what = "on the meta device" if part.weight.is_meta else str(part.weight.dtype)
            raise ValueError(f"net must have real weights, and those of {name!r} are {what}")
    found = {name: part for name, part in every.items() if part.weight.requires_grad}
    if not found:
        parts = [part for part in net.modules() if part is not net and list(part.parameters())]
        kinds = "only frozen ones" if every else ", ".join(sorted({type(part).__name__ for part in parts}))
        raise ValueError(
            "net must have a Linear, Conv1d or Conv2d layer to become sparse, and to be trained, "
            f"got {kinds or type(net).__name__}"
        )
    _check_shared(net, found)
    for name, value in net.named_parameters():
        if not torch.isfinite(value).all():
            raise ValueError(f"net must have finite weights, and those of {name} are not")
    return list(found)


def _check_shared(net: nn.Module, layers: dict[str, Any]) -> None:
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, part in net.named_modules(remove_duplicate=False):
        for key, value in part.named_parameters(recurse=False):
            owners.setdefault(id(value), []).append((f"{name}.{key}" if name else key, part))
    for places in owners.values():
        if len(places) > 1 and any(part is layer for _, part in places for layer in layers.values()):
            raise ValueError(
                f"net must not share the weights of its layers, and {places[0][0]} is {places[1][0]} too; "
                "give each its own"
            )


def sparsified(
    net: nn.Module,
    names: list[str],
    density: float,
    allocation: Allocation,
    initial: Initial,
    spread: float,
    seed: int,
) -> nn.Module:
    """A copy of `net` with sparse layers in the place of dense ones; `net` is left as it was.

    With `random` the places are random and the weights those of `net` there, times sqrt(weights / kept), so that
    outputs keep their size; with `trained` the largest weights of each layer stay as they are. A network in half
    precision is copied in float32: standard deviations move by less than its rounding.

    Args:
        names: of the layers that become sparse.
        spread: standard deviations at the start, as a fraction of the layer's weights.
    """
    layers: dict[str, Any] = {name: net.get_submodule(name) for name in names}
    counts = kept_counts([tuple(part.weight.shape) for part in layers.values()], density, allocation)
    new = copy.deepcopy(net)
    new = new.float() if any(p.dtype in HALVES for p in new.parameters()) else new
    for number, ((name, _), count) in enumerate(zip(layers.items(), counts, strict=True)):
        part: Any = new.get_submodule(name)
        shape = tuple(part.weight.shape)
        if initial == "trained":
            index, factor = largest_places(part.weight, count).cpu(), 1.0
        else:
            index = random_places(shape, count, generator("cpu", seed, PLACES, number))
            factor = math.sqrt(math.prod(shape) / count)
        new = _replaced(new, name, sparse_layer(part, index.to(part.weight.device), factor, spread))
    return new


def _replaced(net: nn.Module, name: str, part: nn.Module) -> nn.Module:
    """`net` with `part` under `name`; `part` itself where the name is empty."""
    if not name:
        return part
    parent, _, key = name.rpartition(".")
    net.get_submodule(parent).register_module(key, part)
    return net


def layers_of(network: nn.Module) -> dict[str, SparseLayer]:
    """The sparse layers, by name, in the order of `named_modules`."""
    return {name: part for name, part in network.named_modules() if isinstance(part, SparseLayer)}


def deterministic(network: nn.Module) -> list[str]:
    """What else was learned, or is kept: one line a module with parameters or buffers of its own."""
    lines = []
    for name, part in network.named_modules():
        if isinstance(part, SparseLayer):
            continue
        count = sum(p.numel() for p in part.parameters(recurse=False))
        if count or list(part.buffers(recurse=False)):
            note = ", its statistics are those of training" if isinstance(part, nn.modules.batchnorm._NormBase) else ""
            lines.append(f"{name or 'net'}: {type(part).__name__}, {count:,} numbers{note}")
    return lines


def signature(net: nn.Module) -> list[str]:
    """One line a module, in order: its name, kind and settings, and the shapes of what it holds."""
    lines = []
    for name, part in net.named_modules():
        held = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in held)
        settings = part.extra_repr()
        lines.append(f"{name or 'net'}: {type(part).__name__}({settings}){' with ' if shapes else ''}{shapes}")
    return lines


def check_same(net: nn.Module, known: list[str]) -> None:
    """Raise a `ValueError` that names the first layer in which `net` is not the network of the signature `known`."""
    found = signature(net)
    for k in range(max(len(found), len(known))):
        here, there = (lines[k] if k < len(lines) else "nothing" for lines in (found, known))
        if here != there:
            raise ValueError(f"net must be the network that was learned, which has {there} where this one has {here}")


def dense_gradients(layers: dict[str, SparseLayer], losses: Any) -> dict[str, Tensor]:
    """Gradients of the sum of `losses`, which are computed one by one, in all means of all layers, kept or not."""
    total: dict[str, Tensor] = {}
    try:
        for layer in layers.values():
            layer.probe = layer.mu.new_zeros(layer.shape, requires_grad=True)
        probes: Any = [layer.probe for layer in layers.values()]
        for loss in losses:
            gradients = torch.autograd.grad(loss(), probes, allow_unused=True)
            for name, probe, gradient in zip(layers, probes, gradients, strict=True):
                value = torch.zeros_like(probe) if gradient is None else gradient
                total[name] = total[name].add_(value) if name in total else value
    finally:
        for layer in layers.values():
            layer.probe = None
    return total
