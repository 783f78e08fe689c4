"""Real learning curves from public collections, as tasks: runs of one problem under one metric."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bayesvision import MetricScale

MOST = 100  # readings of a run; longer ones are thinned
LEAST = 8


class Run(NamedTuple):
    """Steps in the run's own units, and values in [0, 1], larger is better."""

    steps: np.ndarray
    u: np.ndarray

    @property
    def end(self) -> float:
        return float(self.steps[-1])

    @property
    def t(self) -> np.ndarray:
        """Steps in hundredths of the run."""
        return 100 * (self.steps / self.end)


class Task(NamedTuple):
    source: str
    name: str
    runs: list[Run]


def loss_scale(values: list[np.ndarray]) -> MetricScale:
    """Losses between zero and what a typical run starts with, which is known once a few runs have begun."""
    return MetricScale(lower=0.0, soft_lower=0.0, soft_upper=float(np.median([v[0] for v in values])), minimize=True)


SCALES: dict[str, Any] = {
    "wer": MetricScale(lower=0.0, soft_lower=0.0, soft_upper=1.0, minimize=True),
    "bleu": MetricScale(0.0, 100.0),
    "loss": loss_scale,
}  # any other metric lies in [0, 1] already


def make_task(source: str, name: str, metric: str, curves: list[tuple[np.ndarray, np.ndarray]], limit: int) -> Task:
    """A random subset of the curves, cut at the first value that is not finite, thinned and scaled."""
    clean = []
    for steps, values in curves:
        bad = ~np.isfinite(values)
        end = int(bad.argmax()) if bad.any() else len(values)
        steps, values = steps[:end], values[:end].astype(float)
        keep = steps > 0
        steps, values = steps[keep], values[keep]
        steps, first = np.unique(steps, return_index=True)
        values = values[first]
        if len(steps) > MOST:
            picked = np.unique(np.linspace(0, len(steps) - 1, MOST).round().astype(int))
            steps, values = steps[picked], values[picked]
        if len(steps) >= LEAST:
            clean.append((steps, values))
    if len(clean) > limit:
        chosen = np.random.default_rng(0).permutation(len(clean))[:limit]
        clean = [clean[k] for k in sorted(chosen)]
    if not clean:
        return Task(source, name, [])
    scale = SCALES.get(metric)
    scale = scale([v for _, v in clean]) if callable(scale) else scale
    runs = []
    for steps, values in clean:
        u = values if scale is None else scale.normalize(torch.from_numpy(values)).numpy()
        runs.append(Run(steps, np.clip(u, 0.0, 1.0)))
    return Task(source, name, runs)


def epochs(table: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.arange(1.0, table.shape[1] + 1), row) for row in table]


def taskset(folder: Path, limit: int) -> list[Task]:
    data = np.load(folder / "curves_taskset" / "taskset_text.npz")
    names = [str(n).removeprefix("FixedTextRNNClassification_") for n in data["task_names"]]
    return [make_task("taskset", n, "loss", epochs(data[f"valid_{k}"]), limit) for k, n in enumerate(names)]


def deepobs(folder: Path, limit: int) -> list[Task]:
    tasks = []
    for path in sorted((folder / "curves_deepobs").glob("*.npz")):
        data = np.load(path)
        key, metric = ("test_accuracies", "accuracy") if "test_accuracies" in data else ("test_losses", "loss")
        tasks.append(make_task("deepobs", path.stem, metric, epochs(data[key]), limit))
    return tasks


def from_tables(folder: Path, source: str, by: list[str], x: str, y: str, limit: int) -> list[Task]:
    import pandas as pd

    runs, points = (pd.read_parquet(folder / f"curves_{source}" / f"{n}.parquet") for n in ("runs", "points"))
    curves = {run: (g[x].to_numpy(float), g[y].to_numpy(float)) for run, g in points.groupby("run", sort=False)}
    tasks = []
    for key, group in runs.groupby(by):
        name = " ".join(str(part).rsplit("/", 1)[-1] for part in key[:-1])
        members = [curves[r] for r in group.run if r in curves]
        task = make_task(source, name, str(key[-1]), members, limit)
        if len(task.runs) >= 10:
            tasks.append(task)
    return tasks


def lcdb(folder: Path, limit: int) -> list[Task]:
    """Accuracy against the size of the training set: one curve for each data set and learner, the first seed."""
    data = np.load(folder / "curves_lcdb" / "lcdb_accuracy.npz")
    curves = []
    for d, sizes in enumerate(data["train_size"]):
        for values in data["test"][d]:
            row = values[0]
            known = (row != 65535) & (sizes > 0)
            curves.append((sizes[known].astype(float), row[known] / 10_000))
    return [make_task("lcdb", "all learners", "accuracy", curves, 8 * limit)]


SOURCES = {
    "taskset": taskset,
    "deepobs": deepobs,
    "algoperf": lambda folder, limit: from_tables(
        folder, "algoperf", ["workload", "metric"], "global_step", "val_metric", limit
    ),
    "misc": lambda folder, limit: from_tables(folder, "misc", ["source", "task", "metric"], "x", "y", limit),
    "lcdb": lcdb,
}


def load(folder: Path, limit: int = 100, sources: tuple[str, ...] = tuple(SOURCES)) -> list[Task]:
    """Every task of the collections that are there and that has a usable curve."""
    there = [name for name in sources if (folder / f"curves_{name}").is_dir()]
    return [task for name in there for task in SOURCES[name](folder, limit) if task.runs]
