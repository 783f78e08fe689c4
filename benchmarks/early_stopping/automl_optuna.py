"""What does pruning with an LC-PFN save in a real search? Optuna trains networks on scikit-learn's digits.

For every seed the search without a pruner runs `--trials` trials of `--epochs` epochs. The searches with a pruner start
from the same sampler seed, run as many trials, and then go on until they have used as much time. Each pruner has its
default settings, and knows the number of epochs where it has an argument for that. A score is the accuracy on 600
validation images, the best of all epochs of all trials; the test accuracy is that of the same network and epoch on the
other 797 images. A trial of the same seed and number starts from the same weights whatever the pruner.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
import torch
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from sklearn.datasets import load_digits
from torch import Tensor, nn

from bayesvision.integrations.optuna import LCPFNPruner
from benchmarks.common import mean_and_error, write

TRAIN, VALID = 400, 600
PRUNERS: dict[str, Callable[[int], BasePruner]] = {
    "none": lambda epochs: NopPruner(),
    "LCPFNPruner": lambda epochs: LCPFNPruner(horizon=epochs),
    "MedianPruner": lambda epochs: MedianPruner(),
    "HyperbandPruner": lambda epochs: HyperbandPruner(max_resource=epochs),
}
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}


@dataclass
class Search:
    """One study, and what it reached when."""

    x: Tensor
    y: Tensor
    epochs: int
    seed: int
    start: float = 0.0
    points: list[tuple[float, float, float]] = field(default_factory=list)  # seconds, validation and test accuracy
    ends: list[tuple[float, int]] = field(default_factory=list)  # of every trial: seconds, and epochs of all so far

    def objective(self, trial: optuna.Trial) -> float:
        torch.manual_seed(10_000 * self.seed + trial.number)
        net, optimizer, batch = build(trial)
        train = (self.x[:TRAIN], self.y[:TRAIN])
        accuracy = 0.0
        for epoch in range(self.epochs):
            net.train()
            for rows in torch.randperm(TRAIN).split(batch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(train[0][rows]), train[1][rows]).backward()
                optimizer.step()
            with torch.no_grad():
                right = (net.eval()(self.x[TRAIN:]).argmax(-1) == self.y[TRAIN:]).double()
            accuracy = right[:VALID].mean().item()
            trial.report(accuracy, epoch)
            stop = trial.should_prune()
            self.points.append((time.perf_counter() - self.start, accuracy, right[VALID:].mean().item()))
            if stop:
                raise optuna.TrialPruned
        return accuracy

    def run(self, pruner: str, trials: int, seconds: float) -> None:
        """Run so many trials, and more until the time is up."""
        self.start = time.perf_counter()
        sampler = optuna.samplers.TPESampler(seed=self.seed)
        study = optuna.create_study(direction="maximize", sampler=sampler, pruner=PRUNERS[pruner](self.epochs))

        def after(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            now = time.perf_counter() - self.start
            self.ends.append((now, len(self.points)))
            if len(self.ends) >= trials and now >= seconds:
                study.stop()

        study.optimize(self.objective, callbacks=[after])

    def best(self, seconds: float) -> tuple[float, float]:
        """The best validation accuracy until then, and the test accuracy that goes with it."""
        found = [(valid, test) for when, valid, test in self.points if when <= seconds]
        return max(found, key=lambda pair: pair[0]) if found else (0.0, 0.0)

    def reaches(self, score: float) -> float:
        """Seconds until the validation accuracy was that high; infinite if it never was."""
        return min((when for when, valid, _ in self.points if valid >= score), default=float("inf"))


def build(trial: optuna.Trial) -> tuple[nn.Module, torch.optim.Optimizer, int]:
    """The network, its optimiser and the batch size of a trial."""
    width = trial.suggest_int("width", 8, 128, log=True)
    depth = trial.suggest_int("depth", 1, 3)
    dropout = trial.suggest_float("dropout", 0.0, 0.7)
    sizes = [64] + [width] * depth
    blocks = [nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)) for a, b in itertools.pairwise(sizes)]
    net = nn.Sequential(*blocks, nn.Linear(width, 10))
    optimizer = OPTIMIZERS[trial.suggest_categorical("optimizer", list(OPTIMIZERS))]
    decay = trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True)
    lr = trial.suggest_float("lr", 1e-4, 1.0, log=True)
    return net, optimizer(net.parameters(), lr=lr, weight_decay=decay), trial.suggest_categorical("batch", [16, 32, 64])


def compare(seed: int, trials: int, epochs: int) -> list[dict[str, Any]]:
    """One row for each pruner."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    x, y = torch.tensor(images[order] / 16, dtype=torch.float32), torch.tensor(labels[order])
    rows: list[dict[str, Any]] = []
    budget = target = 0.0
    for name in PRUNERS:
        search = Search(x, y, epochs, seed)
        search.run(name, trials, budget)
        seconds, spent = search.ends[trials - 1]
        if name == "none":
            budget, target = seconds, search.best(seconds)[0]
        equal = sum(when <= budget for when, _ in search.ends)
        rows.append({
            "seed": seed, "pruner": name, "seconds": seconds, "epochs": spent, "score": search.best(seconds)[0],
            "test": search.best(seconds)[1], "score at equal time": search.best(budget)[0],
            "test at equal time": search.best(budget)[1], "trials at equal time": equal,
            "reached at": search.reaches(target),
        })  # fmt: skip
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds with their standard errors; the ratio of times is a geometric mean."""
    table = []
    none = {row["seed"]: row for row in rows if row["pruner"] == "none"}
    for name in PRUNERS:
        ours = [row for row in rows if row["pruner"] == name]
        line: dict[str, Any] = {"pruner": name, "seeds": len(ours)}
        for key in ("seconds", "epochs", "score", "test", "score at equal time", "test at equal time"):
            values = [row[key] for row in ours]
            line[key], line[f"{key} error"] = mean_and_error(values) if len(values) > 1 else (values[0], None)
        ratio = [np.log(none[row["seed"]]["seconds"] / row["seconds"]) for row in ours]
        line["times faster"] = round(float(np.exp(np.mean(ratio))), 3)
        line["trials at equal time"] = float(np.mean([row["trials at equal time"] for row in ours]))
        line["seeds that reach the score without a pruner"] = sum(row["reached at"] is not None for row in ours)
        table.append(line)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in PRUNERS:  # warm up
        Search(torch.zeros(1797, 64), torch.zeros(1797, dtype=torch.long), 4, 0).run(name, 2, 0.0)
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        rows += compare(seed, arguments.trials, arguments.epochs)
    for row in rows:  # JSON knows no infinity
        row["reached at"] = row["reached at"] if np.isfinite(row["reached at"]) else None
    settings = {**vars(arguments), "train": TRAIN, "valid": VALID, "optuna": optuna.__version__}
    table = summary(rows)
    for line in table:
        print(line)
    write("early_stopping/automl_optuna", {"settings": settings, "summary": table, "runs": rows})


if __name__ == "__main__":
    main()
