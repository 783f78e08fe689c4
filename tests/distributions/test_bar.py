"""`Bar`, mistake by mistake: what piecewise-uniform distributions get wrong, and an independent reference."""

import copy
import math
import pickle
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from checks import rejected
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayesvision.distributions import Bar

MEDIAN = scipy.stats.halfnorm.ppf(0.5)


def tensor64(values) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def equal_mass_normal(bars: int = 10, end: float = 4.34) -> Bar:
    """Equal-mass bars of N(0, 1) with outer borders +-end."""
    inner = scipy.stats.norm.ppf(np.arange(1, bars) / bars)
    return Bar(torch.zeros(bars, dtype=torch.float64), tensor64([-end, *inner, end]))


class Reference:
    """The definition, one bar after the other, in scipy."""

    def __init__(self, bar: Bar) -> None:
        p = torch.softmax(bar.logits, -1).tolist()
        b = (bar.loc + bar.scale * bar.borders).tolist()
        low = scipy.stats.halfnorm(-b[1], (b[1] - b[0]) / MEDIAN)  # of -Y
        high = scipy.stats.halfnorm(b[-2], (b[-1] - b[-2]) / MEDIAN)
        middle = [scipy.stats.uniform(one, other - one) for one, other in pairwise(b[1:-1])]
        self.p, self.low, self.rest = p, low, [*middle, high]

    def pdf(self, y: float) -> float:
        return self.p[0] * self.low.pdf(-y) + sum(
            p * part.pdf(y) for p, part in zip(self.p[1:], self.rest, strict=True)
        )

    def cdf(self, y: float) -> float:
        return self.p[0] * self.low.sf(-y) + sum(p * part.cdf(y) for p, part in zip(self.p[1:], self.rest, strict=True))

    def sf(self, y: float) -> float:
        return self.p[0] * self.low.cdf(-y) + sum(p * part.sf(y) for p, part in zip(self.p[1:], self.rest, strict=True))

    def moment(self) -> tuple[float, float]:
        means = [-self.low.mean(), *(part.mean() for part in self.rest)]
        variances = [self.low.var(), *(part.var() for part in self.rest)]
        mean = np.dot(self.p, means)
        return mean, np.dot(self.p, variances + (means - mean) ** 2)


@st.composite
def parts(draw) -> tuple[Tensor, Tensor, float, float]:
    count = draw(st.integers(2, 8))
    widths = draw(st.lists(st.floats(0.01, 5), min_size=count, max_size=count))
    logits = draw(st.lists(st.floats(-6, 6), min_size=count, max_size=count))
    start, loc, scale = draw(st.floats(-5, 5)), draw(st.floats(-10, 10)), draw(st.floats(0.1, 10))
    return tensor64(logits), tensor64(start + np.cumsum([0, *widths])), loc, scale


@settings(max_examples=60, deadline=None)
@given(parts=parts(), z=st.floats(-8, 8))
def test_matches_the_definition(parts, z):
    bar = Bar(*parts)
    y, reference = (bar.mean + z * bar.stddev).item(), Reference(bar)
    if (bar.edges - y).abs().min() > 1e-9:  # the density jumps at an edge
        assert bar.log_prob(tensor64(y)).exp().item() == pytest.approx(reference.pdf(y), rel=1e-8, abs=1e-300)
    assert bar.cdf(tensor64(y)).item() == pytest.approx(reference.cdf(y), rel=1e-8, abs=1e-300)
    assert bar.probability_above(y).item() == pytest.approx(reference.sf(y), rel=1e-8, abs=1e-300)
    mean, variance = reference.moment()
    assert bar.mean.item() == pytest.approx(mean, rel=1e-9, abs=1e-9)
    assert bar.variance.item() == pytest.approx(variance, rel=1e-8)


