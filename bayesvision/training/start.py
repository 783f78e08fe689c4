"""Training that goes on from a finished network, under a schedule of its own."""

from typing import Any, NamedTuple

import torch
from torch import nn

from bayesvision.io.checkpoints import upgraded
from bayesvision.io.tensors import read_tensors
from bayesvision.training.train import Train

__all__ = ["Start"]

OF_DATA = ("x", "y")  # rows that a posterior was conditioned on
OF_PRIOR = "prior."  # beginning of the names of what its prior is told by; weights are all the rest


class Start(NamedTuple):
    """What training had been done before this run.

    Attributes:
        metadata: of the checkpoint started from, empty without one.
        sha256: of its content.
    """

    metadata: dict[str, Any]
    sha256: str | None

    @classmethod
    def of(cls, network: nn.Module, train: Train, recipe: dict[str, Any]) -> "Start":
        """Copy the weights of the checkpoint `train.start`, if any, into `network`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a checkpoint of another method, or tensors of other names or shapes.
        """
        if train.start is None:
            return cls({}, None)
        tensors, header = upgraded(*read_tensors(train.start))
        method = recipe.get("method", {}).get("name")
        if header.get("method") != method:
            given = header.get("method", "no method")
            raise ValueError(f"start={train.start!r} must be a checkpoint of {method}, got one of {given}")
        weights = {
            name: value for name, value in tensors.items() if name not in OF_DATA and not name.startswith(OF_PRIOR)
        }
        places = network.state_dict()
        unlike = [name for name in {*weights, *places} if _shape(weights, name) != _shape(places, name)]
        if unlike:
            name = sorted(unlike)[0]
            raise ValueError(
                f"start={train.start!r} holds another network: {name} has the shape {_shape(weights, name)} there and "
                f"{_shape(places, name)} here; give the recipe of that checkpoint the same sizes"
            )
        with torch.no_grad():
            for name, place in places.items():
                place.copy_(weights[name])
        return cls(header.get("metadata", {}), header.get("sha256"))

    def added(self, cost: dict[str, Any]) -> dict[str, Any]:
        """`cost` of this run, with that of the runs before it in every sum."""
        if self.sha256 is None:
            return cost
        sums = {k: round(v + self.metadata.get(k, 0), 1) for k, v in cost.items() if k != "processes"}
        return {**cost, **sums, "started from": self.sha256}


def _shape(tensors: dict[str, torch.Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
