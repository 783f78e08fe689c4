"""The shipped `lcpfn-prior` against Markov chain Monte Carlo and least squares on fresh curves of its own prior.

Every model sees the first epochs of the same curves. A score is the log-likelihood of the rest of a curve, averaged
over its epochs, then over curves. Slow models see fewer curves, always the first ones, so each is compared with the
network on exactly the curves that it has seen. Importance sampling weights draws of the prior by their likelihood: it
is exact where its effective size is large, and not where it is a handful.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import bayesvision as bv
from bayesvision.baselines.curve_fit import CurveFit
from bayesvision.baselines.ensemble import Ensemble
from bayesvision.baselines.last_value import LastValue
from bayesvision.io.checkpoints import find
from bayesvision.training.seeds import generator
from benchmarks.common import mean_and_error, write
from priors import programs
from priors.curves import LearningCurves

SEEN = (10, 20, 40, 80)
PUBLISHED = [  # Adriaensen et al. 2023, arXiv 2310.20447: their own code, machine and draws of the prior
    {"model": "LC-PFN 3x128, published", "ll": [1.585, 1.989, 2.282, 2.431], "seconds": 0.004},
    {"model": "LC-PFN 12x512, published", "ll": [1.758, 2.133, 2.403, 2.519], "seconds": 0.050},
    {"model": "MCMC, best published", "ll": [1.642, 1.956, 2.285, 2.486], "seconds": 103.0},
]


class Scores(NamedTuple):
    """Log-likelihoods of the first curves, seconds a curve, and what the model says about itself."""

    values: list[float]
    seconds: float
    notes: dict[str, float]


def ours(posterior, x: Tensor, y: Tensor, n: int, single: int) -> dict[str, Scores]:
    """All curves in one batch, and the first of them one by one."""
    posterior.condition(x[:2, :n], y[:2, :n]).predict(x[:2, n:])  # warm
    start = time.perf_counter()
    law = posterior.condition(x[:, :n], y[:, :n]).predict(x[:, n:])
    values = law.log_prob(y[:, n:]).mean(-1).tolist()
    batch = Scores(values, (time.perf_counter() - start) / len(x), {})
    one = one_by_one(lambda t, v: posterior.condition(t, v), x[:single], y[:single], n)
    return {"LCPFN, one batch": batch, "LCPFN, one by one": one}


def one_by_one(fit: Callable[[Tensor, Tensor], Any], x: Tensor, y: Tensor, n: int, describe=None) -> Scores:
    values, notes, spent = [], [], 0.0
    for t, v in zip(x, y, strict=True):
        start = time.perf_counter()
        posterior = fit(t[:n], v[:n])
        values.append(float(posterior.predict(t[n:]).log_prob(v[n:]).mean()))
        spent += time.perf_counter() - start
        if describe is not None:
            notes.append(describe(posterior))
            print(f"  {n} seen, curve {len(values)}: {values[-1]:.3f}, {spent / len(values):.3g} s a curve", flush=True)
    means = {
        name: round(float(torch.tensor([note[name] for note in notes]).median()), 3) for name in (notes or [{}])[0]
    }
    return Scores(values, spent / len(x), means)


def importance(pool: tuple[Tensor, Tensor], x: Tensor, y: Tensor, n: int) -> Scores:
    """Draws of the prior, weighted by their likelihood."""
    curves, sigma = pool
    values, sizes, start = [], [], time.perf_counter()
    for v in y:
        z = ((v - curves) / sigma.unsqueeze(-1)).square_().mul_(-0.5).sub_(sigma.log().unsqueeze(-1))
        log_weights = z[:, :n].sum(-1).double().log_softmax(0)
        sizes.append(1 / log_weights.exp().square().sum())
        parts = z[:, n:].double().add_(log_weights.unsqueeze(-1)).logsumexp(0) - 0.5 * torch.log(
            torch.tensor(2 * torch.pi)
        )
        values.append(float(parts.mean()))
    size = round(float(torch.stack(sizes).median()), 1)
    return Scores(values, (time.perf_counter() - start) / len(y), {"effective size": size})


def of_ensemble(posterior) -> dict[str, float]:
    return {"acceptance": posterior.acceptance, "autocorrelation": max(posterior.autocorrelation.values())}


def of_nuts(posterior) -> dict[str, float]:
    worst = max(float(d.r_hat.max()) for d in posterior.diagnostics.values())
    return {"divergences": float(posterior.divergences), "worst R-hat": worst}


def peers(a, prior: LearningCurves, pool, x: Tensor, y: Tensor, n: int) -> dict[str, Scores]:
    scores = {"last value": one_by_one(lambda t, v: LastValue().fit(bv.Data(t, v)), x, y, n)}
    for family in ("pow4", "mmf", "ilog2"):
        method = CurveFit(family)
        few = slice(a.fit_curves)
        scores[f"least squares, {family}"] = one_by_one(lambda t, v, m=method: m.fit(bv.Data(t, v)), x[few], y[few], n)
    few = slice(a.importance_curves)
    scores[f"importance sampling, {len(pool[1])} draws"] = importance(pool, x[few], y[few], n)
    few = slice(a.mcmc_curves)
    for steps in a.steps:
        method = Ensemble(prior, walkers=a.walkers, burn=a.burn, steps=steps, thin=max(1, steps // 100), seed=a.seed)
        fit = lambda t, v, m=method: m.fit(bv.Data(t, v))  # noqa: E731
        scores[f"emcee, {a.walkers} walkers, {steps} steps"] = one_by_one(fit, x[few], y[few], n, of_ensemble)
    if a.nuts_curves:
        few = slice(a.nuts_curves)
        nuts = bv.MCMC(programs.model(prior), a.warmup, a.draws, chains=1, seed=a.seed, max_tree_depth=a.depth)
        fit = lambda t, v: nuts.fit(bv.Data(t, v))  # noqa: E731
        scores[f"NUTS, {a.draws} draws"] = one_by_one(fit, x[few], y[few], n, of_nuts)
    return scores


def report(n: int, scores: dict[str, Scores], subset: int) -> list[dict[str, float | str]]:
    lines = []
    network = scores.get("LCPFN, one batch")
    for name, (values, seconds, notes) in scores.items():
        mean, error = mean_and_error(values)
        line: dict[str, float | str] = {"seen": n, "model": name, "curves": len(values), "ll": mean, "error": error}
        if len(values) >= subset:
            line["ll on subset"], line["error on subset"] = mean_and_error(values[:subset])
        line["seconds"] = float(f"{seconds:.3g}")
        if network is not None:
            same = network.values[: len(values)]
            line["LCPFN on the same curves"] = mean_and_error(same)[0]
            gap = torch.tensor(same, dtype=torch.float64) - torch.tensor(values, dtype=torch.float64)
            line["LCPFN minus model"], line["gap error"] = mean_and_error(gap)
            line["times slower than LCPFN one by one"] = float(f"{seconds / scores['LCPFN, one by one'].seconds:.3g}")
            line["times slower than LCPFN in one batch"] = float(f"{seconds / network.seconds:.3g}")
        lines.append(line | notes)
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="lcpfn-prior", help="shipped name or file")
    parser.add_argument("--skip-model", action="store_true", help="peers only")
    parser.add_argument("--seen", type=int, nargs="+", default=list(SEEN))
    parser.add_argument("--curves", type=int, default=2000)
    parser.add_argument("--fit-curves", type=int, default=500)
    parser.add_argument("--importance-curves", type=int, default=100)
    parser.add_argument("--importance-draws", type=int, default=200_000)
    parser.add_argument("--mcmc-curves", type=int, default=24)
    parser.add_argument("--walkers", type=int, default=100)
    parser.add_argument("--burn", type=int, default=500)
    parser.add_argument("--steps", type=int, nargs="+", default=[2000])
    parser.add_argument("--nuts-curves", type=int, default=2, help="0 leaves NUTS out")
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--depth", type=int, default=5)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="lcpfn_vs_mcmc", help="of the file of results")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    prior = LearningCurves()
    task = prior.sample(a.curves, prior.epochs, generator=generator("cpu", a.seed))
    theta, curves = prior.accepted(a.importance_draws, generator("cpu", a.seed, 1))
    pool = curves, theta["sigma"]
    posterior: Any = None if a.skip_model else find(a.model)
    if posterior is not None:
        posterior = posterior.unbounded()
    lines = []
    for n in a.seen:
        scores = {} if posterior is None else ours(posterior, task.x, task.y, n, 100)
        lines += report(n, scores | peers(a, prior, pool, task.x, task.y, n), a.mcmc_curves)
    published = {"seen": list(SEEN), "rows": PUBLISHED, "source": "arXiv 2310.20447; other curves, other machine"}
    settings = {"model": a.model, "subset": a.mcmc_curves, "burn": a.burn, "warmup": a.warmup, "tree depth": a.depth}
    write(f"lcpfn/{a.name}", {"settings": settings, "comparison": lines, "published": published})


if __name__ == "__main__":
    main()
