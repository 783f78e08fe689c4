import copy
import functools
import logging
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample

import priors
from bayesvision.baselines.mcmc import MCMC, MCMCPosterior
from bayesvision.core.data import Data
from bayesvision.core.roles import Storable
from bayesvision.distributions import Mixture
from priors import programs
from priors.programs.prior import PyroPrior

LINEAR = priors.BayesianLinear(1, noise=0.1)
PROCESS = priors.GaussianProcessMixture(1, kernels=("rbf",))


def line(x, y=None):
    slope = pyro.sample("model.slope", dist.Normal(0, 1))
    intercept = pyro.sample("intercept", dist.Normal(0, 1))
    with pyro.plate("rows", len(x)):
        return pyro.sample("y", dist.Normal(slope * x[:, 0] + intercept, 0.1**0.5), obs=y)


def data_sets(rows):
    slope, intercept = pyro.sample("slope", dist.Normal(0, 1)), pyro.sample("intercept", dist.Normal(0, 1))
    with pyro.plate("rows", rows):
        x = pyro.sample("x", dist.Uniform(-3, 3))
        y = pyro.sample("y", dist.Normal(slope * x + intercept, 0.1**0.5))
    return x.unsqueeze(-1), y


def rows():
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).unsqueeze(-1)
    noise = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, 0.4 - 0.8 * x[:, 0] + 0.1**0.5 * noise


@functools.cache
def fitted(kind="program", chains=1):
    program = {"program": programs.model(LINEAR), "function": line, "prior": PyroPrior(data_sets).model}[kind]
    return MCMC(program, warmup=100, draws=250, chains=chains, seed=1).fit(Data(*rows()))


QUERY = torch.tensor([[-2.0], [0.0], [0.3], [2.0]], dtype=torch.float64)


def agrees(law, exact, ess):
    """Mean and standard deviation within 4 Monte Carlo errors, sd / sqrt(ess) and a share 1 / sqrt(2 ess) of it.

    Four queries and two moments for draws that are right: failure rate below 8 * 6e-5.
    """
    mean = (law.mean - exact.mean).abs() < 4 * exact.stddev / math.sqrt(ess)
    stddev = (law.stddev / exact.stddev).log().abs() < 4 / math.sqrt(2 * ess)
    return bool(mean.all() and stddev.all())


@pytest.mark.parametrize("kind", ["program", "function", "prior"])
def test_a_linear_model_has_its_closed_form(kind):
    posterior, exact = fitted(kind), LINEAR.posterior(*rows()).predict(QUERY)
    law = posterior.predict(QUERY)
    ess = min(report.ess.min().item() for report in posterior.diagnostics.values())
    assert ess > 60 and posterior.divergences == 0
    assert isinstance(law, Mixture) and law.batch_shape == (4,) and law.weights.shape == (4, 250)
    assert agrees(law, exact, ess)
    for factor in (0.5, 2.0):
        assert not agrees(law, torch.distributions.Normal(exact.mean, factor * exact.stddev), ess)
    assert not agrees(law, torch.distributions.Normal(exact.mean + exact.stddev, exact.stddev), ess)


def test_latent_draws_have_the_posteriors_moments():
    (x, y), posterior = rows(), fitted()
    design = torch.cat([x, torch.ones_like(x)], 1)
    covariance = torch.linalg.inv(torch.eye(2) + design.mT @ design / 0.1)
    mean = covariance @ design.mT @ y / 0.1
    for k, name in enumerate(("weights", "intercept")):
        draws, ess = posterior.latent[name].flatten(), posterior.diagnostics[name].ess.item()
        assert (draws.mean() - mean[k]).abs() < 4 * (covariance[k, k] / ess).sqrt()  # rate 6e-5
        assert (draws.std() / covariance[k, k].sqrt()).log().abs() < 4 / math.sqrt(2 * ess)


