"""The training state on disk: weights, moments and step; the schedule and the batches are functions of the step."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayesvision.core.recipes import to_json
from bayesvision.io.tensors import read_tensors, write_tensors
from bayesvision.training.distributed import Group, full_tensor, overwrite
from bayesvision.training.optimizers import Optimizers
from bayesvision.training.train import Train

__all__ = ["TrainingState"]

NAME = "training.safetensors"
ADVICE = "choose another folder, or delete it to start anew"


class TrainingState:
    """Writes and reads what a run needs to go on.

    Args:
        network, optimizers: what is trained, and the moments of its parameters.
        group: the processes that train it.
        train: the recipe of the training.
        recipe: of the method and its prior or data; a state of another one is refused.
    """

    def __init__(
        self, network: nn.Module, optimizers: Optimizers, group: Group, train: Train, recipe: dict[str, Any]
    ) -> None:
        folder = train.execution.checkpoint_dir
        self.path = Path(folder) / NAME if folder else None
        self.network, self.optimizers, self.group = network, optimizers, group
        self.recipe = {"recipe": _without_train(recipe), "train": to_json(train)}

    def load(self) -> tuple[int, float]:
        """Step to go on from, and seconds already spent.

        Raises:
            ValueError: the folder holds the state of another run, or not all processes see the same one.
        """
        if self.path is None:
            return 0, 0.0
        tensors, header = read_tensors(self.path) if self.path.exists() else ({}, {"step": 0, "seconds": 0.0})
        if tensors and header.get("run") != self.recipe:
            raise ValueError(f"{self.path} holds the state of another recipe; {ADVICE}")
        if self.group.differ(header["step"]):
            raise ValueError(f"not all processes see the same {self.path}; choose a folder on a disk that they share")
        if tensors:
            self._restore(tensors)
        return header["step"], header["seconds"]

    def _restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Copy the tensors of a file to where they belong."""
        places = {f"model.{k}": v for k, v in self.network.state_dict().items()}
        for name, value in self.network.named_parameters():
            prefix = f"optimizer.state.{name}."  # a parameter that no gradient reached has none
            state = {
                key.removeprefix(prefix): torch.zeros((), device=value.device)
                if v.ndim == 0
                else torch.zeros_like(value)
                for key, v in tensors.items()
                if key.startswith(prefix) and "." not in key.removeprefix(prefix)
            }
            if state:
                self.optimizers.state_of(value).update(state)
                places |= {prefix + k: v for k, v in state.items()}
        if {k: v.shape for k, v in places.items()} != {k: v.shape for k, v in tensors.items()}:
            raise ValueError(f"{self.path} holds tensors of other names or shapes than this network's; {ADVICE}")
        for name, place in places.items():
            overwrite(place, tensors[name])

    def save(self, step: int, seconds: float) -> None:
        """Write the state after `step` steps to a temporary file and rename it."""
        if self.path is None:
            return
        tensors = {f"model.{k}": full_tensor(v) for k, v in self.network.state_dict().items()}
        for name, value in self.network.named_parameters():
            state = self.optimizers.state_of(value)
            tensors |= {f"optimizer.state.{name}.{k}": full_tensor(v) for k, v in state.items()}
        if self.group.rank == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(self.path, tensors, {"run": self.recipe, "step": step, "seconds": seconds})
        self.group.wait()


def _without_train(value: Any) -> Any:
    """A recipe without its training, which stands beside it."""
    return {k: _without_train(v) for k, v in value.items() if k != "train"} if isinstance(value, dict) else value
