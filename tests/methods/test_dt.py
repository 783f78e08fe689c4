"""`DistributionTransformer`: exact posteriors of two families, three ways to tell a prior, filters, and refinement."""

import math
import warnings

import pytest
import scipy.stats
import torch
import torch.distributions as td
from checks import unchecked

import bayesvision as bv
from bayesvision.distributions import GaussianMixture
from bayesvision.methods.dt.linearized import updated
from bayesvision.methods.dt.prior import ToldPrior
from bayesvision.methods.dt.tokens import Parts, Units, revised
from bayesvision.training.seeds import generator
from priors import LinearGaussian, NormalVariance, SensorFusion
from priors.families import MixtureParameters

TRAIN = {"batch": 256, "lr": 3e-3, "execution": bv.Execution(device="cpu")}
SMALL = {"width": 32, "layers": 2, "heads": 4, "observations": 4}


@pytest.fixture(scope="module")
def variance():
    return bv.DistributionTransformer(**SMALL, train=bv.Train(steps=1_200, **TRAIN)).fit(NormalVariance())


@pytest.fixture(scope="module")
def line():
    """One latent variable, known through noisy multiples of it."""
    method = bv.DistributionTransformer(components=3, **SMALL, train=bv.Train(steps=600, **TRAIN))
    return method.fit(LinearGaussian(latents=1, components=2))


@pytest.fixture(scope="module")
def plane():
    """Next to untrained: for what holds whatever the weights are."""
    small = {"width": 16, "layers": 1, "heads": 2, "observations": 4}
    train = bv.Train(steps=20, batch=32, execution=bv.Execution(device="cpu"))
    return bv.DistributionTransformer(components=3, **small, train=train).fit(LinearGaussian(2))


def inverse_gammas(count, seed=777):
    problem = NormalVariance().sample(count, 1, generator=generator("cpu", seed))
    return NormalVariance().prior_of(problem), problem.y.double()


def divergence(exact, law):
    """KL(exact || law) of each problem, by quadrature over log theta."""
    log = -torch.distributions.Gamma(exact.concentration, exact.rate).mean.log()
    grid = log + torch.linspace(-1, 1, 4_001, dtype=torch.float64).unsqueeze(-1) * (8 / exact.concentration.sqrt() + 6)
    p = exact.log_prob(grid.exp()) + grid
    q = law.log_prob(grid.exp().unsqueeze(-1)) + grid
    return (p.exp() * (p - q)).sum(0) * (grid[1] - grid[0])


def test_the_posterior_of_a_variance_is_the_inverse_gamma(variance):
    prior, y = inverse_gammas(500)
    seen = variance.with_prior(prior).condition(y=y)
    found = divergence(NormalVariance().posterior(prior, y), seen.latent)
    assert found.mean() < 0.01
    wrong = divergence(NormalVariance().posterior(prior, 3 * y), seen.latent)
    assert wrong.mean() > 0.02


def test_a_prior_can_be_told_in_three_ways(variance):
    prior = td.InverseGamma(torch.tensor(3.0, dtype=torch.float64), torch.tensor(4.0, dtype=torch.float64))
    y = torch.tensor([1.2, -0.4], dtype=torch.float64)
    exact = NormalVariance().posterior(prior, y)
    told = variance.with_prior(prior)
    points = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    draws = torch.as_tensor(scipy.stats.invgamma(3, scale=4).ppf(points.numpy())).unsqueeze(-1)
    for seen in (told, variance.with_prior(told.latent), variance.with_prior(draws)):
        law = seen.condition(y=y).latent
        low, high = law.interval(0.8)
        mass = exact.cdf(high) - exact.cdf(low)
        assert mass.item() == pytest.approx(0.8, abs=0.06)


def test_without_observations_the_answer_is_the_prior(variance):
    prior, _ = inverse_gammas(200)
    assert divergence(prior, variance.with_prior(prior).latent).mean() < 0.02
    mixture = GaussianMixture(
        torch.tensor([0.3, -0.2]), torch.tensor([[0.0], [1.0]]), torch.ones(2, 1, 1), ("positive",)
    )
    again = variance.with_prior(mixture).latent
    torch.testing.assert_close(again.loc, mixture.loc.double())
    torch.testing.assert_close(again.logits, mixture.logits.double())


