"""Families of inference problems: their samplers have the densities that they state, and their posteriors are exact."""

import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
import torch.distributions as td

from bayesvision.core.roles import Family, Parametric
from bayesvision.distributions import GaussianMixture
from bayesvision.training.seeds import generator
from priors import LinearGaussian, NormalVariance, ProcessHyperparameters, Qubit, SensorFusion
from priors.draws import Draws
from priors.programs import ProgramFamily, PyroPrior

FALSE_ALARM = 1e-4  # once in 10,000 runs


def program(rows):
    """A line through 0 with noise of unknown size."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.5))
    with pyro.plate("rows", rows):
        x = pyro.sample("x", dist.Uniform(-1.0, 1.0))
        y = pyro.sample("y", dist.Normal(slope * x, scale))
    return x.unsqueeze(-1), y


PROGRAM = ProgramFamily(PyroPrior(program))
NORMAL = [NormalVariance(), LinearGaussian(2), ProcessHyperparameters(), PROGRAM]  # of normal observations
FAMILIES = [*NORMAL, Qubit(), SensorFusion()]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_one(family):
    assert isinstance(family, Family) and isinstance(family, Parametric) == (family.hyperparameters > 0)
    problem = family.sample(4, 3, generator=generator("cpu", 3))
    assert problem.x.shape == (4, 3, family.features) and problem.theta.shape == (4, family.latents)
    again = family.sample(4, 3, generator=generator("cpu", 3))
    assert torch.equal(problem.y, again.y) and torch.equal(problem.theta, again.theta)
    assert sum(told is not None for told in (problem.hyper, problem.mixture, problem.draws)) == 1
    own = family.own(50, generator("cpu", 4))
    assert own.shape == (50, family.latents) and own.isfinite().all()
    loc, tril = torch.zeros(4, family.latents), torch.eye(family.latents).expand(4, -1, -1)
    x, y = family.relative(problem.x, problem.y, loc, tril)
    assert x.shape == (4, 3, family.inputs) and y.shape == (4, 3)
    by_component = family.relative(problem.x.unsqueeze(1), problem.y.unsqueeze(1), loc.unsqueeze(1), tril.unsqueeze(1))
    torch.testing.assert_close(by_component[0][:, 0], x)


@pytest.mark.parametrize("family", NORMAL)
def test_the_sampler_has_the_density_of_the_likelihood(family):
    """P(Y <= y) of simulated observations is uniform; with twice the standard deviation it is not."""
    problem = family.sample(4_000, 1, generator=generator("cpu", 8))
    theta, x, y = problem.theta.double(), problem.x.double(), problem.y.double()
    law = family.observed(theta, x)
    assert scipy.stats.kstest(law.cdf(y).flatten().numpy(), "uniform").pvalue > FALSE_ALARM
    wide = td.Normal(law.loc, 2 * law.scale).cdf(y).flatten().numpy()
    assert scipy.stats.kstest(wide, "uniform").pvalue < 1e-6
    said = torch.stack([family.log_likelihood(theta[k], x[k], y[k]).sum() for k in range(50)])
    torch.testing.assert_close(said, law.log_prob(y)[:50, 0], rtol=1e-4, atol=1e-4)


def test_readings_of_a_sensor_have_their_density():
    """Levels P(Y <= y), drawn at random within the jumps at the rangefinder's bounds, are uniform for both sources."""
    family = SensorFusion(maximum=12.0)
    problem = family.sample(20_000, 2, generator=generator("cpu", 3))
    x, y = problem.x.double(), problem.y.double()
    law = family.observed(problem.theta.double(), x)
    low, high = law.support.lower_bound, law.support.upper_bound
    jump = torch.where(law.is_bearing | ((y > low) & (y < high)), 0.0, law.log_prob(y).exp())
    u = torch.rand(y.shape, generator=generator("cpu", 4), dtype=torch.float64)
    level = law.cdf(y) - jump * u
    assert ((y == high) & ~law.is_bearing).sum() > 50 and ((y == low) & ~law.is_bearing).sum() > 3
    for source in (law.is_bearing, ~law.is_bearing):
        assert scipy.stats.kstest(level[source].numpy(), "uniform").pvalue > FALSE_ALARM
        assert scipy.stats.kstest(level[source].square().numpy(), "uniform").pvalue < 1e-6
    farther = family.observed(1.3 * problem.theta.double(), x).cdf(y)[~law.is_bearing]
    assert scipy.stats.kstest(farther.numpy(), "uniform").pvalue < 1e-6


