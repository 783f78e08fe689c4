import subprocess
import sys
import warnings

import pytest
import scipy.stats
import torch
from instances import INSTANCES, QUERIES, seen

import bayesvision as bv
from bayesvision.core.roles import Posterior
from bayesvision.distributions import Bar, Mixture, Normal
from priors import GaussianProcess

pytest.importorskip("botorch")
from botorch.acquisition import (
    LogExpectedImprovement,
    qLogExpectedImprovement,
    qLogNoisyExpectedImprovement,
)
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.optim import optimize_acqf
from botorch.sampling import SobolQMCNormalSampler
from botorch.sampling.get_sampler import get_sampler

from bayesvision.integrations.botorch import MarginalPosterior, PredictiveLogEI, PredictiveModel

PLAIN = {i.name: i for i in INSTANCES}
BOX = torch.tensor([[0.0], [1.0]], dtype=torch.float64)


def rows():
    x = torch.tensor([[0.05], [0.3], [0.5], [0.95]], dtype=torch.float64)
    return x, torch.sin(6 * x[:, 0])


def process():
    """The exact posterior of a process with known hyper-parameters, jointly normal."""
    return bv.GP(lengthscale=0.2, noise=0.01, variance=1.0, standardize=False).fit(bv.Data(*rows()))


class Marginals(Posterior):
    """A posterior that hides what it knows of several points together."""

    def __init__(self, whole):
        super().__init__()
        self.whole = whole

    def predict(self, x):
        return self.whole.predict(x)


def network():
    prior = GaussianProcess(lengthscale=0.2, noise=0.01)
    recipe = bv.PFN(features=1, context=16, width=32, layers=2, heads=2, bars=50, train=bv.Train(steps=150, seed=0))
    return recipe.fit(prior).condition(*rows())


@pytest.fixture(scope="module")
def trained():
    return PredictiveModel(network())


def laws():
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    borders = torch.linspace(-2, 3, 9, dtype=torch.float64)
    loc = torch.tensor([[-1.0, 2.0], [0.0, 0.5], [1.0, 1.5]], dtype=torch.float64)
    return {
        "normal": Normal(loc[:, 0], loc[:, 1].abs()),
        "bar": Bar(logits, borders, 1.0, 2.0),
        "mixture": Mixture.of(Normal(loc, loc.abs() + 0.1), torch.zeros(3, 2, dtype=torch.float64)),
    }


