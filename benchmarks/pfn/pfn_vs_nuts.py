"""The shipped `pfn-gp` against MLE-II (gpytorch) and NUTS (pyro) on the same fresh data sets of its own prior.

Every model sees the same rows and predicts the same queries. NUTS samples the exact prior that drew the data, on the
raw scale; MLE-II and the PFN standardise by the context. Seconds are per data set: the PFN answers all of them in one
batch, the peers one by one.
"""

import argparse
import time

import torch

import bayesvision as bv
from bayesvision.training.seeds import generator
from benchmarks.common import mean_and_error, write
from priors import GaussianProcessMixture, programs

QUERIES = 20


def losses(predictive, truth: torch.Tensor) -> float:
    return float(-predictive.log_prob(truth.to(predictive.mean)).mean())


def compare(features: int, rows: int, tasks: int, warmup: int, draws: int, seed: int) -> list[dict[str, float | str]]:
    prior = GaussianProcessMixture(features=features)
    task = prior.sample(tasks, rows + QUERIES, generator=generator("cpu", seed, features, rows))
    x, y, new, truth = task.x[:, :rows], task.y[:, :rows], task.x[:, rows:], task.y[:, rows:]
    posterior = bv.pretrained("pfn-gp")
    posterior.condition(x, y).predict(new)  # warm
    start = time.perf_counter()
    answer = posterior.condition(x, y).predict(new)
    spent = {"PFN": time.perf_counter() - start}
    nll = {"PFN": (-answer.log_prob(truth).mean(-1)).tolist()}
    peers = {
        "GP, MLE-II": lambda a, b: bv.GP(kernel="matern52", seed=seed).fit(bv.Data(a, b)),
        "NUTS": lambda a, b: bv.MCMC(programs.model(prior), warmup=warmup, draws=draws, chains=1, seed=seed).fit(
            bv.Data(a, b)
        ),
    }
    for name, fit in peers.items():
        start = time.perf_counter()
        fitted = [fit(x[i], y[i]) for i in range(tasks)]
        nll[name] = [losses(fitted[i].predict(new[i]), truth[i]) for i in range(tasks)]
        spent[name] = time.perf_counter() - start
    worst = [max(float(d.r_hat.max()) for d in posterior.diagnostics.values()) for posterior in fitted]
    lines = []
    for name in nll:
        mean, error = mean_and_error(nll[name])
        gap, gap_error = mean_and_error(torch.tensor(nll["PFN"]) - torch.tensor(nll[name]))
        lines.append(
            {
                "features": features,
                "rows": rows,
                "data sets": tasks,
                "model": name,
                "nll": mean,
                "error": error,
                "PFN minus model": gap,
                "gap error": gap_error,
                "seconds": float(f"{spent[name] / tasks:.3g}"),
                "times slower than PFN": round(spent[name] / spent["PFN"], 1),
                "median worst R-hat": round(sorted(worst)[tasks // 2], 3) if name == "NUTS" else "",
            }
        )
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rows", type=int, nargs="+", default=[10, 40])
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    a = parser.parse_args()
    torch.set_num_threads(1)
    lines = [line for f in a.features for n in a.rows for line in compare(f, n, a.tasks, a.warmup, a.draws, a.seed)]
    write("pfn/pfn_vs_nuts", {"nuts": f"{a.warmup} warm-up and {a.draws} kept draws, one chain", "comparison": lines})


if __name__ == "__main__":
    main()
