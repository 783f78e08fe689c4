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
import torch.distributed as dist
from torch import Generator, Tensor, nn

from bayesvision.core import Log
from bayesvision.files import read_tensors, write_tensors

__all__ = ["JsonLines", "Train", "generator", "minimize", "seeded"]

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Train:
    """How to train: the same fields for every method.

    Args:
        steps: optimiser steps.
        batch: data sets (or examples) of one step, over all processes.
        lr: peak learning rate of AdamW, reached after `warmup` steps and then lowered to zero along a cosine.
        warmup: share of the steps with linear warm-up.
        clip: greatest gradient norm.
        seed: of the initial weights and of the stream of batches.
        precision: `auto` is bfloat16 autocast on an accelerator and float32 on a CPU.
        device: `auto` takes the accelerator that is there.
        accumulate: micro-batches of one step; each is drawn by itself from (seed, step, micro-batch), and processes share
            them out, so it must be a multiple of the number of processes.
        folder: where to keep the latest training state; None keeps none. A run that finds one there goes on from it.
        interval: steps between training states.
        sharding: `ddp`, or `fsdp` for parameters sharded over processes by `fully_shard`.
        compile: run the loss through torch.compile.

    Raises:
        ValueError: a field is out of range.
    """

    steps: int = 10_000
    batch: int = 64
    lr: float = 1e-3
    warmup: float = 0.05
    clip: float = 1.0
    seed: int = 0
    precision: Precision = "auto"
    device: str = "auto"
    accumulate: int = 1
    folder: str | None = None
    interval: int = 500
    sharding: Literal["ddp", "fsdp"] = "ddp"
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (self.lr > 0 and self.clip > 0 and 0 <= self.warmup < 1):
            raise ValueError(
                f"lr and clip must be positive and warmup in [0, 1), got {self.lr}, {self.clip} and {self.warmup}"
            )
        if self.batch % self.accumulate:
            raise ValueError(f"batch must be a multiple of accumulate, got {self.batch} and {self.accumulate}")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"precision must be auto, float32 or bfloat16, got {self.precision!r}")
        if self.sharding not in ("ddp", "fsdp"):
            raise ValueError(f"sharding must be ddp or fsdp, got {self.sharding!r}")

    def pick_device(self) -> torch.device:
        """The device to train on; this process's own accelerator under torchrun."""
        if self.device != "auto":
            return torch.device(self.device)
        kind = torch.accelerator.current_accelerator(check_available=True)
        if kind is None:
            return torch.device("cpu")
        return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", 0)))

    def learning_rate(self, step: int) -> float:
        """Learning rate of step 0, ..., steps - 1: linear warm-up that starts above zero, then a cosine to zero."""
        warmup = math.ceil(self.warmup * self.steps)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        return self.lr * (1 + math.cos(math.pi * (step - warmup) / (self.steps - warmup))) / 2


class JsonLines:
    """Appends metrics to a file, one JSON object a line."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file: TextIO = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (kept open for the run)

    def log(self, metrics: dict[str, float], step: int, /) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")

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
    """Run a block under a global seed and put every global generator back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class _Objective(nn.Module):
    """The loss as a module's forward, which is what DDP and FSDP hook into."""

    def __init__(self, network: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network
        self.loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.network, batch)


class _Stop:
    """Remembers SIGTERM, so that the loop can save and exit between two steps."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "_Stop":
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def _remember(self, *_: object) -> None:
        self.asked = True

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)

    def agreed(self, device: torch.device, processes: int) -> bool:
        """Whether any process was asked to stop."""
        if processes == 1:
            return self.asked
        flag = torch.tensor(float(self.asked), device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())


@contextlib.contextmanager
def _processes(device: torch.device) -> Iterator[tuple[int, int]]:
    """Rank and number of processes; joins the process group that torchrun announces, and leaves it if it was ours."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 and not dist.is_initialized():
        yield 0, 1
        return
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("gloo" if device.type == "cpu" else None, device_id=None if device.type == "cpu" else device)
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        if ours:
            dist.destroy_process_group()


def _shard(objective: _Objective, train: Train, device: torch.device) -> nn.Module:
    if train.sharding == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        fully_shard(objective, mesh=mesh)
        return objective
    return nn.parallel.DistributedDataParallel(objective, device_ids=None if device.type == "cpu" else [device.index])


