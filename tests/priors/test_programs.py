import math
import pickle
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
import torch.distributions as td
from pyro import poutine

import priors
from priors import programs
from priors.programs.models import LinearProgram, NetworkProgram, ProcessMixtureProgram, ProcessProgram
from priors.programs.prior import PyroPrior


def line(rows):
    slope = pyro.sample("slope", dist.Normal(1.0, 2.0))
    weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("rows", rows):
        x = pyro.sample("x", dist.Uniform(torch.zeros(3), 1.0).to_event(1))
        y = pyro.sample("y", dist.Normal(slope + (x * weights).sum(-1), 0.1))
    return x, y


def groups(rows):
    with pyro.plate("columns", 2, dim=-2):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", rows, dim=-1):
            x = pyro.sample("x", dist.Normal(shift, 1.0))
    return x.mT, x.sum(-2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_draws_have_the_programs_law():
    # Kolmogorov-Smirnov at 1e-4 each, four tests, and the same tests reject a standard deviation doubled.
    task = PyroPrior(line).sample(2000, 4, generator=seeded())
    assert task.x.shape == (2000, 4, 3) and task.y.shape == (2000, 4)
    assert task.theta is not None and task.theta["slope"].shape == (2000,) and task.theta["weights"].shape == (2000, 3)
    assert set(task.theta) == {"slope", "weights"}
    residual = task.y - task.theta["slope"][:, None] - torch.einsum("brd,bd->br", task.x, task.theta["weights"])
    cases = [
        (task.theta["slope"], scipy.stats.norm(1, 2)),
        (task.theta["weights"][:, 1], scipy.stats.norm(0, 1)),
        (residual, scipy.stats.norm(0, 0.1)),
        (task.x, scipy.stats.uniform(0, 1)),
    ]
    for values, law in cases:
        assert scipy.stats.kstest(values.flatten().numpy(), law.cdf).pvalue > 1e-4
        wide = law.mean() + 2 * (values - law.mean())
        assert scipy.stats.kstest(wide.flatten().numpy(), law.cdf).pvalue < 1e-4


def test_data_sets_of_a_batch_are_independent():
    y = PyroPrior(line).sample(4000, 2, generator=seeded()).y
    between = torch.corrcoef(torch.stack([y[:-1, 0], y[1:, 0]]))[0, 1]
    assert between.abs() < 4 / math.sqrt(4000)  # rate 6e-5
    assert torch.corrcoef(y.mT)[0, 1] > 0.9  # rows of one data set share slope and weights


def test_nested_plates():
    task = PyroPrior(groups, max_plate_nesting=2).sample(3, 5, generator=seeded())
    assert task.x.shape == (3, 5, 2) and task.y.shape == (3, 5) and task.theta == {}
    torch.testing.assert_close(task.y, task.x.sum(-1))


def test_same_generator_state_same_draws_and_no_global_state():
    pyro.get_param_store().clear()
    pyro.param("mine", torch.ones(2))
    state = torch.get_rng_state()
    prior = PyroPrior(line)
    first, second = (prior.sample(3, 4, generator=seeded(7)) for _ in range(2))
    source = seeded(7)
    third, fourth = (prior.sample(3, 4, generator=source) for _ in range(2))
    assert torch.equal(first.x, second.x) and torch.equal(first.y, second.y) and torch.equal(first.y, third.y)
    assert not torch.equal(third.y, fourth.y)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(pyro.get_param_store().keys()) == ["mine"]
    pyro.get_param_store().clear()
    with poutine.trace() as outer:
        prior.sample(2, 2, generator=seeded())
    assert not outer.trace.nodes  # a draw inside another pyro program is no part of it


def test_the_name_of_a_prior_is_the_same_in_every_process():
    assert repr(PyroPrior(line)) == f"PyroPrior(program={line.__module__}.line, max_plate_nesting=1)"
    assert pickle.loads(pickle.dumps(PyroPrior(line))) == PyroPrior(line)


def test_programs_that_do_not_broadcast_are_named():
    def global_randomness(rows):
        return torch.rand(rows, 2), pyro.sample("y", dist.Normal(torch.zeros(rows), 1.0).to_event(1))

    def wrong_axis(rows):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        x = torch.ones(rows, 2)
        return x, pyro.sample("y", dist.Normal(x @ w, 1.0).to_event(1))

    def alone(rows):
        return pyro.sample("y", dist.Normal(0.0, 1.0))

    for program in (global_randomness, wrong_axis, groups):
        with pytest.raises(ValueError, match=r"batch.*pyro\.plate"):
            PyroPrior(program).sample(3, 4, generator=seeded())
    with pytest.raises(ValueError, match="two tensors"):
        PyroPrior(alone).sample(3, 4, generator=seeded())
    with pytest.raises(ValueError, match="batch"):
        PyroPrior(line).sample(0, 4, generator=seeded())
    with pytest.raises(ValueError, match="max_plate_nesting"):
        PyroPrior(line, max_plate_nesting=0)
    with pytest.raises(TypeError, match="program"):
        PyroPrior(3)  # pyright: ignore


def test_the_priors_import_without_pyro():
    code = "import sys; sys.modules['pyro'] = None; import priors; priors.GaussianProcessMixture(1)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Programs of our own priors


def density(program, latent, x, y):
    trace = poutine.trace(poutine.condition(program, data=latent)).get_trace(x, y)
    return {name: trace.nodes[name]["fn"].log_prob(trace.nodes[name]["value"]).sum() for name in (*latent, "y")}


def data(rows=5, features=2):
    x = torch.rand(rows, features, generator=seeded(1), dtype=torch.float64)
    return x, torch.randn(rows, generator=seeded(2), dtype=torch.float64)


def test_the_linear_program_has_the_priors_law():
    prior = priors.BayesianLinear(2, 3.0, 2.0, 0.5)
    assert programs.model(prior) == LinearProgram(prior)
    x, y = data()
    latent = {"weights": torch.tensor([0.3, -1.0]).double(), "intercept": torch.tensor(0.7).double()}
    parts = density(programs.model(prior), latent, x, y)
    torch.testing.assert_close(parts["weights"], td.Normal(0.0, 3.0**0.5).log_prob(latent["weights"]).sum())
    torch.testing.assert_close(parts["intercept"], td.Normal(0.0, 2.0**0.5).log_prob(latent["intercept"]))
    torch.testing.assert_close(parts["y"], td.Normal(x @ latent["weights"] + 0.7, 0.5**0.5).log_prob(y).sum())
    mean, stddev = programs.model(prior).predictive({k: v[None] for k, v in latent.items()}, x, y, x)
    torch.testing.assert_close(mean, (x @ latent["weights"] + 0.7)[None])
    torch.testing.assert_close(stddev, torch.full_like(mean, 0.5**0.5))


def test_the_network_program_has_the_priors_function():
    prior = priors.RandomNetwork(2, width=3, layers=2, noise=0.25)
    assert programs.model(prior) == NetworkProgram(prior)
    x, y = data()
    task = prior.sample(4, 6, generator=seeded())
    theta = {name: value.double() for name, value in task.theta.items()}
    mean, stddev = programs.model(prior).predictive(theta, x, y, x)
    for k in range(4):
        latent = {name: value[k] for name, value in theta.items()}
        truth = prior.function(x, latent).squeeze(-1)
        torch.testing.assert_close(mean[k], truth)
        parts = density(programs.model(prior), latent, x, y)
        torch.testing.assert_close(parts["y"], td.Normal(truth, 0.5).log_prob(y).sum())
        torch.testing.assert_close(parts["weight1"], td.Normal(0.0, 1.0).log_prob(latent["weight1"]).sum())
    assert (stddev == 0.5).all()
    with pytest.raises(ValueError, match="classes"):
        programs.model(priors.RandomNetwork(2, classes=3))


def test_the_process_program_has_the_priors_covariance():
    # z ~ N(0, I) integrates to y ~ N(0, K + noise): mean and covariance through the program's own predictive, by
    # the laws of total mean and variance over z given y, which is normal
    prior = priors.GaussianProcess(2, 0.5, 0.04, 1.3, kernel="matern32")
    program = programs.model(prior)
    assert program == ProcessProgram(prior)
    (x, y), query = data(), torch.rand(3, 2, dtype=torch.float64, generator=seeded(3))
    factor = torch.linalg.cholesky(prior.covariance(x, x) + 1.3e-6 * torch.eye(5))
    precision = torch.eye(5, dtype=torch.float64) + factor.mT @ factor / 0.04
    centre = torch.linalg.solve(precision, factor.mT @ y / 0.04)
    deviations = torch.linalg.cholesky(torch.linalg.inv(precision)) * 5**0.5
    draws = {"z": torch.cat([centre + deviations.mT, centre - deviations.mT])}  # sigma points: the exact moments
    mean, stddev = program.predictive(draws, x, y, query)
    exact = prior.posterior(x, y).predict(query)
    torch.testing.assert_close(mean.mean(0), exact.mean, rtol=0, atol=1e-4)
    total = stddev.square().mean(0) + mean.var(0, unbiased=False)
    torch.testing.assert_close(total, exact.variance, rtol=0, atol=1e-4)
    parts = density(program, {"z": centre}, x, y)
    torch.testing.assert_close(parts["y"], td.Normal(factor @ centre, 0.2).log_prob(y).sum())


@pytest.mark.parametrize("recipe", ["botorch", "gamma"])
def test_the_mixture_program_has_the_priors_hyperpriors(recipe):
    # Kolmogorov-Smirnov of program draws against prior draws at 1e-4 for each of at most three sites.
    prior = priors.GaussianProcessMixture(3, recipe)
    x, _ = data(2, 3)
    theta = prior.hyperparameters(4000, 3, seeded())
    trace = poutine.trace(programs.model(prior)).get_trace(x)
    sites = ("lengthscale", "noise") if recipe == "botorch" else ("lengthscale", "noise", "variance")
    torch.manual_seed(0)
    for name in sites:
        values = trace.nodes[name]["fn"].sample((4000,)).clamp(min=1e-4)
        values = values[:, 0] if values.ndim == 2 else values
        assert scipy.stats.ks_2samp(values.numpy(), theta[name][:, 0].numpy()).pvalue > 1e-4
        assert scipy.stats.ks_2samp(2 * values.numpy(), theta[name][:, 0].numpy()).pvalue < 1e-4


@pytest.mark.parametrize("recipe", ["botorch", "gamma"])
def test_the_mixture_program_sums_the_kernels_out(recipe):
    prior = priors.GaussianProcessMixture(2, recipe)
    program = programs.model(prior)
    assert program == ProcessMixtureProgram(prior)
    x, y = data()
    scale = torch.tensor([0.4, 0.9]).double() if recipe == "botorch" else torch.tensor(0.4).double()
    latent = {"lengthscale": scale, "noise": torch.tensor(1e-7).double()}  # below the floor of 1e-4
    if recipe == "gamma":
        latent["variance"] = torch.tensor(2.0).double()
    logs = []
    for kernel in prior.kernels:
        fixed = priors.GaussianProcess(
            2, tuple(scale.expand(2).tolist()), 1e-4, 2.0 if recipe == "gamma" else 1.0, kernel
        )
        covariance = fixed.covariance(x, x) + 1e-4 * torch.eye(5)
        logs.append(td.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y))
    truth = torch.stack(logs).logsumexp(0) - math.log(4)
    torch.testing.assert_close(density(program, latent, x, y)["y"], truth)


