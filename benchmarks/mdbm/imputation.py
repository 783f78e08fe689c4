"""Holes in 20 tables of mixed columns: a fifth of all cells is hidden and filled in, beside scikit-learn's imputers.

Columns of numbers are standardised; those with at most eight different values count as categories for every model, and
the class is one more category. The imputers see categories one-hot but for the last level: what they put there, at
least 0.01 and normalised, are their probabilities. For numbers they give a point, and the standard deviation around it
is that of their errors on another tenth of the cells that are hidden first, column by column. Marginals are the
frequencies of levels, and of the same bins of numbers that the machine has. NLL is per hidden cell, nats; of numbers it
is that of a density.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import bayesvision as bv
from benchmarks.common import DATA, mean_and_error, write

FEW, BINS, LEAST = 8, 32, 0.01


def table(path: Path) -> tuple[pd.DataFrame, list[bool]]:
    """A frame with the class as its last column, and which columns are categories."""
    stored = np.load(path)
    x, flags = stored["X"].astype(float), stored["categorical"]
    columns: dict[str, Any] = {}
    kinds = []
    for k, name in enumerate([*range(x.shape[1]), "class"]):
        values = stored["y"].astype(float) if name == "class" else x[:, k]
        there = values[~np.isnan(values)]
        if len(np.unique(there)) < 2:
            continue
        category = name == "class" or bool(flags[k]) or len(np.unique(there)) <= FEW
        kinds.append(category)
        scaled = (values - there.mean()) / there.std()
        named = pd.Series([f"v{v:g}" if v == v else None for v in values], dtype=object)
        columns[f"c{name}"] = named if category else pd.Series(scaled)
    return pd.DataFrame(columns), kinds


def holes(frame: pd.DataFrame, share: float, seed: int, seen: np.ndarray | None = None) -> np.ndarray:
    """Cells to hide, none of those that are missing or hidden already."""
    rng = np.random.default_rng(seed)
    hide = (rng.random(frame.shape) < share) & frame.notna().to_numpy()
    return hide if seen is None else hide & ~seen


def score(found: dict[str, Any], frame: pd.DataFrame, kinds: list[bool], hide: np.ndarray) -> dict[str, float]:
    """NLL, accuracy, RMSE and coverage of 90 % intervals over the hidden cells.

    `found` has, for each column, probabilities by level name, or a distribution over numbers, of all rows.
    """
    nll, right, squares, inside = [], [], [], []
    for k, (name, category) in enumerate(zip(frame.columns, kinds, strict=True)):
        rows = np.flatnonzero(hide[:, k])
        if not len(rows):
            continue
        if category:
            levels, probs = found[name]
            place = {level: i for i, level in enumerate(levels)}
            truth = [place.get(v, -1) for v in frame[name].iloc[rows]]
            chance = np.array([probs[r, t] if t >= 0 else 0.0 for r, t in zip(rows, truth, strict=True)])
            nll += list(-np.log(np.maximum(chance, 1e-6)))
            right += list(probs[rows].argmax(-1) == np.array(truth))
        else:
            law = found[name]
            truth = torch.full((len(frame),), torch.nan, dtype=torch.float64)
            truth[rows] = torch.as_tensor(frame[name].to_numpy()[rows])
            safe = torch.where(truth.isnan(), 0.0, truth)
            nll += (-law.log_prob(safe))[rows].tolist()
            low, high = law.interval(0.9)
            inside += ((low <= safe) & (safe <= high))[rows].tolist()
            middle = law.icdf(torch.tensor(0.5, dtype=torch.float64))
            squares += (middle - safe)[rows].square().tolist()
    line = {"nll": float(np.mean(np.minimum(nll, 14.0)))}
    if right:
        line["accuracy"] = float(np.mean(right))
    if squares:
        line |= {"rmse": float(np.mean(squares) ** 0.5), "coverage 90 %": float(np.mean(inside))}
    return line


def by_machine(frame: pd.DataFrame, kinds: list[bool], **fields: Any) -> dict[str, Any]:
    """The library's own, as it comes."""
    told = {str(n): "category" if c else "number" for n, c in zip(frame.columns, kinds, strict=True)}
    done = bv.MDBM(kinds=tuple(told.items()), **fields).fit(frame).impute(frame)
    assert done.coding is not None
    names = {column.name: column.levels for column in done.coding.columns.kept}
    found: dict[str, Any] = {}
    for name in told:
        if name not in names or name not in done.coding.names:  # one value is left of it
            found[name] = (list(frame[name].dropna().unique()), np.ones((len(frame), 1)))
        else:
            law = done.column(name)
            found[name] = (names[name], law.probs.numpy()) if isinstance(law, bv.distributions.Categorical) else law
    assert kind_fits(found, told)
    return found


def kind_fits(found: dict[str, Any], told: dict[str, str]) -> bool:
    """Whether numbers got densities and categories probabilities."""
    return all(isinstance(law, tuple) == (told[name] == "category") for name, law in found.items())


