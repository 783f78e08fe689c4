"""`Train` and the only optimiser loop: resumable, preemptible, the same on one process or many."""

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
from torch import Generator, Tensor, nn

from bayesvision.core import Log, check_count
from bayesvision.files import read_tensors, write_tensors
from bayesvision.processes import Group, Sharding, gather, join, later, overwrite, spread, whole

__all__ = ["JsonLines", "Train", "generator", "minimize", "seeded"]

Precision = Literal["auto", "float32", "bfloat16"]
Loss = Callable[[Any, Any], Tensor]
Batches = Callable[[int, int], Any]


@dataclass(frozen=True)
class Train:
    """How to train: the same fields for every method.

    Args:
        steps: optimiser steps.
        batch: data sets (or examples) of one step, over all processes; a method may draw more where they are small.
        lr: peak learning rate of AdamW, reached after `warmup` steps and then lowered to zero along a cosine.
        warmup: share of the steps with linear warm-up.
        clip: greatest gradient norm.
        seed: of the initial weights and of the stream of batches.
        precision: `auto` is bfloat16 autocast on an accelerator and float32 on a CPU.
        device: `auto` takes the accelerator that is there.
        accumulate: micro-batches of one step; each is drawn by itself from (seed, step, micro-batch), and processes
            share them out, so it must be a multiple of the number of processes.
        folder: where to keep the latest training state, on a disk that all processes see; None keeps none. A run that
            finds one there goes on from it.
        interval: steps between training states.
        sharding: `ddp`, or `fsdp` for parameters sharded over processes by `fully_shard`.
        compile: run the loss through torch.compile.

    Raises:
        ValueError: a field is out of range.
    """

    steps: int = 10_000
    batch: int = 16
    lr: float = 1e-3
    warmup: float = 0.05
    clip: float = 1.0
    seed: int = 0
    precision: Precision = "auto"
    device: str = "auto"
    accumulate: int = 1
    folder: str | None = None
    interval: int = 500
    sharding: Sharding = "ddp"
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "interval"):
            check_count(name, getattr(self, name))
        if not (self.lr > 0 and self.clip > 0 and 0 <= self.warmup < 1):
            raise ValueError(
                f"lr and clip must be positive and warmup in [0, 1), got {self.lr}, {self.clip} and {self.warmup}"
            )
        if self.batch % self.accumulate:
            raise ValueError(f"batch must be a multiple of accumulate, got {self.batch} and {self.accumulate}")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"precision must be auto, float32 or bfloat16, got {self.precision!r}")
        try:
            torch.device("cpu" if self.device == "auto" else self.device)
        except RuntimeError as error:
            raise ValueError(f"device must be auto or a device of torch, got {self.device!r} ({error})") from None
        if self.sharding not in ("ddp", "fsdp"):
            raise ValueError(f"sharding must be ddp or fsdp, got {self.sharding!r}")

    def pick_device(self) -> torch.device:
        """The device to train on; this process's own accelerator under torchrun."""
        if self.device == "auto":
            kind = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        else:
            kind = torch.device(self.device)
        if kind.type == "cpu" or kind.index is not None:
            return kind
        return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", 0)))

    def learning_rate(self, step: int) -> float:
        """Learning rate of step 0, ..., steps - 1: linear warm-up that starts above zero, then a cosine to zero."""
        warmup = math.ceil(self.warmup * self.steps)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        return self.lr * (1 + math.cos(math.pi * (step - warmup) / (self.steps - warmup))) / 2