def test_a_process_with_hyperpriors_agrees_with_a_grid():
    # The mixture over (log lengthscale, log noise) on a grid is exact to 1e-3; the draws' error is that of their ESS.
    x = torch.linspace(0, 1, 10, dtype=torch.float64).unsqueeze(-1)
    noise = torch.randn(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.sin(6 * x[:, 0]) + 0.2 * noise
    posterior = MCMC(programs.model(PROCESS), warmup=100, draws=250, chains=1, seed=2).fit(Data(x, y))
    query = torch.tensor([[0.05], [0.5], [1.3]], dtype=torch.float64)
    law = posterior.predict(query)

    length, level = torch.meshgrid(
        torch.linspace(-5, 9, 140, dtype=torch.float64), torch.linspace(-9, 2, 110, dtype=torch.float64), indexing="ij"
    )
    length, level = length.flatten(), level.flatten()
    log_prior = -(length - math.sqrt(2)).square() / 6 - (level + 4).square() / 2  # LogN(sqrt 2, sqrt 3), LogN(-4, 1)
    squared = (x - x.mT).square() / length.exp().square()[:, None, None]
    factor = torch.linalg.cholesky(torch.exp(-squared / 2) + level.exp()[:, None, None] * torch.eye(10))
    z = torch.linalg.solve_triangular(factor, y[:, None], upper=False)
    evidence = -z.square().sum((-2, -1)) / 2 - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    weights = (evidence + log_prior).softmax(0)[:, None]
    cross = torch.exp(-(x - query.mT).square() / length.exp().square()[:, None, None] / 2)
    half = torch.linalg.solve_triangular(factor, cross, upper=False)
    means = (half.mT @ z).squeeze(-1)
    variances = 1 - half.square().sum(-2) + level.exp()[:, None]
    mean = (weights * means).sum(0)
    stddev = (weights * (variances + (means - mean).square())).sum(0).sqrt()

    assert (law.mean[:2] - torch.sin(6 * query[:2, 0])).abs().max() < 0.4  # sane near the data
    # A mixture's mean moves with the draws only by the spread between components: well within sd / sqrt(ess). The third
    # query extrapolates, and its tail weighs on the standard deviation, hence the wider share.
    ess = min(report.ess.min().item() for report in posterior.diagnostics.values())
    assert ess > 30
    assert ((law.mean - mean).abs() < 4 * stddev / math.sqrt(ess)).all()
    ratio = (law.stddev / stddev).log().abs()
    assert (ratio < 0.3).all()  # a standard deviation halved or doubled has 0.69
    levels = posterior.latent["noise"].log()
    centre = (weights[:, 0] * level).sum()
    spread = (weights[:, 0] * (level - centre).square()).sum().sqrt()
    assert (levels.mean() - centre).abs() < 4 * spread / math.sqrt(ess)  # rate 6e-5
    assert (levels.std() / spread).log().abs() < 0.5


def test_two_chains_differ_and_the_first_is_that_of_one():
    one, two = fitted(), fitted(chains=2)
    assert two.latent["weights"].shape == (500, 1)
    assert torch.equal(two.latent["weights"][:250], one.latent["weights"])
    assert not torch.equal(two.latent["weights"][250:], one.latent["weights"])
    for report in two.diagnostics.values():
        assert (report.r_hat < 1.05).all() and (report.ess > 100).all()


def test_diagnostics_see_chains_that_disagree():
    posterior = copy.deepcopy(fitted(chains=2))
    assert posterior.diagnostics["weights"].r_hat.shape == (1,)
    posterior.latent["weights"][250:] += 3
    report = posterior.diagnostics["weights"]
    assert (report.r_hat > 1.5).all() and (report.ess < 20).all()


def test_chains_in_processes_are_those_of_one_process():
    class Kept:
        def __init__(self):
            self.steps, self.names = [], set()

        def log(self, metrics, step, /):
            self.steps.append(step)
            self.names |= metrics.keys()

    logs = Kept(), Kept()
    one, two = (MCMC(line, 30, 20, 2, seed=3, processes=n).fit(Data(*rows()), logs[n - 1]) for n in (1, 2))
    for name in one.sites:
        assert torch.equal(one.latent[name], two.latent[name])
    assert all(torch.equal(a, b) for a, b in zip(one.trajectories, two.trajectories, strict=True))
    assert logs[1].steps == [50, 100] and logs[0].steps == sorted(logs[0].steps) and logs[0].steps[-1] == 100
    assert len(logs[0].steps) > 20 and logs[0].names == logs[1].names == {"divergences", "acceptance", "step size"}


def with_parameter(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0, pyro.param("scale_of_the_test", torch.tensor(1e-3))))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(slope * x[:, 0], 0.3), obs=y)


