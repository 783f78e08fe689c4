"""`pfn-table` and `pfn-gp` on UCI regression with the standard splits, beside an exact GP and a linear model.

Each model is conditioned on --rows random training rows of each split, with all columns, and scored on the split's
test rows, in units of the training rows' deviation. The process that both networks read is scored alone, too.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import BayesianRidge

import bayesvision as bv
from bayesvision.distributions import Normal
from bayesvision.io.checkpoints import find
from bayesvision.methods.tables.encoding import Encoding
from benchmarks.common import DATA, scored, summary, write

SETS = ("concrete", "energy", "kin8nm", "naval", "power", "protein", "wine", "yacht")


def linear(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> Normal:
    loc, scale = x.mean(0), np.where(x.std(0) > 0, x.std(0), 1.0)
    mean, stddev = BayesianRidge().fit((x - loc) / scale, y).predict((new - loc) / scale, return_std=True)
    return Normal(torch.as_tensor(mean), torch.as_tensor(stddev))


def process(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> Normal:
    """What the network reads, without the network."""
    a, b, c = (torch.as_tensor(v) for v in (x, y, new))
    encoding = Encoding.of(a, b, torch.zeros(a.shape[-1], dtype=torch.bool), None, True)
    said = encoding.predicted(c, None)
    return Normal(encoding.y_loc + encoding.y_scale * said.mean[..., 0], encoding.y_scale * said.stddev)


def split_scores(x, y, test, rows: int, networks: dict[str, Any], seed: int) -> dict[str, dict[str, float]]:
    train = np.setdiff1d(np.arange(len(y)), test)
    train = np.random.default_rng(seed).permutation(train)[:rows]
    a, b, new = x[train], y[train], x[test]
    loc, scale = b.mean(), b.std()
    b, truth = (b - loc) / scale, torch.as_tensor((y[test] - loc) / scale)
    models = {name: lambda network=network: network.condition(a, b).predict(new) for name, network in networks.items()}
    models |= {
        "their process alone": lambda: process(a, b, new),
        "GP, MLE-II": lambda: bv.GP(kernel="matern52").fit(bv.Data(a, b)).predict(new),
        "linear": lambda: linear(a, b, new),
    }
    return scored(models, truth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["pfn-table", "pfn-gp"], help="Shipped names or files.")
    parser.add_argument("--rows", type=int, nargs="+", default=[30, 200])
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--test", type=int, default=500, help="Greatest number of test rows of a split.")
    parser.add_argument("--data", type=Path, default=DATA / "uci")
    a = parser.parse_args()
    if not a.data.is_dir():
        print(f"no data at {a.data}; give the folder of the UCI sets with --data")
        return
    torch.set_num_threads(1)
    networks = {name: find(name) for name in a.models}
    lines: list[dict[str, Any]] = []
    for rows in a.rows:
        for name in SETS:
            with np.load(a.data / f"{name}.npz") as file:
                x, y, tests = file["X"].astype(float), file["y"].astype(float), file["test_index"]
            found = [split_scores(x, y, test[: a.test], rows, networks, k) for k, test in enumerate(tests[: a.splits])]
            lines += summary(found, rows=rows, set=name)
    write("tables/tables_uci", {"splits": a.splits, "uci": lines})


if __name__ == "__main__":
    main()