class JsonLines:
    """Appends metrics to a file, one JSON object a line; what is not finite becomes null."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file: TextIO = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (kept open for the run)

    def log(self, metrics: dict[str, float], step: int, /) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def generator(device: torch.device | str, *key: int) -> Generator:
    """A generator that is a pure function of the integers in `key`."""
    state = 0x9E3779B97F4A7C15
    for part in key:  # splitmix64 steps: neighbouring keys give unrelated seeds
        state = (state + part + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return Generator(device).manual_seed(state % 2**63)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block under a global seed; put the generators of the CPU and the current accelerator back afterwards."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    homes: list[Any] = [torch.random] if kind is None else [torch.random, torch.get_device_module(kind)]
    before = [home.get_rng_state() for home in homes]
    try:
        _seed(seed)
        yield
    finally:
        for home, state in zip(homes, before, strict=True):
            home.set_rng_state(state)


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach accelerators that are none of ours
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is not None:
        torch.get_device_module(kind).manual_seed(seed)


@contextlib.contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """Make `device` the current one of its kind, and compute in the way that is fast there."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if device.type == "cpu":  # the fused attention's backward is several times slower than matrix products at our sizes
        with sdpa_kernel(SDPBackend.MATH):
            yield
        return
    before = torch.accelerator.current_device_index()
    torch.accelerator.set_device_index(device)
    try:
        yield
    finally:
        torch.accelerator.set_device_index(before)


@contextlib.contextmanager
def _terminations(listen: bool) -> Iterator[list[int]]:
    """Collects SIGTERM, so that the loop can save and exit between two steps."""
    caught: list[int] = []
    if not listen or threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
    try:
        yield caught
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


class _Objective(nn.Module):
    """The loss as a module's forward, which is what DDP and FSDP hook into."""

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.network = network
        self.loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.network, batch)


class _Run:
    """A network made ready for its processes, the optimiser that steps it, and the seconds spent on batches."""

    def __init__(self, network: nn.Module, loss: Loss, batch: Batches, train: Train, group: Group) -> None:
        self.network, self.batch, self.train, self.group = network.to(group.device).train(), batch, train, group
        self.model = spread(_Objective(network, loss), group, train.sharding)
        self.call: Any = torch.compile(self.model) if train.compile else self.model
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=train.lr, weight_decay=0.0, fused=True)
        self.sampling = 0.0

    def advance(self, step: int) -> dict[str, float]:
        """One optimiser step: mean loss over all processes, learning rate, gradient norm."""
        group, rate = self.group, self.train.learning_rate(step)
        mine = range(group.rank, self.train.accumulate, group.size)
        total = torch.zeros((), device=group.device)
        for settings in self.optimizer.param_groups:
            settings["lr"] = rate
        self.optimizer.zero_grad()
        for part in mine:
            with contextlib.nullcontext() if part == mine[-1] else later(self.model):
                value = self._loss(step, part) / len(mine)
                value.backward()
            total += value.detach()
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.train.clip))
        loss = group.mean(total)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"the loss became {loss} and its gradient's norm {norm} at step {step + 1}; lower lr={self.train.lr:g}"
            )
        self.optimizer.step()
        return {"loss": loss, "lr": rate, "norm": norm}

    def _loss(self, step: int, part: int) -> Tensor:
        train, kind = self.train, self.group.device.type
        began = time.perf_counter()
        data = self.batch(step, part)
        self.sampling += time.perf_counter() - began
        _seed(generator("cpu", train.seed, step, part).initial_seed())  # for layers that draw noise
        half = train.precision == "bfloat16" or (train.precision == "auto" and kind != "cpu")
        with torch.autocast(kind, torch.bfloat16, enabled=half):
            return self.call(data)