@pytest.mark.parametrize("place", [(3.0, 4.0), (0.05, -0.02), (-11.0, 0.1), (11.9, 0.0)])
def test_readings_have_the_mass_of_one(place):
    """The integral of the density, and what lies at the bounds; also across the seam of a bearing."""
    family = SensorFusion(maximum=12.0)
    theta = torch.tensor([[*place, 0.0, 0.0]], dtype=torch.float64)
    law = family.observed(theta, family.reading)
    low, high = law.support.lower_bound[0], law.support.upper_bound[0]
    share = (torch.arange(100_000, dtype=torch.float64).unsqueeze(-1) + 0.5) / 100_000
    points = low + share * (high - low)
    inside = law.log_prob(points).exp().mean(0) * (high - low)
    bounds = law.log_prob(torch.stack([low, high])).exp()[:, 0].sum()
    torch.testing.assert_close(
        inside + torch.stack([bounds, bounds.new_zeros(())]), torch.ones(2).double(), rtol=1e-5, atol=0
    )
    middle = points[40_000]
    slope = (law.cdf(middle + 1e-5) - law.cdf(middle - 1e-5)) / 2e-5
    torch.testing.assert_close(slope[0], law.log_prob(middle).exp()[0], rtol=1e-4, atol=1e-6)
    assert law.log_prob(high + 0.1).isneginf().all() and (law.cdf(high) == 1).all() and (law.cdf(low - 1) == 0).all()


def test_measurements_of_a_qubit_have_their_probability():
    """Frequencies beside probabilities, averaged in closed form over preparation and time: z^2 sums to a chi-square."""
    family = Qubit()
    theta = torch.linspace(0.05, 0.95, 5).double()
    rng = generator("cpu", 11)
    found, count = [], 40_000
    for value in theta:
        fixed = _Fixed(float(value))
        problem = fixed.sample(count, 10, generator=rng)
        order = (problem.x == family.reading.float()).all(-1).all(-1)  # all ten in their order
        found.append((problem.y[order].mean(0).double(), int(order.sum())))
    said = family.observed(theta.unsqueeze(-1), family.reading).probs
    z = torch.stack([(f - p) / (p * (1 - p) / n).sqrt() for (f, n), p in zip(found, said, strict=True)])
    assert scipy.stats.chi2(50).sf(z.square().sum().item()) > FALSE_ALARM
    clean = Qubit.__dict__["observed"]
    sharp = _Sharp()
    other = clean(sharp, theta.unsqueeze(-1), family.reading).probs
    z = torch.stack([(f - p) / (p * (1 - p) / n).sqrt() for (f, n), p in zip(found, other, strict=True)])
    assert scipy.stats.chi2(50).sf(z.square().sum().item()) < 1e-6  # without the noise it is another one


class _Fixed(Qubit):
    """One value of D."""

    def __init__(self, value):
        super().__init__()
        object.__setattr__(self, "value", value)

    def draws(self, hyper, count, generator):
        return torch.full((len(hyper), count, 1), self.value)


class _Sharp(Qubit):
    """No noise of preparation and time."""

    state_noise, time_noise = 1e-3, 1e-6


