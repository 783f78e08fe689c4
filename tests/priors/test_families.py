"""Families of inference problems: their samplers have the densities that they state, and their posteriors are exact."""

import math

import pytest
import scipy.stats
import torch
import torch.distributions as td

from bayesvision.distributions import GaussianMixture
from bayesvision.training.seeds import generator
from priors import LinearGaussian, NormalVariance
from priors.draws import Draws

FAMILIES = [NormalVariance(), LinearGaussian(2)]


def test_the_exact_mixture_is_bayes_rule():
    """Prior times likelihood, normalised on a grid."""
    family = LinearGaussian(latents=1, components=3)
    problem = family.sample(4, 5, generator=generator("cpu", 2))
    mixture = type(problem.mixture)(*(v.double() for v in problem.mixture))
    grid = torch.linspace(-12, 12, 6_001, dtype=torch.float64).view(-1, 1, 1)
    for k in range(4):
        one = type(mixture)(*(v[k] for v in mixture))
        x, y = problem.x[k].double(), problem.y[k].double()
        clean = type(one)(one.logits.clamp(min=-60), one.loc, one.scale_tril)
        joint = GaussianMixture(*clean).log_prob(grid[:, 0]) + family.log_likelihood(grid[:, 0], x, y).sum(-1)
        expected = joint - joint.logsumexp(0) - math.log(24 / 6_000)
        found = GaussianMixture(*family.posterior(clean, x, y)).log_prob(grid[:, 0])
        near = expected > -15
        torch.testing.assert_close(found[near], expected[near], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", [NormalVariance(), LinearGaussian(2)])
def test_the_sampler_has_the_density_of_the_likelihood(family):
    """P(Y <= y) of simulated observations is uniform; with twice the standard deviation it is not."""
    problem = family.sample(4_000, 1, generator=generator("cpu", 8))
    theta, x, y = problem.theta.double(), problem.x.double(), problem.y.double()
    loc, scale = family.observed(theta, x)
    u = td.Normal(loc, scale).cdf(y).flatten().numpy()
    assert scipy.stats.kstest(u, "uniform").pvalue > 1e-4  # a false alarm once in 10,000 runs
    wide = td.Normal(loc, 2 * scale).cdf(y).flatten().numpy()
    assert scipy.stats.kstest(wide, "uniform").pvalue < 1e-6
    said = torch.stack([family.log_likelihood(theta[k], x[k], y[k]).sum() for k in range(50)])
    torch.testing.assert_close(said, td.Normal(loc, scale).log_prob(y)[:50, 0])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_problems(family):
    a, b = (family.sample(4, 3, generator=generator("cpu", 3)) for _ in range(2))
    assert torch.equal(a.y, b.y) and torch.equal(a.theta, b.theta)


@pytest.mark.parametrize("shape", [0.05, 0.7, 3.0, 1e4])
def test_logarithms_of_gamma_variates(shape):
    """False alarms: p < 1e-4 in each of four."""
    found = Draws(1, generator("cpu", 4)).log_gamma(4_000, shape=shape).flatten().double()
    assert found.isfinite().all()
    level = scipy.stats.loggamma(shape).cdf(found.numpy())
    assert scipy.stats.kstest(level, "uniform").pvalue > 1e-4
    assert scipy.stats.kstest(scipy.stats.loggamma(1.5 * shape).cdf(found.numpy()), "uniform").pvalue < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_theta_has_the_density_of_its_prior(family):
    """The levels of theta_1 under its prior are uniform; under that of the next problem they are not."""
    problem = family.sample(4_000, 1, generator=generator("cpu", 9))
    theta = problem.theta[:, 0].double()
    if problem.hyper is not None:
        a, b = problem.hyper.double().exp().unbind(-1)
        level = lambda shift: td.Gamma(a.roll(shift), b.roll(shift)).cdf(1 / theta)  # noqa: E731
    else:
        parts = [v.double() for v in problem.mixture]
        law = GaussianMixture(parts[0], parts[1], parts[2]).marginal(0)
        level = lambda shift: law.cdf(theta.roll(-shift))  # noqa: E731
    assert scipy.stats.kstest(level(0).numpy(), "uniform").pvalue > 1e-4  # a false alarm once in 10,000 runs
    assert scipy.stats.kstest(level(1).numpy(), "uniform").pvalue < 1e-6


def test_the_exact_inverse_gamma_is_bayes_rule():
    family = NormalVariance()
    prior, y = td.InverseGamma(3.0, 2.0), torch.tensor([0.3, -1.2, 0.8])
    theta = torch.tensor([0.2, 0.7, 3.0]).unsqueeze(-1)
    joint = prior.log_prob(theta[:, 0]) + family.log_likelihood(theta, y.new_zeros(3, 0), y).sum(-1)
    exact = family.posterior(prior, y).log_prob(theta[:, 0])
    torch.testing.assert_close((joint - exact).diff(), torch.zeros(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_units_are_those_of_the_same_problem(family):
    """A problem whose latent variables are moved and scaled looks the same in units of its prior."""
    problem = family.sample(5, 3, generator=generator("cpu", 6))
    x, y = problem.x.double(), problem.y.double()
    loc, scale = torch.full((5, family.latents), 0.4).double(), torch.full((5, family.latents), 1.7).double()
    a, b = family.relative(x, y, loc, scale)
    if isinstance(family, NormalVariance):
        again = family.relative(x, y * math.exp(1.1 / 2), loc + 1.1, scale)
    else:
        again = family.relative(x, y + (x @ torch.full((2, 1), 2.0).double()).squeeze(-1), loc + 2.0, scale)
    torch.testing.assert_close(again, (a, b))


@pytest.mark.parametrize("fields", [{"meta": (0.0, 1.0)}, {"meta": (1.0, float("inf"))}])
def test_a_meta_prior_out_of_range_is_refused(fields):
    with pytest.raises(ValueError, match="must be positive"):
        NormalVariance(**fields)


@pytest.mark.parametrize("fields", [{"latents": 0}, {"components": 0}, {"noise": 0.0}, {"spread": -1.0}])
def test_a_field_out_of_range_is_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        LinearGaussian(**fields)
