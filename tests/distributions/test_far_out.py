"""Acquisitions far in the tail against mpmath, and what values the methods of a law take."""

import math

import mpmath
import numpy as np
import pytest
import torch
from torch.distributions import Transform, constraints

from bayesvision.distributions import (
    Bar,
    Bernoulli,
    Categorical,
    GeneralizedNormal,
    Mixture,
    Normal,
    StudentT,
    TruncatedTransformed,
)
from bayesvision.distributions.metric import MetricScale

METHODS = ("log_prob", "cdf", "crps", "expected_absolute_error", "probability_above", "expected_improvement")


def truth(z):
    """log(phi(z) + z Phi(z)) with fifty digits."""
    with mpmath.workdps(60):
        z = mpmath.mpf(z)
        return float(mpmath.log(mpmath.npdf(z) + z * mpmath.erfc(-z / mpmath.sqrt(2)) / 2))


@pytest.mark.parametrize("z", [-3000.0, -200.0, -100.1, -99.9, -30.0, -9.0, -5.0, -1.0, -1e-9, 0.0, 0.5, 7.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_improvement_of_a_normal_keeps_its_digits(z, dtype):
    d = Normal(torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype))
    expected = truth(torch.tensor(-z, dtype=dtype).neg().item())
    digits = 1e-6 if dtype == torch.float32 else 1e-11
    assert d.log_expected_improvement(-z).item() == pytest.approx(expected, rel=digits, abs=digits)
    if expected > -80:
        gain = d.expected_improvement(torch.tensor(-z, dtype=dtype)).item()
        assert gain == pytest.approx(math.exp(expected), rel=80 * digits)


def test_improvement_does_not_vanish_beside_a_large_mean():
    d = Normal(torch.tensor(1e4), torch.tensor(1.0))
    assert d.expected_improvement(1e4 + 4).item() == pytest.approx(7.145e-6, rel=1e-3)


def test_its_gradient_does_not_vanish():
    loc = torch.tensor([-3000.0, -40.0, -9.0, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(Normal(loc, torch.ones_like(loc)).log_expected_improvement(0.0).sum(), loc)
    step = 1e-6
    for found, z in zip(slope.tolist(), loc.tolist(), strict=True):
        assert found == pytest.approx((truth(z + step) - truth(z - step)) / (2 * step), rel=1e-5)


def test_a_mixture_is_the_sum_of_its_parts():
    loc, scale = torch.tensor([0.0, -3.0], dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64)
    d = Mixture.of(Normal(loc, scale), torch.tensor([0.2, -0.3], dtype=torch.float64))
    weights = torch.softmax(torch.tensor([0.2, -0.3], dtype=torch.float64), -1)
    expected = sum(
        float(w) * float(s) * math.exp(truth((float(m) - 9) / float(s)))
        for w, m, s in zip(weights, loc, scale, strict=True)
    )
    assert d.expected_improvement(9.0).item() == pytest.approx(expected, rel=1e-10)
    assert d.log_expected_improvement(9.0).item() == pytest.approx(math.log(expected), rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("law", ["normal", "mixture"])
def test_numbers_arrays_and_tensors_say_the_same(method, law):
    loc = torch.tensor([[0.1, 0.4], [1.0, -1.0], [0.3, 2.0]])
    d = Normal(loc[:, 0], torch.ones(3)) if law == "normal" else Mixture.of(Normal(loc, torch.ones(3, 2)))
    call = getattr(d, method)
    expected = call(torch.full((3,), 0.5))
    for value in (0.5, np.float64(0.5), np.full(3, 0.5), np.full(3, 0.5, np.float32), [0.5, 0.5, 0.5]):
        assert torch.equal(call(value), expected), value


# Tails of every family against mpmath, fifty digits, the truth as plain integrals of the density


def student_density(df):
    c = mpmath.gamma((df + 1) / mpmath.mpf(2)) / mpmath.gamma(df / mpmath.mpf(2)) / mpmath.sqrt(df * mpmath.pi)
    return lambda z: c * (1 + z * z / mpmath.mpf(df)) ** (-(df + 1) / mpmath.mpf(2))


def power_density(beta):
    c = beta / (2 * mpmath.gamma(1 / mpmath.mpf(beta)))
    return lambda z: c * mpmath.exp(-(abs(z) ** mpmath.mpf(beta)))


BORDERS = [-2.0, -1.0, 0.5, 1.0, 2.5]
WEIGHTS = [0.1, 0.3, 0.4, 0.2]


def bar_density(z):
    half = mpmath.mpf("0.67448975019608174320222701454130718538690440271572")
    left, right = 1 / half, mpmath.mpf("1.5") / half
    if z < -1:
        return WEIGHTS[0] * 2 * mpmath.npdf((z + 1) / left) / left
    if z > 1:
        return WEIGHTS[3] * 2 * mpmath.npdf((z - 1) / right) / right
    return WEIGHTS[1] / mpmath.mpf("1.5") if z < 0.5 else WEIGHTS[2] / mpmath.mpf("0.5")


def f64(value):
    return torch.tensor(value, dtype=torch.float64)


class Asinh(Transform):
    """u = asinh(y), from the real line onto itself."""

    domain = codomain = constraints.real
    bijective = True
    sign = 1

    def _call(self, x):
        return torch.asinh(x)

    def _inverse(self, y):
        return torch.sinh(y)

    def log_abs_det_jacobian(self, x, y):
        return -torch.log1p(x.square()) / 2


FAMILIES = {  # law, its density, places where the density has a kink
    "normal": (lambda t: Normal(t(0.0), t(1.0)), mpmath.npdf, []),
    "student 2.1": (lambda t: StudentT(t(0.0), t(1.0), t(2.1)), student_density(2.1), []),
    "student 5": (lambda t: StudentT(t(0.0), t(1.0), t(5.0)), student_density(5), []),
    "student 1000": (lambda t: StudentT(t(0.0), t(1.0), t(1e3)), student_density(1000), []),
    "laplace": (lambda t: GeneralizedNormal(t(0.0), t(1.0), t(1.0)), power_density(1), [0]),
    "power 0.5": (lambda t: GeneralizedNormal(t(0.0), t(1.0), t(0.5)), power_density(0.5), [0]),
    "power 2.75": (lambda t: GeneralizedNormal(t(0.0), t(1.0), t(2.75)), power_density(2.75), [0]),
    "bar": (lambda t: Bar(t(WEIGHTS).log(), t(BORDERS)), bar_density, [-1, 0.5, 1]),
    "mixture": (
        lambda t: Mixture.of(Normal(t([0.0, -3.0]), t([1.0, 0.5])), t([0.2, 0.8]).log()),
        lambda z: mpmath.npdf(z) * mpmath.mpf(0.2) + mpmath.npdf(z, -3, 0.5) * mpmath.mpf(0.8),
        [],
    ),
}


def integral(f, low, kinks):
    """int_low^inf f with fifty digits, in pieces that grow."""
    ends = [low + mpmath.mpf(2) ** k for k in range(-40, 60)]
    ends = sorted({low, *(k for k in kinks if k > low), *ends})
    return mpmath.quad(f, [*ends, mpmath.inf])


@pytest.mark.parametrize("place", [-4.0, -0.25, 0.0, 0.75, 1.5, 6.5, 12.0, 40.0, 1e4])
@pytest.mark.parametrize("family", FAMILIES)
def test_tails_keep_their_digits(family, place):
    make, density, kinks = FAMILIES[family]
    if family != "student 2.1" and family != "student 5" and place == 1e4:
        place = 100.0
    with mpmath.workdps(30):
        at = mpmath.mpf(place)
        if place < 0:
            above = 1 - integral(lambda z: density(-z), -at, sorted(-k for k in kinks))
        else:
            above = integral(density, at, kinks)
        gain = integral(lambda z: (z - at) * density(z), at, kinks)
        logs = [float(mpmath.log(v)) for v in (above, gain, 1 - above)]
    law = make(f64)
    found = [law.log_probability_above(place), law.log_expected_improvement(place), law.log_cdf(place)]
    for name, value, log in zip(("above", "gain", "below"), found, logs, strict=True):
        # weights of 0.1 are rounded in float64, a df of 1,000 cancels logarithms of a thousand
        assert value.item() == pytest.approx(log, rel=2e-10, abs=2e-10), name
    if logs[1] > -600:
        assert law.probability_above(place).item() == pytest.approx(float(above), rel=1e-9)
        assert law.expected_improvement(place).item() == pytest.approx(float(gain), rel=1e-9)
    short = make(lambda v: torch.tensor(v, dtype=torch.float32))
    assert short.log_expected_improvement(place).dtype == torch.float32
    assert short.log_expected_improvement(place).item() == pytest.approx(logs[1], rel=3e-5, abs=3e-5)
    assert short.log_probability_above(place).item() == pytest.approx(logs[0], rel=3e-5, abs=3e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", [-30.0, -6.0, -0.3, 0.2, 6.0, 30.0])
def test_the_gradients_of_the_logarithms_are_finite_and_right(family, place):
    law, _, _ = FAMILIES[family]
    law = law(f64)
    t = f64(place).requires_grad_()
    for name in ("log_probability_above", "log_cdf", "log_expected_improvement"):
        call = getattr(law, name)
        (slope,) = torch.autograd.grad(call(t), t)
        step = 1e-5
        wide = (call(f64(place + step)) - call(f64(place - step))) / (2 * step)
        assert slope.item() == pytest.approx(wide.item(), rel=2e-4, abs=1e-9), name


@pytest.mark.parametrize("place", [-60.0, 0.01, 1.0, 7.0, 60.0, 3e3])
def test_a_normal_through_sinh_has_its_closed_forms(place):
    """Y = sinh(U): E max(Y - t, 0) = sqrt(e) (Phi(1 - a) - Phi(-1 - a)) / 2 - t Phi(-a) with a = asinh(t)."""
    law = TruncatedTransformed(Normal(f64(0.0), f64(1.0)), Asinh())
    with mpmath.workdps(50):
        a = mpmath.asinh(mpmath.mpf(place))
        above = mpmath.ncdf(-a)
        gain = mpmath.exp(0.5) * (mpmath.ncdf(1 - a) - mpmath.ncdf(-1 - a)) / 2 - mpmath.mpf(place) * above
        logs = [float(mpmath.log(v)) for v in (above, gain)]
    assert law.log_probability_above(place).item() == pytest.approx(logs[0], rel=1e-10, abs=1e-12)
    assert law.log_expected_improvement(place).item() == pytest.approx(logs[1], rel=1e-6, abs=1e-6)
    assert law.expected_improvement(place).item() == pytest.approx(float(gain), rel=1e-5)


@pytest.mark.parametrize("minimize", [False, True])
def test_improvement_of_a_bounded_metric_is_an_integral_of_its_survival_function(minimize):
    scale = MetricScale(lower=0.0, upper=1.0, minimize=minimize)
    law = TruncatedTransformed(Normal(f64(0.3), f64(0.05)), scale.transform)
    for t in (0.1, 0.5, 0.9):
        grid = torch.linspace(t, 2, 400_001, dtype=torch.float64)
        expected = torch.trapezoid(law.probability_above(grid), grid).item()
        assert law.expected_improvement(t).item() == pytest.approx(expected, rel=1e-5, abs=1e-12)
        assert law.log_cdf(t).exp().item() == pytest.approx(law.cdf(t).item(), rel=1e-9)


# Many draws


def pairs(law):
    """E|Y - Y'| over all pairs of normals."""
    loc, scale, w = law.component_distribution.loc, law.component_distribution.scale, law.weights
    mean, stddev = loc.unsqueeze(-1) - loc.unsqueeze(-2), torch.hypot(scale.unsqueeze(-1), scale.unsqueeze(-2))
    z = mean / stddev
    each = mean * torch.erf(z / 2**0.5) + 2 * stddev * torch.exp(-z.square() / 2) / (2 * math.pi) ** 0.5
    return (w.unsqueeze(-1) * w.unsqueeze(-2) * each).sum((-2, -1))


@pytest.mark.parametrize("members", [1, 2, 30, 400])
@pytest.mark.parametrize("ratio", [0.0, 1.0, 6.0])
def test_mixtures_of_many_draws_are_exact(members, ratio):
    rng = torch.Generator().manual_seed(members)
    loc = 100 + 3 * torch.randn(7, members, generator=rng, dtype=torch.float64)
    scale = torch.exp(ratio * (torch.rand(7, members, generator=rng, dtype=torch.float64) - 1))
    law = Mixture.of(Normal(loc, scale))
    torch.testing.assert_close(law.mean_difference, pairs(law), rtol=1e-10, atol=1e-10)
    levels = f64([1e-12, 1e-4, 0.05, 0.31, 0.5, 0.95, 1 - 1e-7])
    found = law.quantile(levels)
    for level, value in zip(levels, found, strict=True):
        torch.testing.assert_close(law.cdf(value), level.expand(7), rtol=1e-9, atol=0)
    torch.testing.assert_close(found[:, 2], law[2].quantile(levels), rtol=1e-12, atol=0)


def test_a_gap_between_the_parts_of_a_mixture_is_crossed():
    law = Mixture.of(Normal(f64([0.0, 1e6]), f64([1e-3, 1e-3])))
    low, high = law.quantile(f64([0.49, 0.51])).tolist()
    assert low == pytest.approx(1e-3 * 2.0537489, rel=1e-6)
    assert high == pytest.approx(1e6 - 1e-3 * 2.0537489, rel=1e-12)


def test_mixtures_of_many_others_are_close_to_exact():
    rng = torch.Generator().manual_seed(0)
    loc, scale = torch.randn(3, 600, generator=rng, dtype=torch.float64), torch.full((3, 600), 0.3, dtype=torch.float64)
    normal, same = Mixture.of(Normal(loc, scale)), Mixture.of(GeneralizedNormal(loc, scale * 2**0.5, 2 * scale / scale))
    torch.testing.assert_close(same.mean_difference, normal.mean_difference, rtol=1e-6, atol=0)


# Indexing

SHAPED = {
    "normal": lambda t: Normal(t.randn(4, 3), t.rand(4, 3) + 0.1),
    "student": lambda t: StudentT(t.randn(4, 3), t.rand(4, 3) + 0.1, t.rand(4, 3) + 3),
    "bar": lambda t: Bar(t.randn(4, 3, 5), t.linspace(-1, 1, 6), t.randn(4, 3)),
    "mixture": lambda t: Mixture.of(Normal(t.randn(4, 3, 6), t.rand(4, 3, 6) + 0.1), t.randn(4, 3, 6)),
    "bars mixed": lambda t: Mixture.of(Bar(t.randn(4, 3, 2, 5), t.linspace(-1, 1, 6)), t.randn(4, 3, 2)),
    "metric": lambda t: TruncatedTransformed(Normal(t.rand(4, 3), t.rand(4, 3)), MetricScale(0.0, 1.0).transform),
}


@pytest.mark.parametrize("family", SHAPED)
@pytest.mark.parametrize("index", [0, -1, slice(1, 3), (1, 2), (..., 0), (slice(None), [0, 2]), None])
def test_marginals_are_picked_as_from_a_tensor(family, index):
    torch.manual_seed(0)
    law = SHAPED[family](torch)
    y = torch.rand(4, 3)
    part = law[index]
    assert part.batch_shape == y[index].shape
    torch.testing.assert_close(part.log_prob(y[index]), law.log_prob(y)[index])
    torch.testing.assert_close(part.mean, law.mean[index])
    torch.testing.assert_close(part.quantile(0.3), law.quantile(0.3)[index])


@pytest.mark.parametrize("family", SHAPED)
@pytest.mark.parametrize("index", [4, (0, 3), (0, 0, 0)])
def test_what_is_not_there_is_not_picked(family, index):
    with pytest.raises(IndexError):
        SHAPED[family](torch)[index]


def test_classes_are_picked_and_scored_as_numbers_and_arrays():
    law = Categorical(logits=torch.randn(4, 3))
    torch.testing.assert_close(law[1:3].class_probs, law.class_probs[1:3])
    assert torch.equal(law.log_prob(np.array([0, 1, 2, 0])), law.log_prob(torch.tensor([0, 1, 2, 0])))
    assert torch.equal(law.brier([0, 1, 2, 0]), law.brier(torch.tensor([0, 1, 2, 0])))
    assert torch.equal(law[0].log_prob(2), law.log_prob(2)[0])
    with pytest.raises(IndexError):
        law[0, 0]
    two = Bernoulli(logits=torch.randn(4))
    assert torch.equal(two[[0, 2]].class_probs, two.class_probs[[0, 2]])
    assert two[1].log_prob(1).shape == ()
