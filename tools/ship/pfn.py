"""Put a trained checkpoint into the package: measure it, write the measurements into its card, store it in float16.

    python -m tools.ship.pfn my-pfn.safetensors --name pfn-gp

The measured table compares the network with the Gaussian process that is told each data set's true hyper-parameters.
Nobody who has to infer them can reach that, so the gap is an upper bound on that to the exact posterior predictive.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

import bayesvision as bv
from bayesvision.training.seeds import generator
from benchmarks.common import machine
from priors import GaussianProcessMixture, Task
from priors.kernels import gram
from tools.ship.common import as_stored, ship

QUERIES, BATCH = 20, 10


def oracle(prior: GaussianProcessMixture, task: Task, rows: int) -> torch.Tensor:
    """NLL of each query under the Gaussian process with the true hyper-parameters."""
    losses = torch.empty(task.y.shape[0], task.y.shape[1] - rows, dtype=torch.float64)
    x, y, theta = task.x.double(), task.y.double(), task.theta
    for k, kernel in enumerate(prior.kernels):
        member = theta["kernel"] == k
        scale, noise = theta["lengthscale"][member].double().unsqueeze(1), theta["noise"][member].double()
        variance = theta["variance"][member].double().unsqueeze(-1)
        full = gram(kernel, x[member], x[member], scale, variance)
        noisy = full + noise.unsqueeze(-1) * torch.eye(full.shape[-1])
        factor = torch.linalg.cholesky(noisy[:, :rows, :rows])
        half = torch.linalg.solve_triangular(factor, full[:, :rows, rows:], upper=False)
        white = torch.linalg.solve_triangular(factor, y[member, :rows].unsqueeze(-1), upper=False)
        mean = (half.mT @ white).squeeze(-1)
        spread = (noisy[:, rows:, rows:].diagonal(dim1=-2, dim2=-1) - half.square().sum(-2)).sqrt()
        losses[member] = -torch.distributions.Normal(mean, spread).log_prob(y[member, rows:])
    return losses


@torch.no_grad()
def measure(posterior: Any, tasks: int) -> list[dict[str, float]]:
    """Mean NLL of the network, of the oracle and of the context's own normal, on fresh tasks."""
    lines = []
    for features in (1, 4, 8):
        prior = GaussianProcessMixture(features=features)
        for rows in (5, 20, 100):
            task = prior.sample(tasks, rows + QUERIES, generator=generator("cpu", 99, features, rows))
            truth, seen = task.y[:, rows:], task.y[:, :rows]
            losses, inside = [], []
            for x, y in zip(task.x.split(BATCH), task.y.split(BATCH), strict=True):
                ours = posterior.condition(x[:, :rows], y[:, :rows]).predict(x[:, rows:])
                low, high = ours.interval(0.9)
                losses.append(-ours.log_prob(y[:, rows:]))
                inside.append((low < y[:, rows:]) & (y[:, rows:] < high))
            loss, best = torch.cat(losses), oracle(prior, task, rows)
            plain = torch.distributions.Normal(seen.mean(-1, keepdim=True), seen.std(-1, keepdim=True))
            gap = (loss.double() - best).mean(-1)
            lines.append(
                {
                    "features": features,
                    "context": rows,
                    "nll": round(float(loss.mean()), 3),
                    "oracle nll": round(float(best.mean()), 3),
                    "gap": round(float(gap.mean()), 3),
                    "error": round(float(gap.std() / tasks**0.5), 3),
                    "nll of N(mean, std)": round(float(-plain.log_prob(truth).mean()), 3),
                    "coverage 90 %": round(float(torch.cat(inside).double().mean()), 3),
                }
            )
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Measure a checkpoint and put it among the shipped ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument(
        "--summary", default="Regression on tables of smooth functions: Gaussian processes with hyper-priors."
    )
    a = parser.parse_args()
    torch.set_num_threads(1)
    posterior = bv.load(a.checkpoint)
    stored = as_stored(posterior)
    task = GaussianProcessMixture(features=4).sample(50, 70, generator=generator("cpu", 5))
    before, after = (p.condition(task.x[:, :50], task.y[:, :50]).predict(task.x[:, 50:]) for p in (posterior, stored))
    change = float((before.cdf(task.y[:, 50:]) - after.cdf(task.y[:, 50:])).abs().max())
    title = "nll in nats against the Gaussian process that knows the hyper-parameters"
    stored.metadata |= {
        "measured on": machine(),
        "largest change of the cdf by float16": round(change, 6),
        "measured": {title: measure(stored, a.tasks)},
    }
    half = ship(stored, a.name, a.summary)
    print(f"{half}: {half.stat().st_size / 1e6:.2f} MB, float16 changes the cdf by at most {change:.1e}")


if __name__ == "__main__":
    main()
