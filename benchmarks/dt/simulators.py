"""Distribution Transformer and neural posterior estimation (sbi) on three tasks of sbibm, at one simulation budget.

two_moons, gaussian_mixture and gaussian_linear (Lueckmann et al. 2021), 10 observations each with draws from the
reference posterior. C2ST: how well a classifier tells draws from those of the reference, 0.5 where it cannot and 1
where they have nothing in common. The prior is fixed here, as sbi's has to be; an observation's coordinates are tokens.
`--peer` names a Python that has sbi 0.27.
"""

import argparse
import json
import math
import subprocess
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributions as td
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier

import bayesvision as bv
from bayesvision.training.seeds import generator
from benchmarks.common import DATA, RESULTS, mean_and_error, write
from priors.families import Problem

LIMITS = {"two_moons": 1.0, "gaussian_mixture": 10.0, "gaussian_linear": None}  # of the uniform priors


def simulate(task: str, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """theta [count, d] and x [count, m], as sbibm draws them."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    limit = LIMITS[task]
    if limit is None:
        theta = math.sqrt(0.1) * normal(count, 10)
        return theta, theta + math.sqrt(0.1) * normal(count, 10)
    theta = limit * (2 * torch.rand(count, 2, generator=rng) - 1)
    if task == "gaussian_mixture":
        scale = torch.where(torch.rand(count, 1, generator=rng) < 0.5, 1.0, 0.1)
        return theta, theta + scale * normal(count, 2)
    angle, radius = math.pi * (torch.rand(count, generator=rng) - 0.5), 0.1 + 0.01 * normal(count)
    moon = torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], -1)
    one, two = theta.unbind(-1)
    return theta, moon + torch.stack([-(one + two).abs(), two - one], -1) / math.sqrt(2)


@dataclass(frozen=True)
class Simulated:
    """Problems from a table of simulations; where the prior is uniform, theta is brought to between 0 and 1."""

    task: str
    budget: int

    hyperparameters = 1
    reading = None

    def __post_init__(self) -> None:
        theta, x = simulate(self.task, self.budget, 1)
        limit = LIMITS[self.task]
        object.__setattr__(self, "centre", x.mean(0))
        object.__setattr__(self, "scale", x.std(0))
        object.__setattr__(self, "theta", theta if limit is None else (theta / limit + 1) / 2)
        object.__setattr__(self, "x", x)

    @property
    def latents(self) -> int:
        return self.theta.shape[1]  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def features(self) -> int:
        return self.x.shape[1]  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def inputs(self) -> int:
        return self.features

    @property
    def supports(self) -> tuple[str, ...]:
        return ("real" if LIMITS[self.task] is None else "unit",) * self.latents

    def sample(self, batch: int, rows: int, *, generator: torch.Generator) -> Problem:
        table: Any = self
        pick = torch.randint(self.budget, (batch,), generator=generator)
        y = (table.x[pick] - table.centre) / table.scale
        design = torch.eye(self.features, dtype=torch.float32).expand(batch, -1, -1)
        return Problem(design, y, table.theta[pick], self, torch.zeros(batch, 1))

    def own(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return self.draws(torch.zeros(1, 1), count, generator)[0]

    def draws(self, hyper: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        shape = (len(hyper), count, self.latents)
        if LIMITS[self.task] is None:
            return math.sqrt(0.1) * torch.randn(shape, generator=generator)
        return torch.rand(shape, generator=generator).clamp(1e-6, 1 - 1e-6)

    def describe(self, prior: td.Distribution) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.float64)

    def distribution(self, hyper: torch.Tensor) -> td.Distribution:
        raise ValueError("the prior is fixed")

    def moments(self, hyper: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a normal, or of the logarithm of odds of a uniform variable."""
        scale = math.sqrt(0.1) if LIMITS[self.task] is None else math.pi / math.sqrt(3)
        zero = hyper.new_zeros(*hyper.shape[:-1], self.latents)
        return zero, zero + scale

    def relative(self, x: torch.Tensor, y: torch.Tensor, loc: torch.Tensor, tril: torch.Tensor) -> tuple:
        shape = torch.broadcast_shapes(y.shape[:-1], loc.shape[:-1])
        return x.expand(*shape, *x.shape[-2:]), y.expand(*shape, y.shape[-1])

    def observed(self, theta: torch.Tensor, x: torch.Tensor, seen: Any = None) -> td.Distribution:
        raise ValueError("a simulator has no likelihood")

    def log_likelihood(self, theta: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        raise ValueError("a simulator has no likelihood")


def c2st(a: np.ndarray, b: np.ndarray, seed: int = 0) -> float:
    """Cross-validated accuracy of a classifier that tells a from b (two hidden layers, as in sbibm)."""
    count = min(len(a), len(b), 1_000)
    a, b = a[:count], b[:count]
    scale = b.std(0)
    rows = np.concatenate([(a - b.mean(0)) / scale, (b - b.mean(0)) / scale])
    labels = np.repeat([0, 1], count)
    width = 10 * a.shape[1]
    model = MLPClassifier((width, width), max_iter=200, solver="adam", random_state=seed)
    return float(cross_val_score(model, rows, labels, cv=5).mean())


def network(task: str, budget: int, steps: int, observations: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """Draws [observations, 10000, d], and the seconds of training and sampling."""
    family: Any = Simulated(task, budget)
    train = bv.Train(steps=steps, batch=128, lr=6e-3, optimizer="muon", execution=bv.Execution(device="cpu"))
    method = bv.DistributionTransformer(components=12, width=48, layers=3, heads=4, train=train)
    posterior = method.fit(family).with_prior(td.Uniform(0.0, 1.0))
    design = torch.eye(family.features, dtype=torch.float64).expand(len(observations), -1, -1)
    y = (torch.as_tensor(observations).double() - family.centre) / family.scale
    latent = posterior.condition(design, y).latent
    draws = latent.sample((10_000,), generator("cpu", 3)).movedim(0, 1).numpy()
    limit = LIMITS[task]
    return draws if limit is None else limit * (2 * draws - 1), {"training, s": posterior.metadata["seconds"]}


def peer(python: str, task: str, budget: int, observations: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    theta, x = simulate(task, budget, 1)
    limit = LIMITS[task]
    bounds = np.array([]) if limit is None else np.full(theta.shape[1], limit)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.npz"
        named = {"theta": theta.numpy(), "x": x.numpy(), "low": -bounds, "high": bounds}
        np.savez(source, **named, scale=np.full(theta.shape[1], math.sqrt(0.1)), observations=observations)
        script = Path(__file__).with_name("peer_npe.py")
        command = [python, str(script), str(source), str(target)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        found = np.load(target)
        return found["draws"], {"training, s": float(found["training"]), "sampling, s": float(found["sampling"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="The folder that holds sbibm/.")
    parser.add_argument("--peer", help="A Python with sbi.")
    parser.add_argument("--budget", type=int, nargs="+", default=[10_000])
    parser.add_argument("--steps", type=int, default=2_500)
    parser.add_argument("--observations", type=int, default=10)
    parser.add_argument("--tasks", nargs="+", default=list(LIMITS), help="Others keep the lines that they have.")
    a = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    path = RESULTS / "dt" / "simulators.json"
    before = json.loads(path.read_text())["C2ST"] if path.exists() else []
    lines = [line for line in before if line["task"] not in a.tasks]
    for task in a.tasks:
        stored = np.load(a.data / "sbibm" / f"{task}.npz")
        observations, reference = stored["observation"][: a.observations], stored["samples"]
        for budget in a.budget:
            work = {"Distribution Transformer": lambda t=task, b=budget, o=observations: network(t, b, a.steps, o)}
            if a.peer:
                work["sbi NPE"] = lambda t=task, b=budget, o=observations: peer(a.peer, t, b, o)
            for name, run in work.items():
                draws, cost = run()
                scores = [c2st(d, r) for d, r in zip(draws, reference, strict=False)]
                line: dict[str, Any] = {"task": task, "simulations": budget, "method": name}
                line["C2ST"], line["C2ST error"] = mean_and_error(scores)
                lines.append(line | {k: round(v, 1) for k, v in cost.items()})
                print(lines[-1], flush=True)
    write("dt/simulators", {"C2ST": lines})


if __name__ == "__main__":
    main()
