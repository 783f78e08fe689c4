"""`Train` and `Execution`: what decides the numbers of a training, and what does not."""

import math
import os
from dataclasses import InitVar, dataclass, field
from typing import Any, Literal

import torch

from bayesvision.core.checks import check_count
from bayesvision.core.recipes import NOT_STORED, convert_fields
from bayesvision.core.warn import warn
from bayesvision.training.distributed import Sharding

__all__ = ["Execution", "Train"]

FORMER = {  # keyword of Train in 0.1 -> its name now
    "clip": "max_grad_norm",
    "folder": "checkpoint_dir",
    "interval": "save_every",
    "device": "device",
    "sharding": "sharding",
    "compile": "compile",
}


@dataclass(frozen=True)
class Execution:
    """Where and how a training runs; none of it changes the recipe, and a run may go on under another.

    Example:
        >>> bv.PFN(train=bv.Train(execution=bv.Execution(checkpoint_dir="run"))).fit(prior)  # goes on after a kill

    Args:
        device: `auto` takes the accelerator that is there.
        checkpoint_dir: where the latest training state is kept, on a disk that all processes see; None keeps none. A
            run that finds one there goes on from it.
        save_every: steps between training states.
        sharding: `ddp`, or `fsdp` for parameters sharded over processes by `fully_shard`.
        compile: run the loss through torch.compile.

    Raises:
        ValueError: a field is out of range.
    """

    device: str = "auto"
    checkpoint_dir: str | None = None
    save_every: int = 500
    sharding: Sharding = "ddp"
    compile: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.checkpoint_dir, os.PathLike):
            object.__setattr__(self, "checkpoint_dir", os.fspath(self.checkpoint_dir))
        convert_fields(self)
        check_count("save_every", self.save_every)
        try:
            torch.device("cpu" if self.device == "auto" else self.device)
        except RuntimeError as error:
            raise ValueError(f"device must be auto or a device of torch, got {self.device!r} ({error})") from None

    def pick_device(self) -> torch.device:
        """The device to train on; this process's own accelerator under torchrun."""
        if self.device == "auto":
            device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        else:
            device = torch.device(self.device)
        if device.type == "cpu" or device.index is not None:
            return device
        return torch.device(device.type, int(os.environ.get("LOCAL_RANK", 0)))


@dataclass(frozen=True)
class Train:
    """How to train: the same fields for every method, and all that decides the numbers.

    Example:
        >>> bv.PFN(features=2, train=bv.Train(steps=2_000, batch=32, seed=1))

    Args:
        steps: optimiser steps.
        batch: data sets (or examples) of one step, over all processes; a method may draw more where they are small.
        lr: peak learning rate, reached after `warmup` steps and then lowered to zero along a cosine.
        warmup: fraction of the steps with linear warm-up.
        optimizer: `adamw`, or `muon`: orthogonalised momentum (Jordan et al. 2024) for the matrices inside the network,
            scaled to the step size of AdamW (Liu et al. 2025, arXiv 2502.16982, section 2.2), and AdamW for the rest;
            or `sgd`: gradient descent with the momentum 0.9.
        max_grad_norm: gradients are scaled down to this norm.
        seed: of the initial weights and of the stream of batches.
        precision: `auto` is bfloat16 autocast on an accelerator and float32 on a CPU.
        accumulate: micro-batches of one step; each is drawn by itself from (seed, step, micro-batch), and processes
            divide them among themselves, so it must be a multiple of the number of processes.
        start: checkpoint of the same method whose weights the training starts from, with a schedule of its own.
        execution: device, folder of training states and the like.

    Raises:
        ValueError: a field is out of range.
    """

    steps: int = 10_000
    batch: int = 16
    lr: float = 1e-3
    warmup: float = 0.05
    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    accumulate: int = 1
    start: str | None = None
    execution: Execution = field(default_factory=Execution, compare=False, metadata=NOT_STORED)
    clip: InitVar[float | None] = None
    folder: InitVar[str | None] = None
    interval: InitVar[int | None] = None
    device: InitVar[str | None] = None
    sharding: InitVar[str | None] = None
    compile: InitVar[bool | None] = None

    def __post_init__(self, *former: Any) -> None:
        given = {name: value for name, value in zip(FORMER, former, strict=True) if value is not None}
        if given:
            self._take_former(given)
        if isinstance(self.start, os.PathLike):
            object.__setattr__(self, "start", os.fspath(self.start))
        convert_fields(self)
        for name in ("steps", "batch", "accumulate"):
            check_count(name, getattr(self, name))
        if not (self.lr > 0 and self.max_grad_norm > 0 and 0 <= self.warmup < 1):
            raise ValueError(
                "lr and max_grad_norm must be positive and warmup in [0, 1), "
                f"got {self.lr}, {self.max_grad_norm} and {self.warmup}"
            )
        if self.batch % self.accumulate:
            raise ValueError(f"batch must be a multiple of accumulate, got {self.batch} and {self.accumulate}")

    def _take_former(self, given: dict[str, Any]) -> None:
        """Keywords of release 0.1, each as what it is now."""
        now = ", ".join(f"{name} is {FORMER[name]}" for name in given)
        warn(
            f"{now} since 0.2; all but max_grad_norm are fields of bayesvision.Execution: Train(execution=...)",
            DeprecationWarning,
        )
        if "clip" in given:
            object.__setattr__(self, "max_grad_norm", given.pop("clip"))
        fields = {name: getattr(self.execution, name) for name in Execution.__dataclass_fields__}
        fields |= {FORMER[name]: value for name, value in given.items()}
        object.__setattr__(self, "execution", Execution(**fields))

    def learning_rate(self, step: int) -> float:
        """Learning rate of step 0, ..., steps - 1: linear warm-up that starts above zero, then a cosine to zero."""
        warmup = math.ceil(self.warmup * self.steps)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        return self.lr * (1 + math.cos(math.pi * (step - warmup) / (self.steps - warmup))) / 2
