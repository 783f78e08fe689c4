import copy
import dataclasses
import math
import pickle

import numpy as np
import pyro
import pytest
import torch
import torch.distributions as td
from checks import rejected
from pyro import poutine

from bayesvision.baselines.curve_fit import CurveFit, _value_and_gradient
from bayesvision.baselines.ensemble import CurvePrior, Ensemble, EnsemblePosterior, _autocorrelation
from bayesvision.baselines.last_value import LastValue
from bayesvision.baselines.mcmc import MCMC
from bayesvision.core.data import Data
from bayesvision.core.roles import Posterior
from bayesvision.distributions import Mixture, Normal
from priors import programs
from priors.curves import PARAMETER_PRIORS, LearningCurves
from priors.programs.models import CurveProgram

PRIOR = LearningCurves(10)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def epochs(first, last):
    return torch.arange(first, last + 1, dtype=torch.float64)


def noisy(truth, spread, seed=0):
    return truth + spread * torch.randn(truth.shape, generator=seeded(seed), dtype=torch.float64)


FAMILIES = {
    "pow4": lambda t: 0.8 - (1.7 * t + 2.0) ** -0.6,
    "mmf": lambda t: 0.75 - (0.75 - 0.2) / (1 + (0.08 * t) ** 1.4),
    "ilog2": lambda t: 0.9 - 0.4 / torch.log(t + 1),
}


# CurveFit


@pytest.mark.parametrize("family", FAMILIES)
def test_a_curve_of_the_family_without_noise_is_found(family):
    t, rest = epochs(1, 30), epochs(31, 100)
    law = CurveFit(family).fit(Data(t, FAMILIES[family](t))).predict(rest)
    assert isinstance(law, Normal) and law.batch_shape == (70,)
    assert (law.mean - FAMILIES[family](rest)).abs().max() < 2e-3
    assert (law.stddev > 0).all() and (law.stddev[:20] < 0.01).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_by_the_parameters_are_those_of_autograd(family):
    values = torch.tensor([0.7, 0.4, -0.3, 0.5], dtype=torch.float64)[: 2 if family == "ilog2" else 4]
    t = epochs(1, 12)
    jacobian = torch.autograd.functional.jacobian(lambda v: _value_and_gradient(family, v, t)[0], values)
    torch.testing.assert_close(_value_and_gradient(family, values, t)[1], jacobian)


def test_the_linear_family_has_the_law_of_a_linear_model():
    t, rest = epochs(1, 20), epochs(21, 25)
    y = noisy(FAMILIES["ilog2"](t), 0.02)
    posterior = CurveFit("ilog2", limits=(-9.0, 9.0)).fit(Data(t, y))
    design, new = (torch.stack([torch.ones_like(v), -1 / torch.log(v + 1)], -1) for v in (t, rest))
    solution = torch.linalg.lstsq(design, y.unsqueeze(-1)).solution.squeeze(-1)
    torch.testing.assert_close(posterior.values, solution, rtol=0, atol=2e-3)  # the robust loss differs a little
    variance = ((y - design @ posterior.values).square().sum() + 0.01**2) / 19
    covariance = torch.linalg.inv(design.mT @ design / variance + torch.eye(2, dtype=torch.float64) / 18**2)
    law = posterior.predict(rest)
    torch.testing.assert_close(law.mean, new @ posterior.values)
    torch.testing.assert_close(law.variance, variance + (new @ covariance * new).sum(-1))


def test_the_spread_is_that_of_the_errors():
    # z^2 has mean 1 and variance 2 over 300 curves: 4 standard errors are 0.33, failure rate 6e-5 (a little more as s^2
    # is estimated). A standard deviation doubled or halved gives 0.25 or 4.
    z = []
    for seed in range(300):
        y = noisy(FAMILIES["ilog2"](epochs(1, 41)), 0.03, seed)
        law = CurveFit("ilog2").fit(Data(epochs(1, 40), y[:40])).predict(epochs(41, 41))
        z.append(((y[40] - law.mean) / law.stddev).item())
    square = torch.tensor(z).square().mean()
    assert (square - 1).abs() < 0.4
    assert (square / 4 - 1).abs() > 0.4 and (square * 4 - 1).abs() > 0.4


