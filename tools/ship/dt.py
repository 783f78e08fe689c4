"""Put a trained Distribution Transformer into the package, in float16, with its distance to the exact posterior.

python -m tools.ship.dt my-dt.safetensors --name dt-variance --summary "The variance of a normal."
"""

from typing import Any

import torch

from bayesvision.cli.checkpoints import exact_gap, latent_given
from bayesvision.training.seeds import generator
from tools.ship.common import run


@torch.no_grad()
def measure(posterior: Any, problems: int) -> list[dict[str, float]]:
    """Log density of theta under the exact posterior less that under the network's, and the coverage of intervals."""
    family, lines, most = posterior.family, [], posterior.method.observations
    for rows in sorted({1, (most + 1) // 2, most}):
        problem = family.sample(problems, rows, generator=generator("cpu", 99, rows))
        law = latent_given(posterior.with_prior(family.prior_of(problem)), problem)
        gap, inside = exact_gap(family, problem, law)
        lines.append(
            {
                "observations": rows,
                "gap": round(float(gap.mean()), 5),
                "error": round(float(gap.std() / problems**0.5), 5),
                "coverage 90 %": round(float(inside.mean()), 3),
            }
        )
        print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    title = "exact log density minus the network's, in nats"
    run(__doc__, "problems", 20_000, lambda network, n: {title: measure(network, n)})