def test_processes_see_pyros_parameters():
    pyro.get_param_store().clear()
    pyro.param("scale_of_the_test", torch.tensor(5.0))
    try:
        one, two = (MCMC(with_parameter, 20, 10, 2, processes=n).fit(Data(*rows())) for n in (1, 2))
    finally:
        pyro.get_param_store().clear()
    assert torch.equal(one.latent["slope"], two.latent["slope"]) and one.latent["slope"].abs().max() > 0.1


def funnel(x, y=None):
    level = pyro.sample("level", dist.Normal(0, 3))
    place = pyro.sample("place", dist.Normal(torch.zeros(6), (level / 2).exp()).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(place[0].expand(len(x)), 10.0), obs=y)


def ridge(x, y=None):
    """Two numbers of which the data tell the sum to 1 in 50."""
    a, b = pyro.sample("a", dist.Normal(0, 1)), pyro.sample("b", dist.Normal(0, 1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal((a + b).expand(len(x)), 0.05), obs=y)


def test_divergences_and_deep_trees_are_told_with_what_helps():
    with pytest.warns(UserWarning, match="steps diverged.*raise target_accept") as caught:  # Neal's funnel
        posterior = MCMC(funnel, 60, 100, 2, seed=0, max_tree_depth=6).fit(Data(*rows()))
    assert caught[0].filename == __file__
    ways = posterior.trajectories
    assert posterior.divergences == int(ways.diverging.sum()) > 0 and ways.diverging.shape == (2, 100)
    assert ways.step_size.shape == ways.acceptance.shape == (2,) and (ways.acceptance > 0.5).all()
    with pytest.warns(UserWarning, match="reached max_tree_depth=3.*dense_mass=True"):
        MCMC(ridge, 100, 60, 1, max_tree_depth=3).fit(Data(*rows()))


@pytest.mark.slow
def test_a_dense_mass_matrix_shortens_the_way_along_a_ridge():
    # Var(a | y) = 1/2 up to 2e-4, and a diagonal metric takes about a hundred steps from end to end
    x, y = rows()
    plain = MCMC(ridge, 100, 20, 1, max_tree_depth=7).fit(Data(x, y))
    dense = MCMC(ridge, 300, 300, 1, max_tree_depth=7, dense_mass=True).fit(Data(x, y))
    depth = [float(found.trajectories.tree_depth.double().mean()) for found in (plain, dense)]
    assert depth[1] + 1 < depth[0]  # a step takes up to 2^depth gradients
    ess = dense.diagnostics["a"].ess.item()
    assert ess > 30 and abs(math.log(dense.latent["a"].std().item() / math.sqrt(0.5))) < 4 / math.sqrt(2 * ess)


def test_fit_is_deterministic_silent_and_leaves_global_state_alone(capfd):
    pyro.get_param_store().clear()
    pyro.param("mine", torch.ones(2))
    logger = logging.getLogger("pyro.infer.mcmc")
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        before = (torch.get_rng_state(), pyro.settings.get(), logger.handlers, logger.propagate)
        with torch.no_grad():
            posteriors = [MCMC(line, 5, 8, 1, seed=3).fit(Data(*rows())) for _ in range(2)]
            posteriors[0].predict(QUERY)
            assert not torch.is_grad_enabled()
        after = (torch.get_rng_state(), pyro.settings.get(), logger.handlers, logger.propagate)
    finally:
        torch.distributions.Distribution.set_default_validate_args(True)
    first, second = posteriors
    assert torch.equal(first.latent["intercept"], second.latent["intercept"])
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert torch.get_default_dtype() == torch.float32
    assert list(pyro.get_param_store().keys()) == ["mine"]
    pyro.get_param_store().clear()
    assert capfd.readouterr() == ("", "")
    other = MCMC(line, 5, 8, 1, seed=4).fit(Data(*rows()))
    assert not torch.equal(first.latent["intercept"], other.latent["intercept"])


@pytest.mark.parametrize("kind", ["program", "function", "prior"])
def test_copies_pickles_and_conversions_predict_the_same(kind):
    posterior = fitted(kind)
    truth = posterior.predict(QUERY)
    for other in (copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior))):
        assert torch.equal(other.predict(QUERY).mean, truth.mean) and other.sites == posterior.sites
    narrow = copy.deepcopy(posterior).to(torch.float32)
    assert narrow.latent["intercept"].dtype == torch.float32
    torch.testing.assert_close(narrow.predict(QUERY).stddev, truth.stddev, rtol=1e-5, atol=0)
    assert not isinstance(posterior, Storable)  # a program is not data


