"""numpyro's NUTS on the models of posteriordb; run by posteriordb.py in an environment that holds the package."""

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from arviz_stats.base import array_stats
from models import PROBLEMS, Language
from numpyro.infer import MCMC, NUTS

jax.config.update("jax_enable_x64", True)
LANGUAGE = Language(
    numpyro,
    dist,
    jnp,
    lambda value: jnp.asarray(value, dtype=jnp.float64),
    lambda factor, right: jax.scipy.linalg.solve_triangular(factor, right, lower=True),
)


def run(folder: Path, name: str, setting: dict) -> dict:
    """Mean and standard deviation of every column, the worst R-hat, and seconds with and without compiling."""
    problem = PROBLEMS[name](folder)

    def model(x, y):
        return problem.model(LANGUAGE, x, y)

    kernel = NUTS(
        model,
        dense_mass=setting["dense_mass"],
        target_accept_prob=setting["target_accept"],
        init_strategy=numpyro.infer.init_to_uniform,
    )
    sampler = MCMC(
        kernel,
        num_warmup=setting["warmup"],
        num_samples=setting["draws"],
        num_chains=setting["chains"],
        chain_method="sequential",
        progress_bar=False,
    )
    seconds = []
    for seed in (1, 0):  # the first also compiles
        start = time.perf_counter()
        sampler.run(jax.random.PRNGKey(seed), jnp.asarray(problem.x), jnp.asarray(problem.y))
        jax.block_until_ready(sampler.get_samples())
        seconds.append(time.perf_counter() - start)
    sites = {k: np.asarray(v) for k, v in sampler.get_samples().items()}
    columns = {column: read(sites) for column, read in problem.columns.items()}
    chains = [value.reshape(setting["chains"], -1) for value in columns.values()]
    return {
        "mean": {column: float(value.mean()) for column, value in columns.items()},
        "sd": {column: float(value.std()) for column, value in columns.items()},
        "worst R-hat": max(float(array_stats.rhat(value, chain_axis=0, draw_axis=1)) for value in chains),
        "least ESS": min(float(array_stats.ess(value, chain_axis=0, draw_axis=1)) for value in chains),
        "divergences": int(sampler.get_extra_fields()["diverging"].sum()),
        "seconds": seconds[1],
        "seconds with compiling": seconds[0],
    }


if __name__ == "__main__":
    folder, names, setting = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
    for name in names:
        print(json.dumps({"posterior": name, **run(folder, name, setting)}), flush=True)
