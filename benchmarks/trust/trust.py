"""Simulation-based calibration of every method: is the level F(y) of a held-out truth uniform over fresh data sets?

For each method data sets are drawn that it never saw, one truth is held out of each, and its level under the answer is
kept (of classes a random level between those of its neighbours). Levels of an exact posterior are uniform (Talts et
al. 2018, arXiv 1804.06788); the test is Kolmogorov's. Each method is also spoiled, its answer made half and twice as
wide, or shifted by half a deviation, to show what the test sees. Methods that learn from data answer data sets of a
process that is not their own prior, so that for them this is a check of calibration and not of exactness.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import bayesvision as bv
import priors
from bayesvision.io.recipes import build_prior
from bayesvision.metrics.calibration import ks_pvalue, pit
from bayesvision.metrics.latents import latent_pit
from bayesvision.training.seeds import generator
from benchmarks.common import RESULTS, write

SEED, BINS = 20_261_129, 20
PICTURE = Path(__file__).parents[2] / "docs" / "trust.png"


def shipped_prior(name: str) -> Any:
    from bayesvision.io.checkpoints import describe

    return build_prior(describe(name)["metadata"]["prior"], priors)


def network(name: str, count: int, rows: int) -> np.ndarray:
    """A network for tables on fresh data sets of its own prior."""
    prior, post = shipped_prior(name), bv.pretrained(name)
    levels = []
    for k in range(count):
        task = prior.sample(1, rows + 1, generator=generator("cpu", SEED, k))
        x, y = task.x[0], task.y[0]
        kept = ~torch.isnan(x[:rows]).all(0)  # a column of holes tells nothing and is refused
        if "classes" in name and not (y[:rows] == y[rows:]).any():
            continue  # a class that nothing was seen of cannot be told
        law = post.condition(x[:rows, kept], y[:rows]).predict(x[rows:, kept])
        levels.append(discrete(law, y[rows:], k) if "classes" in name else pit(law, y[rows:].to(law.mean)))
    return torch.cat(levels).double().numpy()


def discrete(law: Any, y: torch.Tensor, k: int) -> torch.Tensor:
    """A uniform level between P(Y < y) and P(Y <= y)."""
    below = law.class_probs.double().cumsum(-1)
    place = y.long().unsqueeze(-1)
    high, own = below.gather(-1, place).squeeze(-1), law.class_probs.double().gather(-1, place).squeeze(-1)
    return high - own * torch.rand(high.shape, generator=generator("cpu", SEED, k, 1), dtype=torch.float64)


def curves(name: str, count: int) -> np.ndarray:
    """One later epoch of fresh curves of its prior, ten epochs seen."""
    prior, post = shipped_prior(name), bv.pretrained(name)
    task = prior.sample(count, 100, generator=generator("cpu", SEED))
    x, y = task.x, task.y.clamp(0, 1)  # the noise of a prior may pass the bounds of a metric
    law = post.condition(x[:, :10], y[:, :10]).predict(x[:, 59:60])
    return pit(law, y[:, 59:60].to(law.mean)).flatten().double().numpy()


def latent(name: str, count: int) -> np.ndarray:
    """The first latent variable of fresh problems, eight observations (a whole reading of sensors) seen."""
    post = bv.pretrained(name)
    family = post.family
    rows = 8 if family.reading is None else len(family.reading)
    problem = family.sample(count, rows, generator=generator("cpu", SEED))
    told = post.with_prior(family.prior_of(problem))
    x = problem.x.double() if family.features else None
    return latent_pit(told.condition(x, problem.y.double()).latent, problem.theta.double())[:, 0].numpy()


def fitted(method: Callable[[int], Any], prior: Any, count: int, rows: int) -> np.ndarray:
    """A recipe on fresh data sets of a prior, one row of each held out."""
    levels = []
    for k in range(count):
        task = prior.sample(1, rows + 1, generator=generator("cpu", SEED, k))
        x, y = task.x[0].double(), task.y[0].double()
        law = method(k).fit(bv.Data(x[:rows], y[:rows])).predict(x[rows:])
        levels.append(float(pit(law, y[rows:])[0].detach()))
    return np.array(levels)


def line(x: torch.Tensor, y: torch.Tensor | None = None) -> Any:
    slope, intercept = pyro.sample("slope", dist.Normal(0, 1)), pyro.sample("intercept", dist.Normal(0, 1))
    with pyro.plate("rows", len(x)):
        return pyro.sample("y", dist.Normal(slope * x[:, 0] + intercept, 0.1**0.5), obs=y)


def cap(count: int) -> np.ndarray:
    """The spread around a frozen network that is right on the mean, of noise that grows with x."""
    levels = []

    def net(rows: torch.Tensor) -> torch.Tensor:
        return 0.5 * rows[..., 0]

    for k in range(count):
        rng = generator("cpu", SEED, k)
        x = torch.rand(201, 1, generator=rng, dtype=torch.float32)
        y = net(x) + (0.1 + 0.4 * x[:, 0]) * torch.randn(201, generator=rng, dtype=torch.float32)
        train = bv.Train(steps=300, batch=50, lr=1e-2)
        recipe = bv.BayesCap(net, "student", ("output", "input"), width=16, train=train)
        law = recipe.fit(bv.Data(x[:200], y[:200])).predict(x[200:])
        levels.append(float(pit(law, y[200:].to(law.mean)).flatten()[0].detach()))
    return np.array(levels)


def digits(count: int) -> np.ndarray:
    """One hidden pixel of digits that the shipped machine did not see, the upper half shown."""
    from sklearn.datasets import load_digits

    images = torch.as_tensor(load_digits().images[-count:]) / 16
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4] = True
    post = bv.pretrained("mdbm-digits")
    law = post.complete(images, mask).pixels
    rng = np.random.default_rng(SEED)
    rows, columns = rng.integers(4, 8, count), rng.integers(0, 8, count)
    chances = law.class_probs if hasattr(law, "class_probs") else law.probs
    grey = chances.shape[-1]
    picked = chances.reshape(count, 8, 8, grey)[torch.arange(count), rows, columns]
    level = (images[torch.arange(count), rows, columns] * (grey - 1)).round().long()
    return discrete(bv.distributions.Categorical(probs=picked), level, 0).numpy()


TRAIN = {"batch": 50, "lr": 1e-2}
CASES: dict[str, Callable[[], np.ndarray]] = {
    "PFN, pfn-gp": lambda: network("pfn-gp", 1_000, 30),
    "TablePFN, pfn-table": lambda: network("pfn-table", 1_000, 30),
    "TablePFN, pfn-classes": lambda: network("pfn-classes", 1_000, 30),
    "LC-PFN, lcpfn": lambda: curves("lcpfn", 2_000),
    "LC-PFN, lcpfn-prior": lambda: curves("lcpfn-prior", 2_000),
    "DT, dt-variance": lambda: latent("dt-variance", 2_000),
    "DT, dt-sensor": lambda: latent("dt-sensor", 2_000),
    "GP, its own prior": lambda: fitted(
        lambda _: bv.GP("rbf", lengthscale=0.3, noise=0.05, variance=1.0, standardize=False),
        priors.GaussianProcess(1, 0.3, 0.05), 1_000, 20,
    ),
    "GP, learned": lambda: fitted(lambda k: bv.GP("rbf", seed=k), priors.GaussianProcess(1, 0.3, 0.05), 300, 20),
    "MCMC": lambda: fitted(
        lambda k: bv.MCMC(line, warmup=60, draws=100, chains=1, seed=k), priors.BayesianLinear(1, noise=0.1), 150, 12
    ),
    "SSVI": lambda: fitted(
        lambda k: bv.SSVI(
            torch.nn.Sequential(torch.nn.Linear(1, 50), torch.nn.Tanh(), torch.nn.Linear(50, 1)), 0.5,
            train=bv.Train(steps=500, seed=k, **TRAIN),
        ),
        priors.GaussianProcess(1, 0.3, 0.05), 150, 100,
    ),
    "DKM": lambda: fitted(
        lambda k: bv.DKM(layers=1, inducing=20, train=bv.Train(steps=60, batch=1_000, lr=3e-2, seed=k)),
        priors.GaussianProcess(1, 0.3, 0.05), 150, 60,
    ),
    "BayesCap": lambda: cap(150),
    "MDBM, digits": lambda: digits(297),
}  # fmt: skip


def spoiled(levels: np.ndarray) -> dict[str, float]:
    """P-values of the same answers made half and twice as wide, and shifted by half a deviation."""
    z = torch.special.ndtri(torch.as_tensor(levels).clamp(1e-12, 1 - 1e-12))
    changes = {"half as wide": 2 * z, "twice as wide": z / 2, "shifted": z - 0.5}
    return {name: ks_pvalue(torch.special.ndtr(value)) for name, value in changes.items()}


def draw(cases: dict[str, Any]) -> None:
    """All histograms with the band of a uniform's, and in grey those of answers half as wide."""
    import scipy.stats
    from matplotlib.figure import Figure

    across = 4
    figure = Figure(figsize=(10, 1.9 * -(-len(cases) // across)), layout="constrained", facecolor="white")
    grid = figure.subplots(-(-len(cases) // across), across).flatten()
    for ax, (name, case) in zip(grid, cases.items(), strict=False):
        counts, n = np.array(case["counts"]), sum(case["counts"])
        low, high = scipy.stats.binom.interval(0.99, n, 1 / BINS)
        edges = np.linspace(0, 1, BINS + 1)
        ax.axhspan(low / n, high / n, color="#000000", alpha=0.08, linewidth=0)
        outside = (counts < low) | (counts > high)
        ax.bar(edges[:-1], counts / n, 1 / BINS, align="edge", color=np.where(outside, "#D55E00", "#0072B2"), alpha=0.8)
        ax.stairs(np.array(case["half as wide"]) / n, edges, color="#6E6E6E", linewidth=0.8)
        ax.set_title(f"{name}, p = {case['p']:.2g}", fontsize=9)
        ax.set(yticks=[], xticks=[0, 0.5, 1], ylim=(0, 4 / BINS))
        ax.spines[["top", "right", "left"]].set_visible(False)
    for ax in grid[len(cases) :]:
        ax.set_axis_off()
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", nargs="*", default=list(CASES))
    parser.add_argument("--only-draw", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    path = RESULTS / "trust" / "trust.json"
    known = json.loads(path.read_text())["cases"] if path.exists() else {}
    for name in [] if arguments.only_draw else arguments.names:
        start = time.perf_counter()
        levels = CASES[name]()
        z = torch.special.ndtri(torch.as_tensor(levels).clamp(1e-12, 1 - 1e-12))
        half = torch.special.ndtr(2 * z).numpy()
        known[name] = {
            "data sets": len(levels),
            "p": float(f"{ks_pvalue(torch.as_tensor(levels)):.3g}"),
            "coverage of 90 %": round(float(((levels > 0.05) & (levels < 0.95)).mean()), 4),
            **{f"p, {key}": float(f"{value:.2g}") for key, value in spoiled(levels).items()},
            "seconds": round(time.perf_counter() - start, 1),
            "counts": np.histogram(levels, BINS, (0, 1))[0].tolist(),
            "half as wide": np.histogram(half, BINS, (0, 1))[0].tolist(),
        }
        print(name, {k: v for k, v in known[name].items() if not isinstance(v, list)}, flush=True)
        rows = [{"method": n, **{k: v for k, v in c.items() if not isinstance(v, list)}} for n, c in known.items()]
        write("trust/trust", {"summary": rows, "cases": known})
    draw(known)


if __name__ == "__main__":
    main()
