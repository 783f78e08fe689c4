"""`ParticleFilter`: Kalman's filter in the linear-Gaussian limit, exact posteriors of families, and what it refuses."""

import pytest
import torch
import torch.distributions as td
from checks import unchecked

import bayesvision as bv
from bayesvision.distributions import GaussianMixture
from bayesvision.training.seeds import generator
from priors import LinearGaussian, NormalVariance, Qubit, SensorFusion

F, Q = torch.tensor([[1.0, 0.5], [0.0, 0.9]]).double(), torch.tensor([[0.2, 0.05], [0.05, 0.1]]).double()


def kalman(mean, covariance, steps, noise):
    """Mean and covariance after (transition, noise, designs, observations) of every step."""
    for x, y in steps:
        mean, covariance = F @ mean, F @ covariance @ F.mT + Q
        gain = covariance @ x.mT @ torch.linalg.inv(x @ covariance @ x.mT + noise * torch.eye(len(x)).double())
        mean, covariance = mean + gain @ (y - x @ mean), covariance - gain @ x @ covariance
    return mean, covariance


def test_in_the_linear_gaussian_limit_it_is_kalmans_filter():
    """After ten steps, with errors of a hundred thousandth of draws: below 3 % of a deviation."""
    rng = generator("cpu", 1)
    steps = [(torch.randn(2, 2, generator=rng).double(), torch.randn(2, generator=rng).double()) for _ in range(10)]
    prior = td.MultivariateNormal(torch.tensor([1.0, -1.0]).double(), torch.eye(2).double())
    belief = bv.ParticleFilter(100_000).fit(LinearGaussian(2, noise=0.5)).with_prior(prior)
    for number, (x, y) in enumerate(steps):
        belief = belief.move(F if number % 2 else lambda theta: theta @ F.mT, Q).condition(x, y)
    mean, covariance = kalman(prior.mean, prior.covariance_matrix, steps, 0.5)
    scale = covariance.diagonal().sqrt()
    torch.testing.assert_close(belief.latent.mean / scale, mean / scale, rtol=0, atol=0.03)
    torch.testing.assert_close(
        belief.latent.covariance_matrix / scale / scale.unsqueeze(-1),
        covariance / scale / scale.unsqueeze(-1),
        rtol=0,
        atol=0.05,
    )
    new = torch.tensor([[1.0, 0.0]]).double()
    law = belief.predict(new)
    assert float(law.mean) == pytest.approx(float(mean[0]), abs=0.03)
    assert float(law.variance) == pytest.approx(float(covariance[0, 0]) + 0.5, rel=0.05)


def test_a_bearing_far_away_is_kalmans_update():
    """A narrow belief, where a bearing is linear."""
    mean = torch.tensor([6.0, 8.0, 0.1, 0.0]).double()
    covariance = torch.diag(torch.tensor([0.04, 0.04, 0.01, 0.01])).double() + 0.005
    belief = bv.ParticleFilter(200_000).fit(SensorFusion()).with_prior(td.MultivariateNormal(mean, covariance))
    seen = belief.condition([[1.0]], [0.95])
    slope = torch.tensor([[-8.0 / 100, 6.0 / 100, 0.0, 0.0]]).double()
    gain = covariance @ slope.mT / (slope @ covariance @ slope.mT + 0.01)
    off = 0.95 - torch.atan2(mean[1], mean[0])
    torch.testing.assert_close(seen.latent.mean, mean + gain[:, 0] * off, rtol=0, atol=0.003)


def test_batches_are_single_problems_and_order_does_not_matter():
    family = SensorFusion()
    prior = td.MultivariateNormal(torch.tensor([3.0, 2.0, 0.0, 0.0]).double(), torch.eye(4).double())
    belief = bv.ParticleFilter(5_000).fit(family).with_prior(prior)
    y = torch.tensor([[3.0, 0.5], [4.0, 0.7]]).double()
    both = belief.condition(y=y)
    assert both.latent.mean.shape == (2, 4)
    for k in range(2):
        one = belief.condition(y=y[k])
        torch.testing.assert_close(one.latent.mean, both.latent.mean[k])
        turned = belief.condition([[1.0]], y[k, 1:]).condition([[0.0]], y[k, :1])
        torch.testing.assert_close(turned.latent.mean, one.latent.mean)
    assert torch.equal(belief.latent.mean, bv.ParticleFilter(5_000).fit(family).with_prior(prior).latent.mean)


def test_the_qubit_is_the_exact_posterior():
    family, y = Qubit(), torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 1, 1, 0])
    prior = td.Beta(torch.tensor([2.0]).double(), torch.tensor([3.0]).double())
    seen = bv.ParticleFilter(100_000).fit(family).with_prior(prior).condition(y=y)
    grid = (torch.arange(2_000).double() + 0.5) / 2_000
    log = torch.stack([family.log_density(td.Beta(2.0, 3.0), family.reading, y.double(), point) for point in grid])
    assert float(log.exp().mean()) == pytest.approx(1, abs=1e-3)
    assert float(seen.latent.mean) == pytest.approx(float((grid * log.exp()).mean()), abs=0.005)
    law = seen.predict(family.reading[:2])
    assert ((law.probs > 0) & (law.probs < 1)).all() and law.class_probs.shape == (2, 2)


def test_priors_may_be_draws_mixtures_or_the_family_s_own():
    belief = bv.ParticleFilter(4_000).fit(LinearGaussian(2))
    normal = GaussianMixture(torch.zeros(1), torch.ones(1, 2), 0.1 * torch.eye(2).unsqueeze(0))
    told = normal.sample((500,), generator("cpu", 3))
    for prior in (normal, told):
        torch.testing.assert_close(belief.with_prior(prior).latent.mean, torch.ones(2).double(), rtol=0, atol=0.02)
    assert belief.latent.covariance_matrix.diagonal().min() > 1


def test_what_it_cannot_do_is_said():
    with pytest.raises(ValueError, match="particles"):
        bv.ParticleFilter(1)
    with unchecked(), pytest.raises(TypeError, match="family"):
        bv.ParticleFilter().fit(object())
    belief = bv.ParticleFilter(100).fit(SensorFusion())
    with pytest.raises(ValueError, match="whole reading of 2"):
        belief.condition(y=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="got None"):
        belief.condition()
    with pytest.raises(ValueError, match="finite"):
        belief.condition(y=[float("nan"), 0.0])
    with pytest.raises(ValueError, match="modulo a turn"):
        belief.condition(y=[1.0, 7.0])
    with pytest.raises(ValueError, match="outcomes 0 and 1"):
        bv.ParticleFilter(100).fit(Qubit()).condition([[1.0, 0.0, 1.0]], [0.5])
    with pytest.raises(ValueError, match="no draw explains"):
        bv.ParticleFilter(100).fit(NormalVariance()).with_prior(torch.full((50, 1), 1e-300)).condition(y=[1e10])
    with pytest.raises(ValueError, match="semi-definite"):
        belief.move(torch.eye(4), -torch.eye(4))
    with pytest.raises(ValueError, match="4 latent"):
        belief.with_prior(td.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    with pytest.raises(ValueError, match="only real"):
        bv.ParticleFilter(100).fit(NormalVariance()).move([[1.0]], [[1.0]])
    with pytest.raises(ValueError, match="no design"):
        bv.ParticleFilter(100).fit(NormalVariance()).predict([[1.0]])
    with pytest.raises(ValueError, match="symmetric"):
        belief.move(torch.eye(4), torch.eye(4) + torch.eye(4).roll(1, 0))
    with pytest.raises(ValueError, match="finite values"):
        belief.move(lambda theta: theta / 0, torch.eye(4))
