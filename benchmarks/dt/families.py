"""Distribution Transformers for hyper-parameters of Gaussian processes and for qubits, beside quadrature and NUTS.

The tasks of arXiv 2502.02463, sections 4.2 and 4.3, each network trained here for some minutes on one core. The paper
does not say how noisy its processes are, so its figures (0.81 and 0.31) stand on other problems; here the noise has the
variance 0.1. NLL of the true latent variables in nats, less is better; SBC and TARP by their p-values and distances.
"""

import argparse
import time
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import scipy.stats
import torch
import torch.distributions as td

import bayesvision as bv
from bayesvision import metrics
from bayesvision.training.seeds import generator
from benchmarks.common import mean_and_error, write
from priors import ProcessHyperparameters, Qubit

ROWS = {"ProcessHyperparameters": 5, "Qubit": 10}


def trained(family: Any, steps: int) -> Any:
    train = bv.Train(steps=steps, batch=128, lr=6e-3, optimizer="muon", execution=bv.Execution(device="cpu"))
    method = bv.DistributionTransformer(components=5, width=48, layers=4, heads=4, observations=10, train=train)
    return method.fit(family)


def levels(latent: Any, theta: torch.Tensor) -> dict[str, float]:
    """Kolmogorov distances of the latent variables' levels, and of TARP's, from uniform, and their p-values."""
    pit = metrics.latent_pit(latent, theta)
    joint = metrics.tarp(latent, theta)
    worst = max((scipy.stats.kstest(pit[:, i].numpy(), "uniform") for i in range(pit.shape[1])), key=lambda t: t[0])
    tested = scipy.stats.kstest(joint.numpy(), "uniform")
    return {
        "SBC distance": round(float(worst.statistic), 4),
        "SBC p-value": float(f"{worst.pvalue:.2g}"),
        "TARP distance": round(float(tested.statistic), 4),
        "TARP p-value": float(f"{tested.pvalue:.2g}"),
    }


def process_model(family: ProcessHyperparameters, prior: td.InverseGamma, x: torch.Tensor, y: torch.Tensor) -> Any:
    def model() -> None:
        lengthscale = pyro.sample("lengthscale", dist.InverseGamma(prior.concentration, prior.rate))
        value = pyro.sample("value", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        theta = torch.stack([value, lengthscale])
        pyro.factor("seen", family.log_likelihood(theta, x, y).sum())

    return model


def qubit_model(family: Qubit, prior: td.Beta, x: torch.Tensor, y: torch.Tensor) -> Any:
    def model() -> None:
        theta = pyro.sample("theta", dist.Beta(prior.concentration1, prior.concentration0))
        pyro.factor("seen", family.log_likelihood(theta.unsqueeze(-1), x, y).sum())

    return model


def nuts(family: Any, problem: Any, k: int) -> tuple[torch.Tensor, float]:
    """Draws [1000, latents] after 200 warm-up steps, and seconds."""
    prior, x, y = family.prior_of(problem), problem.x[k].double(), problem.y[k].double()
    start = time.perf_counter()
    if isinstance(family, Qubit):
        model = qubit_model(family, td.Beta(prior.concentration1[k], prior.concentration0[k]), x, y)
        names = ["theta"]
    else:
        model = process_model(family, td.InverseGamma(prior.concentration[k], prior.rate[k]), x, y)
        names = ["value", "lengthscale"]
    run = pyro.infer.MCMC(pyro.infer.NUTS(model), num_samples=1_000, warmup_steps=200, disable_progbar=True)
    run.run()
    samples = run.get_samples()
    return torch.stack([samples[name].flatten() for name in names], -1), time.perf_counter() - start


def compared(family: Any, posterior: Any, problems: int, slow: int) -> list[dict[str, Any]]:
    name, rows = type(family).__name__, ROWS[type(family).__name__]
    problem = family.sample(problems, rows, generator=generator("cpu", 2026))
    theta = problem.theta.double()
    start = time.perf_counter()
    latent = posterior.with_prior(family.prior_of(problem)).condition(problem.x.double(), problem.y.double()).latent
    seconds = time.perf_counter() - start
    exact = -family.log_posterior(problem)
    prior = -family.distribution(problem.hyper.double()).log_prob(theta)
    lines = []
    kinds = {"exact, by quadrature": exact, "Distribution Transformer": -latent.log_prob(theta), "prior": prior}
    for kind, nll in kinds.items():
        line: dict[str, Any] = {"family": name, "method": kind}
        line["NLL"], line["NLL error"] = mean_and_error(nll)
        line["above exact"], line["above exact error"] = mean_and_error(nll - exact)
        if isinstance(family, ProcessHyperparameters):
            value, lengthscale = family.log_posteriors(problem)
            if kind == "Distribution Transformer":
                value = latent.marginal(0).log_prob(theta[:, 0])
                lengthscale = latent.marginal(1).log_prob(theta[:, 1])
            if kind != "prior":
                line["NLL of f(0)"], line["NLL of the lengthscale"] = -float(value.mean()), -float(lengthscale.mean())
        if kind == "Distribution Transformer":
            line |= levels(latent, theta)
            line["s / 1,000 problems"] = float(f"{1_000 * seconds / problems:.3g}")
        lines.append(line)
    found = [nuts(family, problem, k) for k in range(slow)]
    errors = []
    for k, (draws, _) in enumerate(found):
        spread = draws.std(0)
        errors.append(float(((latent[k].mean - draws.mean(0)) / spread).abs().max()))
    mean, error = mean_and_error(errors)
    seconds = sum(s for _, s in found) / slow
    lines.append({"family": name, "method": f"NUTS, {slow} problems", "s / 1,000 problems": round(1_000 * seconds)})
    lines[-1] |= {"largest distance of means from the network's, in deviations": mean, "its error": error}
    for line in lines:
        print(line, flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--problems", type=int, default=5_000)
    parser.add_argument("--slow", type=int, default=10, help="Problems for NUTS.")
    a = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pyro.set_rng_seed(0)
    lines: list[dict[str, Any]] = []
    for family in (ProcessHyperparameters(), Qubit()):
        posterior = trained(family, a.steps)
        cost = posterior.metadata
        print({k: v for k, v in cost.items() if k != "prior"}, flush=True)
        lines += compared(family, posterior, a.problems, a.slow)
        lines[-3]["training, s"] = round(float(cost["seconds"]))
    write("dt/families", {"posteriors": lines})


if __name__ == "__main__":
    main()