@pytest.mark.parametrize("family", FAMILIES)
def test_outliers_and_constant_curves_do_no_harm(family):
    t, rest = epochs(1, 40), epochs(41, 100)
    y = noisy(FAMILIES[family](t), 0.005)
    clean = CurveFit(family).fit(Data(t, y)).predict(rest).mean
    y[25] -= 0.5
    assert (CurveFit(family).fit(Data(t, y)).predict(rest).mean - clean).abs().max() < 0.03
    flat = CurveFit(family).fit(Data(t, torch.full_like(t, 0.3))).predict(rest)
    assert (flat.mean - 0.3).abs().max() < 1e-2 and (flat.stddev < 0.05).all()
    percent = CurveFit(family).fit(Data(t, 100 * FAMILIES[family](t))).predict(rest)  # limits are widened
    assert percent.mean.isfinite().all() and percent.stddev.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_curves_that_are_too_short_have_the_law_of_the_last_value(family):
    for n in range(1, 3 if family == "ilog2" else 5):
        data = Data(epochs(1, n), 0.1 * epochs(1, n))
        law, other = (method.fit(data).predict(epochs(1, 30)) for method in (CurveFit(family), LastValue()))
        assert torch.equal(law.mean, other.mean) and torch.equal(law.stddev, other.stddev)


# LastValue


def test_the_last_value_has_its_formula():
    t, y = torch.tensor([2.0, 1.0, 5.0]), torch.tensor([0.5, 0.1, 0.6])  # not in order
    law = LastValue(noise=0.2).fit(Data(t, y)).predict(torch.tensor([5.0, 10.0, 5 / math.e]))
    variance = (0.2**2 + 0.4**2 + 0.1**2) / 3
    torch.testing.assert_close(law.mean, torch.full((3,), 0.6))
    torch.testing.assert_close(law.variance, variance * torch.tensor([1.0, 1 + math.log(2), 2.0]))
    single = LastValue(noise=0.2).fit(Data([3], [0.7])).predict([3])
    assert single.mean.item() == pytest.approx(0.7) and single.stddev.item() == pytest.approx(0.2)


# The density of the prior, and the program


def outside(theta):
    """One accepted draw with one parameter out of its support, with a noise that is no number, and a curve above 1."""
    for name, (law, a, b) in PARAMETER_PRIORS.items():
        for value in (a - 0.01, b + 0.01) if law == "uniform" else (0.0, -1.0):
            yield {**theta, name: torch.full_like(theta[name], value)}
    yield {**theta, "sigma": theta["sigma"] * math.nan}
    yield {**theta, **{name: torch.full_like(theta[name], 0.99) for name in ("w1", "w2", "pow3_c", "ilog2_c")}}


def test_the_density_of_the_prior_is_the_sum_of_its_laws():
    theta, _ = PRIOR.accepted(12, seeded())
    theta = {name: value.double() for name, value in theta.items()}
    truth = sum(
        (td.Uniform(a, b) if law == "uniform" else td.LogNormal(a, b)).log_prob(theta[name])
        for name, (law, a, b) in PARAMETER_PRIORS.items()
    )
    torch.testing.assert_close(PRIOR.log_prob(theta), truth)
    batch = PRIOR.log_prob({name: value.reshape(3, 4) for name, value in theta.items()})
    torch.testing.assert_close(batch, PRIOR.log_prob(theta).reshape(3, 4))
    first = {name: value[0] for name, value in theta.items()}
    assert all(PRIOR.log_prob(other) == -math.inf for other in outside(first))


def density(theta, x, y):
    trace = poutine.trace(poutine.condition(programs.model(PRIOR), data=theta)).get_trace(x, y)
    return trace.log_prob_sum()


