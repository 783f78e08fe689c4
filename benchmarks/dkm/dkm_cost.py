"""Seconds of an epoch against the number of rows, beside gpytorch's SVGP and DeepGP with as many inducing points."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bayesvision as bv
from benchmarks.common import DATA, data_folder, write
from benchmarks.dkm.peers import peer

INDUCING, BATCH, ROUNDS = 128, 1_000, 3
ROWS = (1_000, 3_000, 10_000, 45_000)


def machine(layers: int) -> Callable[[torch.Tensor, torch.Tensor, int], None]:
    def run(x: torch.Tensor, y: torch.Tensor, steps: int) -> None:
        train = bv.Train(steps=steps, batch=BATCH - 1, lr=1e-3)  # below 1,000 rows, so that all sizes learn from parts
        bv.DKM(layers=layers, inducing=INDUCING, kernel="rbf", train=train).fit(bv.Data(x, y))

    return run


def gpytorch(kind: str, dtype: torch.dtype) -> Callable[[torch.Tensor, torch.Tensor, int], None]:
    def run(x: torch.Tensor, y: torch.Tensor, steps: int) -> None:
        peer(kind, x.to(dtype), y.to(dtype), INDUCING, steps, BATCH - 1, 0)

    return run


MODELS = {
    "DKM, no hidden layer": machine(0),
    "DKM, 1 hidden layer": machine(1),
    "DKM, 2 hidden layers": machine(2),
    "SVGP, float64": gpytorch("SVGP", torch.float64),
    "SVGP, float32": gpytorch("SVGP", torch.float32),
    "DeepGP, float32": gpytorch("DeepGP", torch.float32),
}


def epoch(run: Callable[..., None], x: torch.Tensor, y: torch.Tensor) -> float:
    """Seconds of an epoch: the median difference between a long run and one step, which leaves out the start."""
    steps, found = -(-len(x) // (BATCH - 1)), []
    more = max(1, 40 // steps)
    for _ in range(ROUNDS):
        seconds = []
        for count in (1, 1 + steps * more):
            began = time.perf_counter()
            run(x, y, count)
            seconds.append(time.perf_counter() - began)
        found.append((seconds[1] - seconds[0]) / more)
    return float(np.median(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    a = parser.parse_args()
    if data_folder(a.data, "uci") is None:
        return
    torch.set_num_threads(1)
    with np.load(a.data / "uci" / "protein.npz") as file:
        x, y = (torch.as_tensor(file[k].astype(float)) for k in ("X", "y"))
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    lines: list[dict[str, Any]] = []
    for name, run in MODELS.items():
        seconds = [epoch(run, x[order[:n]], y[order[:n]]) for n in ROWS]
        slope = float(np.polyfit(np.log(ROWS), np.log(seconds), 1)[0])
        line = {"model": name, **{f"{n:,} rows, s": round(s, 3) for n, s in zip(ROWS, seconds, strict=True)}}
        lines.append(line | {"slope": round(slope, 2)})
        print(lines[-1], flush=True)
    last = {v["model"]: v[f"{ROWS[-1]:,} rows, s"] for v in lines}
    said = [f"slope of log seconds in log rows {lines[2]['slope']} (goal 1)"]
    for name in MODELS:
        ours = {k: round(last[k] / last[name], 2) for k in MODELS if k.startswith("DKM")}
        if not name.startswith("DKM"):
            said.append(f"times the epoch of {name}: {ours} (goal 2 for SVGP, below 1 for DeepGP)")
    print(*said, sep="\n")
    write("dkm/dkm_cost", {"goals": said, "cost": lines})


if __name__ == "__main__":
    main()
