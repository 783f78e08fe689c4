"""What the benchmarks share: the machine they ran on, and results written whole or not at all."""

import csv
import datetime
import gzip
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bayesvision import metrics

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("BAYESVISION_DATA", "data"))  # the folder that holds uci/
UCI = {  # file -> name in the published results of MC dropout
    "concrete": "concrete",
    "energy": "energy",
    "kin8nm": "kin8nm",
    "naval": "naval-propulsion-plant",
    "power": "power-plant",
    "protein": "protein-tertiary-structure",
    "wine": "wine-quality-red",
    "yacht": "yacht",
}


def machine() -> dict[str, Any]:
    """Date, processor, threads and versions."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "date": datetime.date.today().isoformat(),
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def write(name: str, results: dict[str, Any]) -> None:
    """Write `results` with the machine's description to results/NAME.json, NAME being FOLDER/SCRIPT."""
    path = RESULTS / f"{name}.json"
    _write_whole(path, json.dumps({"machine": machine(), **results}, indent=1) + "\n")
    print(f"wrote {path}")


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` returns, as JSON data in the file `path`: made and written if it is not there."""
    if not path.exists():
        _write_whole(path, json.dumps(make()))
    return json.loads(path.read_text())


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def data_folder(data: Path, name: str) -> Path | None:
    """The folder `name` of the data; None, and it is said, if there is none."""
    if (data / name).is_dir():
        return data / name
    print(f"no data at {data / name}; give the folder that holds {name}/ with --data")
    return None


def published_dropout(folder: Path, name: str, splits: int) -> dict[str, list[float]]:
    """Log-likelihood and RMSE of MC dropout in the first splits of a UCI set, as they were published."""
    with gzip.open(folder / "mc_dropout_reference.csv.gz", "rt") as file:
        rows = csv.DictReader(file)
        known = {(r["dataset"], r["quantity"], int(r["split"])): float(r["value"]) for r in rows}
    keys = {"log-likelihood": "test_ll", "RMSE": "test_MC_rmse"}
    return {key: [known[UCI[name], quantity, k] for k in range(splits)] for key, quantity in keys.items()}


def mean_and_error(values: Any) -> tuple[float, float]:
    """Mean and standard error over the first axis."""
    values = np.asarray(values, dtype=float)
    return round(float(values.mean()), 5), round(float(values.std(ddof=1) / len(values) ** 0.5), 5)


def scored(models: dict[str, Callable[[], Any]], truth: torch.Tensor) -> dict[str, dict[str, float]]:
    """NLL, CRPS, coverage of 90 % intervals, and the seconds of each model, which predicts when it is called."""
    scores = {}
    for name, work in models.items():
        start = time.perf_counter()
        predictive = work()
        seconds = time.perf_counter() - start
        scores[name] = {
            "nll": float(metrics.nll(predictive, truth)),
            "crps": float(metrics.crps(predictive, truth)),
            "coverage 90 %": float(metrics.coverage(predictive, truth, 0.9)),
            "seconds": seconds,
        }
    return scores


def summary(found: list[dict[str, dict[str, float]]], **head: Any) -> list[dict[str, Any]]:
    """A line for each model: means and standard errors over the splits, printed as well."""
    lines = []
    for model in found[0]:
        line: dict[str, Any] = {**head, "model": model}
        for metric in ("nll", "crps"):
            line[metric], line[f"{metric} error"] = mean_and_error([f[model][metric] for f in found])
        line["coverage 90 %"] = round(float(np.mean([f[model]["coverage 90 %"] for f in found])), 3)
        line["seconds"] = float(f"{np.mean([f[model]['seconds'] for f in found]):.3g}")
        lines.append(line)
        print(line, flush=True)
    return lines