@settings(max_examples=60, deadline=None)
@given(
    parts=parts(),
    loc=st.floats(-10, 10),
    size=st.floats(0.1, 10),
    sign=st.sampled_from([-1, 1]),
    u=st.floats(1e-6, 1 - 1e-6),
)
def test_affine_is_an_exact_change_of_variables(parts, loc, size, sign, u):
    bar = Bar(*parts)
    scale = sign * size
    moved, y = bar.affine(loc, scale), bar.icdf(tensor64(u))
    if (bar.edges - y).abs().min() > 1e-9:
        assert moved.log_prob(loc + scale * y).item() == pytest.approx(
            bar.log_prob(y).item() - math.log(size), abs=1e-9
        )
    below = bar.cdf(y) if sign > 0 else bar.probability_above(y)
    assert moved.cdf(loc + scale * y).item() == pytest.approx(below.item(), rel=1e-7)
    assert moved.mean.item() == pytest.approx(loc + scale * bar.mean.item(), abs=1e-8)
    assert moved.stddev.item() == pytest.approx(size * bar.stddev.item(), rel=1e-9)
    assert moved.crps(loc + scale * y).item() == pytest.approx(size * bar.crps(y).item(), rel=1e-7, abs=1e-10)
    assert moved.quantile(u if sign > 0 else 1 - u).item() == pytest.approx(
        (loc + scale * y).item(), rel=1e-6, abs=1e-6
    )


def test_affine_takes_one_scale_for_each_element_of_the_batch():
    bar = Bar(torch.zeros(2, 3), torch.tensor([0.0, 1.0, 2.0, 5.0]))
    loc, scale = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -3.0])
    y = bar.sample((50,))
    torch.testing.assert_close(bar.affine(loc, scale).log_prob(loc + scale * y), bar.log_prob(y) - scale.abs().log())
    for wrong in (0.0, torch.tensor([1.0, -1.0]), math.nan):
        with pytest.raises(ValueError, match="scale must be all positive or all negative"):
            bar.affine(0.0, wrong)


def test_cdf_is_right_deep_in_the_tails():
    bar = equal_mass_normal()
    edge, scale = bar.borders[1].item(), (bar.borders[1] - bar.borders[0]).item() / MEDIAN
    for steps in (1.0, 5.0, 10.0, 30.0):
        exact = 0.2 * scipy.stats.norm.sf(steps)  # of a tenth of the mass, folded over
        assert bar.cdf(tensor64(edge - steps * scale)).item() == pytest.approx(exact, rel=1e-9, abs=0)
        assert bar.probability_above(-edge + steps * scale).item() == pytest.approx(exact, rel=1e-9, abs=0)
    assert bar.cdf(tensor64([-1e300, 1e300, -math.inf, math.inf])).tolist() == pytest.approx([0, 1, 0, 1], abs=1e-15)


def test_pdf_is_the_density_and_not_its_inverse():
    bar = Bar(tensor64([0.0, math.log(2), 0.0]), tensor64([0.0, 1.0, 1.25, 2.0]))
    assert bar.log_prob(tensor64(1.1)).exp().item() == pytest.approx(0.5 / 0.25)


def test_quantiles_and_samples_leave_the_outer_borders():
    bar = equal_mass_normal()
    assert bar.quantile(1e-4).item() == pytest.approx(-16.2, abs=0.05)
    assert bar.quantile(1 - 1e-4).item() == pytest.approx(16.2, abs=0.05)
    torch.manual_seed(0)
    draws = bar.sample((2000,))  # a share of 1/20 lies beyond each: none in 2000 has probability 3e-45
    assert draws.min() < bar.borders[0]
    assert draws.max() > bar.borders[-1]


def test_half_of_an_outer_bar_lies_beyond_its_old_border():
    bar = Bar(tensor64([1.0, 0.0, 2.0]), tensor64([-3.0, -1.0, 0.0, 4.0]), 2.0, 3.0)
    assert bar.cdf(bar.edges[0]).item() == pytest.approx(bar.probs[0].item() / 2)
    assert bar.probability_above(bar.edges[-1]).item() == pytest.approx(bar.probs[-1].item() / 2)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("bar", [0, 1, 99])
