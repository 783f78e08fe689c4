"""Calibration of posteriors over latent variables: right ones pass, wrong ones are found. False alarms: 1 in 10,000."""

import pytest
import torch

from bayesvision import metrics
from bayesvision.distributions import GaussianMixture, WeightedDraws
from bayesvision.training.seeds import generator
from priors import LinearGaussian

FALSE_ALARM = 1e-4


@pytest.fixture(scope="module")
def problems():
    """Latent variables and their exact posteriors."""
    family = LinearGaussian(2, noise=1.0)
    problem = family.sample(2_000, 2, generator=generator("cpu", 1))
    prior = type(problem.mixture)(*(v.double().clamp(min=-60) for v in problem.mixture))
    return problem.theta.double(), GaussianMixture(*family.posterior(prior, problem.x.double(), problem.y.double()))


def changed(law, scale=1.0, shift=0.0):
    return GaussianMixture(law.logits, law.loc + shift, scale * law.scale_tril)


def as_draws(law):
    values = law.sample((500,), generator("cpu", 2)).movedim(0, -2)
    return WeightedDraws(values, torch.full(values.shape[:-1], 1 / 500, dtype=torch.float64))


def test_levels_of_latent_variables_are_uniform_where_posteriors_are_right(problems):
    theta, law = problems
    for one in (law, as_draws(law)):
        levels = metrics.latent_pit(one, theta)
        assert levels.shape == theta.shape
        assert min(metrics.ks_pvalue(levels[:, i]) for i in range(2)) > FALSE_ALARM
    for wrong in (changed(law, 0.5), changed(law, 2.0), changed(law, shift=0.5)):
        assert metrics.ks_pvalue(metrics.latent_pit(wrong, theta)[:, 0]) < 1e-6


def test_tarp_is_uniform_where_posteriors_are_right(problems):
    theta, law = problems
    for one in (law, as_draws(law)):
        assert metrics.ks_pvalue(metrics.tarp(one, theta)) > FALSE_ALARM
    for wrong in (changed(law, 0.5), changed(law, 2.0)):
        assert metrics.ks_pvalue(metrics.tarp(wrong, theta)) < 1e-6


def test_tarp_finds_a_posterior_that_ignores_how_variables_depend_on_each_other():
    """Marginals are right and the joint is not."""
    rng = generator("cpu", 3)
    tril = torch.linalg.cholesky(torch.tensor([[1.0, 0.95], [0.95, 1.0]], dtype=torch.float64))
    theta = torch.randn(4_000, 2, generator=rng, dtype=torch.float64) @ tril.mT
    one = torch.zeros(4_000, 1, dtype=torch.float64), torch.zeros(4_000, 1, 2, dtype=torch.float64)
    right, wrong = (GaussianMixture(*one, t.view(1, 1, 2, 2)) for t in (tril, torch.eye(2, dtype=torch.float64)))
    assert metrics.ks_pvalue(metrics.latent_pit(wrong, theta)[:, 0]) > FALSE_ALARM
    assert metrics.ks_pvalue(metrics.tarp(right, theta)) > FALSE_ALARM
    assert metrics.ks_pvalue(metrics.tarp(wrong, theta)) < 1e-6


def test_shapes_that_do_not_fit_are_refused(problems):
    theta, law = problems
    with pytest.raises(ValueError, match="shape"):
        metrics.latent_pit(law, theta[:5])
    with pytest.raises(ValueError, match="two problems"):
        metrics.tarp(law[:1], theta[:1])
    with pytest.raises(ValueError, match="draws"):
        metrics.tarp(law, theta, draws=0)
