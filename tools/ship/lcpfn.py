"""Put a trained LC-PFN into the package: measure it, write the measurements into its card, store it in float16.

    python -m tools.ship.lcpfn my.safetensors --name lcpfn --summary "..."

Mean log-likelihood of the rest of curves drawn from the published prior, at 10, 20, 40 and 80 % seen.
"""

import torch

from bayesvision.training.seeds import generator
from priors import LearningCurves
from tools.ship.common import run


@torch.no_grad()
def measure(posterior, curves: int) -> list[dict[str, float]]:
    """Log-likelihood and coverage on curves of the published prior, by the number of epochs seen."""
    task, lines = LearningCurves().sample(curves, 100, generator=generator("cpu", 99)), []
    for seen in (10, 20, 40, 80):
        law = posterior.unbounded().condition(task.x[:, :seen], task.y[:, :seen]).predict(task.x[:, seen:])
        score = law.log_prob(task.y[:, seen:]).mean(-1)
        low, high = law.quantile(torch.tensor([0.05, 0.95]))
        inside = ((low < task.y[:, seen:]) & (task.y[:, seen:] < high)).float().mean()
        lines.append(
            {
                "seen": seen,
                "log-likelihood": round(float(score.mean()), 3),
                "error": round(float(score.std() / curves**0.5), 3),
                "coverage 90 %": round(float(inside), 3),
            }
        )
        print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    run(__doc__, "curves", 10_000, lambda network, n: {"on the published prior": measure(network.float(), n)})