def agrees(values, law):
    return scipy.stats.kstest(values.numpy(), lambda y: law.cdf(torch.as_tensor(y)).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("name", ["normal", "bar", "mixture"])
@pytest.mark.parametrize("weight", [1.0, -2.0])
def test_draws_have_the_law_and_the_moments_it_states(name, weight):
    law = laws()[name]
    posterior = MarginalPosterior(law, weight, 0.5)
    draws = get_sampler(posterior, torch.Size([2048]), seed=0)(posterior)
    assert draws.shape == (2048, 3, 1) and posterior.mean.shape == posterior.variance.shape == (3, 1)
    for k in range(3):
        values = ((draws[:, k, 0] - 0.5) / weight).detach()
        # quasi-random draws agree far better than random ones, of which 1 in 1e4 would fail
        assert agrees(values, law[k]) and not agrees(values + 0.5 * law[k].stddev, law[k])
    torch.testing.assert_close(draws.mean(0), posterior.mean, rtol=0, atol=0.05 * float(law.stddev.max()))
    level = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    found = (draws.squeeze(-1).quantile(level, 0) - posterior.quantile(level).squeeze(-1)).abs()
    assert (found < 0.1 * abs(weight) * law.stddev).all()
    grid = torch.linspace(-80, 80, 400_001, dtype=torch.float64)
    mass = torch.stack(
        [torch.trapezoid(MarginalPosterior(law[k], weight, 0.5).density(grid[:, None])[:, 0], grid) for k in range(3)]
    )
    torch.testing.assert_close(mass, torch.ones(3, dtype=torch.float64), rtol=0, atol=2e-3)


def test_draws_have_the_gradients_of_the_quantile():
    loc = torch.tensor([0.3, -1.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    z = torch.tensor([[-1.3, 0.2], [0.7, 2.2]], dtype=torch.float64).unsqueeze(-1)
    draws = MarginalPosterior(Normal(loc, scale)).rsample_from_base_samples(torch.Size([2]), z)
    torch.testing.assert_close(draws.squeeze(-1), loc + scale * z.squeeze(-1))
    by_loc, by_scale = torch.autograd.grad(draws.sum(), (loc, scale))
    torch.testing.assert_close(by_loc, torch.full((2,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(by_scale, z.squeeze(-1).sum(0))


def test_expected_improvement_of_a_process_is_its_closed_form():
    posterior, x = process(), torch.linspace(0, 1, 11, dtype=torch.float64).reshape(-1, 1, 1)
    model, best = PredictiveModel(posterior), 0.8
    exact = posterior.predict(x).log_expected_improvement(best).squeeze(-1)
    torch.testing.assert_close(PredictiveLogEI(model, best)(x), exact)
    torch.testing.assert_close(LogExpectedImprovement(model, best)(x), exact, rtol=1e-6, atol=1e-6)
    sampler = SobolQMCNormalSampler(torch.Size([4096]), seed=0)
    likely = exact > -6  # where 4,096 draws tell it; their error is a few per cent of the value
    for wrapped in (model, PredictiveModel(Marginals(posterior))):
        found = qLogExpectedImprovement(wrapped, best, sampler=sampler)(x)
        assert likely.sum() >= 4 and (found - exact)[likely].abs().max() < 0.15
    mirrored = PredictiveLogEI(
        PredictiveModel(
            bv.GP(lengthscale=0.2, noise=0.01, variance=1.0, standardize=False).fit(bv.Data(rows()[0], -rows()[1]))
        ),
        -best,
        maximize=False,
    )(x)
    torch.testing.assert_close(mirrored[likely], exact[likely], rtol=1e-6, atol=1e-6)


def test_points_of_a_process_are_joint_and_those_of_a_network_independent(trained):
    x = torch.tensor([[0.60], [0.62], [0.9]], dtype=torch.float64)
    exact = process().joint(x)
    found = PredictiveModel(process()).posterior(x)
    torch.testing.assert_close(found.distribution.covariance_matrix, exact.covariance_matrix)
    draws = trained.posterior(x).rsample(torch.Size([4000])).squeeze(-1).detach()
    correlation = torch.corrcoef(draws.mT)
    assert (correlation - torch.eye(3)).abs().max() < 0.07  # 4 standard errors, rate 2e-4
    assert exact.covariance_matrix[0, 1] / exact.covariance_matrix.diagonal()[:2].prod().sqrt() > 0.5


def test_shapes_gradients_and_conditioning(trained):
    x = torch.rand(5, 2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    posterior = trained.posterior(x)
    assert posterior.mean.shape == (5, 2, 1) and posterior.rsample(torch.Size([7])).shape == (7, 5, 2, 1)
    assert trained.num_outputs == 1 and trained.batch_shape == ()
    flat = trained.predictive.predict(x.detach().reshape(-1, 1)).mean.reshape(5, 2)
    torch.testing.assert_close(posterior.mean.squeeze(-1), flat, rtol=1e-5, atol=1e-5)
    step = 1e-4
    value = qLogExpectedImprovement(trained, 0.5, sampler=SobolQMCNormalSampler(torch.Size([64]), seed=0))
    (gradient,) = torch.autograd.grad(value(x).sum(), x)
    moved = x.detach().clone()
    for place in ((0, 0, 0), (3, 1, 0)):
        up, down = moved.clone(), moved.clone()
        up[place], down[place] = up[place] + step, down[place] - step
        slope = (value(up).sum() - value(down).sum()).item() / (2 * step)
        assert abs(gradient[place].item() - slope) < 0.05 * max(1, abs(slope))
    more = torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([[0.2]], dtype=torch.float64)
    new = trained.condition_on_observations(*more)
    truth = trained.predictive.condition(more[0], more[1].squeeze(-1)).predict(x.detach()[0])
    torch.testing.assert_close(new.posterior(x.detach()[0]).mean.squeeze(-1), truth.mean)
    assert new is not trained and not torch.equal(new.posterior(x).mean, posterior.mean)


def test_batches_of_fantasies(trained):
    x = torch.rand(3, 2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.randn(3, 2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    bare = PredictiveModel(trained.predictive.unconditioned())
    many = bare.condition_on_observations(x, y)
    assert many.batch_shape == (3,) and many.posterior(x).mean.shape == (3, 2, 1)
    one = bare.condition_on_observations(x[1], y[1])
    torch.testing.assert_close(many.posterior(x).mean[1], one.posterior(x[1]).mean, rtol=1e-4, atol=1e-4)


def test_batches_beside_what_was_seen(trained):
    x = torch.rand(3, 2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.randn(3, 2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    many = trained.condition_on_observations(x, y)
    assert many.batch_shape == (3,) and many.posterior(x).mean.shape == (3, 2, 1)
    one = trained.condition_on_observations(x[1], y[1])
    torch.testing.assert_close(many.posterior(x).mean[1], one.posterior(x[1]).mean, rtol=1e-4, atol=1e-4)
    wrapped = PredictiveModel(many.predictive)  # a posterior of a batch of data sets
    assert wrapped.batch_shape == (3,)
    torch.testing.assert_close(wrapped.posterior(x).mean, many.posterior(x).mean)
    more = many.condition_on_observations(x, y)
    assert more.batch_shape == (3,) and more.predictive.rows == len(rows()[0]) + 4
    with pytest.raises(ValueError, match="one data set"):
        PredictiveModel(process()).condition_on_observations(x, y)


def test_points_of_a_deep_kernel_machine_come_in_batches():
    machine = bv.DKM(layers=1, inducing=None, train=bv.Train(steps=5)).fit(*rows())
    x = torch.rand(3, 2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = PredictiveModel(machine).posterior(x)
    assert found.mean.shape == (3, 2, 1) and found.rsample(torch.Size([5])).shape == (5, 3, 2, 1)
    torch.testing.assert_close(found.distribution.covariance_matrix[2], machine.joint(x[2]).covariance_matrix)
    value = qLogExpectedImprovement(PredictiveModel(machine), 0.5)(x)
    assert value.shape == (3,) and value.isfinite().all()


@pytest.mark.parametrize("name", ["normal", "bar", "mixture"])
def test_minimising_is_maximising_the_mirrored_far_out_too(name):
    law = laws()[name]

    class Given(Posterior):
        def __init__(self, law):
            super().__init__()
            self.law = law

        def predict(self, x):
            return self.law

    mirrored = bv.distributions.Normal(-law.loc, law.scale) if name == "normal" else None
    if name == "bar":
        mirrored = law.affine(0.0, -1.0)
    if name == "mixture":
        parts = law.component_distribution
        mirrored = Mixture.of(Normal(-parts.loc, parts.scale), law.mixture_distribution.logits)
    x = torch.zeros(3, 1, 1, dtype=torch.float64)
    for best in (0.0, -12.0, -40.0):
        down = PredictiveLogEI(PredictiveModel(Given(law)), best, maximize=False)(x)
        up = PredictiveLogEI(PredictiveModel(Given(mirrored)), -best)(x)
        torch.testing.assert_close(down, up)
        assert down.isfinite().all()


@pytest.mark.parametrize("kind", ["predictive", "log", "batch", "noisy"])
def test_optimize_acqf_finds_the_grids_best(trained, kind):
    x, y = rows()
    sampler = SobolQMCNormalSampler(torch.Size([64]), seed=0)
    acquisition = {
        "predictive": lambda: PredictiveLogEI(trained, y.max()),
        "log": lambda: LogExpectedImprovement(trained, y.max()),
        "batch": lambda: qLogExpectedImprovement(trained, y.max(), sampler=sampler),
        "noisy": lambda: qLogNoisyExpectedImprovement(
            trained, x, sampler=sampler, prune_baseline=True, cache_root=False
        ),
    }[kind]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place, value = optimize_acqf(acquisition, BOX, q=1, num_restarts=4, raw_samples=32, options={"seed": 0})
    grid = torch.linspace(0, 1, 201, dtype=torch.float64).reshape(-1, 1, 1)
    with torch.no_grad():
        best = acquisition(grid).max()
    assert 0 <= place.item() <= 1 and value >= best - 0.05


def test_a_posterior_transform_turns_the_target_round(trained):
    x = torch.rand(4, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = trained.posterior(x, posterior_transform=ScalarizedPosteriorTransform(torch.tensor([-1.0]), 2.0))
    plain = trained.posterior(x)
    torch.testing.assert_close(turned.mean, 2 - plain.mean)
    level = torch.tensor(0.2, dtype=torch.float64)
    torch.testing.assert_close(turned.quantile(level), 2 - plain.quantile(1 - level))


def test_mistakes_are_named(trained):
    x, y = rows()
    with pytest.raises(TypeError, match="what fit or condition returned"):
        PredictiveModel(bv.GP())  # pyright: ignore
    with pytest.raises(ValueError, match="output_indices must be"):
        trained.posterior(x, output_indices=[1])
    classes = PredictiveModel(seen(PLAIN["pfn-classes"]))
    with pytest.raises(ValueError, match="must predict numbers"):
        classes.posterior(PLAIN["pfn-classes"].rows(QUERIES, seed=2)[0])
    with pytest.raises(TypeError, match="takes in no more rows"):
        PredictiveModel(seen(PLAIN["ssvi"])).condition_on_observations(x, y.unsqueeze(-1))
    with pytest.raises(TypeError, match="PredictiveModel"):
        PredictiveLogEI(torch.nn.Linear(1, 1), 0.0)  # pyright: ignore
    with pytest.raises(ValueError, match="columns"):
        trained.posterior(torch.rand(3, 1, 2, dtype=torch.float64))


def test_a_missing_package_names_its_extra():
    code = "import sys; sys.modules['botorch'] = None; import bayesvision.integrations.botorch"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "bayesvision[botorch]"' in ran.stderr
