"""`pfn-table` and `pfn-classes` on 31 small public tables, beside what one would try otherwise.

Each model sees the same --rows random rows of a table and is scored on up to 300 others: NLL in nats (of a target in
units of the deviation seen), and its rank among the models. Tables of more than ten classes keep the ten commonest;
classes that were not seen are left out of the score. Baselines are those of `bayesvision predict --compare`, their
missing values filled with the mean, and a random forest.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import RandomForestClassifier

import bayesvision as bv
from bayesvision import metrics
from bayesvision.cli.tables.compare import _classes, _filled, baseline
from bayesvision.core.columns import Columns
from benchmarks.common import DATA, mean_and_error, write

TEST = 300
SHOWN = {"linear": "linear or logistic", "trees": "gradient boosting", "gp": "GP, MLE-II", "forest": "random forest"}


def table(path: Path) -> tuple[pd.DataFrame, np.ndarray, int]:
    """Columns, with categories as texts, targets, and the number of classes."""
    with np.load(path) as file:
        x, y = file["X"].astype(float), file["y"]
        categorical = file["categorical"] if "categorical" in file else np.zeros(x.shape[1], bool)
    frame = pd.DataFrame({f"c{k}": x[:, k] for k in range(x.shape[1])})
    for k in np.flatnonzero(categorical):
        frame[f"c{k}"] = [None if np.isnan(v) else f"level {v:g}" for v in x[:, k]]
    if not np.issubdtype(y.dtype, np.integer):
        return frame, y.astype(float), 0
    common = [label for label, _ in sorted(zip(*np.unique(y, return_counts=True), strict=True), key=lambda p: -p[1])]
    kept = np.isin(y, common[:10])
    return frame[kept].reset_index(drop=True), np.searchsorted(np.sort(common[:10]), y[kept]), min(10, len(common))


def forest(columns: Columns, seen: pd.DataFrame, y: np.ndarray, new: pd.DataFrame, classes: int) -> Any:
    x, unseen = _filled(columns, seen, new)
    return _classes(RandomForestClassifier(300, random_state=0, n_jobs=1).fit(x, y), unseen, classes)


def scores(path: Path, networks: dict[int, Any], rows: int, seed: int) -> dict[str, dict[str, float]] | None:
    """Scores of every model on one subset; None where the table is too small."""
    frame, y, classes = table(path)
    if len(y) < rows + 20:
        return None
    order = np.random.default_rng(seed).permutation(len(y))
    a, b = order[:rows], order[rows : rows + TEST]
    if classes:
        known, codes = np.unique(y[a], return_inverse=True)
        b = b[np.isin(y[b], known)]
        seen_y, truth, classes = codes, torch.as_tensor(np.searchsorted(known, y[b])), len(known)
        if classes < 2:
            return None
    else:
        loc, scale = y[a].mean(), y[a].std()
        if scale == 0:
            return None
        seen_y, truth = (y[a] - loc) / scale, torch.as_tensor((y[b] - loc) / scale)
    seen, new = frame.iloc[a], frame.iloc[b]
    columns = Columns.of(seen)
    work: dict[str, Callable[[], Any]] = {
        "pfn-classes" if classes else "pfn-table": lambda: (
            networks[min(classes, 1)].condition(seen, seen_y).predict(new)
        )
    }
    for name in ("linear", "trees") if classes else ("linear", "trees", "gp"):
        work[name] = lambda name=name: baseline(name, columns, seen, seen_y, new, classes, seed)
    if classes:
        work["forest"] = lambda: forest(columns, seen, seen_y, new, classes)
    found = {}
    for name, call in work.items():
        start = time.perf_counter()
        with torch.no_grad():
            law = call()
        seconds = time.perf_counter() - start
        nll = -law.log_prob(truth).clamp(min=np.log(1e-6) if classes else -1e3).mean()
        calibration = metrics.expected_calibration_error(law, truth) if classes else metrics.coverage(law, truth, 0.9)
        found[name] = {"nll": float(nll), "calibration": float(calibration), "seconds": seconds}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[30, 100])
    parser.add_argument("--subsets", type=int, default=3)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--classes", default="pfn-classes", help="Network for classes: a name or a file.")
    parser.add_argument("--table", default="pfn-table", help="Network for numbers: a name or a file.")
    parser.add_argument("--dry", action="store_true", help="Print the results without writing them.")
    a = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    networks = {
        k: bv.load(n) if Path(n).is_file() else bv.pretrained(n) for k, n in ((False, a.table), (True, a.classes))
    }
    summary, by_set = [], []
    for folder, kind in (("tabular_regr", "numbers"), ("tabular_class", "classes")):
        for rows in a.rows:
            found: dict[str, list[tuple[float, float, float, float]]] = {}
            for path in sorted((a.data / folder).glob("*.npz")):
                parts = [part for k in range(a.subsets) if (part := scores(path, networks, rows, k))]
                if not parts:
                    continue
                line: dict[str, Any] = {"set": path.stem, "target": kind, "rows": rows}
                for name in parts[0]:
                    means = [np.mean([part[name][key] for part in parts]) for key in ("nll", "calibration", "seconds")]
                    better = [sum(part[other]["nll"] < part[name]["nll"] for other in part) + 1 for part in parts]
                    found.setdefault(SHOWN.get(name, name), []).append((*means, float(np.mean(better))))
                    line[SHOWN.get(name, name)] = round(float(means[0]), 3)
                by_set.append(line)
                print(line, flush=True)
            for name, values in found.items():
                nll, calibration, seconds, rank = np.array(values).T
                entry = {"target": kind, "rows": rows, "sets": len(values), "model": name}
                entry["mean rank"], entry["rank error"] = (round(v, 2) for v in mean_and_error(rank))
                entry["median nll"] = round(float(np.median(nll)), 3)
                entry["ECE" if kind == "classes" else "coverage 90 %"] = round(float(calibration.mean()), 3)
                entry["seconds"] = float(f"{seconds.mean():.2g}")
                summary.append(entry)
                print(entry, flush=True)
    if not a.dry:
        write("tables/tables_open", {"subsets": a.subsets, "summary": summary, "sets": by_set})


if __name__ == "__main__":
    main()