def by_marginals(frame: pd.DataFrame, kinds: list[bool]) -> dict[str, Any]:
    """What is known of a cell without its row."""
    found: dict[str, Any] = {}
    for name, category in zip(frame.columns, kinds, strict=True):
        there = frame[name].dropna()
        if category:
            counts = there.value_counts() + 0.5
            found[name] = (list(counts.index), np.tile(counts.to_numpy() / counts.sum(), (len(frame), 1)))
        else:
            values = torch.as_tensor(there.to_numpy(copy=True))
            borders = bv.distributions.Bar.borders_of(values, BINS)
            counts = torch.histc(torch.bucketize(values, borders[1:-1].double()).double(), len(borders) - 1)
            logits = ((counts + 0.5) / (counts + 0.5).sum()).log()
            found[name] = bv.distributions.Bar(logits.expand(len(frame), -1), borders.double())
    return found


def by_imputer(frame: pd.DataFrame, kinds: list[bool], make: Any, seed: int) -> dict[str, Any]:
    """One of scikit-learn's, with standard deviations from cells that it is shown not to see."""
    inner = holes(frame, 0.1, seed + 1_000)
    tried = _points(frame.mask(inner), frame, kinds, make)
    found = _points(frame, frame, kinds, make)
    for k, (name, category) in enumerate(zip(frame.columns, kinds, strict=True)):
        if not category:
            rows = np.flatnonzero(inner[:, k])
            off = frame[name].to_numpy()[rows] - tried[name][rows] if len(rows) > 2 else np.ones(1)
            spread = max(float(np.sqrt((off**2).mean())), 1e-3)
            loc = torch.as_tensor(found[name])
            found[name] = bv.distributions.Normal(loc, torch.full_like(loc, spread))
    return found


def _points(frame: pd.DataFrame, whole: pd.DataFrame, kinds: list[bool], make: Any) -> dict[str, Any]:
    parts, spans, width = [], {}, 0
    for name, category in zip(frame.columns, kinds, strict=True):
        if category:
            levels = sorted(whole[name].dropna().unique())
            part = np.array([(frame[name] == level).astype(float) for level in levels[:-1]]).reshape(-1, len(frame)).T
            part[frame[name].isna()] = np.nan
        else:
            levels, part = [], frame[[name]].to_numpy(dtype=float)
        parts.append(part)
        spans[name] = (levels, width, width + part.shape[1])
        width += part.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        filled = make().fit_transform(np.concatenate(parts, 1))
    found: dict[str, Any] = {}
    for name, (levels, low, high) in spans.items():
        part = filled[:, low:high]
        if levels:
            part = np.maximum(np.concatenate([part, 1 - part.sum(-1, keepdims=True)], 1), LEAST)
            found[name] = (levels, part / part.sum(-1, keepdims=True))
        else:
            found[name] = part[:, 0]
    return found


def models(frame: pd.DataFrame, kinds: list[bool], seed: int, steps: int) -> dict[str, Any]:
    """All of them, by name."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer, KNNImputer

    train = bv.Train(steps=steps, batch=128, lr=1e-2, execution=bv.Execution(device="cpu"))
    return {
        "MDBM": lambda: by_machine(frame, kinds, train=train),
        "IterativeImputer": lambda: by_imputer(frame, kinds, lambda: IterativeImputer(random_state=0), seed),
        "KNNImputer": lambda: by_imputer(frame, kinds, lambda: KNNImputer(n_neighbors=10), seed),
        "marginals": lambda: by_marginals(frame, kinds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="The folder that holds tabular_class/.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--sets", help="Names of some sets, with commas between them.")
    a = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted((a.data / "tabular_class").glob("*.npz"))
    if not paths:
        print(f"no tabular_class in {a.data}; give its folder with --data")
        return
    lines, best = [], []
    for path in [p for p in paths if not a.sets or p.stem in a.sets.split(",")]:
        frame, kinds = table(path)
        found: dict[str, list[dict[str, float]]] = {}
        for seed in range(a.seeds):
            hide = holes(frame, 0.2, seed)
            for name, work in models(frame.mask(hide), kinds, seed, a.steps).items():
                start = time.perf_counter()
                line = score(work(), frame, kinds, hide)
                found.setdefault(name, []).append({**line, "seconds": time.perf_counter() - start})
        means = {name: np.mean([f["nll"] for f in runs]) for name, runs in found.items()}
        best.append(min(means, key=lambda n: means[n]))
        for name, runs in found.items():
            line = {"set": path.stem, "rows": len(frame), "columns": len(kinds), "model": name}
            line["nll"], line["nll error"] = mean_and_error([f["nll"] for f in runs])
            for key in ("accuracy", "rmse", "coverage 90 %", "seconds"):
                if key in runs[0]:
                    line[key] = round(float(np.mean([f[key] for f in runs])), 3)
            lines.append(line)
            print(line, flush=True)
    counts = {name: best.count(name) for name in sorted(set(best))}
    print(counts)
    if not a.sets:
        write("mdbm/imputation", {"sets with the best NLL": counts, "scores": lines})


if __name__ == "__main__":
    main()
