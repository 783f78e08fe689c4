"""UCI regression with the standard splits: a deep kernel machine against processes, deep ones, and MC dropout.

One recipe for all sets, chosen on rows held out from the training rows of the first split. Results of each split are
kept under build/dkm-uci; those that are there are not made again.
"""

import argparse
import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bayesvision as bv
from benchmarks.common import DATA, RESULTS, data_folder, kept, mean_and_error, published_dropout, write
from benchmarks.dkm.peers import peer

BUILD = Path("build/dkm-uci")
SETS = ("yacht", "energy", "concrete", "wine", "kin8nm", "power", "naval", "protein")
INDUCING, STEPS, PEER_STEPS, SMALL, BATCH, PROCESS = 256, 400, 800, 1_500, 1_000, 2_000
OURS = {
    "DKM": {"heteroscedastic": True},
    "DKM, constant noise": {"heteroscedastic": False},
    "NNGP with inducing points": {"heteroscedastic": True, "nu": math.inf},
}
PEERS = ("SVGP", "DeepGP", "deep kernel learning")


def scores(loc: torch.Tensor, scale: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    """Of an equal mixture of normals, means and deviations [draws, rows]."""
    law = bv.distributions.Mixture.of(bv.distributions.Normal(loc.T, scale.T))
    return {
        "log-likelihood": float(law.log_prob(y).mean()),
        "RMSE": float(bv.metrics.rmse(law, y)),
        "coverage 90 %": float(bv.metrics.coverage(law, y, 0.9)),
    }


def split(model: str, x: np.ndarray, y: np.ndarray, test: np.ndarray, seed: int) -> dict[str, Any]:
    """What `model` reaches on a split, or the error that it ended with."""
    rows = np.setdiff1d(np.arange(len(y)), test)
    began = time.perf_counter()
    try:
        found = scores(*predicted(model, x[rows], y[rows], x[test], seed), torch.as_tensor(y[test]))
    except Exception as error:  # a failed run is a result
        return {"failed": f"{type(error).__name__}: {error}"[:200]}
    return found | {"seconds": time.perf_counter() - began}


def predicted(model: str, x: np.ndarray, y: np.ndarray, new: np.ndarray, seed: int) -> tuple[Any, Any]:
    batch = len(x) if len(x) <= SMALL else BATCH
    if model == "GP":
        some = np.random.default_rng(seed).permutation(len(x))[:PROCESS]
        law = bv.GP(restarts=0).fit(bv.Data(x[some], y[some])).predict(new)
        return law.mean.unsqueeze(0), law.stddev.unsqueeze(0)
    if model in OURS:
        train = bv.Train(steps=STEPS, batch=batch, lr=5e-2, max_grad_norm=10.0, seed=seed)
        law = bv.DKM(inducing=INDUCING, kernel="rbf", train=train, **OURS[model]).fit(bv.Data(x, y)).predict(new)
        return law.mean.unsqueeze(0), law.stddev.unsqueeze(0)
    loc, scale = x.mean(0), np.where(x.std(0) > 0, x.std(0), 1)
    rows, queries = (torch.as_tensor((v - loc) / scale) for v in (x, new))
    predict = peer(model, rows, torch.as_tensor((y - y.mean()) / y.std()), INDUCING, PEER_STEPS, batch, seed)
    mean, deviation = predict(queries)
    return y.mean() + y.std() * mean, y.std() * deviation


def lines_of(name: str, found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    lines = []
    for model, results in found.items():
        done = [k for k, r in enumerate(results) if "failed" not in r and "failed" not in found["DKM"][k]]
        line: dict[str, Any] = {"set": name, "model": model, "splits": len(done), "failed": len(results) - len(done)}
        for key in ("log-likelihood", "RMSE"):
            own = np.array([results[k][key] for k in done])
            gap = own - np.array([found["DKM"][k][key] for k in done])
            for title, values in ((key, own), (f"{key} less DKM's", gap)):
                line[title] = round(float(values.mean()), 5)
                line[f"{title} error"] = mean_and_error(values)[1] if len(values) > 1 else None
        for key in ("coverage 90 %", "seconds"):
            known = [results[k][key] for k in done if key in results[k]]
            line[key] = round(float(np.mean(known)), 3) if known else None
        lines.append(line)
        print({k: v for k, v in line.items() if k in ("set", "model", "splits", "log-likelihood", "RMSE", "seconds")})
    return lines


def best_or_level(lines: list[dict[str, Any]], name: str) -> bool:
    """Whether nobody's mean log-likelihood is above that of the DKM by more than the error of the paired difference."""
    own = [v for v in lines if v["set"] == name and v["model"] not in OURS]
    return all(v["log-likelihood less DKM's"] <= (v["log-likelihood less DKM's error"] or 0.0) for v in own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--models", nargs="*", default=["DKM", "GP", *PEERS])
    a = parser.parse_args()
    folder = data_folder(a.data, "uci")
    if folder is None:
        return
    torch.set_num_threads(1)
    models = list(dict.fromkeys(["DKM", *a.models]))  # all others are compared with the first
    lines: list[dict[str, Any]] = []
    for name in a.sets:
        with np.load(folder / f"{name}.npz") as file:
            x, y, tests = file["X"].astype(float), file["y"].astype(float), file["test_index"]
        count = 1 if name == "protein" else 5 if len(x) < 1_500 else 3 if len(x) < 2_000 else 2
        found: dict[str, list[dict[str, Any]]] = {model: [] for model in models}
        for k in range(count):
            for model in models:
                path = BUILD / f"{name}-{model.replace(' ', '_')}-{k}.json"
                found[model].append(kept(path, partial(split, model, x, y, tests[k], k)))
                print(path, found[model][-1], flush=True)
        dropout = published_dropout(folder, name, count)
        found["MC dropout, published"] = [{key: values[k] for key, values in dropout.items()} for k in range(count)]
        lines += lines_of(name, found)
    good = [name for name in a.sets if best_or_level(lines, name)]
    failed = sum(v["failed"] for v in lines if v["model"] == "DKM")
    said = [
        f"best or level in mean log-likelihood on {len(good)} of {len(a.sets)} sets: {', '.join(good)} (goal 6)",
        f"failed runs of the DKM: {failed} (goal 0)",
    ]
    print(*said, sep="\n")
    sparse = json.loads((RESULTS / "ssvi" / "sparse_uci.json").read_text())["uci"]
    other = {v["set"]: v["log-likelihood"] for v in sparse if v["model"] == "SSVI 0.5"}
    write("dkm/dkm_uci", {"goals": said, "SSVI, five splits": other, "uci": lines})


if __name__ == "__main__":
    main()
