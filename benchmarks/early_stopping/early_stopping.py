"""What early stopping saves on real runs: replays of finished runs under a fixed budget, in many random orders.

The protocol of the LC-PFN paper (arXiv 2310.20447, section 5.3): runs drawn at random from those of a task are trained
one after the other until 20 full-length runs' worth of steps is spent; the regret is the best value of the task minus
the best one found so far, averaged over 40 orders. The speed-up of a policy is the number of steps after which no
stopping reaches the regret it ends with, over the number of steps after which the policy reaches the same regret;
below 1 the policy lost. A policy that has not reached it within the budget goes on, to 5 times the budget at most.
Runs are drawn with replacement, as tasks have few of them and a policy that stops early sees many. The interval is the
central 90 % of 200 bootstrap samples of the orders. `thaw` begins runs in the order that is given, and goes back to
frozen ones; its steps count alike.

Runs of `taskset` and `deepobs` are read at every epoch, those of `algoperf` and `misc` at 50 steps up to the longest
run. Values are in [0, 1], larger is better, losses through `bayesvision.Scale`; a run that diverged ends there.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from bayesvision.early_stopping import policies as rules
from bayesvision.early_stopping import replay
from bayesvision.early_stopping.thawing import Thawing
from bayesvision.io.checkpoints import find
from benchmarks.common import DATA, write
from benchmarks.curves_data import Task, load

RUNS, ORDERS, MORE = 20, 40, 5  # full-length runs in the budget; orders; times the budget to go on for
GRID = 50
PLACES = 1500  # draws of an order: more than any policy uses up
BOOTSTRAP = 200
LEAST = 60  # runs of a task


def matrix(task: Task) -> np.ndarray:
    """Values [runs, steps] on a common grid, each the latest reading, NaN after the end of a run."""
    whole = max(run.end for run in task.runs)
    regular = all(np.array_equal(run.steps, np.arange(1, len(run.steps) + 1)) for run in task.runs)
    grid = np.arange(1, whole + 1) if regular and whole <= 100 else np.linspace(whole / GRID, whole, GRID)
    table = np.full((len(task.runs), len(grid)), np.nan)
    for row, run in zip(table, task.runs, strict=True):
        place = np.searchsorted(run.steps, grid * (1 + 1e-9), side="right") - 1
        there = (place >= 0) & (grid <= run.end * (1 + 1e-9) + whole / GRID * 0.999 * (not regular))
        row[there] = run.u[place[there]]
    return table[(~np.isnan(table)).sum(1) >= 2]


def policies(table: np.ndarray, models: dict, delta: float) -> dict:
    found = {
        "patience(3)": rules.Patience(3),
        "patience(5)": rules.Patience(5),
        "patience(10)": rules.Patience(10),
        "successive halving": rules.SuccessiveHalving(),
        "hyperband": rules.Hyperband(),
    }
    for name, model in models.items():
        chances = rules.Chances(model.with_metric(horizon=table.shape[1]), table)
        found[name] = rules.Forecast(chances)
        found["thaw" if name == "lcpfn" else f"thaw, {name}"] = Thawing(chances)
        found[f"{name}, level {delta:g}"] = rules.Forecast(chances, delta, learn=0)
    return found


def speedups(reference: np.ndarray, policy: np.ndarray, budget: int) -> list[float]:
    """Speed-up of the regrets [orders, steps], and the ends of its interval."""
    source, found = np.random.default_rng(0), []
    samples = [np.arange(len(policy)), *source.integers(len(policy), size=(BOOTSTRAP, len(policy)))]
    for rows in samples:
        mean = reference[rows].mean(0)
        level = mean[budget - 1]
        found.append(replay.steps_to(mean, level) / replay.steps_to(policy[rows].mean(0), level))
    return [round(float(v), 2) for v in (found[0], *np.quantile(found[1:], [0.05, 0.95], method="nearest"))]


def measure(task: Task, models: dict, delta: float) -> tuple[list[dict], dict[str, list[float]]]:
    """One line for each policy, and the regret of each over the budget."""
    table = matrix(task)
    steps, optimum = table.shape[1], float(np.nanmax(table))
    budget, orders = RUNS * steps, replay.random_orders(len(table), ORDERS, places=PLACES)
    reference = optimum - replay.replay(table, rules.NoStopping(), orders, budget).best
    lines, traces = [], {"no stopping": reference.mean(0).tolist()}
    for name, policy in policies(table, models, delta).items():
        result = replay.replay(table, policy, orders, MORE * budget)
        regret = optimum - result.best
        speed, low, high = speedups(reference, regret, budget)
        lines.append(
            {
                "source": task.source,
                "task": task.name,
                "runs": len(table),
                "steps": steps,
                "policy": name,
                "speed-up": speed,
                "low": low,
                "high": high,
                "regret at the budget": float(f"{regret[:, budget - 1].mean():.3g}"),
                "no stopping": float(f"{reference[:, -1].mean():.3g}"),
            }
        )
        traces[name] = regret[:, :budget].mean(0).tolist()
    return lines, traces


def summary(lines: list[dict]) -> list[dict]:
    rows = []
    for source in [*dict.fromkeys(line["source"] for line in lines), "all"]:
        for name in dict.fromkeys(line["policy"] for line in lines):
            speeds = [r["speed-up"] for r in lines if r["policy"] == name and source in (r["source"], "all")]
            rows.append(
                {
                    "source": source,
                    "policy": name,
                    "tasks": len(speeds),
                    "mean speed-up": round(float(np.mean(speeds)), 2),
                    "geometric mean": round(float(np.exp(np.mean(np.log(np.maximum(speeds, 0.01))))), 2),
                    "least": min(speeds),
                    "greatest": max(speeds),
                    "below 1": sum(s < 1 for s in speeds),
                    "surely below 1": sum(
                        r["high"] < 1 for r in lines if r["policy"] == name and source in (r["source"], "all")
                    ),
                }
            )
    return rows


def picture(traces: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Regret over epochs spent, one panel a task."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    from bayesvision.plots import PALETTE

    shown = {
        "no stopping": "#6E6E6E",
        "patience(5)": PALETTE[2],
        "hyperband": PALETTE[1],
        "lcpfn": PALETTE[0],
        "thaw": PALETTE[5],
        "lcpfn, level 0.05": PALETTE[3],
    }
    names = list(traces)[:8]
    figure = Figure(figsize=(11, 4.8), layout="constrained", facecolor="white")
    for ax, name in zip(figure.subplots(2, 4).flat, names, strict=False):
        for policy, color in shown.items():
            regret = np.array(traces[name][policy])
            at = np.arange(1, len(regret) + 1) / (len(regret) / RUNS)
            ax.plot(at, regret, color=color, linewidth=2.2 if policy in ("lcpfn", "thaw") else 1.4, label=policy)
        ax.set_yscale("log")
        ax.set_title(name.replace("_", " "), fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=7, which="both")
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.grid(color="#E8E8E8")
    figure.supxlabel("full-length runs' worth of epochs spent", fontsize=9)
    figure.supylabel("regret of the best value so far", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=400, help="most runs of a task")
    parser.add_argument("--delta", type=float, default=0.05)
    parser.add_argument("--models", nargs="*", default=["lcpfn"], help="shipped names or files")
    parser.add_argument("--sources", nargs="*", default=["taskset", "deepobs", "algoperf", "misc"])
    parser.add_argument("--name", default="early_stopping")
    parser.add_argument("--picture", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    tasks = [t for t in load(DATA, a.limit, tuple(a.sources)) if len(t.runs) >= LEAST]
    if not tasks:
        print(f"no curves in {DATA}; set BAYESVISION_DATA to the folder that holds curves_taskset and the like")
        return
    models, lines, traces = {name: find(name) for name in a.models}, [], {}
    for task in tasks:
        found, traces[task.name] = measure(task, models, a.delta)
        lines += found
        print(task.source, task.name, {r["policy"]: r["speed-up"] for r in found}, flush=True)
    results = {"budget": f"{RUNS} full-length runs", "orders": ORDERS, "delta": a.delta}
    write(f"early_stopping/{a.name}", {**results, "summary": summary(lines), "tasks": lines})
    if a.picture:
        picture(traces, a.picture)


if __name__ == "__main__":
    main()
