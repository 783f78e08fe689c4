"""How far is a trained PFN from the exact posterior predictive of a Gaussian process?

Trains one network for each number of features on an RBF Gaussian process with fixed hyper-parameters (resumable with
--folder), then prints the mean gap in nats, E log p(y' | exact) - log p(y' | PFN), on fresh tasks.
"""

import argparse
import json
from pathlib import Path

import torch

import bayesvision as bv
from bayesvision.methods.pfn.pfn import PFNPosterior
from bayesvision.training.loggers import JsonLines
from bayesvision.training.seeds import generator
from benchmarks.common import RESULTS, mean_and_error, write
from priors import GaussianProcess

CONTEXTS = (1, 2, 5, 10, 20, 50, 100)
QUERIES = 10


def recipe(features: int, steps: int, folder: Path | None) -> tuple[bv.PFN, GaussianProcess]:
    prior = GaussianProcess(features=features, lengthscale=round(0.2 * features**0.5, 3), noise=0.01)
    place = None if folder is None else str(folder / f"features{features}")
    train = bv.Train(
        steps=steps, batch=16, precision="bfloat16", seed=features, execution=bv.Execution(checkpoint_dir=place)
    )
    return bv.PFN(features=features, context=max(CONTEXTS), train=train), prior


def gaps(posterior: PFNPosterior, prior: GaussianProcess, tasks: int) -> list[dict[str, float]]:
    """Gap to the exact posterior at every context size, with its standard error over tasks."""
    rows, most = [], max(CONTEXTS)
    task = prior.sample(tasks, most + QUERIES, generator=generator("cpu", 2026, prior.features))
    new, truth = task.x[:, most:], task.y[:, most:]
    for n in CONTEXTS:
        x, y = task.x[:, :n], task.y[:, :n]
        exact = prior.posterior(x, y).predict(new)
        with torch.no_grad():
            ours = posterior.condition(x, y).predict(new)
        gap = exact.log_prob(truth.double()) - ours.log_prob(truth)
        mean, error = mean_and_error(gap.mean(-1))
        nll = float(-exact.log_prob(truth.double()).mean())
        rows.append({"features": prior.features, "context": n, "exact nll": round(nll, 4), "gap": mean, "error": error})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--tasks", type=int, default=2_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="Keep training states and logs here.")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = RESULTS / "pfn" / "pfn_vs_gp.json"
    networks = json.loads(path.read_text())["networks"] if path.exists() else {}  # of features trained by other calls
    for features in arguments.features:
        method, prior = recipe(features, arguments.steps, arguments.folder)
        log = None
        if arguments.folder is not None:
            arguments.folder.mkdir(parents=True, exist_ok=True)
            log = JsonLines(arguments.folder / f"features{features}.jsonl")
        posterior = method.fit(prior, log)
        networks[str(features)] = {"metadata": posterior.metadata, "gaps": gaps(posterior, prior, arguments.tasks)}
        write("pfn/pfn_vs_gp", {"networks": dict(sorted(networks.items()))})


if __name__ == "__main__":
    main()
