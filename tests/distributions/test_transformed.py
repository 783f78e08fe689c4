"""Metrics in units of their own: quantiles that flip and densities that carry the Jacobian."""

import math

import pytest
import scipy.integrate
import torch
from checks import rejected

from bayesvision import MetricScale
from bayesvision.distributions import Mixture, Normal, within

SCALES = {
    "bounded": MetricScale(0, 100),
    "soft": MetricScale(0, 100, 60, 90),
    "loss": MetricScale(0, math.inf, 0, 5, minimize=True),
    "free": MetricScale(soft_lower=-3, soft_upper=4),
    "free, minimised": MetricScale(soft_lower=-3, soft_upper=4, minimize=True),
}


def each():
    return pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())


def law(scale, spread=0.06):
    parts = Normal(torch.tensor([0.3, 0.55, 0.7], dtype=torch.float64), torch.tensor([spread, 0.02, 0.15]).double())
    return scale.law(Mixture.of(parts, torch.tensor([0.5, 0.2, -0.4], dtype=torch.float64)))


@each()
def test_hard_bounds_become_zero_and_one(scale):
    ends = scale.normalize(torch.tensor([scale.lower, scale.upper], dtype=torch.float64))
    expected = [1.0, 0.0] if scale.minimize else [0.0, 1.0]
    torch.testing.assert_close(ends, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@each()
def test_the_map_is_the_formula(scale):
    low, high = scale.soft
    y = torch.linspace(low, high, 7, dtype=torch.float64)
    s = lambda z: 1 / (1 + math.exp(-z)) if z > -700 else 0.0  # noqa: E731
    z = [2 * (v - low) / (high - low) - 1 for v in (scale.lower, scale.upper)]
    u = [(s(2 * (v - low) / (high - low) - 1) - s(z[0])) / (s(z[1]) - s(z[0])) for v in y.tolist()]
    expected = torch.tensor([1 - v for v in u] if scale.minimize else u, dtype=torch.float64)
    torch.testing.assert_close(scale.normalize(y), expected)


def test_huge_values_stay_finite_and_in_order():
    u = MetricScale(0, math.inf, 0, 1, minimize=True).normalize(torch.tensor([0.0, 1.0, 1e34], dtype=torch.float64))
    assert torch.isfinite(u).all() and (u.diff() < 0).all() and abs(float(u[-1])) < 1e-12


def test_quantiles_flip_when_the_metric_is_minimised():
    scale = SCALES["loss"]
    d = law(scale)
    lower, upper = d.interval(0.9)
    assert lower < upper
    low, high = d.base.cdf(torch.tensor([0.0, 1.0], dtype=torch.float64))
    good = d.base.quantile(low + 0.95 * (high - low))  # the good end in [0, 1] is the low loss
    assert abs(float(scale.transform.inv(good)) - float(lower)) < 1e-9


@each()
def test_the_density_carries_the_jacobian(scale):
    d = law(scale)
    low, high = (float(v) for v in d.quantile(torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64)))
    mass, _ = scipy.integrate.quad(lambda y: float(d.log_prob(torch.tensor(y)).exp()), low, high, limit=400)
    assert abs(mass - 1) < 1e-6
    y = d.quantile(torch.tensor([0.1, 0.4, 0.8]))
    bare = d.base.log_prob(scale.transform(y)).exp()  # without the Jacobian it is another number
    assert ((bare - d.log_prob(y).exp()).abs() > 1e-3).all()


@each()
def test_moments_and_scores_against_quadrature(scale):
    d = law(scale)
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    y = d.icdf(u)
    torch.testing.assert_close(d.mean, y.mean(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(d.stddev, y.std(), rtol=2e-3, atol=1e-3)
    value = y[60_000]
    torch.testing.assert_close(d.expected_absolute_error(value), (y - value).abs().mean(), rtol=1e-4, atol=1e-4)
    gini = 2 * (2 * u - 1) @ y / len(y)
    torch.testing.assert_close(d.mean_difference, gini, rtol=1e-3, atol=1e-3)


@each()
def test_levels_and_tails(scale):
    d = law(scale)
    levels = torch.tensor([1e-6, 0.01, 0.5, 0.99, 1 - 1e-6], dtype=torch.float64)
    y = d.icdf(levels)
    assert (y.diff() > 0).all()
    torch.testing.assert_close(d.cdf(y), levels, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(d.probability_above(y), 1 - levels, rtol=1e-6, atol=1e-9)
    for value, bound, below in ((-1e3, scale.lower, True), (1e3, scale.upper, False)):
        if math.isinf(bound):
            assert torch.isfinite(d.log_prob(value))  # the whole real line
            continue
        assert d.log_prob(value) == -math.inf and torch.isfinite(d.log_prob(bound))
        for y in (value, bound):  # nothing beyond a hard bound, and nothing more at it
            assert float(d.cdf(y)) == (0.0 if below else 1.0)
            assert float(d.probability_above(y)) == (1.0 if below else 0.0)
            assert float(d.log_cdf(y)) == (-math.inf if below else 0.0)
            assert float(d.log_probability_above(y)) == (0.0 if below else -math.inf)
        gain = float(d.expected_improvement(value))
        assert abs(gain - (float(d.mean) - value if below else 0.0)) < 1e-6 * max(1.0, gain)
    draws = d.sample((1000,))
    assert ((draws >= scale.lower) & (draws <= scale.upper)).all()


@pytest.mark.parametrize("beyond", [2.0, 40.0, 1000.0])
def test_a_law_that_lies_beyond_its_bound_leans_on_it(beyond):
    """Log densities keep their digits where next to nothing of `base` is left between the bounds."""
    d = within(Normal(torch.tensor(1.0 + 0.1 * beyond, dtype=torch.float64), torch.tensor(0.1).double()), 0.0, 1.0)
    y = torch.tensor([0.9, 0.99, 1.0], dtype=torch.float64)
    slope = d.log_prob(y).diff() / y.diff()
    torch.testing.assert_close(slope, 10 * (beyond + 5 * (2 - y[1:] - y[:-1])), rtol=1e-6, atol=0)
    # close to its bound the law is exponential, of this rate
    torch.testing.assert_close(float(d.log_prob(1.0)), math.log(10 * beyond), rtol=0, atol=1 / beyond**2)


def test_a_bound_that_float32_rounds_outward_is_a_bound():
    d = MetricScale(0, 0.1).law(Normal(torch.tensor(0.8).double(), torch.tensor(0.1).double()))
    assert torch.isfinite(d.log_prob(torch.tensor(0.1, dtype=torch.float32)))
    assert float(d.log_prob(torch.tensor(0.1001, dtype=torch.float32))) == -math.inf


def test_expand_and_sample():
    d = law(SCALES["soft"]).expand((3, 2))
    assert d.batch_shape == (3, 2) and d.mean.shape == (3, 2) and d.sample((5,)).shape == (5, 3, 2)


def test_bounds_that_make_no_sense_are_refused():
    with rejected("soft_lower and soft_upper must be finite"):
        MetricScale(0.0)
    with rejected("lower <= soft_lower < soft_upper <= upper"):
        MetricScale(0, 1, -1, 1)
    with rejected("lower <= soft_lower < soft_upper <= upper"):
        MetricScale(1, 0)
