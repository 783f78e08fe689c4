"""`Averaged`: an observation's distribution averaged over latent variables, with probability at its bounds."""

import pytest
import scipy.stats
import torch

from bayesvision.core.observations import Averaged, observation
from bayesvision.training.seeds import generator
from priors import SensorFusion

FAMILY = SensorFusion(maximum=8.0)


@pytest.fixture
def law():
    theta = torch.randn(40, 4, generator=generator("cpu", 1)).double() + torch.tensor([4.0, -4.0, 0, 0]).double()
    return observation(FAMILY, theta, torch.linspace(-2, 0, 40).double(), FAMILY.reading)


@pytest.fixture
def draws(law):
    rng = generator("cpu", 2)
    member = torch.multinomial(law.weights[0], 200_000, replacement=True, generator=rng)
    return FAMILY.observed(law.theta[0, member], FAMILY.reading).sample(generator=rng).double()


def test_it_is_the_distribution_of_simulated_observations(law, draws):
    assert isinstance(law, Averaged) and law.batch_shape == (2,)
    torch.testing.assert_close(law.mean, draws.mean(0), rtol=0.01, atol=0.01)
    torch.testing.assert_close(law.variance, draws.var(0), rtol=0.03, atol=0.01)
    for level in (0.1, 0.5, 0.8):
        torch.testing.assert_close(law.quantile(level), draws.quantile(level, 0), rtol=0.02, atol=0.01)
    inside = draws[(draws[:, 0] > 0) & (draws[:, 0] < 8), 0][:3_000]
    atom = law[0].cdf(torch.tensor(0.0).double()), law[0].cdf(torch.tensor(8.0 - 1e-9, dtype=torch.float64))
    level = ((law[0].cdf(inside) - atom[0]) / (atom[1] - atom[0])).numpy()
    assert scipy.stats.kstest(level, "uniform").pvalue > 1e-4  # a false alarm once in 10,000 runs
    assert scipy.stats.kstest(law[0].cdf(inside + 0.5).numpy(), "uniform").pvalue < 1e-6


def test_the_mass_at_a_bound_is_part_of_it(law, draws):
    share = float((draws[:, 0] == 8.0).double().mean())
    jump = 1 - float(law[0].cdf(torch.tensor(8.0 - 1e-9, dtype=torch.float64)))
    assert jump == pytest.approx(share, rel=0.05) and share > 0.005
    assert float(law[0].log_prob(torch.tensor(8.0).double()).exp()) == pytest.approx(jump, rel=1e-6)
    assert float(law[0].icdf(torch.tensor(1 - jump / 2).double())) == pytest.approx(8.0, abs=1e-9)


def test_scores_are_those_of_draws(law, draws):
    y = torch.tensor([5.0, -0.7]).double()
    expected = (draws - y).abs().mean(0)
    torch.testing.assert_close(law.expected_absolute_error(y), expected, rtol=0.02, atol=0.005)
    half = (draws[:100_000] - draws[100_000:]).abs().mean(0) / 2
    torch.testing.assert_close(law.crps(y), expected - half, rtol=0.03, atol=0.01)
    beyond = torch.tensor([9.0, -4.0]).double()
    torch.testing.assert_close(
        law.expected_absolute_error(beyond), (draws - beyond).abs().mean(0), rtol=0.02, atol=0.01
    )


def test_marginals_are_picked_and_expanded(law):
    y = torch.tensor([5.0, -0.7]).double()
    torch.testing.assert_close(law[1].log_prob(y[1]), law.log_prob(y)[1])
    wide = law.expand((3, 2))
    assert wide.batch_shape == (3, 2) and wide.sample((4,)).shape == (4, 3, 2)
    torch.testing.assert_close(wide.log_prob(y)[2], law.log_prob(y))