@pytest.mark.parametrize("shape", [0.05, 0.7, 3.0, 1e4])
def test_logarithms_of_gamma_variates(shape):
    found = Draws(1, generator("cpu", 4)).log_gamma(4_000, shape=shape).flatten().double()
    assert found.isfinite().all()
    level = scipy.stats.loggamma(shape).cdf(found.numpy())
    assert scipy.stats.kstest(level, "uniform").pvalue > FALSE_ALARM
    assert scipy.stats.kstest(scipy.stats.loggamma(1.5 * shape).cdf(found.numpy()), "uniform").pvalue < 1e-6


def levels(family, problem, shift):
    """P(theta_1 or the lengthscale <= what was drawn) under the prior of the problem, or of another one."""
    theta = problem.theta.double()
    if problem.mixture is not None:
        law = GaussianMixture(*(v.double() for v in problem.mixture)).marginal(0)
        return law.cdf(theta[:, 0].roll(-shift))
    if problem.draws is not None:
        return (problem.draws.roll(shift, 0)[..., 0] < theta[:, :1]).double().mean(-1)
    a, b = problem.hyper.double().exp().roll(shift, 0).unbind(-1)
    if isinstance(family, Qubit):
        return torch.as_tensor(scipy.stats.beta(a.numpy(), b.numpy()).cdf(theta[:, 0].numpy()))
    return td.Gamma(a, b).cdf(1 / theta[:, -1])


@pytest.mark.parametrize("family", FAMILIES)
def test_theta_has_the_density_of_its_prior(family):
    """The levels of theta under its prior are uniform; under that of the next problem they are not."""
    problem = family.sample(4_000, 1, generator=generator("cpu", 9))
    jitter = torch.rand(4_000, generator=generator("cpu", 10)).double() / 512 if problem.draws is not None else 0.0
    assert scipy.stats.kstest((levels(family, problem, 0) + jitter).numpy(), "uniform").pvalue > FALSE_ALARM
    assert scipy.stats.kstest(levels(family, problem, 1).numpy(), "uniform").pvalue < 1e-6


@pytest.mark.parametrize("family", [NormalVariance(), Qubit(), ProcessHyperparameters()])
def test_moments_and_draws_are_those_of_the_prior(family):
    hyper = family.sample(3, 1, generator=generator("cpu", 2)).hyper.double()
    draws = family.draws(hyper, 100_000, generator("cpu", 3)).double()
    law = GaussianMixture(torch.zeros(1), draws.new_zeros(1, family.latents), torch.eye(family.latents).unsqueeze(0))
    u = torch.stack(
        [
            {"real": lambda v: v, "positive": torch.log, "unit": torch.logit}[kind](draws[..., i])
            for i, kind in enumerate(family.supports)
        ],
        -1,
    )
    loc, scale = family.moments(hyper)
    torch.testing.assert_close(u.mean(1), loc, rtol=0.02, atol=0.02)
    torch.testing.assert_close(u.std(1), scale, rtol=0.03, atol=0.01)
    assert family.distribution(hyper).log_prob(draws[:, 0]).isfinite().all() and law.event_shape == (family.latents,)


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


def test_the_exact_inverse_gamma_is_bayes_rule():
    family = NormalVariance()
    prior, y = td.InverseGamma(3.0, 2.0), torch.tensor([0.3, -1.2, 0.8])
    theta = torch.tensor([0.2, 0.7, 3.0]).unsqueeze(-1)
    joint = prior.log_prob(theta[:, 0]) + family.log_likelihood(theta, y.new_zeros(3, 0), y).sum(-1)
    exact = family.posterior(prior, y).log_prob(theta[:, 0])
    torch.testing.assert_close((joint - exact).diff(), torch.zeros(2), rtol=0, atol=1e-5)


def test_the_posterior_of_a_qubit_is_normalised_bayes_rule():
    family = Qubit()
    prior, y = td.Beta(torch.tensor(2.0).double(), torch.tensor(3.0).double()), torch.ones(10).double()
    grid = (torch.arange(20_000).double() + 0.5) / 20_000
    log = torch.stack([family.log_density(prior, family.reading, y, point) for point in grid[::400]])
    joint = prior.log_prob(grid) + family.log_likelihood(grid.unsqueeze(-1), family.reading, y).sum(-1)
    torch.testing.assert_close(log, (joint - joint.exp().mean().log())[::400], rtol=1e-5, atol=1e-5)