def test_variance_is_not_negative_when_one_bar_holds_all_the_mass(kind, bar):
    logits = torch.full((100,), -300.0, dtype=kind)
    logits[bar] = 300
    borders = 1e4 + torch.linspace(0, 1, 101, dtype=kind)
    d = Bar(logits, borders)
    width = (borders[bar + 1] - borders[bar]).item()
    expected = width**2 / 12 if bar == 1 else (width / MEDIAN) ** 2 * (1 - 2 / math.pi)
    assert d.variance.item() == pytest.approx(expected, rel=1e-4)


def test_probability_of_improvement_at_medians():
    bar = equal_mass_normal()
    assert bar.probability_above(bar.borders[-1].item()).item() == pytest.approx(0.05)  # the median of the upper tail
    assert bar.probability_above(bar.borders[0].item()).item() == pytest.approx(0.95)
    assert bar.probability_above(0.0).item() == pytest.approx(0.5)
    certain = Bar(tensor64([-900.0, 0.0, -900.0]), tensor64([-2.0, -1.0, 1.0, 2.0]))
    assert certain.probability_above(0.0).item() == pytest.approx(0.5)
    assert certain.probability_above(-1.5).item() == 1


def test_mode_honours_bar_width_and_tails():
    borders = tensor64([-1.0, 0.0, 0.1, 5.0, 6.0])
    assert Bar(tensor64([-9.0, 0.0, 1.0, -9.0]), borders).mode.item() == pytest.approx(0.05)  # less mass, narrower
    assert Bar(tensor64([9.0, 0.0, 1.0, -9.0]), borders, 1.0, 2.0).mode.item() == pytest.approx(1)  # 1 + 2 * 0
    assert Bar(tensor64([-9.0, 0.0, 1.0, 9.0]), borders).mode.item() == pytest.approx(5)


@settings(max_examples=30, deadline=None)
@given(parts=parts(), u=st.floats(1e-6, 1 - 1e-6))
def test_nothing_is_denser_than_the_mode(parts, u):
    bar = Bar(*parts)
    nearby = bar.mode + 1e-9 * bar.scale * tensor64([-1.0, 1.0])  # the mode may be a border, where the density jumps
    assert bar.log_prob(nearby).max() >= bar.log_prob(bar.icdf(tensor64(u))) - 1e-6


def test_quantiles_near_one_are_finite_with_many_float32_bars():
    torch.manual_seed(0)
    for count in (100, 5000, 50_000):
        bar = Bar(torch.randn(3, count), torch.linspace(-1, 1, count + 1))
        exact = Bar(bar.logits.double(), bar.borders.double())
        for level in (1 - 1e-7, 1 - 1e-5, 0.5, 1e-7):
            q = bar.quantile(level)
            assert q.dtype == torch.float32
            torch.testing.assert_close(q.double(), exact.quantile(level), atol=1e-6, rtol=1e-6)
        assert torch.isfinite(bar.icdf(torch.tensor(1 - 6e-8))).all()
        torch.testing.assert_close(bar.cdf(torch.tensor(1e3)), torch.ones(3), atol=0, rtol=0)


def test_crps_and_expected_improvement_honour_the_tails():
    bar, reference = equal_mass_normal(), Reference(equal_mass_normal())
    edges = bar.edges.tolist()

    def integral(function: Callable[[float], float], low: float, high: float) -> float:
        return scipy.integrate.quad(function, low, high, points=[e for e in edges if low < e < high], limit=200)[0]

    for value in (-30.0, -4.34, -2.0, 0.3, 3.0, 20.0):
        gain = integral(reference.sf, value, 80)
        crps = integral(lambda y: reference.cdf(y) ** 2, -80, value) + integral(
            lambda y: reference.sf(y) ** 2, value, 80
        )
        assert bar.crps(tensor64(value)).item() == pytest.approx(crps, rel=1e-7)
        assert bar.expected_improvement(value).item() == pytest.approx(gain, rel=1e-7, abs=1e-12)
    assert bar.expected_improvement(4.34).item() > 0.1  # without tails it would be zero