def test_the_mixture_program_conditions_exactly_and_draws_the_kernel():
    prior = priors.GaussianProcessMixture(2)
    x, y = data()
    query = torch.rand(3, 2, dtype=torch.float64, generator=seeded(3))
    count, scale = 4000, torch.tensor([0.4, 0.9], dtype=torch.float64)
    draws = {"lengthscale": scale.expand(count, 2), "noise": torch.full((count,), 0.3, dtype=torch.float64)}
    mean, stddev = programs.model(prior).predictive(draws, x, y, query)
    logs, laws = [], []
    for kernel in prior.kernels:
        fixed = priors.GaussianProcess(2, (0.4, 0.9), 0.3, kernel=kernel)
        logs.append(td.MultivariateNormal(torch.zeros_like(y), fixed.covariance(x, x) + 0.3 * torch.eye(5)).log_prob(y))
        laws.append(fixed.posterior(x, y).predict(query))
    weights = torch.stack(logs).softmax(0)
    member = torch.stack([(mean[:, 0] - law.mean[0]).abs() < 1e-9 for law in laws])
    assert (member.sum(0) == 1).all()  # every draw has one of the four kernels
    for k, law in enumerate(laws):
        torch.testing.assert_close(mean[member[k]], law.mean.expand(int(member[k].sum()), 3))
        torch.testing.assert_close(stddev[member[k]], law.stddev.expand(int(member[k].sum()), 3))
        error = (member[k].double().mean() - weights[k]).abs()
        assert error < 4 * (weights[k] * (1 - weights[k]) / count).sqrt()  # rate 6e-5 each
    again = programs.model(prior).predictive(draws, x, y, query)[0]
    assert torch.equal(again, mean)


def test_large_numbers_of_draws_go_block_by_block(monkeypatch):
    prior = priors.GaussianProcessMixture(2, "gamma")
    x, y = data()
    theta = prior.hyperparameters(20, 2, seeded())
    draws = {name: theta[name][:, 0].double() for name in ("lengthscale", "noise", "variance")}
    whole = programs.model(prior).predictive(draws, x, y, x)
    monkeypatch.setattr("priors.programs.models.CELLS", 300)
    for a, b in zip(programs.model(prior).predictive(draws, x, y, x), whole, strict=True):
        torch.testing.assert_close(a, b)