def test_the_posterior_of_a_process_is_bayes_rule():
    """By importance sampling of 200,000 draws from the prior: relative error below 2 %."""
    family = ProcessHyperparameters()
    problem = family.sample(3, 4, generator=generator("cpu", 12))
    value, lengthscale = family.log_posteriors(problem)
    for k in range(3):
        x, y = problem.x[k].double(), problem.y[k].double()
        draws = family.draws(problem.hyper[k : k + 1].double(), 200_000, generator("cpu", 13))[0].double()
        weights = family.log_likelihood(draws, x, y).sum(-1)
        prior = family.distribution(problem.hyper[k].double())
        theta = problem.theta[k].double()
        joint = prior.log_prob(theta) + family.log_likelihood(theta, x, y).sum(-1)
        evidence = weights.logsumexp(0) - math.log(200_000)
        assert float(joint - evidence) == pytest.approx(float(family.log_posterior(problem)[k]), abs=0.02)
        near = (draws[:, 0] - theta[0]).abs() < 0.05
        share = weights.softmax(-1)[near].sum() / 0.1
        assert float(share) == pytest.approx(float(value[k].exp()), rel=0.05)
        assert lengthscale.isfinite().all()


def test_a_process_goes_on_from_what_was_seen():
    """p(y_2 | y_1, theta) is p(y_1, y_2 | theta) / p(y_1 | theta)."""
    family = ProcessHyperparameters()
    problem = family.sample(1, 4, generator=generator("cpu", 14))
    theta, x, y = problem.theta.double(), problem.x.double(), problem.y.double()
    both = family.log_likelihood(theta, x, y)
    law = family.observed(theta, x[:, 3:], (x[:, :3], y[:, :3]))
    torch.testing.assert_close(law.log_prob(y[:, 3:])[0, 0], both[0, 3])


def test_the_evidence_by_sampling_is_exact():
    """Beside the closed form of linear observations."""
    from priors.families.evidence import log_posterior_by_sampling

    family = LinearGaussian(2, noise=1.0)
    problem = family.sample(20, 2, generator=generator("cpu", 15))
    found = log_posterior_by_sampling(family, problem)
    torch.testing.assert_close(found, family.log_posterior(problem), rtol=0, atol=0.05)


def test_units_of_a_line_are_those_of_the_same_problem():
    """A problem whose latent variables are moved and scaled looks the same in units of its prior."""
    family, problem = LinearGaussian(2), LinearGaussian(2).sample(5, 3, generator=generator("cpu", 6))
    x, y = problem.x.double(), problem.y.double()
    loc = torch.full((5, 2), 0.4).double()
    tril = torch.tensor([[1.7, 0.0], [0.3, 0.6]]).double().expand(5, 2, 2)
    moved = y + (x @ torch.full((2, 1), 2.0).double()).squeeze(-1)
    torch.testing.assert_close(family.relative(x, moved, loc + 2.0, tril), family.relative(x, y, loc, tril))
    family = NormalVariance()
    x = x[..., :0]
    again = family.relative(x, y * math.exp(1.1 / 2), loc[:, :1] + 1.1, tril[:, :1, :1])
    torch.testing.assert_close(again, family.relative(x, y, loc[:, :1], tril[:, :1, :1]))


