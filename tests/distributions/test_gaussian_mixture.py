"""`GaussianMixture` over real, positive and bounded latent variables, and `WeightedDraws`."""

import pytest
import torch

from bayesvision.distributions import GaussianMixture, WeightedDraws
from bayesvision.distributions.gaussian_mixture import unconstrained
from bayesvision.training.seeds import generator

SUPPORTS = ("real", "positive", "unit", "unit")


@pytest.fixture
def law():
    rng = generator("cpu", 1)
    a = torch.randn(3, 4, 4, generator=rng, dtype=torch.float64)
    tril = torch.linalg.cholesky(0.15 * a @ a.mT + 0.1 * torch.eye(4, dtype=torch.float64))
    loc = torch.randn(3, 4, generator=rng, dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64), loc, tril, SUPPORTS)


def test_moments_are_those_of_draws(law):
    draws = law.sample((1_000_000,), generator("cpu", 2))
    torch.testing.assert_close(law.mean, draws.mean(0), rtol=0, atol=0.01)
    scale = law.variance.sqrt()
    found = torch.cov(draws.mT) / scale / scale.unsqueeze(-1)
    torch.testing.assert_close(found, law.covariance_matrix / scale / scale.unsqueeze(-1), rtol=0, atol=0.02)
    torch.testing.assert_close(law.covariance_matrix, law.covariance_matrix.mT)


@pytest.mark.parametrize("loc", [-30.0, 0.0, 4.0])
@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])
def test_a_logit_normal_has_the_mean_of_a_fine_quadrature(loc, scale):
    one = GaussianMixture(torch.zeros(1), torch.full((1, 1), loc), torch.full((1, 1, 1), scale), ("unit",))
    one = GaussianMixture(*(v.double() for v in (one.logits, one.loc, one.scale_tril)), ("unit",))
    z = torch.linspace(-12, 12, 2_000_001, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2)
    mean = ((loc + scale * z).sigmoid() * weight).sum() / weight.sum()
    torch.testing.assert_close(one.mean[0], mean, rtol=1e-9, atol=1e-12)
    square = ((loc + scale * z).sigmoid().square() * weight).sum() / weight.sum()
    torch.testing.assert_close(one.variance[0], square - mean.square(), rtol=1e-6, atol=1e-12)


def test_the_density_of_a_bounded_variable_integrates_to_one_and_is_its_marginal(law):
    marginal = law.marginal(2)
    points = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    assert float(marginal.log_prob(points).exp().mean()) == pytest.approx(1, abs=1e-4)
    assert float(marginal.mean) == pytest.approx(float(law.mean[2]), rel=1e-6)
    low, high = law.interval(0.9)
    draws = law.sample((200_000,), generator("cpu", 3))
    inside = ((draws > low) & (draws < high)).double().mean(0)
    torch.testing.assert_close(inside, torch.full((4,), 0.9).double(), rtol=0, atol=0.005)


def test_log_prob_is_that_of_the_unconstrained_variables(law):
    draws = law.sample((5,), generator("cpu", 4))
    u = unconstrained(draws, SUPPORTS)
    torch.testing.assert_close(law.constrained(u), draws)
    plain = GaussianMixture(law.logits, law.loc, law.scale_tril).log_prob(u)
    jacobian = draws[:, 1].log() + (draws[:, 2:].log() + (-draws[:, 2:]).log1p()).sum(-1)
    torch.testing.assert_close(law.log_prob(draws), plain - jacobian)


@pytest.mark.parametrize("value", [(0.0, -1.0, 0.5, 0.5), (0.0, 1.0, 0.0, 0.5), (0.0, 1.0, 0.5, 1.2)])
def test_out_of_bounds_there_is_no_mass(law, value):
    assert law.log_prob(torch.tensor(value, dtype=torch.float64)) == -torch.inf


def test_unknown_supports_are_refused():
    with pytest.raises(ValueError, match="real, positive or unit"):
        GaussianMixture(torch.zeros(1), torch.zeros(1, 1), torch.ones(1, 1, 1), ("simplex",))


def test_weighted_draws_have_weighted_moments_and_quantiles():
    values = torch.tensor([[[0.0], [1.0], [2.0]], [[5.0], [6.0], [9.0]]], dtype=torch.float64)
    weights = torch.tensor([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]], dtype=torch.float64)
    law = WeightedDraws(values, weights)
    torch.testing.assert_close(law.mean, torch.tensor([[1.1], [6.0]]).double())
    torch.testing.assert_close(law.covariance_matrix[:, 0, 0], torch.tensor([0.49, 0.0]).double())
    torch.testing.assert_close(law.quantile(0.5), torch.tensor([[1.0], [6.0]]).double())
    torch.testing.assert_close(law.effective_size, torch.tensor([1 / 0.38, 1.0]).double())
    again = law.resampled(1_000, generator("cpu", 5))
    counts = [(again[0] == v).sum().item() for v in (0.0, 1.0, 2.0)]
    assert all(abs(n - 1_000 * w) <= 1 for n, w in zip(counts, (0.2, 0.5, 0.3), strict=True))  # systematic: to one
    assert (again[1] == 6.0).all()
    with pytest.raises(ValueError, match="level"):
        law.quantile(1.5)
