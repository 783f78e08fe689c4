"""Runs that the tests of training start as processes of their own, and interrupt."""

import argparse
import contextlib
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from torch import nn

import bayesvision as bv
import bayesvision.methods.pfn.tasks
from bayesvision.io.tensors import write_tensors
from bayesvision.methods.pfn.pfn import _loss
from bayesvision.methods.pfn.tasks import TaskStream
from bayesvision.nn.set_transformer import SetTransformer
from bayesvision.training.loop import _Objective, minimize
from bayesvision.training.seeds import generator, seeded
from bayesvision.training.train import Execution, Train
from priors import BayesianLinear

TINY = Train(steps=40, batch=16, lr=1e-2, seed=3, accumulate=2, execution=Execution(device="cpu"))
RECIPE = {"method": "tiny"}


def tiny_network(seed=3):
    """A regression network with a layer that draws noise, so that a wrong generator shows."""
    with seeded(seed):
        return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 1))


def tiny_batch(train, step, part, dtype=torch.float32):
    source = generator("cpu", train.seed, step, part)
    x = torch.randn(train.batch // train.accumulate, 3, generator=source).to(dtype)
    return x, x.sin().sum(-1, keepdim=True)


def squared_error(network, batch):
    return (network(batch[0]) - batch[1]).square().mean()


def run(train=TINY, log=None, network=None, pause=0.0, terminate_at=None):
    """Train the tiny network; at the step `terminate_at` this process is sent SIGTERM."""
    network = tiny_network() if network is None else network

    def batch(step, part):
        time.sleep(pause)
        if step == terminate_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return tiny_batch(train, step, part)

    cost = minimize(network, squared_error, batch, train, RECIPE, log)
    return network, cost


PFN = bv.PFN(context=8, width=16, layers=2, heads=2, bars=20)


def tiny_pfn(train=TINY, log=None, steps=30):
    with mock.patch.object(bayesvision.methods.pfn.tasks, "TARGETS", 5000):  # borders of a smaller sample
        return replace(PFN, train=replace(train, steps=steps)).fit(BayesianLinear(), log)


class Recorder:
    """A log that remembers everything."""

    def __init__(self):
        self.metrics, self.steps = [], []

    def log(self, metrics, step):
        self.metrics.append(metrics)
        self.steps.append(step)

    @property
    def losses(self):
        return torch.tensor([m["loss"] for m in self.metrics])


def distributed(out: Path) -> None:
    """Every case under torchrun, in one start of it; the first process writes weights and losses."""
    rank, found, notes = int(os.environ["RANK"]), {}, {}

    def keep(name, network, log):
        if rank == 0:
            found.update({f"{name}.{k}": v for k, v in network.state_dict().items()})
            found[f"{name}.loss"] = log.losses
        notes[f"{name}.kinds"] = sorted({type(p).__name__ for p in network.parameters()})
        notes[f"{name}.logged"] = len(log.steps)

    for sharding in ("ddp", "fsdp"):
        train = replace(TINY, execution=replace(TINY.execution, sharding=sharding))
        log = Recorder()
        network, cost = run(train, log)
        keep(sharding, network, log)
        notes[f"{sharding}.processes"] = cost["processes"]

        log, saved = (
            Recorder(),
            replace(train, execution=replace(train.execution, checkpoint_dir=str(out / sharding), save_every=1000)),
        )
        with contextlib.suppress(SystemExit):
            run(saved, log, terminate_at=15 if rank == 1 else None)
            notes[f"{sharding}.stopped"] = False
        network, _ = run(saved, log)
        keep(f"{sharding}-resumed", network, log)
        notes[f"{sharding}-resumed.steps"] = log.steps

        log = Recorder()
        keep(f"pfn-{sharding}", tiny_pfn(train, log), log)
    apart = out / "apart" / str(rank)  # a disk of its own, where only one has a state
    if rank == 1:
        shutil.copytree(out / "ddp", apart)
    for name, train in {
        "accumulate": replace(TINY, accumulate=1),
        "apart": replace(TINY, execution=replace(TINY.execution, checkpoint_dir=str(apart))),
    }.items():
        try:
            run(train)
        except ValueError as error:
            notes[name] = str(error)
    write_tensors(out / f"rank{rank}.safetensors", found, notes)


def compiled(out: Path) -> None:
    """Graph breaks, and whether the graph computes the same; not under the checks of annotations, which do break."""
    notes = {}
    network = SetTransformer(features=3, targets=1, outputs=5, width=16, layers=2, heads=2)
    for rows in (0, 1, 7):
        torch._dynamo.reset()
        inputs = torch.randn(2, rows, 3), torch.randn(2, rows, 1), torch.randn(2, 4, 3)
        found = torch._dynamo.explain(network)(*inputs)
        graph = torch.compile(network, backend="eager", fullgraph=True)
        notes[f"transformer-{rows}"] = [
            found.graph_break_count,
            found.graph_count,
            bool((graph(*inputs) - network(*inputs)).abs().max() < 1e-5),
        ]
    torch._dynamo.reset()
    pfn = replace(PFN, train=TINY)
    objective = _Objective(pfn.untrained(torch.linspace(-3, 3, 21)), _loss)
    batch = TaskStream(pfn, BayesianLinear()).batch(0, 0)
    found = torch._dynamo.explain(objective)(batch)
    notes["loss"] = [found.graph_break_count, found.graph_count, True]
    notes["reasons"] = [str(reason.reason) for reason in found.break_reasons]
    write_tensors(out / "compiled.safetensors", {}, notes)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--distributed", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--pfn", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--sharding", default="ddp")
    parser.add_argument("--interval", type=int, default=7)
    parser.add_argument("--pause", type=float, default=0.0)
    options = parser.parse_args()
    if options.compiled:
        return compiled(options.out)
    if options.distributed:
        return distributed(options.out)
    state = str(options.out / "state")
    train = replace(
        TINY,
        execution=replace(TINY.execution, checkpoint_dir=state, save_every=options.interval, sharding=options.sharding),
    )
    log = bv.JsonLines(options.out / "log.jsonl")
    if options.pfn:
        network = tiny_pfn(
            replace(train, execution=replace(train.execution, checkpoint_dir=None, compile=options.compile)),
            log,
            steps=4,
        )
    else:
        network, _ = run(train, log, pause=options.pause)
    if int(os.environ.get("RANK", 0)) == 0:
        write_tensors(options.out / "weights.safetensors", network.state_dict(), {})


if __name__ == "__main__":
    main()
