"""Bayesian optimisation of Branin and Hartmann-6 with BoTorch: our posteriors as its models, beside its SingleTaskGP.

Five Sobol points, then 25 evaluations that an acquisition function chooses, on [0, 1]^d without noise; the same first
points for all. Regret is the optimum minus the best value found; seconds are the median over seeds. A network is
conditioned at each step and never trained; SingleTaskGP learns its hyper-parameters at each step.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from botorch.acquisition import LogExpectedImprovement, qLogExpectedImprovement, qLogNoisyExpectedImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms import Standardize
from botorch.optim import optimize_acqf
from botorch.sampling import SobolQMCNormalSampler
from botorch.test_functions import Branin, Hartmann
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

import bayesvision as bv
from bayesvision.integrations.botorch import PredictiveLogEI, PredictiveModel
from benchmarks.common import mean_and_error, write

FIRST, TOTAL, DRAWS = 5, 30, 64
FUNCTIONS = {"Branin": lambda: Branin(negate=True), "Hartmann-6": lambda: Hartmann(dim=6, negate=True)}


def single_task(x: Tensor, y: Tensor) -> Any:
    model = SingleTaskGP(x, y.unsqueeze(-1), outcome_transform=Standardize(m=1))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def network(name: str) -> Any:
    posterior = bv.pretrained(name)
    return lambda x, y: PredictiveModel(posterior.condition(x, y))


MODELS = {
    "SingleTaskGP": lambda: single_task,
    "pfn-gp": lambda: network("pfn-gp"),
    "GP": lambda: lambda x, y: PredictiveModel(bv.GP().fit(bv.Data(x, y))),
}


def acquisition(kind: str, model: Any, x: Tensor, y: Tensor, seed: int) -> Any:
    sampler = SobolQMCNormalSampler(torch.Size([DRAWS]), seed=seed)
    if kind == "LogEI":
        found = PredictiveLogEI if isinstance(model, PredictiveModel) else LogExpectedImprovement
        return found(model, y.max())
    if kind == "qLogEI":
        return qLogExpectedImprovement(model, y.max(), sampler=sampler)
    return qLogNoisyExpectedImprovement(model, x, sampler=sampler)


def run(function: str, model: str, kind: str, seed: int) -> dict[str, Any]:
    """Regret after every evaluation, and seconds without those of the function."""
    problem = FUNCTIONS[function]()
    low, high = problem.bounds.double()
    box = torch.stack([torch.zeros_like(low), torch.ones_like(high)])
    x = torch.quasirandom.SobolEngine(problem.dim, scramble=True, seed=seed).draw(FIRST, dtype=torch.float64)
    y = problem(low + (high - low) * x).double()
    build, start = MODELS[model](), time.perf_counter()
    for step in range(FIRST, TOTAL):
        torch.manual_seed(1_000 * seed + step)
        chosen = acquisition(kind, build(x, y), x, y, 1_000 * seed + step)
        new, _ = optimize_acqf(chosen, box, q=1, num_restarts=4, raw_samples=64, options={"batch_limit": 4})
        x, y = torch.cat([x, new]), torch.cat([y, problem(low + (high - low) * new).double()])
    regret = problem.optimal_value - torch.cummax(y, 0).values
    return {"regret": regret.clamp(min=0).tolist(), "seconds": time.perf_counter() - start}


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for name in dict.fromkeys((line["function"], line["acquisition"], line["model"]) for line in runs):
        group = [r for r in runs if (r["function"], r["acquisition"], r["model"]) == name]
        logs = [float(np.log10(max(r["regret"][-1], 1e-6))) for r in group]
        value, error = mean_and_error(logs)
        early, _ = mean_and_error([float(np.log10(max(r["regret"][14], 1e-6))) for r in group])
        rows.append(
            {
                "function": name[0],
                "acquisition": name[1],
                "model": name[2],
                "log10 regret at 15": round(early, 2),
                "log10 regret at 30": round(value, 2),
                "error": round(error, 2),
                "median regret": float(f"{np.median([r['regret'][-1] for r in group]):.3g}"),
                "seconds a step": float(f"{np.median([r['seconds'] for r in group]) / (TOTAL - FIRST):.3g}"),
                "seeds": len(group),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--functions", nargs="*", default=list(FUNCTIONS))
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--acquisitions", nargs="*", default=["LogEI", "qLogEI", "qLogNEI"])
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(10)))
    parser.add_argument("--lines", type=Path, default=Path("botorch_regret.jsonl"), help="runs done, to go on from")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    runs = [json.loads(line) for line in arguments.lines.read_text().splitlines()] if arguments.lines.exists() else []
    done = {(r["function"], r["model"], r["acquisition"], r["seed"]) for r in runs}
    for seed in arguments.seeds:
        for function in arguments.functions:
            for kind in arguments.acquisitions:
                for model in arguments.models:
                    if (function, model, kind, seed) in done:
                        continue
                    case = {"function": function, "model": model, "acquisition": kind, "seed": seed}
                    runs.append({**case, **run(function, model, kind, seed)})
                    with arguments.lines.open("a") as file:
                        file.write(json.dumps(runs[-1]) + "\n")
                    print(case, f"{runs[-1]['regret'][-1]:.4f}", f"{runs[-1]['seconds']:.1f} s", flush=True)
    write("integrations/botorch_regret", {"evaluations": TOTAL, "summary": summary(runs)})


if __name__ == "__main__":
    main()