def test_the_posterior_of_a_line_is_the_exact_mixture(line):
    family = line.family
    problem = family.sample(300, 3, generator=generator("cpu", 5))
    prior = type(problem.mixture)(*(v.double().clamp(min=-60) for v in problem.mixture))
    x, y = problem.x.double(), problem.y.double()
    exact = GaussianMixture(*family.posterior(prior, x, y))
    law = line.with_prior(GaussianMixture(*prior)).condition(x, y).latent
    draws = exact.sample((500,), generator("cpu", 6))
    gap = (exact.log_prob(draws) - law.log_prob(draws)).mean(0)
    nothing = (exact.log_prob(draws) - GaussianMixture(*prior).log_prob(draws)).mean(0)
    assert gap.median() < 0.02 and gap.mean() < 0.03 * nothing.mean()


def test_a_linear_prediction_is_the_image_of_the_latent_mixture(plane):
    x, y = torch.randn(5, 2, generator=generator("cpu", 1)).double(), torch.linspace(-1, 1, 5).double()
    seen = plane.condition(x, y)
    new = torch.randn(4, 2, generator=generator("cpu", 2)).double()
    draws = seen.latent.sample((200_000,), generator("cpu", 3))
    law = seen.predict(new)
    image = draws @ new.mT
    torch.testing.assert_close(law.mean, image.mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(law.variance, image.var(0) + 0.1, rtol=0.03, atol=0.01)


def test_a_predicted_observation_of_a_variance_is_its_scale_mixture(variance):
    seen = variance.with_prior(td.InverseGamma(4.0, 5.0)).condition(y=[0.5, 1.5])
    theta = seen.latent.sample((100_000,), generator("cpu", 4))
    law = seen.predict()
    assert law.batch_shape == ()
    levels = torch.linspace(-3, 3, 7, dtype=torch.float64)
    cdf = td.Normal(0.0, theta.sqrt()).cdf(levels).mean(0)
    torch.testing.assert_close(law.cdf(levels), cdf, rtol=0, atol=4e-3)


def test_a_filter_moves_as_kalmans(plane):
    """Prediction steps of one Gaussian are exact: F m, F S F^T + Q."""
    prior = td.MultivariateNormal(torch.tensor([1.0, -0.5]).double(), torch.eye(2).double())
    motion = torch.tensor([[1.0, 0.5], [0.0, 0.9]]).double()
    noise = torch.tensor([[0.2, 0.05], [0.05, 0.1]]).double()
    for transition in (motion, lambda theta: theta @ motion.mT):
        law = plane.with_prior(prior).move(motion, noise).move(transition, noise).latent
        mean, covariance = prior.mean, prior.covariance_matrix
        for _ in range(2):
            mean, covariance = motion @ mean, motion @ covariance @ motion.mT + noise
        torch.testing.assert_close(law.mean, mean)
        torch.testing.assert_close(law.covariance_matrix, covariance)


def test_refinement_gives_the_exact_posterior(variance):
    prior, y = td.InverseGamma(3.0, 4.0), torch.tensor([2.0, -1.0])
    better = variance.with_prior(prior).condition(y=y).refine(20_000)
    exact = NormalVariance().posterior(prior, y)
    assert better.khat < 0.7 and better.latent.effective_size > 5_000
    for level in (0.1, 0.5, 0.9):
        assert exact.cdf(better.latent.quantile(level).float()).item() == pytest.approx(level, abs=0.02)
    assert better.latent.mean.item() == pytest.approx(exact.mean.item(), rel=0.03)
    assert better.predict().stddev.item() == pytest.approx(exact.mean.sqrt().item(), rel=0.05)


def test_refinement_survives_a_network_that_is_off(variance):
    """A tenth of the draws are from the prior, so that the weights are bounded."""
    off = variance.with_prior(td.InverseGamma(3.0, 4.0)).condition(y=[1.0])
    off.belief.loc = off.belief.loc + 4.0
    better = off.refine(20_000)
    exact = NormalVariance().posterior(td.InverseGamma(3.0, 4.0), torch.tensor([1.0]))
    assert better.khat < 0.7
    assert exact.cdf(better.latent.quantile(0.5).float()).item() == pytest.approx(0.5, abs=0.05)


def test_refinement_says_when_it_cannot_be_trusted(line):
    """The posterior is narrow, the network far from it, and no draw of the prior falls into it."""
    prior = GaussianMixture(torch.zeros(1), torch.zeros(1, 1), 1e4 * torch.ones(1, 1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        far = line.with_prior(prior).condition([[1.0], [1.0]], [300.0, 300.2])
    far.belief.loc = far.belief.loc + 2.0
    with pytest.warns(UserWarning, match="k-hat"):
        assert far.refine(500).khat > 0.7


def test_a_prior_far_from_those_of_training_is_called_so(variance):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near = variance.with_prior(td.InverseGamma(2.0, 2.0))
    assert near.distance() < 1
    with pytest.warns(UserWarning, match="times as far out"):
        assert variance.with_prior(td.InverseGamma(2.0, 1e12)).distance() > 1


def test_batches_of_problems_are_single_problems(variance):
    prior, y = inverse_gammas(3)
    whole = variance.with_prior(prior).condition(y=y)
    for k in range(3):
        one = variance.with_prior(td.InverseGamma(prior.concentration[k], prior.rate[k])).condition(y=y[k])
        torch.testing.assert_close(one.latent.mean, whole.latent.mean[k], rtol=1e-4, atol=1e-6)


def test_numbers_of_a_mixture_and_back():
    parts = Parts(*LinearGaussian(3).sample(6, 1, generator=generator("cpu", 3)).mixture).filled(5)
    units = parts.moments()
    numbers = units.numbers(parts)
    again = revised(units.copies(5), torch.cat([3 * numbers[..., :1], numbers[..., 1:]], -1))
    torch.testing.assert_close(again.loc, parts.loc)
    torch.testing.assert_close(again.scale_tril, parts.scale_tril, rtol=0.02, atol=0.01)
    torch.testing.assert_close(again.logits.softmax(-1), parts.logits.softmax(-1))


def test_units_are_the_moments_of_the_mixture():
    parts = Parts(*(v.double() for v in LinearGaussian(3).sample(2, 1, generator=generator("cpu", 3)).mixture))
    law, units = GaussianMixture(*parts), parts.moments()
    torch.testing.assert_close(units.loc, law.mean)
    torch.testing.assert_close(units.tril @ units.tril.mT, law.covariance_matrix)
    white = units.standardized(law.sample((100_000,), generator("cpu", 5)).movedim(0, -2))
    torch.testing.assert_close(white.mean(-2), torch.zeros(2, 3).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(torch.cov(white[0].mT), torch.eye(3).double(), rtol=0, atol=0.03)


def test_the_update_with_full_trust_is_the_exact_one():
    """Of a family with linear observations: component by component, with its log evidence up to a constant."""
    family = LinearGaussian(3)
    problem = family.sample(40, 2, generator=generator("cpu", 4))
    prior = MixtureParameters(*(v.double().clamp(min=-60) for v in problem.mixture))
    x, y = problem.x.double(), problem.y.double()
    g, e = family.linearized(x.unsqueeze(-3), y.unsqueeze(-2), prior.loc, prior.scale_tril)
    near = (e.abs() < 6 * (1 + g.square().sum(-1)).sqrt()).all(-1)  # components that the observations do not rule out
    found = revised(Parts(*prior), torch.zeros(40, 3, 10).double(), updated(g, e, torch.ones_like(e)))
    exact = family.posterior(prior, x, y)
    torch.testing.assert_close(found.loc[near], exact.loc[near])
    torch.testing.assert_close(found.scale_tril[near], exact.scale_tril[near], rtol=2e-3, atol=1e-4)  # by the floor
    whole = near.all(-1)
    torch.testing.assert_close(found.logits.softmax(-1)[whole], exact.logits.softmax(-1)[whole])
    assert near.sum() >= 5 and whole.any()


def test_no_trust_is_no_observation():
    base = updated(torch.ones(2, 3), torch.full((2,), 5.0), torch.full((2,), 1e-9))
    torch.testing.assert_close(base.loc, torch.zeros(3).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(base.tril, torch.eye(3).double(), rtol=0, atol=1e-7)


def test_filling_keeps_the_mixture_nearly():
    one = Parts(torch.tensor([0.0, -torch.inf]), torch.tensor([[1.0], [9.0]]), torch.ones(2, 1, 1))
    full = one.filled(4)
    before, after = Units(torch.tensor([1.0]), torch.tensor([[1.0]])), full.moments()
    torch.testing.assert_close(after.loc, before.loc, rtol=0, atol=0.3)
    torch.testing.assert_close(after.scale, before.scale, rtol=0, atol=0.2)
    assert len(full.loc.unique()) == 4  # identical tokens would never part


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (td.Gamma(1.0, 1.0), "InverseGamma"),
        (torch.ones(10, 1), "at least 80 draws"),
        (-torch.rand(200, 1), "positive draws"),
        (torch.ones(200, 1), "differ"),
        (torch.full((200, 1), math.nan), "finite"),
        (GaussianMixture(torch.zeros(9), torch.zeros(9, 1), torch.ones(9, 1, 1), ("positive",)), "9 components"),
        (GaussianMixture(torch.zeros(1), torch.zeros(1, 1), torch.ones(1, 1, 1)), "latent variables"),
    ],
)
def test_what_is_no_prior_of_the_family_is_refused(variance, prior, words):
    with pytest.raises(ValueError, match=words):
        variance.with_prior(prior)


def test_a_number_alone_and_the_largest_are_observations(variance):
    assert torch.equal(variance.condition(y=1.0).latent.mean, variance.condition(y=[1.0]).latent.mean)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert variance.with_prior(td.InverseGamma(3.0, 2.0)).condition(y=[1e25, 0.0]).latent.loc.isfinite().all()


def test_normals_of_any_make_are_priors(plane):
    loc, scale = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 2.0])
    made = [
        td.MultivariateNormal(loc, torch.diag(scale.square())),
        td.Independent(td.Normal(loc, scale), 1),
        GaussianMixture(torch.zeros(1), loc.unsqueeze(0), torch.diag(scale).unsqueeze(0)),
    ]
    found = [plane.with_prior(prior).condition([[1.0, 0.5]], [0.3]).latent.mean for prior in made]
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_training_goes_on_from_a_checkpoint_and_from_a_kill(tmp_path):
    class Stop:
        def log(self, metrics, step):
            if step == 4:
                raise KeyboardInterrupt

    def method(steps=6, **fields):
        execution = bv.Execution(device="cpu", checkpoint_dir=fields.pop("folder", None), save_every=2)
        train = bv.Train(steps=steps, batch=8, execution=execution, **fields)
        return bv.DistributionTransformer(width=16, layers=1, heads=2, train=train)

    whole = method().fit(NormalVariance())
    with pytest.raises(KeyboardInterrupt):
        method(folder=str(tmp_path / "run")).fit(NormalVariance(), Stop())
    resumed = method(folder=str(tmp_path / "run")).fit(NormalVariance())
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    bv.save(whole.with_prior(td.InverseGamma(3.0, 2.0)).condition(y=[1.0]), tmp_path / "a.safetensors")
    further = method(steps=1, lr=1e-9, start=str(tmp_path / "a.safetensors")).fit(NormalVariance())
    torch.testing.assert_close(further.network.seeds, whole.network.seeds, rtol=0, atol=1e-6)
    assert further.metadata["problems"] == 7 * 8


def test_a_family_of_ones_own_comes_with_the_file(tmp_path):
    class Mine(NormalVariance):
        pass

    train = bv.Train(steps=2, batch=8, execution=bv.Execution(device="cpu"))
    post = bv.DistributionTransformer(width=16, layers=1, heads=2, train=train).fit(Mine()).condition(y=[1.0])
    bv.save(post, tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match="net=family"):
        bv.load(tmp_path / "mine.safetensors")
    again = bv.load(tmp_path / "mine.safetensors", net=Mine())
    assert torch.equal(again.latent.loc, post.latent.loc)


def test_real_latent_variables_may_have_priors_of_another_kind():
    class Logistic(LinearGaussian):
        """Told by one number, whatever it is."""

        hyperparameters = 1

        def describe(self, prior):
            return torch.zeros(1, dtype=torch.float64)

        def distribution(self, hyper):
            return td.Normal(hyper, 1.0)

        def moments(self, hyper):
            return hyper, hyper + 1

        def draws(self, hyper, count, generator):
            return torch.randn(len(hyper), count, 1, generator=generator)

    assert ToldPrior.of(td.Gumbel(0.0, 1.0), Logistic(1), 3).hyper is not None
    with pytest.raises(ValueError, match="multivariate normal"):
        ToldPrior.of(td.Gumbel(0.0, 1.0), LinearGaussian(1), 3)


def test_what_cannot_be_observed_or_moved_is_refused(variance, plane):
    with pytest.raises(ValueError, match="no design"):
        variance.condition([[1.0]], [1.0])
    with pytest.raises(ValueError, match="got None"):
        variance.condition()
    with pytest.raises(ValueError, match="finite"):
        variance.condition(y=[math.nan])
    with pytest.raises(ValueError, match="2 columns"):
        plane.condition(y=[1.0])
    with pytest.raises(ValueError, match="real latent"):
        variance.move([[1.0]], [[1.0]])
    with pytest.raises(ValueError, match="semi-definite"):
        plane.move(torch.eye(2), -torch.eye(2))
    with pytest.raises(ValueError, match=r"\[2, 2\]"):
        plane.move(torch.eye(3), torch.eye(2))
    with pytest.raises(ValueError, match="broadcast with the prior"):
        variance.with_prior(td.InverseGamma(torch.ones(3), torch.ones(3))).condition(y=torch.ones(4, 2))
    with unchecked(), pytest.raises(TypeError, match="family"):
        bv.DistributionTransformer().fit(object())
    with pytest.raises(ValueError, match="draws tell"):
        variance.condition(y=[1.0]).refine()


@pytest.mark.parametrize("fields", [{"components": 0}, {"width": 10, "heads": 4}, {"observations": 0}])
def test_a_field_out_of_range_is_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        bv.DistributionTransformer(**fields)


@pytest.fixture(scope="module")
def sensor():
    return bv.pretrained("dt-sensor")


def test_the_shipped_filter_updates_as_kalmans_where_a_bearing_is_linear(sensor):
    """A narrow belief far away; the second reading is a range that is much too short, which it does not follow."""
    mean = torch.tensor([6.0, 8.0, 0.1, 0.0]).double()
    covariance = torch.diag(torch.tensor([0.04, 0.04, 0.01, 0.01])).double() + 0.005
    belief = sensor.with_prior(td.MultivariateNormal(mean, covariance))
    seen = belief.condition([[1.0]], [0.95])
    slope = torch.tensor([[-8.0 / 100, 6.0 / 100, 0.0, 0.0]]).double()
    gain = covariance @ slope.mT / (slope @ covariance @ slope.mT + 0.01)
    off = 0.95 - torch.atan2(mean[1], mean[0])
    torch.testing.assert_close(seen.latent.mean, mean + gain[:, 0] * off, rtol=0, atol=0.03)  # 0.15 deviations
    after = covariance - gain @ slope @ covariance
    torch.testing.assert_close(seen.latent.covariance_matrix, after, rtol=0, atol=0.006)
    short = seen.condition([[0.0]], [1.0])
    torch.testing.assert_close(short.latent.mean, seen.latent.mean, rtol=0, atol=0.02)


def test_the_shipped_filter_stays_with_a_particle_filter(sensor):
    """Over ten steps of a target that passes the station, means within a fifth of a deviation on average."""
    family = SensorFusion()
    F, Q = family.transition, family.noise
    prior = td.MultivariateNormal(torch.tensor([3.0, -2.0, -1.0, 1.0]).double(), torch.eye(4).double() * 0.25)
    theta, rng = torch.tensor([3.1, -2.2, -0.8, 0.9]).double(), generator("cpu", 21)
    mine, theirs = sensor.with_prior(prior), bv.ParticleFilter(20_000).fit(family).with_prior(prior)
    gaps = []
    for _ in range(10):
        theta = F @ theta + Q.sqrt() @ torch.randn(4, generator=rng).double()
        reading = family.observed(theta, family.reading).sample(generator=rng)
        mine, theirs = (b.move(F, Q).condition(y=reading) for b in (mine, theirs))
        scale = theirs.latent.covariance_matrix.diagonal().sqrt()
        gaps.append(((mine.latent.mean - theirs.latent.mean) / scale).abs().mean())
    assert float(torch.stack(gaps).mean()) < 0.2
    law = mine.predict(family.reading)
    torch.testing.assert_close(law.mean, theirs.predict(family.reading).mean, rtol=0.1, atol=0.1)


def test_sources_of_a_sensor_may_be_missing_and_are_named(sensor):
    both = sensor.condition(y=[5.0, 0.7])
    apart = sensor.condition([[1.0]], [0.7]).condition([[0.0]], [5.0])
    torch.testing.assert_close(apart.latent.mean, both.latent.mean, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="whole reading of 2"):
        sensor.condition(y=[5.0])
    with pytest.warns(UserWarning, match="6 observations are more than the 4 of training"):
        sensor.condition([[0.0]] * 6, [5.0] * 6)


def test_refinement_of_a_sensor_is_the_particle_filter(sensor):
    prior = td.MultivariateNormal(torch.tensor([4.0, 5.0, 0.0, 0.0]).double(), torch.eye(4).double())
    better = sensor.with_prior(prior).condition(y=[5.0, 0.7]).refine(20_000)
    exact = bv.ParticleFilter(200_000).fit(SensorFusion()).with_prior(prior).condition(y=[5.0, 0.7])
    assert better.khat < 0.7
    torch.testing.assert_close(better.latent.mean, exact.latent.mean, rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [([[2.0]], [1.0], "0 for a range"), ([[0.0]], [-1.0], "between 0 and 20"), ([[1.0]], [7.0], "modulo a turn")],
)
def test_readings_that_no_sensor_gives_are_refused(sensor, x, y, words):
    with pytest.raises(ValueError, match=words):
        sensor.condition(x, y)


def test_no_observation_is_the_prior_to_the_bit(sensor):
    prior = GaussianMixture(torch.zeros(2), torch.randn(2, 4), torch.eye(4).expand(2, 4, 4))
    assert torch.equal(sensor.with_prior(prior).latent.loc, prior.loc.double())