class _State:
    """The training state on disk: weights, moments and step; the schedule and the batches are functions of the step."""

    name = "training.safetensors"

    def __init__(self, run: _Run, recipe: dict[str, Any]) -> None:
        self.path = Path(run.train.folder) / self.name if run.train.folder else None
        self.recipe = json.loads(json.dumps({"recipe": recipe, "train": asdict(run.train)}))
        self.run = run

    def load(self) -> tuple[int, float]:
        """Step to go on from, and seconds already spent."""
        if self.path is None:
            return 0, 0.0
        tensors, header = read_tensors(self.path) if self.path.exists() else ({}, {"step": 0, "seconds": 0.0})
        advice = "choose another folder, or delete it to start anew"
        if tensors and _essence(header.get("run", {})) != _essence(self.recipe):
            raise ValueError(f"{self.path} holds the state of another recipe; {advice}")
        if self.run.group.differ(header["step"]):
            raise ValueError(f"not all processes see the same {self.path}; choose a folder on a disk that they share")
        if not tensors:
            return 0, 0.0
        places = {f"model.{k}": v for k, v in self.run.network.state_dict().items()}
        for name, value in self.run.network.named_parameters():
            if f"optimizer.state.{name}.step" in tensors:  # a parameter that no gradient reached has none
                state = {"step": torch.zeros((), device=value.device)}
                state |= {k: torch.zeros_like(value) for k in ("exp_avg", "exp_avg_sq")}
                self.run.optimizer.state[value] = state
                places |= {f"optimizer.state.{name}.{k}": v for k, v in state.items()}
        if {k: v.shape for k, v in places.items()} != {k: v.shape for k, v in tensors.items()}:
            raise ValueError(f"{self.path} holds tensors of other names or shapes than this network's; {advice}")
        for name, place in places.items():
            overwrite(place, tensors[name])
        return header["step"], header["seconds"]

    def save(self, step: int, seconds: float) -> None:
        """Write the state after `step` steps to a temporary file and rename it."""
        if self.path is None:
            return
        tensors = {f"model.{k}": whole(v) for k, v in self.run.network.state_dict().items()}
        for name, value in self.run.network.named_parameters():
            state = self.run.optimizer.state.get(value, {})
            tensors |= {f"optimizer.state.{name}.{k}": whole(v) for k, v in state.items()}
        if self.run.group.rank == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(self.path, tensors, {"run": self.recipe, "step": step, "seconds": seconds})
        self.run.group.wait()


def _essence(run: dict[str, Any]) -> tuple[Any, Any]:
    """What of a run decides its numbers; where it lives and how often it saves may change between its parts."""
    changes = ("folder", "interval", "device", "sharding", "compile")
    return _without(run.get("recipe", {}), ("train",)), _without(run.get("train", {}), changes)


def _without(value: Any, names: tuple[str, ...]) -> Any:
    return {k: _without(v, names) for k, v in value.items() if k not in names} if isinstance(value, dict) else value


def minimize(
    network: nn.Module,
    loss: Loss,
    batch: Batches,
    train: Train,
    recipe: dict[str, Any],
    log: Log | None = None,
) -> dict[str, float]:
    """Train `network` in place and return what it cost.

    Args:
        loss: mean loss of one micro-batch, `loss(network, batch)`.
        batch: micro-batch j of step i as a pure function `batch(i, j)` of both, on the training device.
        recipe: what identifies the run; a training state of another recipe is refused.
        log: receives loss, lr, gradient norm, seconds and the share of time spent on batches.

    Raises:
        ValueError: the number of processes does not divide `train.accumulate`, or the folder holds another run.
        FloatingPointError: the loss or its gradient is not finite.
        SystemExit: with code 0, after saving, when the process was sent SIGTERM and there is a folder to save in.
    """
    device = train.pick_device()
    with _on(device), seeded(train.seed), torch.enable_grad():
        group = join(device)
        if train.accumulate % group.size:
            raise ValueError(
                f"accumulate={train.accumulate} micro-batches cannot be shared by {group.size} processes; "
                f"set accumulate to a multiple of {group.size}"
            )
        run = _Run(network, loss, batch, train, group)
        with _terminations(train.folder is not None) as caught:
            seconds = _loop(run, _State(run, recipe), caught, log)
        gather(network)
        network.eval()
        return {"steps": train.steps, "seconds": round(seconds, 1), "processes": group.size}


def _loop(run: _Run, state: _State, caught: list[int], log: Log | None) -> float:
    """All steps that are left; returns the seconds that the whole run took."""
    step, before = state.load()
    began, seconds = time.perf_counter(), before
    while step < run.train.steps:
        metrics = run.advance(step)
        step, seconds = step + 1, before + time.perf_counter() - began
        if log is not None and run.group.rank == 0:
            log.log(metrics | {"seconds": seconds, "sampling": run.sampling / (seconds - before)}, step)
        stopping = run.group.any(bool(caught))
        if stopping or step % run.train.interval == 0 or step == run.train.steps:
            state.save(step, seconds)
        if stopping:
            raise SystemExit(0)
    return seconds
