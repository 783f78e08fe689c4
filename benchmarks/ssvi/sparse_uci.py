"""UCI regression with the standard splits: a sparse Bayesian network, dense VI, and MC dropout's published results.

Networks of two hidden layers of 30 units, the same recipe for all sets, chosen on rows held out from training rows.
Results of each split are kept under build/ssvi-uci; splits that are there are not trained again.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import bayesvision as bv
from benchmarks.common import DATA, UCI, data_folder, kept, mean_and_error, published_dropout, write

BUILD = Path("build/ssvi-uci")
MODELS = {"SSVI 0.5": {"density": 0.5}, "dense VI": {"density": 1.0}}
STEPS, WIDTH = 6_000, 30


def network(columns: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    hidden = [nn.Linear(columns, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, 1))


def split(x: np.ndarray, y: np.ndarray, test: np.ndarray, fields: dict[str, Any], seed: int) -> dict[str, float]:
    kept = np.setdiff1d(np.arange(len(y)), test)
    train = bv.Train(steps=STEPS, batch=64, lr=1e-2, seed=seed)
    method = bv.SSVI(network(x.shape[1], seed), beta_warmup=0.5, train=train, **fields)
    began = time.perf_counter()
    law = method.fit(bv.Data(x[kept], y[kept])).predict(x[test])
    truth = torch.as_tensor(y[test])
    return {
        "log-likelihood": float(law.log_prob(truth).mean()),
        "RMSE": float(bv.metrics.rmse(law, truth)),
        "coverage 90 %": float(bv.metrics.coverage(law, truth, 0.9)),
        "seconds": time.perf_counter() - began,
    }


def lines_of(
    name: str, found: dict[str, list[dict[str, float]]], dropout: dict[str, list[float]]
) -> list[dict[str, Any]]:
    lines = []
    for model, results in found.items():
        line: dict[str, Any] = {"set": name, "model": model}
        for key in ("log-likelihood", "RMSE"):
            own = np.array([r[key] for r in results])
            line[key], line[f"{key} error"] = mean_and_error(own)
            gap = f"{key} less MC dropout's"
            line[gap], line[f"{gap} error"] = mean_and_error(own - np.array(dropout[key]))
        line["coverage 90 %"] = round(float(np.mean([r["coverage 90 %"] for r in results])), 3)
        line["seconds"] = round(float(np.mean([r["seconds"] for r in results])), 1)
        lines.append(line)
    line = {"set": name, "model": "MC dropout, published"}
    for key in dropout:
        line[key], line[f"{key} error"] = mean_and_error(dropout[key])
    return [*lines, line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--data", type=Path, default=DATA)
    a = parser.parse_args()
    folder = data_folder(a.data, "uci")
    if folder is None:
        return
    torch.set_num_threads(1)
    lines: list[dict[str, Any]] = []
    for name in UCI:
        with np.load(folder / f"{name}.npz") as file:
            x, y, tests = file["X"].astype(float), file["y"].astype(float), file["test_index"]
        found: dict[str, list[dict[str, float]]] = {model: [] for model in MODELS}
        for model, fields in MODELS.items():
            for k in range(min(a.splits, len(tests))):
                path = BUILD / f"{name}-{model}-{k}.json"
                found[model].append(kept(path, partial(split, x, y, tests[k], fields, k)))
        lines += lines_of(name, found, published_dropout(folder, name, len(found["SSVI 0.5"])))
        print(*lines[-3:], sep="\n", flush=True)
    better = [v["set"] for v in lines if v["model"] == "SSVI 0.5" and v["log-likelihood less MC dropout's"] > 0]
    said = (
        f"better mean log-likelihood than MC dropout on {len(better)} of {len(UCI)} sets: {', '.join(better)} (goal 6)"
    )
    print(said)
    write("ssvi/sparse_uci", {"splits": a.splits, "goals": [said], "uci": lines})


if __name__ == "__main__":
    main()
