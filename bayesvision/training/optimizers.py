"""The optimisers that train a network: AdamW, Muon for its matrices and AdamW for the rest, or plain descent."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesvision.training.train import Train

__all__ = ["Optimizers"]

REST = 1 / 3  # learning rate of AdamW beside Muon, as a fraction of Muon's
MOMENTUM = 0.95
DESCENT_MOMENTUM = 0.9
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic iteration, and how often it is applied
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices (Jordan et al. 2024), scaled to the step size of AdamW.

    W <- W - rate 0.2 sqrt(max(rows, columns)) O(G), where O makes the singular values of the Nesterov momentum G nearly
    1 by five Newton-Schulz iterations (Liu et al. 2025, arXiv 2502.16982, section 2.2). torch's own computes these in
    bfloat16, which is ten times slower than float32 on a CPU without such instructions.
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float) -> None:
        super().__init__(matrices, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - MOMENTUM)
                moved = _orthogonal(matrix.grad.lerp(momentum, MOMENTUM))
                matrix.add_(moved, alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)


def _orthogonal(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """The matrix with singular values of about 1; in bfloat16 on an accelerator."""
    kind = matrix.dtype if matrix.device.type == "cpu" else torch.bfloat16
    x = matrix.to(kind)
    x = x.mT if x.shape[0] > x.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


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
            muon = Muon(matrices, train.lr)
            self.members.append((muon, 1.0))
        if rest and train.optimizer == "sgd":
            self.members.append((torch.optim.SGD(rest, lr=train.lr, momentum=DESCENT_MOMENTUM), 1.0))
        elif rest:
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