def test_the_program_has_the_density_of_the_prior_times_the_likelihood():
    program = programs.model(PRIOR)
    assert program == CurveProgram(PRIOR)
    theta, _ = PRIOR.accepted(1, seeded(3))
    theta = {name: value[0].double() for name, value in theta.items()}
    x, y = epochs(1, 6).unsqueeze(-1), torch.linspace(0.2, 0.5, 6, dtype=torch.float64)
    f = PRIOR.curve(theta, x[:, 0])
    likelihood = td.Normal(f, theta["sigma"]).log_prob(y).sum()
    torch.testing.assert_close(density(theta, x, y), PRIOR.log_prob(theta) + likelihood)
    *_, high = outside(theta)
    assert density(high, x, y) == -math.inf == PRIOR.log_prob(high)
    draws, _ = PRIOR.accepted(5, seeded(4))
    mean, stddev = program.predictive(draws, x.float(), y.float(), x.float())
    torch.testing.assert_close(mean, PRIOR.curve(draws, x[:, 0].float()))
    assert torch.equal(stddev, draws["sigma"][:, None].expand(5, 6))
    leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
    gradients = torch.autograd.grad(density(leaves, x, y), list(leaves.values()))
    assert all(g.isfinite() for g in gradients)


def test_the_no_u_turn_sampler_runs_on_the_program():
    task = PRIOR.sample(1, 6, generator=seeded(1))
    x, y = task.x[0], task.y[0]
    posterior = MCMC(programs.model(PRIOR), warmup=10, draws=8, chains=1, max_tree_depth=3).fit(Data(x[:4], y[:4]))
    assert set(posterior.latent) == set(PARAMETER_PRIORS) and PRIOR.fits(posterior.latent).all()
    law = posterior.predict(x)
    assert isinstance(law, Mixture) and law.batch_shape == (6,) and law.log_prob(y).isfinite().all()
    pyro.get_param_store().clear()


# Ensemble


class Level:
    """A constant curve: level ~ U(0, 1) and log sigma ~ N(-2, 0.5)."""

    def accepted(self, count, generator):
        level = torch.rand(count, generator=generator)
        sigma = torch.exp(-2 + 0.5 * torch.randn(count, generator=generator))
        return {"level": level, "sigma": sigma}, level.unsqueeze(-1).expand(-1, 5)

    def curve(self, theta, t):
        return theta["level"].unsqueeze(-1) + 0 * t

    def log_prob(self, theta):
        inside = (theta["level"] > 0) & (theta["level"] < 1) & (theta["sigma"] > 0)
        log = theta["sigma"].log()
        return torch.where(inside, -2 * (log + 2).square() - log, -math.inf)


SIMPLE = Ensemble(Level(), walkers=40, burn=100, steps=500, thin=5, proposals=400, positive=("sigma",), seed=3)
SHORT = Data(epochs(1, 3), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64))


def agrees(law, mean, stddev, ess):
    """Mean and standard deviation within 4 Monte Carlo errors, as in test_mcmc: failure rate 1.2e-4 a query."""
    near = (law.mean - mean).abs() < 4 * stddev / math.sqrt(ess)
    return bool((near & ((law.stddev / stddev).log().abs() < 4 / math.sqrt(2 * ess))).all())


def test_the_ensemble_has_the_posterior_of_a_grid():
    # The level is independent of the curve's epoch: a grid over (level, log sigma) is exact to 1e-4.
    posterior = SIMPLE.fit(SHORT)
    level, log = torch.meshgrid(
        torch.linspace(0, 1, 402, dtype=torch.float64)[1:-1],
        torch.linspace(-4.5, 0.5, 400, dtype=torch.float64),
        indexing="ij",
    )
    score = td.Normal(level.unsqueeze(-1), log.exp().unsqueeze(-1)).log_prob(SHORT.y).sum(-1) - 2 * (log + 2).square()
    weights = score.flatten().softmax(0).reshape(score.shape)
    mean = (weights * level).sum()
    stddev = (weights * ((level - mean).square() + (2 * log).exp())).sum().sqrt()
    ess = 40 * 500 / max(posterior.autocorrelation.values())
    law = posterior.predict(epochs(9, 9))
    assert ess > 150 and 0.4 < posterior.acceptance < 0.9
    assert agrees(law, mean, stddev, ess)
    for factor in (0.5, 2.0):
        assert not agrees(law, mean, factor * stddev, ess)
    assert not agrees(law, mean + stddev, stddev, ess)
    centre = (weights * log).sum()  # the Jacobian of the logarithm is right
    spread = (weights * (log - centre).square()).sum().sqrt()
    assert (posterior.latent["sigma"].log().mean() - centre).abs() < 4 * spread / math.sqrt(ess)


