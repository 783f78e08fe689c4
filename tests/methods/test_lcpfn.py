"""`LCPFN`: the exact answer where there is one, prefixes against conditioning, and bad curves."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
import torch
from checks import rejected

import bayesvision as bv
from bayesvision import LCPFN, Execution, MetricScale, Train
from bayesvision.distributions import Mixture, Normal, TruncatedTransformed
from bayesvision.methods.lcpfn.tokens import FEATURES, UNIT, _tokens
from bayesvision.nn.heads import MixtureHead
from priors import LearningCurves, Task

EPOCHS = np.arange(1.0, 31.0)
VALUES = 0.8 - 0.4 * EPOCHS**-0.7 + 0.01 * np.sin(7 * EPOCHS)


@dataclass(frozen=True)
class Levels:
    """y_t = level + noise with level ~ N(1/2, 0.2^2) and noise ~ N(0, 0.05^2): the posterior predictive is normal."""

    level: float = 0.2
    noise: float = 0.05

    def sample(self, batch, rows, *, generator):
        level = 0.5 + self.level * torch.randn(batch, 1, generator=generator, dtype=torch.float32)
        noise = self.noise * torch.randn(batch, rows, generator=generator, dtype=torch.float32)
        x = torch.arange(1, rows + 1, dtype=torch.float32).expand(batch, -1).unsqueeze(-1)
        return Task(x, level + noise)

    def exact(self, seen):
        """N(m, v + noise^2) with precision 1 / v = 1 / level^2 + n / noise^2."""
        precision = self.level**-2 + seen.shape[-1] * self.noise**-2
        mean = (0.5 * self.level**-2 + seen.sum(-1, keepdim=True) * self.noise**-2) / precision
        return Normal(mean, torch.full_like(mean, math.sqrt(1 / precision + self.noise**2)))


@lru_cache
def tiny():
    """An LC-PFN of a few steps."""
    train = Train(steps=5, batch=2, lr=1e-2, execution=Execution(device="cpu"))
    return LCPFN(rows=(20, 40), width=16, layers=2, heads=2, components=5, train=train).fit(LearningCurves())


# The exact answer


@lru_cache
def trained_on_levels():
    train = Train(steps=300, batch=32, lr=4e-3, execution=Execution(device="cpu"))
    return LCPFN(rows=(20, 20), width=32, layers=2, heads=2, readers=1, components=5, train=train).fit(Levels())


@pytest.mark.parametrize("seen", [0, 1, 3, 10, 19])
def test_gap_to_the_exact_posterior(seen):
    # 2,000 curves; the standard error of the gap is below 0.004 nats
    prior = Levels()
    y = prior.sample(2000, 20, generator=torch.Generator().manual_seed(9)).y
    posterior = trained_on_levels()
    if seen:
        posterior = posterior.condition(range(1, seen + 1), y[:, :seen])
    law = posterior.predict(20.0) if seen else posterior.predict(torch.full((2000, 1), 20.0))
    truth, exact = y[:, 19], prior.exact(y[:, :seen])
    ours = law.log_prob(truth)
    best = exact.log_prob(truth.unsqueeze(-1)).squeeze(-1)
    gap = float((best - ours).mean())
    assert -0.015 < gap < 0.06
    wrong = Normal(exact.loc, 2 * exact.scale).log_prob(truth.unsqueeze(-1)).squeeze(-1)
    assert float((best - wrong).mean()) > 0.06  # twice the standard deviation is noticed


# Prefixes, and the cache


def test_a_token_depends_on_the_past_alone():
    t, y = torch.from_numpy(EPOCHS), torch.from_numpy(VALUES)
    whole = _tokens(t, y)
    assert whole.shape == (30, FEATURES)
    for n in (1, 2, 9, 30):
        torch.testing.assert_close(_tokens(t[:n], y[:n])[-1], whole[n - 1], rtol=0, atol=1e-9)


def test_forecasts_are_what_conditioning_says():
    posterior = tiny()
    laws = posterior.forecasts(EPOCHS, VALUES, [35.0, 60.0, 100.0])
    assert laws.batch_shape == (31, 3)
    for k in (0, 1, 7, 30):
        one = posterior.condition(EPOCHS[:k], VALUES[:k]) if k else posterior
        law = one.predict([35.0, 60.0, 100.0])
        torch.testing.assert_close(laws.mean[k], law.mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(laws.stddev[k], law.stddev, rtol=1e-5, atol=1e-6)


def test_a_new_epoch_costs_one_token(monkeypatch):
    posterior, read = tiny().condition(EPOCHS[:20], VALUES[:20]), []
    encode = type(posterior.network).encode

    def counting(self, rows, cache=()):
        read.append(rows.shape[-2])
        return encode(self, rows, cache)

    monkeypatch.setattr(type(posterior.network), "encode", counting)
    later = posterior.condition(EPOCHS[20:21], VALUES[20:21])
    assert read == [1] and later.rows == 21
    later.condition([0.5], [0.3])  # an earlier epoch: the curve is read again
    assert read == [1, 22]


def test_a_batch_of_curves():
    y = torch.from_numpy(VALUES) + torch.linspace(-0.1, 0.1, 6).unsqueeze(-1)
    batch = tiny().condition(EPOCHS[:12], y[:, :12])
    assert batch.predict(100).batch_shape == (6,)
    assert batch.predict([50.0, 100.0]).batch_shape == (6, 2)
    alone = tiny().condition(EPOCHS[:12], y[4, :12]).predict([50.0, 100.0])
    torch.testing.assert_close(batch.predict([50.0, 100.0]).mean[4], alone.mean, rtol=1e-5, atol=1e-6)


def test_one_epoch_several_and_a_range():
    posterior = tiny().condition(range(1, 11), VALUES[:10])
    assert posterior.predict(100).batch_shape == ()
    assert posterior.predict(range(11, 101)).batch_shape == (90,)
    assert isinstance(posterior.predict(100), Mixture)
    torch.testing.assert_close(posterior.predict(100).mean, posterior.predict([50, 100]).mean[1])


def test_a_horizon_is_a_change_of_units():
    short = tiny().condition(EPOCHS, VALUES).predict([60.0, 100.0])
    long = tiny().with_metric(horizon=3000).condition(30 * EPOCHS, VALUES).predict([1800.0, 3000.0])
    torch.testing.assert_close(long.mean, short.mean)
    torch.testing.assert_close(long.stddev, short.stddev)


def test_a_scale_is_a_change_of_units():
    scale = MetricScale(0, math.inf, 0, 3, minimize=True)
    loss = scale.transform.inv(torch.from_numpy(VALUES))
    law = tiny().with_metric(scale=scale).condition(EPOCHS, loss).predict(100)
    plain = tiny().condition(EPOCHS, VALUES).predict(100)
    assert isinstance(law, TruncatedTransformed)
    best = float(loss.min())
    u = scale.normalize(torch.tensor(best))
    inside = 1 - plain.cdf(torch.tensor(0.0)) - plain.probability_above(1.0)
    expected = plain.probability_above(float(u)) - plain.probability_above(1.0)
    torch.testing.assert_close(law.cdf(torch.tensor(best)), (expected / inside).double(), rtol=1e-4, atol=1e-6)


def test_nothing_lies_beyond_a_hard_bound():
    loss, error = MetricScale(0, math.inf, 0, 3, minimize=True), MetricScale(0, 1, minimize=True)
    for posterior, y, best in (
        (bv.pretrained("lcpfn"), VALUES.clip(max=0.78) + 0.22, 1.0),
        (bv.pretrained("lcpfn").with_metric(scale=loss), 1.0 - EPOCHS / 30, 0.0),
        (bv.pretrained("lcpfn-prior").with_metric(scale=error), 1.0 - EPOCHS / 30, 0.0),
    ):
        law = posterior.condition(EPOCHS, y).predict([31.0, 60.0, 100.0])
        beaten = law.probability_above(best) if best else law.cdf(best)
        assert (beaten == 0).all()
        beyond = best + 1e-6 * (1 if best else -1)
        assert (law.log_prob(beyond) == -math.inf).all() and law.log_prob(best).isfinite().all()
        low, high = law.interval(0.999)
        assert ((low >= 0) & ((high <= 1) | (posterior.scale == loss))).all()
    with rejected(r"metric in \[0, 1\].*unbounded\(\)"):
        bv.pretrained("lcpfn").condition([1, 2], [0.5, 1.2])
    with rejected("within the bounds of the scale, 0 to 1, got 1.2"):
        bv.pretrained("lcpfn").with_metric(scale=error).condition([1, 2], [0.5, 1.2])
    with rejected("scale's bounds"):
        bv.pretrained("lcpfn").with_metric(scale=error).unbounded()
    assert isinstance(bv.pretrained("lcpfn").unbounded().condition([1, 2], [0.5, 1.2]).predict(3), Mixture)


def test_constant_and_perfect_curves_are_curves():
    for level in (0.0, 0.1, 1.0):
        law = tiny().condition(range(1, 21), torch.full((20,), level)).predict([21.0, 100.0])
        assert torch.isfinite(law.mean).all() and torch.isfinite(law.log_prob(torch.full((2,), level))).all()


# The head


def test_the_mixture_head_is_its_formula():
    head = MixtureHead(2, 0.01)
    law = head(torch.tensor([0.3, -0.2, 1.0, -3.0, 0.5, 2.0]), torch.tensor(0.6))
    torch.testing.assert_close(law.weights, torch.softmax(torch.tensor([0.3, -0.2]), -1))
    expected = torch.tensor([0.6 + 0.01 * math.sinh(1.0), 0.6 + 0.01 * math.sinh(-3.0)])
    torch.testing.assert_close(law.component_distribution.mean, expected)
    torch.testing.assert_close(law.component_distribution.stddev, 0.01 * torch.tensor([0.5, 2.0]).exp())
    far = head(torch.full((6,), 1e6))
    assert torch.isfinite(far.mean) and torch.isfinite(far.log_prob(torch.tensor(0.5)))
    finest = MixtureHead(1, UNIT)(torch.tensor([0.0, 0.0, -1e6]))
    assert float(finest.stddev) < 1e-4  # bars of a fixed width could not


# Bad curves, and bad recipes


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([0, 1], [0.1, 0.2], "epochs above 0"),
        ([1, 101], [0.1, 0.2], "up to the horizon 100"),
        ([1, 2, 2], [0.1, 0.2, 0.3], "every epoch once, got 2 twice"),
        ([1, 2], [0.1, math.nan], "y must be finite"),
        ([1, math.inf], [0.1, 0.2], "x must be finite"),
        ([1, 2], [71.0, 73.0], r"metric in \[0, 1\]"),
        ([1, 2], [0.1], "one value for each row"),
        ([], [], "at least one row"),
        ([[1, 2], [3, 4]], [0.1, 0.2], "1 columns"),
        (range(1, 42), [0.5] * 41, "41 rows and this network was trained for at most 40"),
        (["one"], [0.1], "must hold numbers"),
    ],
)
def test_bad_curves_are_refused(x, y, message):
    with rejected(message):
        tiny().condition(x, y)


def test_bad_queries_are_refused():
    posterior = tiny().condition(EPOCHS, VALUES)
    for x, message in [(101, "up to the horizon"), (0, "above 0"), (math.nan, "finite"), (torch.ones(2, 3, 1), None)]:
        if message is None:
            assert posterior.predict(x).batch_shape == (2, 3)
        else:
            with rejected(message):
                posterior.predict(x)
    batch = tiny().condition(EPOCHS, torch.from_numpy(VALUES).expand(4, -1))
    with rejected("broadcast with the curves'"):
        batch.predict(torch.ones(3, 2, 1))
    with rejected("batch axes"):
        batch.condition([31.0], [0.5])


def test_units_come_before_the_data():
    posterior = tiny().condition(EPOCHS, VALUES)
    with rejected("must be set before condition"):
        posterior.with_metric(horizon=50)
    with rejected("start from an empty posterior"):
        posterior.forecasts([31.0], [0.5], [40.0])
    with rejected("horizon must be a positive number"):
        tiny().with_metric(horizon=0)
    with rejected("x must increase"):
        tiny().forecasts([2.0, 1.0], [0.5, 0.6], [40.0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 30, "heads": 4}, "multiple of heads"),
        ({"rows": (1, 5)}, "at least 2"),
        ({"rows": (9, 5)}, "pair"),
        ({"rows": 5}, "tuple of 2 entries"),
        ({"components": 0}, "components"),
    ],
)
def test_bad_recipes_are_refused(fields, message):
    with rejected(message):
        LCPFN(**fields)


def test_a_prior_of_another_shape_is_refused():
    class Wide:
        def sample(self, batch, rows, *, generator):
            return Task(torch.zeros(batch, rows, 2), torch.zeros(batch, rows))

    with rejected(r"must draw x \[16, \d+, 1\]"):
        LCPFN(train=Train(steps=1, execution=Execution(device="cpu"))).fit(Wide())


# What is shipped


@pytest.mark.parametrize(("name", "least"), [("lcpfn", 2.1), ("lcpfn-prior", 2.25)])
def test_the_shipped_networks_know_their_prior(name, least):
    # 300 curves of the published prior at 40 % seen: the standard error is 0.05; the marginal of the prior scores 0.1
    task = LearningCurves().sample(300, 100, generator=torch.Generator().manual_seed(3))
    x, y = task.x, task.y
    law = bv.pretrained(name).unbounded().condition(x[:, :40], y[:, :40]).predict(x[:, 40:])
    assert float(law.log_prob(y[:, 40:]).mean()) > least
    low, high = law.interval(0.9)
    assert 0.85 < float(((low < y[:, 40:]) & (y[:, 40:] < high)).float().mean()) < 0.95


def test_the_shipped_network_answers_as_promised():
    epochs, accuracy = range(1, 101), 0.9 - 0.5 * np.arange(1, 101) ** -0.8
    post = bv.pretrained("lcpfn").condition(epochs[:10], accuracy[:10])
    low, high = post.predict(range(11, 101)).interval(0.9)
    assert low.shape == (90,) and (low < high).all()
    assert (low[-1] < accuracy[-1]) and (accuracy[-1] < high[-1])
    assert float(post.predict(100).probability_above(0.5)) > 0.95
    assert float(post.predict(100).probability_above(0.99)) < 0.2
