"""What a sparse network costs, counted and not timed, beside the dense one."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayesvision.methods.ssvi.layers import SparseLayer
from bayesvision.methods.ssvi.model import Model
from bayesvision.methods.ssvi.network import layers_of

__all__ = ["Cost", "LayerCost", "counted"]

STATES = {"adamw": 2, "muon": 2, "sgd": 1}  # numbers that an optimiser keeps for each one it moves


class LayerCost(NamedTuple):
    """Of one layer, for one input.

    Attributes:
        name: in the network.
        kernel: how products are computed on a CPU.
        dense_weights, kept: numbers of weights, dense and sparse.
        dense_macs, macs: multiply-adds of one product, with all weights and with those that are kept.
        done_macs: those that the kernel does; an accelerator does `dense_macs`.
        dense_training_bytes, training_bytes: weights, their standard deviations, moments of both, and for the sparse
            layer its places; of the dense one the same variational inference.
        dense_inference_bytes, inference_bytes: means and standard deviations, and places.
    """

    name: str
    kernel: str
    dense_weights: int
    kept: int
    dense_macs: int
    macs: int
    done_macs: int
    dense_training_bytes: int
    training_bytes: int
    dense_inference_bytes: int
    inference_bytes: int


class Cost(NamedTuple):
    """Of all layers; biases and what else a network holds are not counted.

    To exchange weights, training makes a dense gradient of each layer now and then, of `exchange_bytes` in all. A step
    of training takes six products (mean and variance, each forward and to the gradients of inputs and weights), a
    prediction one for each draw.
    """

    layers: tuple[LayerCost, ...]

    @property
    def total(self) -> LayerCost:
        """The sums."""
        sums = [sum(getattr(layer, name) for layer in self.layers) for name in LayerCost._fields[2:]]
        kernels = sorted({layer.kernel for layer in self.layers})
        return LayerCost("all", ", ".join(kernels), *sums)

    @property
    def exchange_bytes(self) -> int:
        """Of the dense gradients of an exchange, with those that they are added to; 0 where all weights are kept."""
        return sum(2 * 4 * layer.dense_weights for layer in self.layers if layer.kept < layer.dense_weights)

    @property
    def fewer_macs(self) -> float:
        """How many times fewer multiply-adds the kept weights need."""
        return self.total.dense_macs / self.total.macs


def counted(model: Model, optimizer: str) -> Cost:
    """The cost of the sparse layers of `model` on one of its inputs."""
    layers = layers_of(model.network)
    positions = _positions(model, layers)
    moments = STATES[optimizer]
    lines = []
    for name, layer in layers.items():
        kept, size, width = len(layer.index), layer.size, layer.mu.dtype.itemsize
        compressed = layer.kernel == "compressed rows"
        macs, dense = positions[name] * kept, positions[name] * size
        pattern = sum(v.numel() * v.element_size() for v in layer.pattern if isinstance(v, Tensor)) if compressed else 0
        places = 8 * kept + pattern
        numbers = 2 * width * (1 + moments)  # bytes of a weight in training: mean and deviation, and moments of both
        macs_of_all = (dense, macs, macs if compressed else dense)
        training, inference = (numbers * size, numbers * kept + places), (2 * width * size, 2 * width * kept + places)
        lines.append(LayerCost(name or "net", layer.kernel, size, kept, *macs_of_all, *training, *inference))
    return Cost(tuple(lines))


def _positions(model: Model, layers: dict[str, SparseLayer]) -> dict[str, int]:
    """At how many places each layer is applied to one input."""
    found = dict.fromkeys(layers, 0)

    def count(name: str, layer: SparseLayer, output: Any) -> None:
        found[name] += output.numel() // layer.shape[0]

    handles = [
        layer.register_forward_hook(lambda _, __, output, name=name, layer=layer: count(name, layer, output))
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            kind = torch.int64 if model.inputs.tokens else torch.float32
            model(torch.zeros(1, *model.inputs.shape, dtype=kind, device=model.y_loc.device))
    finally:
        for handle in handles:
            handle.remove()
    return found