def test_the_ensemble_agrees_with_importance_sampling_from_the_prior():
    # Both sides are Monte Carlo, with effective sizes of about 60 and above 300; the first is an estimate itself.
    t, y = torch.tensor([1.0, 3.0]).double(), torch.tensor([0.35, 0.5]).double()
    posterior = Ensemble(PRIOR, walkers=80, burn=200, steps=1000, proposals=60_000, seed=1).fit(Data(t, y))
    query = torch.tensor([1.0, 5.0, 10.0], dtype=torch.float64)
    law = posterior.predict(query)

    theta, _ = PRIOR.accepted(150_000, seeded(9))
    theta = {name: value.double() for name, value in theta.items()}
    sigma = theta["sigma"].unsqueeze(-1)
    weights = td.Normal(PRIOR.curve(theta, t), sigma).log_prob(y).sum(-1).softmax(0)
    f = PRIOR.curve(theta, query)
    mean = weights @ f
    stddev = (weights @ ((f - mean).square() + sigma.square())).sqrt()
    sizes = 80 * 1000 / max(posterior.autocorrelation.values()), 1 / weights.square().sum().item()
    ess = 1 / (1 / sizes[0] + 1 / sizes[1])
    assert sizes[1] > 300 and ess > 50
    assert PRIOR.fits(posterior.latent).all()
    assert agrees(law, mean, stddev, ess)
    for factor in (0.5, 2.0):
        assert not agrees(law, mean, factor * stddev, ess)
    assert not agrees(law, mean + stddev, stddev, ess)


def test_the_autocorrelation_time_of_an_autoregression_is_closed_form():
    # x_t = a x_(t-1) + e has the time (1 + a) / (1 - a) = 9 for a = 0.8
    noise = torch.randn(4000, 20, generator=seeded(), dtype=torch.float64)
    chain = torch.zeros_like(noise)
    for k in range(1, 4000):
        chain[k] = 0.8 * chain[k - 1] + noise[k]
    assert _autocorrelation(chain) == pytest.approx(9, rel=0.1)
    assert _autocorrelation(noise) == pytest.approx(1, rel=0.1)
    assert _autocorrelation(torch.ones(50, 4).double()) == 50
    stuck = torch.arange(4.0).double().expand(50, 4)
    assert _autocorrelation(stuck) > 20


def test_the_ensemble_is_deterministic_and_leaves_global_generators_alone(capfd):
    state = np.random.get_state  # the global one is what must not change
    before = state()[1].copy(), torch.get_rng_state()
    first, second = SIMPLE.fit(SHORT), SIMPLE.fit(SHORT)
    assert np.array_equal(before[0], state()[1]) and torch.equal(before[1], torch.get_rng_state())
    assert capfd.readouterr() == ("", "")
    assert torch.equal(first.latent["level"], second.latent["level"]) and first.latent["sigma"].shape == (4000,)
    assert not torch.equal(dataclasses.replace(SIMPLE, seed=4).fit(SHORT).latent["level"], first.latent["level"])
    assert isinstance(first, EnsemblePosterior) and isinstance(PRIOR, CurvePrior)


# All of them


