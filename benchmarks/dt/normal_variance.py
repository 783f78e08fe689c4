"""`dt-variance` beside the exact posterior, NUTS and variational inference, on one observation of a normal.

theta ~ InverseGamma(a, b) and y ~ N(0, theta), with a and b from three meta-priors: wide IG(4, 6), narrow
IG(10000, 20000) and shifted IG(24, 6), as in arXiv 2502.02463, section 4.1. KL(exact || method) in nats by quadrature,
and the Kolmogorov distance sup |F - F_exact|, which draws have too. Calibration: the exact theta's levels under the
posterior are uniform if it is calibrated (simulation-based calibration; in one dimension TARP is the same).
"""

import argparse
import time
import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import scipy.stats
import torch
import torch.distributions as td
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from bayesvision.io.checkpoints import find
from bayesvision.training.seeds import generator
from benchmarks.common import mean_and_error, write
from priors import NormalVariance

METAS = {"narrow": (10_000.0, 20_000.0), "wide": (4.0, 6.0), "shifted": (24.0, 6.0)}
POINTS = 4_001


def grid_of(exact: td.InverseGamma) -> torch.Tensor:
    """Points of log theta that hold the exact posterior."""
    family = NormalVariance()
    loc, scale = family.moments(torch.stack([exact.concentration.log(), exact.rate.log()], -1))
    reach = torch.linspace(-12, 24, POINTS, dtype=torch.float64).unsqueeze(-1)
    return loc[..., 0] + reach * scale[..., 0]


def compared(exact: td.InverseGamma, log_density: Any, cdf: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(exact || q) and sup |F - F_exact| of each problem; `log_density` is that of log theta."""
    grid = grid_of(exact)
    p, q = exact.log_prob(grid.exp()) + grid, log_density(grid)
    kl = (p.exp() * (p - q)).sum(0) * (grid[1] - grid[0])
    return kl, (exact_cdf(exact, grid) - cdf(grid)).abs().amax(0)


def exact_cdf(exact: td.InverseGamma, u: torch.Tensor) -> torch.Tensor:
    """P(log theta <= u)."""
    return torch.special.gammaincc(exact.concentration.expand(u.shape), exact.rate * torch.exp(-u))


def network(posterior: Any, meta: tuple[float, float], problems: int) -> tuple[dict[str, Any], torch.Tensor]:
    """Scores of the network on fresh problems, and the level of theta in each posterior."""
    family = NormalVariance(meta)
    problem = family.sample(problems, 1, generator=generator("cpu", 2026))
    prior, y = family.prior_of(problem), problem.y.double()
    start = time.perf_counter()
    latent = posterior.with_prior(prior).condition(y=y).latent
    seconds = time.perf_counter() - start
    exact = family.posterior(prior, y)
    law = latent.marginal(0)
    kl, distance = compared(exact, lambda u: latent.log_prob(u.exp().unsqueeze(-1)) + u, lambda u: law.cdf(u.exp()))
    level = law.cdf(problem.theta[:, 0].double())
    mean, error = mean_and_error(kl)
    line = {"KL": mean, "KL error": error, "median KL": float(kl.median()), "Kolmogorov": float(distance.mean())}
    return line | {"problems": problems, "s / 1,000 problems": 1_000 * seconds / problems}, level


def model(prior: td.InverseGamma, y: torch.Tensor) -> Any:
    def program(x: Any = None, seen: Any = None) -> None:
        theta = pyro.sample("theta", dist.InverseGamma(prior.concentration, prior.rate))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(0.0, theta.sqrt()), obs=y if seen is None else seen)

    return program


def slow(meta: tuple[float, float], problems: int, steps: int) -> list[dict[str, Any]]:
    """NUTS (200 warm-up steps, 1,000 draws) and a normal in log theta fitted by SVI, one problem at a time."""
    family = NormalVariance(meta)
    problem = family.sample(problems, 1, generator=generator("cpu", 2026))
    prior, ys = family.prior_of(problem), problem.y.double()
    found: dict[str, list[tuple[float, float, float]]] = {"NUTS": [], "SVI": []}
    for k in range(problems):
        one = td.InverseGamma(prior.concentration[k], prior.rate[k])
        exact = family.posterior(one, ys[k])
        start = time.perf_counter()
        kernel = pyro.infer.NUTS(model(one, ys[k]))
        run = pyro.infer.MCMC(kernel, num_samples=1_000, warmup_steps=200, disable_progbar=True)
        run.run()
        seconds = time.perf_counter() - start
        draws = run.get_samples()["theta"].flatten().double().log().sort().values
        share = (torch.arange(len(draws)) + 0.5) / len(draws)
        found["NUTS"].append((float("nan"), float((exact_cdf(exact, draws) - share).abs().max()), seconds))
        pyro.clear_param_store()
        start = time.perf_counter()
        guide = AutoNormal(model(one, ys[k]))
        fit = SVI(model(one, ys[k]), guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO(num_particles=8))
        for _ in range(steps):
            fit.step()
        seconds = time.perf_counter() - start
        loc, scale = (float(pyro.param(f"AutoNormal.{name}.theta")) for name in ("locs", "scales"))
        law = td.Normal(torch.tensor(loc).double(), torch.tensor(scale).double())
        kl, distance = compared(exact, law.log_prob, law.cdf)
        found["SVI"].append((float(kl), float(distance), seconds))
    lines = []
    for name, values in found.items():
        kl, distance, seconds = np.array(values).T
        line = {"method": name, "KL": None, "KL error": None, "median KL": None, "Kolmogorov": float(distance.mean())}
        if name == "SVI":
            line["KL"], line["KL error"] = mean_and_error(kl)
            line["median KL"] = float(np.median(kl))
        lines.append(line | {"problems": problems, "s / 1,000 problems": 1_000 * float(seconds.mean())})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dt-variance", help="A shipped name or a file.")
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--slow", type=int, default=20, help="Problems for NUTS and SVI.")
    parser.add_argument("--svi-steps", type=int, default=1_000)
    a = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pyro.set_rng_seed(0)
    posterior: Any = find(a.model)
    lines, calibration = [], []
    for name, meta in METAS.items():
        line, level = network(posterior, meta, a.problems)
        test = scipy.stats.kstest(level.numpy(), "uniform")
        inside = float(((level > 0.05) & (level < 0.95)).double().mean())
        calibration.append({"meta-prior": name, "coverage 90 %": inside, "KS distance": float(test.statistic)})
        calibration[-1]["KS p-value"] = float(test.pvalue)
        lines.append({"meta-prior": name, "method": "dt-variance", **line})
        print(lines[-1], calibration[-1], flush=True)
        for other in slow(meta, a.slow, a.svi_steps):
            lines.append({"meta-prior": name, **other})
            print(lines[-1], flush=True)
    write("dt/normal_variance", {"comparison": lines, "calibration": calibration})


if __name__ == "__main__":
    main()
