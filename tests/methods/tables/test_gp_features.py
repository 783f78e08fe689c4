"""The process inside `TablePFN`: gradients, leave-one-out and predictions against their definitions."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from bayesvision.methods.tables.gp_features import PRIORS, FittedProcess, Hyperparameters, _gradients, fit_process
from bayesvision.training.seeds import generator

N, COLUMNS, DIMS = 9, 3, 2


def rows(seed, n=N, outputs=1):
    source = generator("cpu", seed)
    x = torch.randn(2, n, COLUMNS, DIMS, generator=source, dtype=torch.float64)
    y = torch.sin(2 * x[..., 0, :1]) + x[..., 1, :1] + 0.1 * torch.randn(2, n, outputs, generator=source).double()
    return x, y - y.mean(-2, keepdim=True)


def hyperparameters():
    values = [
        torch.tensor([[0.3, 1.0, -0.2], [0.7, 0.1, 0.4]]),
        *torch.tensor([[0.2, -0.5], [-1.0, 0.3], [-2.0, -3.0]]),
    ]
    return Hyperparameters(*(v.double() for v in values))


def kernel(hyper, a, b):
    """The formula of the docstring, for one data set, one pair at a time."""
    scale = hyper.lengthscale.exp() * math.sqrt(COLUMNS)
    out = a.new_zeros(len(a), len(b))
    for i in range(len(a)):
        for j in range(len(b)):
            r2 = ((a[i] - b[j]).square().sum(-1) / scale.square()).sum()
            s = (5 * r2.clamp(min=1e-30)).sqrt()
            linear = 1 + (a[i] * b[j]).sum() / COLUMNS
            out[i, j] = hyper.variance.exp() * (1 + s + s**2 / 3) * torch.exp(-s) + hyper.slope.exp() * linear
    return out


def one(hyper, k):
    return Hyperparameters(*(v[k] for v in hyper))


def test_gradients_are_those_of_the_log_posterior():
    x, y = rows(0)
    values = [v.requires_grad_() for v in hyperparameters()]
    hyper = Hyperparameters(*values)
    total = torch.zeros((), dtype=torch.float64)
    for k in range(2):
        covariance = kernel(one(hyper, k), x[k], x[k]) + hyper.noise[k].exp() * torch.eye(N, dtype=torch.float64)
        total = total - MultivariateNormal(torch.zeros(N, dtype=torch.float64), covariance).log_prob(y[k, :, 0])
    for (mean, stddev), value in zip(PRIORS.values(), values, strict=True):
        total = total + ((value - mean) / stddev).square().sum() / 2
    expected = torch.autograd.grad(total, values)
    found = _gradients(Hyperparameters(*(v.detach() for v in values)), x, y)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("outputs", [1, 3])
def test_what_a_row_is_told_comes_from_the_others(outputs):
    x, y = rows(1, outputs=outputs)
    process = FittedProcess.of(x, y)
    for k in range(2):
        hyper = one(process.hyper, k)
        for i in range(N):
            rest = [j for j in range(N) if j != i]
            covariance = kernel(hyper, x[k, rest], x[k, rest]) + hyper.noise.exp() * torch.eye(N - 1).double()
            cross = kernel(hyper, x[k, i : i + 1], x[k, rest])
            mean = cross @ torch.linalg.solve(covariance, y[k, rest])
            variance = kernel(hyper, x[k, i : i + 1], x[k, i : i + 1]) + hyper.noise.exp()
            variance = variance - cross @ torch.linalg.solve(covariance, cross.T)
            torch.testing.assert_close(process.seen.mean[k, i], mean[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(process.seen.stddev[k, i], variance[0, 0].sqrt(), rtol=1e-5, atol=1e-5)


def test_queries_get_the_conditional_of_the_joint_normal():
    x, y = rows(2)
    query = rows(3, n=4)[0]
    process = FittedProcess.of(x, y)
    found = process.at(query)
    for k in range(2):
        hyper = one(process.hyper, k)
        covariance = kernel(hyper, x[k], x[k]) + hyper.noise.exp() * torch.eye(N).double()
        cross = kernel(hyper, query[k], x[k])
        mean = cross @ torch.linalg.solve(covariance, y[k])
        variance = kernel(hyper, query[k], query[k]).diagonal() + hyper.noise.exp()
        variance = variance - (cross @ torch.linalg.solve(covariance, cross.T)).diagonal()
        torch.testing.assert_close(found.mean[k], mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.stddev[k], variance.sqrt(), rtol=1e-5, atol=1e-5)


def test_the_search_comes_near_the_maximum():
    x, y = rows(4, n=60)
    short, long = fit_process(x, y), fit_process(x, y, steps=400)

    def value(hyper):
        total = torch.zeros(2, dtype=torch.float64)
        for k in range(2):
            covariance = kernel(one(hyper, k), x[k], x[k]) + hyper.noise[k].exp() * torch.eye(60).double()
            total[k] = -MultivariateNormal(torch.zeros(60).double(), covariance).log_prob(y[k, :, 0])
        for (mean, stddev), v in zip(PRIORS.values(), hyper, strict=True):
            total += ((v - mean) / stddev).square().reshape(2, -1).sum(-1) / 2
        return total

    assert (value(short) - value(long)).max() < 1.0  # nats, of 60 rows
    largest = max(float(g.abs().max()) for g in _gradients(long, x, y))
    assert largest < 0.05


def test_a_batch_gives_what_each_data_set_gives_alone():
    x, y = rows(5)
    both = FittedProcess.of(x, y)
    for k in range(2):
        alone = FittedProcess.of(x[k], y[k])
        torch.testing.assert_close(both.seen.mean[k], alone.seen.mean)
        torch.testing.assert_close(both.hyper.lengthscale[k], alone.hyper.lengthscale)


def test_repeated_rows_and_columns_are_no_fault():
    x, y = rows(6)
    x, y = x.repeat(1, 4, 1, 1), y.repeat(1, 4, 1)
    x[..., 1, :] = x[..., 0, :]
    process = FittedProcess.of(x, y)
    assert all(bool(torch.isfinite(v).all()) for v in (*process.seen, *process.at(x + 1e6)))
