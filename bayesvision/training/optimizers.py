"""The optimisers that train a network: AdamW, or Muon for its matrices and AdamW for the rest."""

from typing import Any

import torch
from torch import Tensor, nn

from bayesvision.training.train import Train

__all__ = ["Optimizers"]

REST = 1 / 3  # learning rate of AdamW beside Muon, as a fraction of Muon's


class Optimizers:
    """Steps all parameters of `network` together, at a learning rate that is told at each step.

    With `optimizer="muon"` the hidden matrices, those of two axes whose sides are both at least 16, move along the
    orthogonalised momentum; embeddings of few inputs, outputs of few numbers, biases and norms by AdamW.
    """

    def __init__(self, network: nn.Module, train: Train) -> None:
        parameters = list(network.parameters())
        matrices = [p for p in parameters if train.optimizer == "muon" and p.ndim == 2 and min(p.shape) >= 16]
        chosen = {id(p) for p in matrices}
        rest = [p for p in parameters if id(p) not in chosen]
        self.members: list[tuple[torch.optim.Optimizer, float]] = []
        if matrices:
            muon = torch.optim.Muon(matrices, lr=train.lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
            self.members.append((muon, 1.0))
        if rest:
            adamw = torch.optim.AdamW(rest, lr=train.lr, weight_decay=0.0, fused=True)
            self.members.append((adamw, REST if train.optimizer == "muon" else 1.0))
        self._home = {id(p): member for member, _ in self.members for g in member.param_groups for p in g["params"]}

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for member, _ in self.members:
            member.zero_grad()

    def step(self, rate: float) -> None:
        """Move all parameters at the learning rate `rate`."""
        for member, factor in self.members:
            for settings in member.param_groups:
                settings["lr"] = factor * rate
            member.step()

    def state_of(self, parameter: Tensor) -> dict[str, Any]:
        """What is kept for a parameter beside itself."""
        return self._home[id(parameter)].state[parameter]
