"""A copy of somebody's network whose linear and convolutional layers are sparse and Bayesian."""

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bayesvision.methods.ssvi.layers import SparseLayer, sparse_layer
from bayesvision.methods.ssvi.selection import Allocation, kept_counts, largest_places, random_places
from bayesvision.training.seeds import generator

__all__ = ["Initial", "check_same", "dense_gradients", "deterministic", "layers_of", "signature", "sparsified"]

Initial = Literal["random", "trained"]
DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d)  # these classes alone: what is derived from them may be read without a call
PLACES = 1 << 42  # tells the generators of places from others


def _dense_layers(net: nn.Module) -> dict[str, Any]:
    """The layers of `net` that become sparse, by name.

    Raises:
        ValueError: none, a layer that waits for its first input, or weights that two places share.
    """
    found = {name: part for name, part in net.named_modules() if type(part) in DENSE}
    for name, part in net.named_modules():
        if any(isinstance(value, nn.UninitializedParameter) for value in part.parameters(recurse=False)):
            raise ValueError(f"net must know its sizes, and its layer {name!r} is lazy; call it with an example first")
    if not found:
        parts = [part for part in net.modules() if part is not net and list(part.parameters())]
        kinds = sorted({type(part).__name__ for part in parts})
        raise ValueError(
            "net must have a Linear, Conv1d or Conv2d layer to become sparse, "
            f"got {', '.join(kinds) or type(net).__name__}"
        )
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, part in net.named_modules(remove_duplicate=False):
        for key, value in part.named_parameters(recurse=False):
            owners.setdefault(id(value), []).append((f"{name}.{key}" if name else key, part))
    for places in owners.values():
        if len(places) > 1 and any(part is layer for _, part in places for layer in found.values()):
            raise ValueError(
                f"net must not share the weights of its layers, and {places[0][0]} is {places[1][0]} too; "
                "give each its own"
            )
    return found


def sparsified(
    net: Any, density: float, allocation: Allocation, initial: Initial, spread: float, seed: int
) -> nn.Module:
    """A copy of `net` with sparse layers in the place of dense ones; `net` is left as it was.

    With `random` the places are random and the weights those of `net` there, times sqrt(weights / kept), so that
    outputs keep their size; with `trained` the largest weights of each layer stay as they are.

    Raises:
        TypeError: `net` is no module.
        ValueError: as in `_dense_layers`, or weights that are not finite.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch module, got {type(net).__name__}")
    layers = _dense_layers(net)
    for name, value in net.named_parameters():
        if not torch.isfinite(value).all():
            raise ValueError(f"net must have finite weights, and those of {name} are not")
    counts = kept_counts([tuple(part.weight.shape) for part in layers.values()], density, allocation)
    new = copy.deepcopy(net)
    for number, ((name, part), count) in enumerate(zip(layers.items(), counts, strict=True)):
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


def signature(net: nn.Module) -> list[list[Any]]:
    """Name, kind and shape of everything that has parameters, in order, as JSON data."""
    found: list[list[Any]] = []
    for name, part in net.named_modules():
        for key, value in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            found.append([f"{name}.{key}" if name else key, type(part).__name__, list(value.shape)])
    return found


def check_same(net: nn.Module, known: list[list[Any]]) -> None:
    """Raise a `ValueError` that names the first layer in which `net` is not the network of the signature `known`."""
    found = signature(net)
    for k in range(max(len(found), len(known))):
        here, there = (_words(lines[k]) if k < len(lines) else "nothing" for lines in (found, known))
        if here != there:
            raise ValueError(f"net must be the network that was learned, which has {there} where this one has {here}")


def _words(line: list[Any]) -> str:
    name, kind, shape = line
    return f"{name} of {kind} with the shape {list(shape)}"


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
                total[name] = total[name] + value if name in total else value
    finally:
        for layer in layers.values():
            layer.probe = None
    return total