class TestBordersOf:
    def test_masses_are_equal_on_a_large_sample(self):
        torch.manual_seed(0)
        targets = torch.randn(1_000_000)
        borders = Bar.borders_of(targets, 1000)
        assert borders.shape == (1001,)
        assert borders.dtype == torch.float32
        assert borders[0] == targets.min()
        assert borders[-1] == targets.max()
        counts = torch.histogram(targets, borders).hist
        assert (counts - 1000).abs().max() <= 5  # a float32 border may fall on a handful of equal float32 draws

    def test_ties_are_merged(self):
        torch.manual_seed(0)
        targets = torch.cat([torch.zeros(5000), torch.randn(5000)])
        borders = Bar.borders_of(targets, 100)
        assert (borders.diff() > 0).all()
        assert (borders == 0).sum() == 1
        assert 50 <= len(borders) <= 53
        Bar(torch.zeros(len(borders) - 1), borders).log_prob(targets)

    def test_extremes_of_a_heavy_tailed_sample_do_not_stretch_the_tails(self):
        torch.manual_seed(0)
        targets = torch.randn(100_000) / torch.rand(100_000).clamp(min=1e-6)
        borders = Bar.borders_of(targets, 50)
        inner = borders[-2] - borders[1]
        assert targets.max() > borders[-1] >= borders[-2] + 1.99 * inner
        assert targets.min() < borders[0] <= borders[1] - 1.99 * inner
        assert len(Bar.borders_of(torch.tensor([-1e6, 0.0, 1e6]), 2)) == 3

    def test_neighbours_in_float64_that_float32_cannot_tell_apart_are_merged(self):
        targets = torch.cat([1 + 1e-12 * torch.arange(10, dtype=torch.float64), tensor64([2.0, 3.0])])
        borders = Bar.borders_of(targets, 11)
        assert borders.tolist() == [1, 2, 3]

    @pytest.mark.parametrize(
        ("targets", "count", "message"),
        [
            ([1.0, math.nan, 2.0], 3, "targets must be finite"),
            ([1.0, math.inf, 2.0], 3, "targets must be finite"),
            ([2.0, 2.0, 2.0], 3, "targets must spread"),
            ([], 3, "targets must hold at least one value"),
            ([1.0, 2.0, 3.0], 1, "bars must be at least 2"),
        ],
    )
    def test_bad_samples_are_rejected(self, targets, count, message):
        with pytest.raises(ValueError, match=message):
            Bar.borders_of(torch.tensor(targets), count)


def test_two_bars_are_two_half_normals():
    bar = Bar(torch.zeros(2, dtype=torch.float64), tensor64([-MEDIAN, 0.0, MEDIAN]))  # together N(0, 1)
    y = tensor64([-7.0, -1.0, 0.4, 3.0])
    normal = torch.distributions.Normal(tensor64(0.0), tensor64(1.0))
    torch.testing.assert_close(bar.log_prob(y), normal.log_prob(y))
    np.testing.assert_allclose(bar.cdf(y), scipy.stats.norm.cdf(y), rtol=1e-10)
    np.testing.assert_allclose(
        bar.quantile(tensor64([1e-9, 0.3, 0.9])), scipy.stats.norm.ppf([1e-9, 0.3, 0.9]), rtol=1e-9
    )
    assert bar.mean.item() == pytest.approx(0, abs=1e-12)
    assert bar.variance.item() == pytest.approx(1)
    assert bar.mean_difference.item() == pytest.approx(2 / math.sqrt(math.pi))
    gain = normal.log_prob(y).exp().numpy() - y.numpy() * scipy.stats.norm.sf(y)
    np.testing.assert_allclose(bar.expected_improvement(y), gain, atol=1e-12)


