"""`pfn-table` and `pfn-classes` on 31 small public tables, beside what one would try otherwise.

Each model sees the same --rows random rows of a table and is scored on up to 300 others: NLL in nats and CRPS (of a
target in units of the deviation seen) or NLL, ROC AUC (one against the rest) and expected calibration error, and its
rank in NLL among the models. Tables of more than ten classes keep the ten commonest; classes that were not seen are
left out of the score. The others are as they come: missing values filled with the mean, and in regression a normal
around the forecast with the deviation of the out-of-bag (forest) or of five-fold cross-validated errors. Needs the
extra [bench].
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
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bayesvision import metrics
from bayesvision.cli.tables.compare import _classes, _filled, baseline
from bayesvision.core.columns import Columns
from bayesvision.distributions import Normal
from bayesvision.io.checkpoints import find
from benchmarks.common import DATA, mean_and_error, write

TEST = 300
SHOWN = {"linear": "linear or logistic", "trees": "histogram gradient boosting", "gp": "GP, MLE-II"}
OTHERS = {  # name -> for numbers, for classes
    "random forest": (
        lambda: RandomForestRegressor(300, oob_score=True, random_state=0, n_jobs=1),
        lambda: RandomForestClassifier(300, random_state=0, n_jobs=1),
    ),
    "k-NN": (
        lambda: make_pipeline(StandardScaler(), KNeighborsRegressor()),
        lambda: make_pipeline(StandardScaler(), KNeighborsClassifier()),
    ),
    "LightGBM": (
        lambda: LGBMRegressor(n_jobs=1, verbose=-1, random_state=0),
        lambda: LGBMClassifier(n_jobs=1, verbose=-1, random_state=0),
    ),
}


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


def other(name: str, columns: Columns, seen: pd.DataFrame, y: np.ndarray, new: pd.DataFrame, classes: int) -> Any:
    """What one of `OTHERS` predicts, as a distribution."""
    x, unseen = _filled(columns, seen, new)
    model = OTHERS[name][bool(classes)]()
    if classes:
        return _classes(model.fit(x, y), unseen, classes)
    if name == "random forest":
        error = y - model.fit(x, y).oob_prediction_
    else:
        error = y - cross_val_predict(model, x, y, cv=KFold(5, shuffle=True, random_state=0))
    mean = torch.as_tensor(model.fit(x, y).predict(unseen))
    return Normal(mean, torch.full_like(mean, max(1e-9, float(np.sqrt(np.mean(error**2))))))


def quality(law: Any, truth: torch.Tensor, classes: int) -> dict[str, float]:
    """The scores of one prediction."""
    nll = -law.log_prob(truth).clamp(min=np.log(1e-6) if classes else -1e3).mean()
    if not classes:
        coverage = metrics.coverage(law, truth, 0.9)
        return {"nll": float(nll), "crps": float(metrics.crps(law, truth)), "coverage 90 %": float(coverage)}
    there = truth.unique()
    probs = law.class_probs[:, there].double().numpy()
    codes = torch.searchsorted(there, truth).numpy()
    if len(there) == 2:
        area = roc_auc_score(codes, probs[:, 1])
    else:
        area = roc_auc_score(codes, probs / probs.sum(1, keepdims=True), multi_class="ovr")
    error = metrics.expected_calibration_error(law, truth)
    return {"nll": float(nll), "AUC": float(area), "ECE": float(error)}


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
    for name in OTHERS:
        work[name] = lambda name=name: other(name, columns, seen, seen_y, new, classes)
    found = {}
    for name, call in work.items():
        start = time.perf_counter()
        with torch.no_grad():
            law = call()
        seconds = time.perf_counter() - start
        found[name] = {**quality(law, truth, classes), "seconds": seconds}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[30, 100, 512])
    parser.add_argument("--subsets", type=int, nargs="+", default=[10, 10, 3], help="Subsets for each of --rows.")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--classes", default="pfn-classes", help="Network for classes: a name or a file.")
    parser.add_argument("--table", default="pfn-table", help="Network for numbers: a name or a file.")
    parser.add_argument("--dry", action="store_true", help="Print the results without writing them.")
    a = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    networks = {False: find(a.table), True: find(a.classes)}
    summary, by_set = [], []
    for folder, kind in (("tabular_regr", "numbers"), ("tabular_class", "classes")):
        for rows, subsets in zip(a.rows, a.subsets, strict=True):
            found: dict[str, list[dict[str, float]]] = {}
            for path in sorted((a.data / folder).glob("*.npz")):
                parts = [part for k in range(subsets) if (part := scores(path, networks, rows, k))]
                if not parts:
                    continue
                line: dict[str, Any] = {"set": path.stem, "target": kind, "rows": rows}
                for name in parts[0]:
                    means = {key: float(np.mean([part[name][key] for part in parts])) for key in parts[0][name]}
                    better = [sum(part[o]["nll"] < part[name]["nll"] for o in part) + 1 for part in parts]
                    found.setdefault(SHOWN.get(name, name), []).append({**means, "rank": float(np.mean(better))})
                    line[SHOWN.get(name, name)] = round(means["nll"], 3)
                by_set.append(line)
                print(line, flush=True)
            for name, values in found.items():
                entry = {"target": kind, "rows": rows, "sets": len(values), "subsets": subsets, "model": name}
                rank = mean_and_error([value["rank"] for value in values])
                entry["mean rank"], entry["rank error"] = (round(v, 2) for v in rank)
                entry["median nll"] = round(float(np.median([value["nll"] for value in values])), 3)
                for key in ("crps", "coverage 90 %") if kind == "numbers" else ("AUC", "ECE"):
                    entry[key] = round(float(np.mean([value[key] for value in values])), 3)
                entry["seconds"] = float(f"{np.mean([value['seconds'] for value in values]):.2g}")
                summary.append(entry)
                print(entry, flush=True)
            if not a.dry:
                write("tables/tables_open", {"summary": summary, "sets": by_set})


if __name__ == "__main__":
    main()