def _autocast(train: Train, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    half = train.precision == "bfloat16" or (train.precision == "auto" and device.type != "cpu")
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def _attention(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """On a CPU the fused attention's backward is several times slower than plain matrix products at our sizes."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()


class _State:
    """The training state on disk: weights, moments and step; the schedule and the batches are functions of the step."""

    name = "training.safetensors"

    def __init__(self, train: Train, recipe: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.path = Path(train.folder) / self.name if train.folder else None
        # where a run lives, and how often it saves, may change between its parts; what it computes may not
        changes = ("folder", "interval", "device", "sharding", "compile")
        parts = {k: v for k, v in asdict(train).items() if k not in changes}
        self.recipe = json.loads(json.dumps({"recipe": recipe, "train": parts}))
        self.model, self.optimizer = model, optimizer

    def load(self) -> tuple[int, float]:
        """Step to go on from, and seconds already spent."""
        from torch.distributed.checkpoint import state_dict as states

        if self.path is None or not self.path.exists():
            return 0, 0.0
        tensors, header = read_tensors(self.path)
        if header.get("run") != self.recipe:
            raise ValueError(
                f"{self.path} holds the state of another recipe; choose another folder, or delete it to start anew"
            )
        options = states.StateDictOptions(full_state_dict=True, cpu_offload=True, flatten_optimizer_state_dict=True)
        weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        moments: dict[str, Any] = {k.removeprefix("optimizer."): v for k, v in tensors.items() if k.startswith("optimizer.")}
        states.set_model_state_dict(self.model, weights, options=options)
        states.set_optimizer_state_dict(self.model, self.optimizer, moments | header["groups"], options=options)
        return header["step"], header["seconds"]

    def save(self, step: int, seconds: float, rank: int) -> None:
        """Write the state after `step` steps to a temporary file and rename it."""
        from torch.distributed.checkpoint import state_dict as states

        if self.path is None:
            return
        options = states.StateDictOptions(full_state_dict=True, cpu_offload=True, flatten_optimizer_state_dict=True)
        weights = states.get_model_state_dict(self.model, options=options)
        moments = states.get_optimizer_state_dict(self.model, self.optimizer, options=options)
        if rank != 0:
            return
        tensors = {f"model.{k}": v for k, v in weights.items()}
        tensors |= {f"optimizer.{k}": v for k, v in moments.items() if isinstance(v, Tensor)}
        groups = {k: v for k, v in moments.items() if not isinstance(v, Tensor)}
        header = {"run": self.recipe, "step": step, "seconds": seconds, "groups": groups}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(self.path, tensors, header)


def minimize(
    network: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    batch: Callable[[int, int], Any],
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
        FloatingPointError: the loss is not finite.
        SystemExit: with code 0, after saving, when the process was sent SIGTERM.
    """
    device = train.pick_device()
    with _processes(device) as (rank, processes), _Stop() as stop, seeded(train.seed), _attention(device):
        if train.accumulate % processes:
            raise ValueError(
                f"accumulate={train.accumulate} micro-batches cannot be shared by {processes} processes; "
                f"set accumulate to a multiple of {processes}"
            )
        network.to(device).train()
        objective = _Objective(network, loss)
        model = _shard(objective, train, device) if processes > 1 else objective
        optimizer = torch.optim.AdamW(network.parameters(), lr=train.lr, weight_decay=0.0, fused=True)
        state = _State(train, recipe, network, optimizer)
        step, seconds = state.load()
        run = torch.compile(model) if train.compile else model
        start, sampling = time.perf_counter() - seconds, 0.0
        while step < train.steps:
            value, norm, spent = _step(run, model, optimizer, batch, train, step, rank, processes, device)
            step, sampling = step + 1, sampling + spent
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss became {value} at step {step}; lower lr={train.lr:g}")
            elapsed = time.perf_counter() - start
            if log is not None and rank == 0:
                share = sampling / max(elapsed - seconds, 1e-9)
                metrics = {"loss": value, "lr": train.learning_rate(step - 1), "norm": norm, "seconds": elapsed}
                log.log(metrics | {"sampling": share}, step)
            stopping = stop.agreed(device, processes)
            if stopping or step % train.interval == 0 or step == train.steps:
                state.save(step, elapsed, rank)
            if stopping and step < train.steps:
                raise SystemExit(0)
        network.eval()
        return {"steps": step, "seconds": round(time.perf_counter() - start, 1), "processes": processes}


def _step(
    run: Any,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Callable[[int, int], Any],
    train: Train,
    step: int,
    rank: int,
    processes: int,
    device: torch.device,
) -> tuple[float, float, float]:
    """One optimiser step: mean loss over all processes, gradient norm, seconds spent on batches."""
    mine = range(rank, train.accumulate, processes)
    total, sampling = torch.zeros((), device=device), 0.0
    for group in optimizer.param_groups:
        group["lr"] = train.learning_rate(step)
    optimizer.zero_grad()
    for place, part in enumerate(mine):
        began = time.perf_counter()
        data = batch(step, part)
        sampling += time.perf_counter() - began
        torch.manual_seed(generator("cpu", train.seed, step, part).initial_seed())  # for layers that draw noise
        last = place == len(mine) - 1
        wait = model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) and not last else None
        with wait or contextlib.nullcontext():
            with _autocast(train, device):
                value = run(data) / len(mine)
            value.backward()
        total += value.detach()
    norm = nn.utils.clip_grad_norm_(model.parameters(), train.clip)
    optimizer.step()
    if processes > 1:
        dist.all_reduce(total)
        total /= processes
    return total.item(), float(norm), sampling
