"""The No-U-Turn sampler on posteriors of posteriordb, against their reference draws and beside numpyro's sampler.

`--peer PYTHON` names the interpreter of an environment that holds numpyro and arviz. Chains of both run one after the
other on one thread, so that seconds are comparable; those of numpyro leave out compiling, which is told beside them.
"""

import argparse
import json
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import torch

import bayesvision as bv
from benchmarks.common import DATA, data_folder, write
from benchmarks.mcmc.models import PROBLEMS, Language, Problem, reference

LANGUAGE = Language(
    pyro,
    dist,
    torch,
    lambda value: torch.as_tensor(value, dtype=torch.float64),
    lambda factor, right: torch.linalg.solve_triangular(factor, right.unsqueeze(-1), upper=False).squeeze(-1),
)
SETTING = {"warmup": 1_000, "draws": 1_000, "chains": 4, "dense_mass": False, "target_accept": 0.9, "seed": 0}


class Sampled:
    """A model whose rows depend on one another: it is sampled here, and not asked for other rows."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def __call__(self, x: torch.Tensor, y: torch.Tensor | None = None) -> Any:
        return self.problem.model(LANGUAGE, x, y)

    def predictive(self, draws: Any, x_seen: Any, y_seen: Any, x: Any) -> Any:
        raise ValueError("this model is for its draws alone; give it the mean and deviation of new rows to predict")


def program(problem: Problem) -> Any:
    if not problem.plain:
        return Sampled(problem)
    return lambda x, y=None: problem.model(LANGUAGE, x, y)


def run(problem: Problem) -> dict[str, Any]:
    """Moments of every column, diagnostics and seconds of our sampler."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # divergences are in the table
        posterior = bv.MCMC(program(problem), **SETTING).fit(bv.Data(problem.x, problem.y))
    seconds = time.perf_counter() - start
    sites = {name: value.numpy() for name, value in posterior.latent.items()}
    columns = {column: read(sites) for column, read in problem.columns.items()}
    chains = {column: value.reshape(SETTING["chains"], -1) for column, value in columns.items()}
    return {
        "mean": {column: float(value.mean()) for column, value in columns.items()},
        "sd": {column: float(value.std()) for column, value in columns.items()},
        "worst R-hat": max(float(arviz.rhat(value)) for value in chains.values()),
        "least ESS": min(float(arviz.ess(value)) for value in chains.values()),
        "divergences": posterior.divergences,
        "mean tree depth": float(posterior.trajectories.tree_depth.double().mean()),
        "seconds": seconds,
    }


def against(found: dict[str, Any], truth: dict[str, np.ndarray]) -> dict[str, float]:
    """The worst distance of a mean, in reference standard deviations, and of a standard deviation, as a share of it."""
    mean = max(abs(found["mean"][c] - v.mean()) / v.std() for c, v in truth.items() if c in found["mean"])
    sd = max(abs(found["sd"][c] / v.std() - 1) for c, v in truth.items() if c in found["sd"])
    return {"worst mean, sd": float(mean), "worst sd": float(sd)}


def row(name: str, model: str, found: dict[str, Any], truth: dict[str, np.ndarray]) -> dict[str, Any]:
    distance = against(found, truth)
    met = distance["worst mean, sd"] < 0.1 and distance["worst sd"] < 0.1 and found["worst R-hat"] < 1.01
    shown = {k: round(v, 4) for k, v in found.items() if isinstance(v, float | int)}
    return {"posterior": name, "sampler": model, **{k: round(v, 3) for k, v in distance.items()}, **shown, "met": met}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--peer", help="interpreter of an environment with numpyro")
    parser.add_argument("--names", nargs="*", default=list(PROBLEMS))
    parser.add_argument("--out", default="mcmc/posteriordb")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = data_folder(arguments.data, "posteriordb")
    if folder is None:
        return
    rows = []
    for name in arguments.names:
        rows.append(row(name, "bayesvision", run(PROBLEMS[name](folder)), reference(folder, name)))
        print(rows[-1], flush=True)
    if arguments.peer:
        script = Path(__file__).with_name("peer_numpyro.py")
        command = [arguments.peer, str(script), str(folder), json.dumps(arguments.names), json.dumps(SETTING)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for line in printed.splitlines():
            found = json.loads(line)
            name = found.pop("posterior")
            rows.append(row(name, "numpyro", found, reference(folder, name)))
            print(rows[-1], flush=True)
    rows.sort(key=lambda line: (arguments.names.index(line["posterior"]), line["sampler"]))
    write(arguments.out, {"setting": SETTING, "posteriors": rows})


if __name__ == "__main__":
    main()