def fitted():
    data = Data(epochs(1, 8), noisy(FAMILIES["ilog2"](epochs(1, 8)), 0.02))
    small = Ensemble(Level(), walkers=8, burn=5, steps=10, thin=2, proposals=50, positive=("sigma",))
    return [method.fit(data) for method in (CurveFit("pow4"), CurveFit("mmf"), CurveFit("ilog2"), LastValue(), small)]


def test_predictions_follow_the_dtype_batches_and_gradients_of_x():
    query = torch.tensor([9.0, 20.0, 55.0, 100.0], dtype=torch.float64)
    for posterior in fitted():
        assert isinstance(posterior, Posterior)
        law = posterior.predict(query)
        assert law.batch_shape == (4,) and law.mean.dtype == torch.float64
        assert posterior.predict(query.float()).log_prob(torch.full((4,), 0.5)).dtype == torch.float64  # the values are
        assert posterior.predict([9, 20]).mean.shape == posterior.predict(np.array([[9.0], [20.0]])).mean.shape == (2,)
        batch = posterior.predict(query.reshape(2, 2, 1))
        assert batch.batch_shape == (2, 2) and torch.equal(batch.stddev.flatten(), law.stddev)
        leaf = query.clone().requires_grad_()
        law = posterior.predict(leaf)
        (gradient,) = torch.autograd.grad((law.mean + law.stddev).sum(), leaf)
        assert gradient.isfinite().all()
        for other in (copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior))):
            assert torch.equal(other.predict(query).mean, law.mean)
        narrow = copy.deepcopy(posterior).to(torch.float32).predict(query)
        torch.testing.assert_close(narrow.stddev, law.stddev.detach(), rtol=1e-3, atol=0)


def test_the_order_of_rows_does_not_matter():
    t = epochs(1, 12)
    y = noisy(FAMILIES["mmf"](t), 0.01)
    order = torch.randperm(12, generator=seeded())
    for method in (CurveFit("mmf"), LastValue(), SIMPLE):
        law, other = (method.fit(Data(t[k], y[k])).predict([20.0]) for k in (torch.arange(12), order))
        assert torch.equal(law.mean, other.mean) and torch.equal(law.stddev, other.stddev)


def test_mistakes_are_named():
    with rejected("family must be one of pow4, mmf, ilog2"):
        CurveFit("exp4")  # pyright: ignore
    t, y = epochs(1, 8), FAMILIES["ilog2"](epochs(1, 8))
    cases = [
        (lambda: CurveFit(limits=(1.0, 0.0)), "limits"),
        (lambda: CurveFit(starts=0), "starts"),
        (lambda: CurveFit(noise=0.0), "noise"),
        (lambda: LastValue(noise=math.inf), "noise"),
        (lambda: Ensemble(PRIOR, walkers=7), "walkers must be even"),
        (lambda: Ensemble(PRIOR, steps=10, thin=20), "thin"),
        (lambda: Ensemble(PRIOR, proposals=10), "proposals"),
        (lambda: Ensemble(PRIOR, walkers=10).fit(Data(t, y)), "at least 26"),
        (lambda: Ensemble(Level(), walkers=40, proposals=50).fit(Data(t, y)), "pow3_alpha"),
        (lambda: LastValue().fit(Data(t)), "y must"),
        (lambda: LastValue().fit(Data(t, y[:3])), "one value for each row"),
        (lambda: CurveFit().fit(Data(t - 1, y)), "count epochs from 1"),
        (lambda: CurveFit().fit(Data(t, y * math.nan)), "finite"),
        (lambda: SIMPLE.fit(Data(t.reshape(2, 4, 1), y)), "one by one"),
        (lambda: CurveFit().fit(Data(t.reshape(4, 2), y[:4])), "1 columns"),
        (lambda: LastValue().fit(Data(t, y)).predict([0.0]), "epochs above 0"),
        (lambda: CurveFit().fit(Data(t, y)).predict(torch.zeros(3, 2)), "1 columns"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    for call in (lambda: LastValue().fit(t), lambda: Ensemble(t), lambda: Ensemble(LearningCurves)):  # pyright: ignore
        with pytest.raises(TypeError):
            call()