@pytest.mark.parametrize("kind", ["program", "function"])
def test_predictions_follow_the_dtype_batches_and_gradients_of_x(kind):
    posterior = fitted(kind)
    assert posterior.predict(QUERY.float()).mean.dtype == torch.float64  # the targets are
    batch = posterior.predict(QUERY.reshape(2, 2, 1))
    assert batch.batch_shape == (2, 2)
    assert torch.equal(batch.mean.flatten(), posterior.predict(QUERY).mean)
    query = QUERY.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(posterior.predict(query).mean.sum(), query)
    slope = posterior.latent["weights" if kind == "program" else "model.slope"].mean()
    torch.testing.assert_close(gradient, slope.expand(4, 1).double())


@pytest.mark.parametrize(
    "prior",
    [
        priors.GaussianProcess(2, 0.5, 0.05),
        priors.GaussianProcessMixture(2),
        priors.GaussianProcessMixture(2, "gamma"),
        priors.RandomNetwork(2, width=3, layers=1),
    ],
    ids=["process", "mixture", "gamma", "network"],
)
def test_every_program_runs(prior):
    task = prior.sample(1, 8, generator=torch.Generator().manual_seed(0))
    method = MCMC(programs.model(prior), warmup=4, draws=8, chains=1, max_tree_depth=3)
    law = method.fit(Data(task.x[0, :6], task.y[0, :6])).predict(task.x[0])
    assert law.mean.shape == (8,) and law.mean.dtype == torch.float32
    assert law.log_prob(task.y[0]).isfinite().all() and (law.stddev > 0).all()


@pytest.mark.slow
def test_a_process_with_latent_values_has_its_closed_form():
    prior = priors.GaussianProcess(1, 0.3, 0.05, 1.5)
    task = prior.sample(1, 9, generator=torch.Generator().manual_seed(0))
    x, y = task.x[0].double(), task.y[0].double()
    posterior = MCMC(programs.model(prior), warmup=200, draws=300, chains=2).fit(Data(x[:5], y[:5]))
    exact = prior.posterior(x[:5], y[:5]).predict(x[5:])
    ess = posterior.diagnostics["z"].ess.min().item()
    assert ess > 100 and agrees(posterior.predict(x[5:]), exact, ess)


def unnamed(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0, 1))
    pyro.sample("target", dist.Normal(slope * x[:, 0], 1).to_event(1), obs=y)


def unobserved(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0, 1))
    pyro.sample("y", dist.Normal(slope * x[:, 0], 1).to_event(1))


def known(x, y=None):
    pyro.sample("y", dist.Normal(x[:, 0], 1).to_event(1), obs=y)


def discrete(x, y=None):
    k = pyro.sample("k", dist.Bernoulli(0.5))
    slope = pyro.sample("slope", dist.Normal(k, 1))
    pyro.sample("y", dist.Normal(slope * x[:, 0], 1).to_event(1), obs=y)


def local(x, y=None):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0, 1))
        pyro.sample("y", dist.Normal(z, 1), obs=y)


def heavy(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0, 1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.StudentT(3, slope * x[:, 0], 1), obs=y)


def joint(x, y=None):
    scale = pyro.sample("scale", dist.LogNormal(0, 1))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), scale * torch.eye(len(x))), obs=y)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (unnamed, "observed site"),
        (unobserved, "observed site"),
        (known, "at least one latent"),
        (discrete, "'k' is discrete"),
        (local, "'z' changes with the number of rows"),
        (heavy, "must be a Normal"),
        (joint, "must be a Normal"),
    ],
)
def test_programs_that_do_not_fit_are_named(program, message):
    with pytest.raises(ValueError, match=message):
        MCMC(program).fit(Data(*rows()))


