"""Columns and target in units of the rows seen."""

import torch

from bayesvision.core.standardize import Standardization, statistics


def rows(batch=(), count=20, features=3):
    source = torch.Generator().manual_seed(0)
    x = torch.randn(*batch, count, features, generator=source, dtype=torch.float64) * 5 + 100
    return x, x.sum(-1) * 1e6


def test_mean_zero_and_standard_deviation_one():
    for batch in ((), (4,)):
        x, y = rows(batch)
        units = Standardization.of(x, y, True)
        for value, axis in ((units.inputs(x), -2), (units.targets(y), -1)):
            torch.testing.assert_close(value.mean(axis), torch.zeros_like(value.mean(axis)), rtol=0, atol=1e-9)
            torch.testing.assert_close(value.std(axis), torch.ones_like(value.std(axis)))


def test_the_identity_where_nothing_is_learned():
    x, y = rows()
    for units in (Standardization.of(x, y, False), Standardization.of(x[:0], y[:0], True)):
        assert torch.equal(units.inputs(x), x) and torch.equal(units.targets(y), y)
    labels = Standardization.of(x, None, True)
    assert torch.equal(labels.targets(y), y) and not torch.equal(labels.inputs(x), x)


def test_a_column_that_does_not_vary_keeps_scale_one():
    x, y = rows()
    x[:, 1] = 1.7e9
    x[:, 2] = 1.7e9 + torch.arange(20) * 2e-7  # rounding noise: 1.7e9 has no digits below that
    units = Standardization.of(x, y, True)
    assert units.x_scale[0, 1:].tolist() == [1.0, 1.0] and units.x_scale[0, 0] > 1
    assert Standardization.of(x[:1], y[:1], True).x_scale.tolist() == [[1.0, 1.0, 1.0]]  # one row has no scale
    far = 1.7e9 + torch.arange(20, dtype=torch.float64)  # seconds, say: the differences are real
    loc, scale = statistics(far, -1)
    torch.testing.assert_close(scale, (far - 1.7e9).std(-1, keepdim=True))
    torch.testing.assert_close(loc - 1.7e9, torch.tensor([9.5], dtype=torch.float64))