@pytest.mark.parametrize(
    ("logits", "borders", "scale", "message"),
    [
        ([0.0, 0.0], [0.0, 1.0], 1.0, "borders must be one axis with one more entry"),
        ([0.0], [0.0, 1.0], 1.0, "borders must be one axis with one more entry"),
        ([0.0, 0.0], [[0.0, 1.0, 2.0]], 1.0, "borders must be one axis with one more entry"),
        ([0.0, 0.0], [0.0, 1.0, 1.0], 1.0, "borders must be finite and strictly increasing"),
        ([0.0, 0.0], [0.0, 1.0, math.inf], 1.0, "borders must be finite and strictly increasing"),
        ([0.0, 0.0], [0.0, math.nan, 1.0], 1.0, "borders must be finite and strictly increasing"),
        ([0.0, 0.0], [0.0, 1.0, 2.0], 0.0, "scale must be positive"),
        ([0.0, 0.0], [0.0, 1.0, 2.0], -1.0, "scale must be positive"),
        ([0.0, 0.0], [0.0, 1.0, 2.0], math.nan, "scale must be positive"),
    ],
)
def test_bad_arguments_are_rejected(logits, borders, scale, message):
    with rejected(message):
        Bar(torch.tensor(logits), torch.tensor(borders), 0.0, scale, validate_args=True)


def test_values_broadcast_against_the_batch():
    bar = Bar(
        torch.randn(3, 1, 4, dtype=torch.float64), tensor64([0.0, 1.0, 2.0, 3.0, 4.0]), tensor64([[0.0], [1.0], [2.0]])
    )
    y = tensor64([-1.0, 0.5, 1.5, 2.5, 9.0])
    u = bar.cdf(y)
    assert u.shape == (3, 5)
    torch.testing.assert_close(bar.icdf(u), y.expand(3, 5))
    flat = Bar(bar.logits.squeeze(1), bar.borders, bar.loc.squeeze(1))
    levels = tensor64([0.2, 0.4, 0.6, 0.8])
    torch.testing.assert_close(bar.icdf(levels), flat.icdf(levels.unsqueeze(-1)).T)
    torch.testing.assert_close(bar.crps(y), flat.crps(y.unsqueeze(-1)).T)


def test_an_empty_batch_is_fine():
    bar = Bar(torch.zeros(0, 3), torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert bar.mean.shape == bar.quantile(0.5).shape == bar.sample().shape == (0,)


def test_mixed_dtypes_take_the_wider_one():
    bar = Bar(torch.zeros(3), torch.tensor([0.0, 1.0, 2.0, 3.0]), tensor64(1e9), tensor64(1.0))
    y = tensor64(1e9 + 1.25)
    assert bar.mean.dtype == torch.float64
    assert bar.cdf(y).item() == pytest.approx(1 / 3 + 0.25 / 3)  # a float32 location would be off by up to 32
    assert bar.affine(-1e9, 1.0).mean.item() == pytest.approx(1.5)
    single = Bar(torch.zeros(3), torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert single.log_prob(tensor64(1.5)).item() == pytest.approx(math.log(1 / 3))
    assert single.affine(tensor64(1e9), 1.0).mean.item() == pytest.approx(1e9 + 1.5, abs=1e-6)


def test_gradients_of_quantiles_and_samples():
    logits, loc, scale = (tensor64(v).requires_grad_() for v in ([0.1, 0.0, 0.3, -0.2], 0.4, 1.3))
    levels = tensor64([0.05, 0.3, 0.6, 0.97])
    borders = tensor64([0.0, 1.0, 1.5, 3.0, 4.0])
    assert torch.autograd.gradcheck(lambda a, b, c: Bar(a, borders, b, c).icdf(levels), [logits, loc, scale])
    even = torch.zeros(4, dtype=torch.float64, requires_grad=True)  # levels that fall on borders
    (gradient,) = torch.autograd.grad(Bar(even, borders).quantile(tensor64([0.25, 0.5, 0.75])).sum(), even)
    assert torch.isfinite(gradient).all()
    torch.manual_seed(0)
    (gradient,) = torch.autograd.grad(Bar(logits, borders).rsample((1000,)).sum(), logits)
    assert torch.isfinite(gradient).all()


def test_copies_and_pickles():
    bar = Bar(torch.randn(3, 4), torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 1.0, 2.0]))
    for twin in (copy.deepcopy(bar), pickle.loads(pickle.dumps(bar))):
        assert torch.equal(twin.quantile(0.3), bar.quantile(0.3))
