"""Which way to train is the best for its time: gap to the exact posterior at equal wall time on one core.

Each way trains a PFN (RBF Gaussian process, one feature, 4 layers of width 64, 8 tasks a step) for --seconds: some
steps are timed, and its schedule is as long as fits. The gap is E log p(y' | exact) - log p(y' | PFN) in nats on tasks
that no training saw, after 5, 20 and 60 rows.
"""

import argparse
import time
from dataclasses import replace
from typing import Any

import torch

import bayesvision as bv
from bayesvision.training.seeds import generator
from benchmarks.common import mean_and_error, write
from priors import GaussianProcess

PRIOR = GaussianProcess(lengthscale=0.2, noise=0.01)
WAYS: dict[str, dict[str, Any]] = {
    "AdamW, lr 1e-3": {"lr": 1e-3},
    "AdamW, lr 3e-3": {"lr": 3e-3},
    "AdamW, lr 3e-3, 32 tasks": {"lr": 3e-3, "batch": 32},
    "Muon, lr 3e-3": {"lr": 3e-3, "optimizer": "muon"},
    "Muon, lr 1e-2": {"lr": 1e-2, "optimizer": "muon"},
    "Muon, lr 1e-2, 32 tasks": {"lr": 1e-2, "optimizer": "muon", "batch": 32},
}
ROWS, QUERIES, TIMED = (5, 20, 60), 10, 40


class Clock:
    """A training log that notes when the steps end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def log(self, metrics: dict[str, float], step: int, /) -> None:
        self.ends.append(time.perf_counter())


def recipe(steps: int, seed: int, way: dict[str, Any]) -> bv.PFN:
    train = bv.Train(**{"steps": steps, "batch": 8, "seed": seed, "precision": "float32", **way})
    return bv.PFN(features=1, context=max(ROWS), width=64, layers=4, heads=4, bars=200, train=train)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=2_000)
    a = parser.parse_args()
    torch.set_num_threads(1)
    most = max(ROWS)
    task = PRIOR.sample(a.tasks, most + QUERIES, generator=generator("cpu", 2026))
    new, truth = task.x[:, most:], task.y[:, most:]
    lines = []
    for name, way in WAYS.items():
        clock = Clock()
        recipe(TIMED, 0, way).fit(PRIOR, clock)
        step = (clock.ends[-1] - clock.ends[9]) / (TIMED - 10)
        method = recipe(int(a.seconds / step), 0, way)
        line: dict[str, Any] = {"way": name, "steps": method.train.steps}
        found: dict[int, list[torch.Tensor]] = {rows: [] for rows in ROWS}
        seconds = []
        for seed in range(a.seeds):
            posterior = replace(method, train=replace(method.train, seed=seed)).fit(PRIOR)
            seconds.append(posterior.metadata["seconds"])
            for rows in ROWS:
                x, y = task.x[:, :rows], task.y[:, :rows]
                with torch.no_grad():
                    ours = posterior.condition(x, y).predict(new).log_prob(truth)
                found[rows].append((PRIOR.posterior(x, y).predict(new).log_prob(truth.double()) - ours).mean(-1))
        line["seconds"] = round(sum(seconds) / a.seeds)
        for rows, gaps in found.items():
            line[f"gap, {rows} rows"], line[f"error, {rows} rows"] = mean_and_error(torch.stack(gaps).mean(0))
        lines.append(line)
        print(line, flush=True)
    write("pfn/pretraining", {"seconds": a.seconds, "seeds": a.seeds, "tasks": a.tasks, "ways": lines})


if __name__ == "__main__":
    main()
