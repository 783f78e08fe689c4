"""Train the shipped networks from their recipes within a budget of time, on whatever accelerator is there.

    python -m benchmarks.pretrain_all --minutes 9 --networks pfn-table,pfn-classes,pfn-gp,lcpfn --out DIR

Every network gets an equal share of the minutes. A few steps are timed first; then the number of steps is fixed, so
that the schedule ends with the budget. Checkpoints are usable whatever interrupts the run: the weights so far are in
DIR/NAME.safetensors from the first save on. Needs torch and this package; no package of the command line. On a CPU
the recipes' own batches are kept; on an accelerator a step has at least 256 tasks in bfloat16, drawn on the device.
DIR/summary.json tells steps, tasks, achieved FLOP/s (of matrix products and attention) and the share of time in the
prior.
"""

import argparse
import contextlib
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import bayesvision as bv
import priors
from bayesvision.io.recipes import Recipe, read_recipe
from benchmarks.common import machine

NETWORKS = ("pfn-table", "pfn-classes", "pfn-gp", "lcpfn")
SHIPPED = Path(bv.__file__).parent / "pretrained"
TIMED = 6  # steps that are timed before the number of steps is fixed
ACCELERATED = 256  # tasks of a step on an accelerator, at least
PRINTED = 15.0  # seconds between printed lines
RESERVE = 0.9  # of the budget that steps are planned for


class Watch:
    """A training log that notes when steps end and what had been computed by then."""

    def __init__(self, counter: FlopCounterMode | None = None) -> None:
        self.ends, self.flops, self.counter, self.last = [time.perf_counter()], [0], counter, {}

    def log(self, metrics: dict[str, float], step: int, /) -> None:
        self.ends.append(time.perf_counter())
        self.flops.append(0 if self.counter is None else self.counter.get_total_flops())
        self.last = {"step": step, **metrics}

    def of_a_step(self, values: list[Any]) -> float:
        """Mean over the steps but the first two, which compile and warm up."""
        return (values[-1] - values[2]) / (len(values) - 3)


def planned(recipe: Recipe, steps: int, folder: Path, accelerated: bool, compiled: bool, start: bool) -> Any:
    """The recipe's method for this machine and this number of steps."""
    method = recipe.build(checkpoint_dir=str(folder), save_every=max(1, min(200, steps // 10)), compile=compiled)
    train = replace(method.train, steps=steps)
    if not start:
        train = replace(train, start=None)
    if accelerated:
        batch = max(ACCELERATED, train.batch)
        train = replace(train, batch=batch - batch % train.accumulate, precision="bfloat16")
    return replace(method, train=train)


def timed(recipe: Recipe, folder: Path, accelerated: bool, compiled: bool) -> tuple[float, float]:
    """Seconds and floating-point operations of a step, over the same steps."""
    found = []
    for counter in (None, FlopCounterMode(display=False)):
        method = planned(recipe, TIMED, folder, accelerated, compiled and counter is None, False)
        execution = replace(method.train.execution, checkpoint_dir=None)
        watch = Watch(counter)
        with counter or contextlib.nullcontext():
            replace(method, train=replace(method.train, execution=execution)).fit(recipe.prior, watch)
        found.append(watch.of_a_step(watch.flops if counter else watch.ends))
    return found[0], found[1]


class Saver(Watch):
    """Keeps a usable checkpoint of the weights so far, and stops the training once its time is over."""

    def __init__(self, method: Any, path: Path, deadline: float) -> None:
        super().__init__()
        self.method, self.path, self.deadline, self.printed = method, path, deadline, self.ends[0]

    def log(self, metrics: dict[str, float], step: int, /) -> None:
        super().log(metrics, step)
        before, every = step - 1, self.method.train.execution.save_every
        if before and before % every == 0:  # the state after the step before is on the disk now
            self.keep()
        if self.ends[-1] - self.printed > PRINTED:
            self.printed = self.ends[-1]
            print(json.dumps({k: round(v, 5) for k, v in self.last.items()}), flush=True)
        if self.ends[-1] > self.deadline and before >= every:
            raise TimeoutError

    def keep(self) -> None:
        """Write the weights of the last training state as a checkpoint."""
        from bayesvision.io.tensors import read_tensors

        state = Path(self.method.train.execution.checkpoint_dir) / "training.safetensors"
        if not state.exists():
            return
        tensors, header = read_tensors(state)
        posterior = self.method.untrained()
        posterior.load_state_dict(
            {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}, strict=False
        )
        posterior.metadata = {"steps": header["step"], "seconds": round(header["seconds"], 1), "unfinished": True}
        bv.save(posterior, self.path, torch.float16)


def train(name: str, deadline: float, out: Path, compiled: bool, tell: dict[str, Any]) -> None:
    """Train one network until `deadline` and write it; what it cost goes into `tell`."""
    accelerated = torch.accelerator.is_available()
    recipe, folder = read_recipe(SHIPPED / f"{name}.toml", priors), out / f"{name}.training"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier call, whose number of steps was another
    step, flops = timed(recipe, folder, accelerated, compiled)
    steps = max(10, int(RESERVE * (deadline - time.perf_counter()) / step))
    started = (out / str(recipe.train.get("start"))).is_file()
    if started:
        recipe.train["start"] = str(out / recipe.train["start"])
    method = planned(recipe, steps, folder, accelerated, compiled, started)
    tell |= {"timed seconds a step": step, "planned steps": steps, "TFLOP/s": flops / step / 1e12}
    print(name, json.dumps(tell), flush=True)
    saver = Saver(method, out / f"{name}.safetensors", deadline)
    try:
        posterior = method.fit(recipe.prior, saver)
    except (TimeoutError, KeyboardInterrupt):
        saver.keep()
        tell["stopped at step"] = len(saver.ends) - 1
    else:
        bv.save(posterior, out / f"{name}.safetensors", torch.float16)
        shutil.rmtree(folder)
        tell |= {k: posterior.metadata[k] for k in ("tasks", "curves", "steps", "seconds") if k in posterior.metadata}
    tell |= {"share in the prior": saver.last.get("sampling"), "loss": saver.last.get("loss")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--compile", action="store_true", help="Run the loss through torch.compile.")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    names = a.networks.split(",")
    unknown = [name for name in names if not (SHIPPED / f"{name}.toml").is_file()]
    if unknown:
        parser.error(f"--networks takes names of shipped networks, got {', '.join(unknown)}")
    began, told = time.perf_counter(), {"machine": machine(), "networks": {}}
    if torch.accelerator.is_available():
        told["machine"]["accelerator"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "other"
    for k, name in enumerate(names):
        tell = told["networks"].setdefault(name, {})
        left = began + 60 * a.minutes - time.perf_counter()
        train(name, time.perf_counter() + left / (len(names) - k), a.out, a.compile, tell)
        print(name, json.dumps(tell), flush=True)
        temporary = a.out / "summary.tmp"
        temporary.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        temporary.replace(a.out / "summary.json")


if __name__ == "__main__":
    main()
