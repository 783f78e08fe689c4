"""The only optimiser loop: resumable, preemptible, the same on one process or many."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bayesvision.core.roles import Following, Log
from bayesvision.training.distributed import Group, gather, init_distributed, no_sync, wrap
from bayesvision.training.loggers import following
from bayesvision.training.optimizers import Optimizers
from bayesvision.training.seeds import generator, seed_current, seeded
from bayesvision.training.start import Start
from bayesvision.training.state import TrainingState
from bayesvision.training.train import Train

__all__ = ["minimize"]

Loss = Callable[[Any, Any], Tensor]
Batches = Callable[[int, int], Any]
Between = Callable[[int, Optimizers], None]


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
    """Collects SIGTERM and Ctrl-C, so that the loop can save and exit between two steps."""
    caught: list[int] = []
    if not listen or threading.current_thread() is not threading.main_thread():
        yield caught
        return
    kinds = [k for k in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(k) is not signal.SIG_IGN]  # as it was asked
    before = [signal.signal(kind, lambda number, _: _once(caught, number)) for kind in kinds]
    try:
        yield caught
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler or signal.SIG_DFL)


def _once(caught: list[int], number: int) -> None:
    if caught and number == signal.SIGINT:  # the second Ctrl-C does not wait for the step to end
        raise KeyboardInterrupt
    caught.append(number)


class _Objective(nn.Module):
    """The loss as a module's forward, which is what DDP and FSDP hook into."""

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.network = network
        self.loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.network, batch)


class TrainingRun:
    """A network made ready for its processes, the optimiser that steps it, and the seconds spent on batches."""

    def __init__(self, network: nn.Module, loss: Loss, batch: Batches, train: Train, group: Group) -> None:
        self.network, self.batch, self.train, self.group = network.to(group.device).train(), batch, train, group
        self.model = wrap(_Objective(network, loss), group, train.execution.sharding)
        self.call: Any = torch.compile(self.model) if train.execution.compile else self.model
        self.optimizers = Optimizers(network, train)
        self.sampling = 0.0

    def advance(self, step: int) -> dict[str, float]:
        """One optimiser step: mean loss over all processes, learning rate, gradient norm."""
        group, rate = self.group, self.train.learning_rate(step)
        mine = range(group.rank, self.train.accumulate, group.size)
        total = torch.zeros((), device=group.device)
        self.optimizers.zero_grad()
        for micro_batch in mine:
            with contextlib.nullcontext() if micro_batch == mine[-1] else no_sync(self.model):
                value = self._loss(step, micro_batch) / len(mine)
                value.backward()
            total += value.detach()
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.train.max_grad_norm))
        loss = group.mean(total)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"the loss became {loss} and its gradient's norm {norm} at step {step + 1}; lower lr={self.train.lr:g}"
            )
        self.optimizers.step(rate)
        return {"loss": loss, "lr": rate, "norm": norm}

    def _loss(self, step: int, micro_batch: int) -> Tensor:
        train, device_type = self.train, self.group.device.type
        began = time.perf_counter()
        data = self.batch(step, micro_batch)
        self.sampling += time.perf_counter() - began
        seed_current(generator("cpu", train.seed, step, micro_batch).initial_seed())  # for layers that draw noise
        half = train.precision == "bfloat16" or (train.precision == "auto" and device_type != "cpu")
        with torch.autocast(device_type, torch.bfloat16, enabled=half):
            return self.call(data)


def _check_shared(train: Train, group: Group) -> None:
    if train.accumulate % group.size:
        raise ValueError(
            f"accumulate={train.accumulate} micro-batches cannot be shared by {group.size} processes; "
            f"set accumulate to a multiple of {group.size}"
        )


def minimize(
    network: nn.Module,
    loss: Loss,
    batch: Batches,
    train: Train,
    recipe: dict[str, Any],
    log: Following = None,
    drawn: dict[str, int] | None = None,
    between: Between | None = None,
) -> dict[str, Any]:
    """Train `network` in place and return what it cost, the runs before a `train.start` included.

    Args:
        loss: mean loss of one micro-batch, `loss(network, batch)`.
        batch: micro-batch j of step i as a pure function `batch(i, j)` of both, on the training device.
        recipe: what identifies the run; a training state of another recipe is refused.
        log: receives loss, lr, gradient norm, seconds and the time spent on batches, or `"progress"` for a bar.
        drawn: what the whole run draws, such as its number of tasks, told with the cost.
        between: called with the number of steps done and the optimisers after every step, before its state is saved;
            it may change parameters and their moments in place, as a pure function of both and of the step.

    Raises:
        FileNotFoundError: `train.start` is no file.
        ValueError: the number of processes does not divide `train.accumulate`, the folder holds another run, or
            `train.start` another network.
        FloatingPointError: the loss or its gradient is not finite.
        SystemExit: with code 0, after saving, when the process was sent SIGTERM and there is a folder to save in.
        KeyboardInterrupt: the same after Ctrl-C; the next run of the same recipe goes on from there.
    """
    device = train.execution.pick_device()
    with _on(device), seeded(train.seed), torch.enable_grad():
        group = init_distributed(device)
        _check_shared(train, group)
        before = Start.of(network, train, recipe)
        run = TrainingRun(network, loss, batch, train, group)
        state = TrainingState(network, run.optimizers, group, train, recipe)
        shown = log if group.rank == 0 else None
        with _terminations(state.path is not None) as caught, following(shown, train.steps) as open_log:
            seconds = _loop(run, state, caught, open_log, between)
        gather(network)
        network.eval()
        cost = {**(drawn or {}), "steps": train.steps, "seconds": round(seconds, 1), "processes": group.size}
        return before.added(cost)


def _loop(run: TrainingRun, state: TrainingState, caught: list[int], log: Log | None, between: Between | None) -> float:
    """All steps that are left; returns the seconds that the whole run took."""
    step, before = state.load()
    began, seconds = time.perf_counter(), before
    while step < run.train.steps:
        metrics = run.advance(step)
        step += 1
        if between is not None:
            between(step, run.optimizers)
        seconds = before + time.perf_counter() - began
        if log is not None and run.group.rank == 0:
            log.log(metrics | {"seconds": seconds, "sampling": run.sampling / (seconds - before)}, step)
        stopping = run.group.any(bool(caught))
        if stopping or step % run.train.execution.save_every == 0 or step == run.train.steps:
            state.save(step, seconds)
        if signal.SIGINT in caught:
            raise KeyboardInterrupt(
                f"stopped after {step:,} of {run.train.steps:,} steps, which are kept in {state.path}"
            )
        if stopping:
            raise SystemExit(0)
    return seconds
