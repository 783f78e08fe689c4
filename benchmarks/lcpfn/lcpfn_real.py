"""LC-PFN and the baselines on real learning curves that no network was trained on.

Every run is cut off at 10, 20, 40 and 80 % of its readings; the models predict the rest of it at once. Values are in
[0, 1], larger is better (losses through `bayesvision.Scale`), with noise of standard deviation 0.001 added, so that no
model gains from repeated digits. Log-likelihoods are the mean over the remaining readings, each between -10 and 6
nats; CRPS and MAE (of the median) are in the same units. Ranks are by log-likelihood, 1 is best. A curve is good if
its last value is at least 10 % above its first. `lcpfn-prior` sees readings as the epochs 1, 2, ..., as its paper
does; all other models see steps as they are, in units of a hundredth of the run.
"""

import argparse
import time
import warnings

import numpy as np
import torch

import bayesvision as bv
from bayesvision.io.checkpoints import find
from benchmarks.common import DATA, write
from benchmarks.curves_data import Run, load

CUTS = (0.1, 0.2, 0.4, 0.8)
NOISE = 1e-3


def baselines() -> dict[str, object]:
    fits = {family: bv.CurveFit(family) for family in ("pow4", "mmf", "ilog2")}
    return {**fits, "last value": bv.LastValue()}


def score(law, truth: torch.Tensor) -> tuple[float, float, float]:
    y = truth.to(law.mean)
    crps, error = law.crps(y).mean(), (law.quantile(0.5) - y).abs().mean()
    return float(law.log_prob(y).clamp(-10, 6).mean()), float(crps), float(error)


@torch.no_grad()
def evaluate(run: Run, u: np.ndarray, models: dict, fits: dict, seconds: dict[str, float]) -> list[dict]:
    """Scores of every model at every cut-off."""
    n, rows, values = len(u), [], torch.from_numpy(u)
    for share in CUTS:
        seen = max(1, round(share * n))
        if seen >= n:
            continue
        truth = values[seen:]
        for name, model in models.items():
            t = np.arange(1.0, n + 1) if name.endswith("prior") else run.t
            start = time.perf_counter()
            law = model.condition(t[:seen], u[:seen]).predict(t[seen:])
            seconds[name] += time.perf_counter() - start
            rows.append((share, name, *score(law, truth)))
        for name, fit in fits.items():
            start = time.perf_counter()
            law = fit.fit(bv.Data(run.t[:seen], u[:seen])).predict(run.t[seen:])
            seconds[name] += time.perf_counter() - start
            rows.append((share, name, *score(law, truth)))
    keys = ("seen", "model", "log-likelihood", "CRPS", "MAE")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def table(frame, by: list[str]) -> list[dict]:
    """Means over curves, with the standard error of the log-likelihood."""
    lines = []
    for key, group in frame.groupby(by, sort=False):
        lines.append(
            {
                **dict(zip(by, key, strict=True)),
                "curves": len(group),
                "log-likelihood": round(float(group["log-likelihood"].mean()), 3),
                "error": round(float(group["log-likelihood"].sem()), 3),
                "CRPS": round(float(group["CRPS"].mean()), 4),
                "MAE": round(float(group["MAE"].mean()), 4),
                "rank": round(float(group["rank"].mean()), 2),
            }
        )
    return lines


def main() -> None:
    import pandas as pd

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=40, help="most runs of a task")
    parser.add_argument("--models", nargs="*", default=["lcpfn", "lcpfn-prior"], help="shipped names or files")
    parser.add_argument("--name", default="lcpfn_real")
    a = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)
    tasks = load(DATA, a.limit)
    if not tasks:
        print(f"no curves in {DATA}; set BAYESVISION_DATA to the folder that holds curves_taskset and the like")
        return
    models, fits = {name: find(name) for name in a.models}, baselines()
    seconds, rows, rng = dict.fromkeys([*models, *fits], 0.0), [], np.random.default_rng(0)
    for task in tasks:
        for k, run in enumerate(task.runs):
            u = (run.u + NOISE * rng.normal(size=len(run.u))).clip(0, 1)
            good = bool(run.u[-1] > 1.1 * run.u[0])
            where = {"source": task.source, "task": task.name, "run": k, "kind": "good" if good else "bad"}
            rows += [{**where, **row} for row in evaluate(run, u, models, fits, seconds)]
        print(task.source, task.name, len(task.runs), flush=True)
    frame = pd.DataFrame(rows)
    frame["rank"] = frame.groupby(["source", "task", "run", "seen"])["log-likelihood"].rank(ascending=False)
    fitted = len(frame) / len(seconds)
    whole = [{**row, "ms / curve": round(1e3 * seconds[row["model"]] / fitted, 1)} for row in table(frame, ["model"])]
    results = {"all curves": whole}
    for by in ("seen", "kind", "source"):
        results[f"by {by}"] = table(frame, [by, "model"])
    write(f"lcpfn/{a.name}", results)
    print(pd.DataFrame(whole).to_string())


if __name__ == "__main__":
    main()
