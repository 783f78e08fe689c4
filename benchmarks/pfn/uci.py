"""`pfn-gp`, a Gaussian process and a linear model on UCI regression with the standard splits.

Each model is conditioned on --rows random training rows of each split (at most 8 columns, those most correlated with
the target by rank in these rows) and scored on the split's test rows, in units of the training rows' deviation.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from sklearn.linear_model import BayesianRidge

import bayesvision as bv
from bayesvision.distributions import Normal
from benchmarks.common import DATA, scored, summary, write

SETS = ("concrete", "energy", "kin8nm", "naval", "power", "protein", "wine", "yacht")
COLUMNS = 8


def columns(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The columns most correlated with the target by rank; constant ones never."""
    varies = np.flatnonzero(x.std(0) > 0)
    strength = [abs(scipy.stats.spearmanr(x[:, k], y).statistic) for k in varies]
    return np.sort(varies[np.argsort(strength)[::-1][:COLUMNS]])


def linear(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> Normal:
    loc, scale = x.mean(0), x.std(0)
    mean, stddev = BayesianRidge().fit((x - loc) / scale, y).predict((new - loc) / scale, return_std=True)
    return Normal(torch.as_tensor(mean), torch.as_tensor(stddev))


def split_scores(x, y, test, rows: int, posterior, seed: int) -> dict[str, dict[str, float]]:
    train = np.setdiff1d(np.arange(len(y)), test)
    train = np.random.default_rng(seed).permutation(train)[:rows]
    keep = columns(x[train], y[train])
    a, b, new = x[train][:, keep], y[train], x[test][:, keep]
    loc, scale = b.mean(), b.std()
    b, truth = (b - loc) / scale, torch.as_tensor((y[test] - loc) / scale)
    models = {
        "pfn-gp": lambda: posterior.condition(a, b).predict(new),
        "pfn-gp, 8 orders": lambda: posterior.condition(a, b).predict_averaged(new, orders=8),
        "GP, MLE-II": lambda: bv.GP(kernel="matern52").fit(bv.Data(a, b)).predict(new),
        "linear": lambda: linear(a, b, new),
    }
    return scored(models, truth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--test", type=int, default=500, help="Greatest number of test rows of a split.")
    parser.add_argument("--data", type=Path, default=DATA / "uci")
    a = parser.parse_args()
    if not a.data.is_dir():
        print(f"no data at {a.data}; give the folder of the UCI sets with --data")
        return
    torch.set_num_threads(1)
    posterior, lines = bv.pretrained("pfn-gp"), list[dict[str, Any]]()
    for name in SETS:
        with np.load(a.data / f"{name}.npz") as file:
            x, y, tests = file["X"].astype(float), file["y"].astype(float), file["test_index"]
        found = [split_scores(x, y, test[: a.test], a.rows, posterior, k) for k, test in enumerate(tests[: a.splits])]
        lines += summary(found, set=name)
    write("pfn/uci", {"rows": a.rows, "splits": a.splits, "uci": lines})


if __name__ == "__main__":
    main()