def test_a_target_turned_around_the_station_is_the_same_problem():
    family = SensorFusion()
    problem = family.sample(6, 2, generator=generator("cpu", 16))
    x, y = problem.x.double(), problem.y.double()
    loc, tril = problem.mixture.loc[:, 0].double(), problem.mixture.scale_tril[:, 0].double()
    c, s = math.cos(2.0), math.sin(2.0)
    turn = torch.block_diag(torch.tensor([[c, -s], [s, c]]), torch.eye(2)).double()
    turned = torch.where(x[..., 0] > 0.5, torch.remainder(y + 2.0 + math.pi, 2 * math.pi) - math.pi, y)
    before, after = family.relative(x, y, loc, tril), family.relative(x, turned, loc @ turn.mT, turn @ tril)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_slopes_of_a_reading_are_its_derivatives():
    family = SensorFusion()
    loc = torch.tensor([[2.0, -3.0, 0.1, 0.2]]).double()
    tril = torch.linalg.cholesky(torch.eye(4) + 0.3).double().unsqueeze(0)
    x, y = family.reading.unsqueeze(0), torch.tensor([[4.0, -0.5]]).double()
    slopes, off = family.linearized(x, y, loc, tril)
    step = 1e-4
    for j in range(4):
        ahead, behind = (family.linearized(x, y, loc + side * step * tril[..., j], tril)[1] for side in (1, -1))
        change = (behind - ahead) / (2 * step)  # of a bearing; a range's noise grows too, which its slope leaves out
        torch.testing.assert_close(slopes[0, 1, j], change[0, 1], rtol=1e-5, atol=1e-6)
    distance = torch.hypot(loc[0, 0], loc[0, 1])
    torch.testing.assert_close(off[0, 0], (4.0 - distance) / (0.1 * (distance + 1)))


def test_a_program_given_theta_is_the_program():
    """Its density by hand, and the reading of sites in order."""
    assert PROGRAM.supports == ("real", "positive") and PROGRAM.latents == 2 and PROGRAM.features == 1
    x, y = torch.tensor([[0.5], [-1.0]]), torch.tensor([0.2, 0.1])
    theta = torch.tensor([[1.0, 0.3], [-0.5, 2.0]])
    said = PROGRAM.log_likelihood(theta, x, y)
    expected = td.Normal(theta[:, :1] * x[:, 0], theta[:, 1:]).log_prob(y)
    torch.testing.assert_close(said, expected)


def _local(rows):
    with pyro.plate("rows", rows):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        y = pyro.sample("y", dist.Normal(z, 1.0))
    return x.unsqueeze(-1), y


def _nothing(rows):
    with pyro.plate("rows", rows):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        y = pyro.sample("y", dist.Normal(x, 1.0))
    return x.unsqueeze(-1), y


def _heavy(rows):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", rows):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        y = pyro.sample("y", dist.Cauchy(a + x, 1.0))
    return x.unsqueeze(-1), y


def _count(rows):
    a = pyro.sample("a", dist.Poisson(3.0))
    with pyro.plate("rows", rows):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        y = pyro.sample("y", dist.Normal(a + x, 1.0))
    return x.unsqueeze(-1), y


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_local, "inside a plate"),
        (_nothing, "outside every plate"),
        (_heavy, "Bernoulli"),
        (_count, "'a' must be real"),
    ],
)
def test_a_program_of_another_form_is_refused(model, words):
    with pytest.raises(ValueError, match=words):
        ProgramFamily(PyroPrior(model))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (NormalVariance, {"meta": (0.0, 1.0)}),
        (NormalVariance, {"meta": (1.0, float("inf"))}),
        (Qubit, {"meta": (-1.0, 1.0)}),
        (LinearGaussian, {"latents": 0}),
        (LinearGaussian, {"components": 0}),
        (LinearGaussian, {"noise": 0.0}),
        (LinearGaussian, {"spread": -1.0}),
        (SensorFusion, {"maximum": 0.0}),
        (SensorFusion, {"components": 0}),
        (ProcessHyperparameters, {"noise": 0.0}),
        (ProcessHyperparameters, {"width": -1.0}),
    ],
)
def test_a_field_out_of_range_is_named(kind, fields):
    with pytest.raises(ValueError, match="must be"):
        kind(**fields)