def test_mistakes_are_named():
    x, y = rows()
    cases = [
        (lambda: MCMC(line, draws=2), "draws"),
        (lambda: MCMC(line, chains=0), "chains"),
        (lambda: MCMC(line, processes=0), "processes"),
        (lambda: MCMC(line, target_accept=1.0), "target_accept"),
        (lambda: MCMC(line).fit(Data(x)), "y must"),
        (lambda: MCMC(line).fit(Data(x, y[:3])), "one value for each row"),
        (lambda: MCMC(line).fit(Data(x, torch.full((6,), float("nan")))), "finite"),
        (lambda: MCMC(line).fit(Data(x[None], y[None])), "one data set"),
        (lambda: fitted().predict(torch.zeros(3, 2)), "1 columns"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="Data"):
        MCMC(line).fit(x)
    with pytest.raises(TypeError, match="program"):
        MCMC("line")  # pyright: ignore
    assert isinstance(fitted(), MCMCPosterior)


def needs_y(x, y):
    slope = pyro.sample("slope", dist.Normal(0, 1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(slope * x[:, 0], 1), obs=y)


def counts_y(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0, 1))
    with pyro.plate("rows", len(y)):  # pyright: ignore[reportArgumentType]
        pyro.sample("y", dist.Normal(slope * x[:, 0], 1), obs=y)


def standardises(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0, 1))
    x = x - x.mean(0)
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(slope * x[:, 0], 1), obs=y)


def counts(x, y=None):
    rate = pyro.sample("rate", dist.Gamma(1, 1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Poisson(rate.expand(len(x))), obs=y)


def layers(x, y=None):
    noise = pyro.sample("noise", dist.HalfNormal(1))
    layer = torch.nn.Linear(1, 1, dtype=torch.float32)
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(layer(x)[:, 0], noise), obs=y)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (needs_y, "run without y.*missing 1 required"),
        (counts_y, "run without y.*len"),
        (standardises, "standardise x before fit"),
        (counts, "log y or sqrt y.*"),
        (layers, "set_default_dtype"),
    ],
)
def test_what_cannot_predict_is_found_before_sampling(program, message):
    class Never:
        def log(self, metrics, step, /):
            raise AssertionError("sampled")

    x, y = rows()
    with pytest.raises(ValueError, match=message):
        MCMC(program, warmup=10_000, draws=10_000).fit(Data(x, y.abs().round()), Never())


def groups(x, y=None):
    level = pyro.sample("level", dist.Normal(torch.zeros(3), 1).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(level[x[:, 0].long()], 1), obs=y)


def test_a_group_that_was_not_there_is_named():
    x = torch.tensor([[0.0], [1.0], [2.0], [1.0]])
    posterior = MCMC(groups, warmup=10, draws=10, chains=1).fit(Data(x, torch.tensor([0.0, 1.0, 2.0, 1.5])))
    assert posterior.predict(x).mean.shape == (4,)
    with pytest.raises(ValueError, match="group"):
        posterior.predict(torch.tensor([[3.0]]))


class Net(PyroModule):
    def __init__(self, dtype):
        super().__init__()
        self.layer = PyroModule[torch.nn.Linear](1, 1)
        one = torch.ones((), dtype=dtype)
        self.layer.weight = PyroSample(dist.Normal(0 * one, one).expand([1, 1]).to_event(2))
        self.layer.bias = PyroSample(dist.Normal(0 * one, one).expand([1]).to_event(1))

    def forward(self, x, y=None):
        mean = self.layer(x)[:, 0]
        with pyro.plate("rows", len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_pyro_modules_run_in_float64():
    x, y = rows()
    posterior = MCMC(Net(torch.float64), warmup=20, draws=20, chains=1).fit(Data(x, y))
    assert posterior.predict(x).mean.shape == (len(x),)
    with pytest.raises(ValueError, match="set_default_dtype"):
        MCMC(Net(torch.float32), warmup=20, draws=20, chains=1).fit(Data(x, y))
