"""Acquisitions far in the tail against mpmath, and what values the methods of a law take."""

import math

import mpmath
import numpy as np
import pytest
import torch

from bayesvision.distributions import Mixture, Normal

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
