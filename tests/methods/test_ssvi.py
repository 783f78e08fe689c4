"""Sparse subspace variational inference: closed forms, criteria, exchanges, sources, and what is refused."""

import copy
import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import bayesvision as bv
from bayesvision import SSVI, Data, Execution, Train
from bayesvision.io.tensors import write_tensors
from bayesvision.methods.ssvi.layers import SparseConv, SparseLinear, sparse_layer
from bayesvision.methods.ssvi.learning import Learner
from bayesvision.methods.ssvi.network import dense_gradients, layers_of, sparsified, trainable
from bayesvision.methods.ssvi.products import Pattern, products
from bayesvision.methods.ssvi.selection import exchange, kept_counts, largest_places, random_places, score
from bayesvision.training.optimizers import Optimizers
from bayesvision.training.seeds import generator, seeded

CPU = Execution(device="cpu")
QUICK = Train(steps=60, batch=16, lr=1e-2, execution=CPU)
CRITERIA = ("magnitude", "ratio", "expected_magnitude", "snr", "exponential", "exponential_snr")


def draws(seed, *shape):
    return torch.randn(*shape, generator=generator("cpu", seed), dtype=torch.float64)


def net(inputs=3, width=32, outputs=1, **kind):
    with seeded(1):
        return nn.Sequential(
            nn.Linear(inputs, width, dtype=torch.float32, **kind),
            nn.Tanh(),
            nn.Linear(width, outputs, dtype=torch.float32, **kind),
        )


def layer(outputs=7, inputs=5, kept=12, bias=True, dtype=torch.float64):
    with seeded(2):
        dense = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    return sparse_layer(dense, random_places((outputs, inputs), kept, generator("cpu", 3)), 1.0, 0.3)


def rows(count=80, seed=5):
    x = draws(seed, count, 3)
    return x, x[:, 0] - 0.5 * x[:, 1] + 0.1 * draws(seed + 1, count)


# --- products


@given(rows=st.integers(1, 6), columns=st.integers(1, 6), n=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_products_are_those_of_dense_matrices(rows, columns, n, seed):
    source = generator("cpu", seed)
    kept = int(torch.randint(1, rows * columns + 1, (), generator=source))
    index = torch.randperm(rows * columns, generator=source)[:kept].sort().values
    pattern = Pattern.of(index, (rows, columns))
    mean, variance = draws(seed, kept), draws(seed + 1, kept).square()
    x, g, h = draws(seed + 2, columns, n), draws(seed + 3, rows, n), draws(seed + 4, rows, n)
    leaves = [v.requires_grad_() for v in (x, mean, variance)]
    found = products(x, pattern, mean, variance)
    dense = [
        torch.zeros(rows * columns, dtype=torch.float64).index_put((index,), v).view(rows, columns) for v in leaves[1:]
    ]
    expected = dense[0] @ x, dense[1] @ x.square()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    gradients = [torch.autograd.grad((a * g).sum() + (b * h).sum(), leaves) for a, b in (found, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_of_the_products():
    pattern = Pattern.of(torch.tensor([1, 3, 4, 10]), (3, 4))
    parts = [draws(k, *shape).requires_grad_() for k, shape in enumerate([(4, 3), (4,), (4,)])]
    assert torch.autograd.gradcheck(lambda x, mean, var: products(x, pattern, mean, var), parts)
    assert torch.autograd.gradcheck(lambda x, mean: products(x, pattern, mean)[0], parts[:2])


@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d"])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_a_layer(kind, training):
    if kind == "linear":
        part, x = layer(), draws(8, 4, 5)
    else:
        with seeded(2):
            make = nn.Conv1d if kind == "conv1d" else nn.Conv2d
            dense = make(4, 6, 3, stride=2, padding=1, groups=2, padding_mode="circular", dtype=torch.float64)
        places = random_places(tuple(dense.weight.shape), 20, generator("cpu", 3))
        part, x = sparse_layer(dense, places, 1.0, 0.3), draws(8, 2, 4, 5, *([5] if kind == "conv2d" else []))
    part.train(training)

    def say(x, mu, rho, bias_mu, bias_rho):
        values = {"mu": mu, "rho": rho, "bias_mu": bias_mu, "bias_rho": bias_rho}
        with seeded(4):
            return torch.func.functional_call(part, values, (x,))

    leaves = [x.requires_grad_(), *part.parameters()]
    assert torch.autograd.gradcheck(say, leaves)


# --- local reparameterisation and the KL


def test_a_convolution_draws_its_weights_once_for_all_places():
    """The mean over places, which independent noise at each would make nearly certain, varies as with drawn weights."""
    # False alarms: 6 ratios of variances of 2,000 draws each beyond 35 %, more than 7 standard errors: below 1e-9.
    with seeded(2):
        convolution = nn.Conv1d(2, 3, 3, padding=1, dtype=torch.float64)
        steps = nn.Linear(2, 3, dtype=torch.float64)
    for dense, shape in ((convolution, (2, 64)), (steps, (64, 2))):
        part = sparse_layer(dense, torch.arange(dense.weight.numel()), 1.0, 0.3)
        x, axis = draws(9, 1, *shape).expand(2_000, *shape), -1 if dense is convolution else 1
        with seeded(0), torch.no_grad():
            trained = part.train()(x).mean(axis).var(0)
            drawn = []
            for _ in range(2_000):
                weights = {"mu": part.mu + part.sigma * torch.randn_like(part.mu)}
                noise = torch.randn_like(part.bias_mu)
                weights["bias_mu"] = part.bias_mu + nn.functional.softplus(part.bias_rho) * noise
                drawn.append(torch.func.functional_call(part.eval(), weights, (x[:1],)).mean(axis)[0])
            expected = torch.stack(drawn).var(0)
        assert ((trained / expected).log().abs() < 0.3).all()


@pytest.mark.parametrize("kept", [5, 12, 35])  # compressed rows, then masked dense
def test_moments_of_an_output_are_those_of_drawn_weights(kept):
    # False alarms: 28 means and variances of 40,000 draws beyond 5 standard errors, below 1e-4.
    part, x, count = layer(kept=max(kept, 7)).eval(), draws(9, 4, 5), 40_000
    weight, spread = part.weight, torch.zeros(35, dtype=torch.float64)
    spread[part.index] = part.sigma.square().detach()
    mean = x @ weight.T + part.bias
    variance = x.square() @ spread.view(7, 5).T + nn.functional.softplus(part.bias_rho).square()
    with seeded(0), torch.no_grad():
        found = part.train()(x.repeat(count, 1)).view(count, 4, 7)
    assert ((found.mean(0) - mean).abs() < 5 * (variance / count).sqrt()).all()
    assert ((found.var(0) / variance - 1).abs() < 5 * (2 / count) ** 0.5).all()
    assert not ((found.var(0) / (2 * variance) - 1).abs() < 5 * (2 / count) ** 0.5).any()  # twice would be noticed
    torch.testing.assert_close(part.eval()(x), mean)


def test_the_kl_is_that_of_normals():
    part = layer()
    for prior in (0.7, None):
        stds = (prior, prior) if prior else (part.natural_std, 1.0)
        expected = 0.0
        for mu, rho, std in ((part.mu, part.rho, stds[0]), (part.bias_mu, part.bias_rho, stds[1])):
            own = torch.distributions.Normal(mu, nn.functional.softplus(rho))
            expected += torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, std)).sum()
        torch.testing.assert_close(part.kl(prior), expected)
    assert part.natural_std == math.sqrt(2 * 7 / 12)


# --- closed forms: a linear model with Gaussian noise


def linear_gaussian(count=40, noise=0.5):
    x = draws(11, count, 3) * torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    return x, x @ torch.tensor([0.7, -1.1, 0.2], dtype=torch.float64) + noise * draws(12, count)


def linear_model(**fields):
    with seeded(0):
        one = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    fields = {"density": 1.0, "noise": 0.5, "prior_std": 0.8, "standardize": False} | fields
    return SSVI(one, **fields)


def mean_field_optimum(x, y, noise=0.5, prior=0.8):
    """Means are those of the exact posterior, variances the inverse diagonal of its precision (Bishop 2006, 10.1.2)."""
    precision = x.T @ x / noise**2 + torch.eye(3, dtype=torch.float64) / prior**2
    return torch.linalg.solve(precision, x.T @ y / noise**2), precision.diagonal().rsqrt()


def test_full_density_gives_the_mean_field_optimum_of_a_linear_model():
    x, y = linear_gaussian()
    train = Train(steps=3_000, batch=40, lr=3e-2, max_grad_norm=100.0, execution=CPU)
    post = linear_model(train=train).fit(Data(x, y))
    mean, std = mean_field_optimum(x, y)
    normal = post.latent["weight"]
    torch.testing.assert_close(normal.loc, mean, rtol=0, atol=5e-3)
    torch.testing.assert_close(normal.scale, std, rtol=5e-2, atol=0)
    law = post.predict(x)
    torch.testing.assert_close(law.component_distribution.scale, torch.full_like(law.component_distribution.scale, 0.5))
    expected = (x.square() @ std.square()).sqrt()  # of the function, from 32 draws
    assert ((law.epistemic_variance.sqrt() / expected).log().abs() < 0.5).all()


def test_the_bound_at_the_optimum_has_its_exact_value_on_average():
    """-ELBO / N = mean [log sqrt(2 pi) s + ((y - m)^2 + v) / (2 s^2)] + KL / N, v the variance of the output."""
    # False alarms: a mean of 4,000 draws beyond 5 standard errors, below 1e-6.
    x, y = linear_gaussian()
    method = linear_model(train=replace(QUICK, batch=40))
    learner, model = _learner(method, x, y)
    mean, std = mean_field_optimum(x, y)
    part = model.network
    with torch.no_grad():
        part.mu.copy_(mean)
        part.rho.copy_(std.expm1().log())
        misfit = (y - x @ mean).square() + x.square() @ std.square()
        exact = (math.log(0.5 * math.sqrt(2 * math.pi)) + misfit / (2 * 0.25)).mean() + part.kl(0.8) / 40
        with seeded(0):
            found = torch.stack([learner.loss(model.train(), learner.batch(0, 0)) for _ in range(4_000)])
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - exact) < 5 * error
    for k in range(3):  # any other mean or deviation is worse
        for parameter in (part.mu, part.rho):
            with torch.no_grad():
                parameter[k] += 0.1
                worse = (y - x @ part.mu).square() + x.square() @ part.sigma.square()
                value = (math.log(0.5 * math.sqrt(2 * math.pi)) + worse / (2 * 0.25)).mean() + part.kl(0.8) / 40
                parameter[k] -= 0.1
            assert value > exact


def test_the_bound_has_no_noise_where_nothing_is_uncertain():
    """With one posterior value for each output the noise leaves the loss: sigma to zero, both draws are the same."""
    x, y = linear_gaussian()
    learner, model = _learner(linear_model(train=replace(QUICK, batch=40)), x, y)
    with torch.no_grad():
        model.network.rho.fill_(-40.0)
    values = [float(learner.loss(model.train(), learner.batch(0, 0)).detach()) for _ in range(2)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def _learner(method, x, y):
    from bayesvision.training.batches import Minibatches
    from bayesvision.training.examples import read

    examples, inputs, _ = read(Data(x, y), method.classes)
    model = method.untrained(method.net, inputs, trainable(method.net))
    return Learner(method, model, Minibatches(examples, method.train, torch.device("cpu"))), model


def test_density_one_is_dense_variational_inference_step_for_step():
    """A plain implementation with dense matrices, the same noise and AdamW."""
    x, y = (v.float() for v in rows(64))
    train = Train(steps=25, batch=16, lr=1e-2, warmup=0.0, max_grad_norm=1e9, execution=CPU)
    method = SSVI(net(), density=1.0, noise=0.3, prior_std=0.5, standardize=False, train=train)
    post = method.fit(Data(x, y))
    layers, losses = [m for m in method.net if isinstance(m, nn.Linear)], []
    parameters = []
    for dense in layers:
        spread = 0.01 * float(dense.weight.detach().double().square().mean().sqrt())
        rho = math.log(math.expm1(spread))
        for value in (dense.weight, dense.bias):
            parameters += [
                value.detach().clone().requires_grad_(),
                torch.full_like(value.detach(), rho).requires_grad_(),
            ]
    optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.0)
    learner, _ = _learner(method, x, y)
    for step in range(train.steps):
        bx, by, _ = learner.batch(step, 0)
        with seeded(generator("cpu", train.seed, step, 0).initial_seed()):
            hidden, kl = bx, 0.0
            for k in range(2):
                mu, rho, bias, bias_rho = parameters[4 * k : 4 * k + 4]
                sigma, bias_sigma = nn.functional.softplus(rho), nn.functional.softplus(bias_rho)
                mean = hidden @ mu.T + bias
                variance = hidden.square() @ sigma.square().T + bias_sigma.square()
                hidden = mean + variance.sqrt() * torch.randn(mean.shape[::-1]).T
                hidden = hidden.tanh() if k == 0 else hidden
                for m, s in ((mu, sigma), (bias, bias_sigma)):
                    kl = kl + ((s**2 + m**2) / (2 * 0.25) - 0.5 - (s / 0.5).log()).sum()
        own = torch.distributions.Normal(hidden.squeeze(-1), 0.3)
        loss = -own.log_prob(by).mean() + kl / 64
        optimizer.param_groups[0]["lr"] = train.learning_rate(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    found = layers_of(post.model.network)
    for k, part in enumerate(found.values()):
        torch.testing.assert_close(part.weight, parameters[4 * k], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(
            part.sigma.view(part.shape), nn.functional.softplus(parameters[4 * k + 1]), rtol=1e-3, atol=1e-5
        )
        torch.testing.assert_close(part.bias, parameters[4 * k + 2], rtol=1e-3, atol=1e-5)


# --- criteria


@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria_against_monte_carlo(criterion):
    # False alarms: 5 values, means of 400,000 draws within 3 %, several standard errors each.
    mu = torch.tensor([0.0, 0.3, -0.8, 1.5, -0.05], dtype=torch.float64)
    sigma = torch.tensor([0.5, 0.4, 0.6, 0.3, 0.2], dtype=torch.float64)
    theta = (mu + sigma * draws(3, 400_000, 5)).abs()
    moment = theta.exp()
    expected = {
        "magnitude": mu.abs(),
        "ratio": mu.abs() / sigma,
        "expected_magnitude": theta.mean(0),
        "snr": theta.mean(0) / theta.std(0),
        "exponential": moment.mean(0).log(),
        "exponential_snr": moment.mean(0) / moment.std(0),
    }[criterion]
    torch.testing.assert_close(score(criterion, mu, sigma), expected, rtol=3e-2, atol=1e-3)
    flipped = score(criterion, -mu, sigma)
    torch.testing.assert_close(flipped, score(criterion, mu, sigma))


def test_expected_magnitude_is_the_usual_formula():
    mu, sigma = draws(1, 50), draws(2, 50).abs() + 0.05
    usual = mu * torch.erf(mu / (sigma * 2**0.5)) + sigma * (2 / torch.pi) ** 0.5 * (-(mu**2) / (2 * sigma**2)).exp()
    torch.testing.assert_close(score("expected_magnitude", mu, sigma), usual)


def test_the_snr_of_the_magnitude_ranks_like_mean_over_deviation():
    a = torch.linspace(0, 8, 4_001, dtype=torch.float64)
    snr = score("snr", a, torch.ones_like(a))
    assert (snr.diff() > 0).all()
    assert float(snr[0]) == pytest.approx(math.sqrt(2 / math.pi) / math.sqrt(1 - 2 / math.pi), rel=1e-12)
    assert float(snr[0]) == pytest.approx(1.3236, abs=1e-4)


@pytest.mark.parametrize("a", [1e4, 1e5, 1e8])
def test_the_snr_keeps_its_digits_where_a_weight_is_sure(a):
    found = score("snr", torch.tensor([a]), torch.tensor([1.0]))  # float32
    assert float(found) == pytest.approx(a, rel=1e-5)
    mean = torch.tensor([a]) * torch.erf(torch.tensor([a]))  # the usual expression
    usual = mean / (torch.tensor([a]).square() + 1 - mean.square()).sqrt()
    assert not abs(float(usual) / a - 1) < 0.01  # infinite


@given(st.floats(-30, 30), st.floats(1e-4, 30), st.floats(0.1, 3))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_criterion_is_finite(mu, sigma, exponent):
    for criterion in CRITERIA:
        for dtype in (torch.float32, torch.float64):
            found = score(criterion, torch.tensor([mu], dtype=dtype), torch.tensor([sigma], dtype=dtype), exponent)
            assert torch.isfinite(found).all() and found >= 0


# --- how many, which, and the exchange


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=5),
    st.floats(0.01, 1),
    st.sampled_from(["erk", "uniform"]),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_counts(shapes, density, allocation):
    counts = kept_counts(shapes, density, allocation)
    for count, shape in zip(counts, shapes, strict=True):
        assert shape[0] <= count <= math.prod(shape)
    total = sum(math.prod(shape) for shape in shapes)
    floor = sum(shape[0] for shape in shapes)
    if allocation == "erk":
        assert sum(counts) <= density * total + floor + len(shapes)
        assert sum(counts) >= math.floor(density * total) - len(shapes)
    if density == 1:
        assert sum(counts) == total


def test_counts_of_a_known_network():
    shapes = [(512, 784), (512, 512), (10, 512)]
    assert kept_counts(shapes, 0.05, "uniform") == [512 * 784, 13_107, 256]
    erk = kept_counts(shapes, 0.05, "erk")
    assert erk[2] == 5_120  # the last layer would need more than all
    assert erk[0] / (512 + 784) == pytest.approx(erk[1] / (512 + 512), rel=1e-3)
    assert kept_counts([(8, 4, 3, 3)], 0.25, "erk") == [72]


def test_places_hold_one_of_every_output():
    places = random_places((50, 4), 60, generator("cpu", 0))
    assert len(places.unique()) == 60 and (places.diff() > 0).all()
    assert (places // 4).bincount(minlength=50).min() >= 1
    assert not torch.equal(places, random_places((50, 4), 60, generator("cpu", 1)))
    weight = draws(0, 3, 4)
    weight[1] *= 1e-3
    found = largest_places(weight, 5)
    assert (found // 4).bincount(minlength=3).tolist()[1] == 1
    assert torch.equal(
        weight.flatten().abs()[found].sort().values[1:], weight[[0, 2]].flatten().abs().topk(4).values.sort().values
    )


def test_an_exchange_takes_the_least_for_the_steepest():
    part = layer(outputs=3, inputs=6, kept=9)
    before, mu, rho = part.index.clone(), part.mu.detach().clone(), part.rho.detach().clone()
    with torch.no_grad():
        part.rho += 0.1 * torch.arange(9)
    rho = part.rho.detach().clone()
    optimizers = Optimizers(part, Train(execution=CPU))
    part(draws(0, 4, 6)).sum().backward()
    optimizers.step(1e-3)
    mu, rho = part.mu.detach().clone(), part.rho.detach().clone()
    moments = optimizers.state_of(part.mu)["exp_avg"].clone()
    steps = float(optimizers.state_of(part.mu)["step"])
    gradient = draws(1, 3, 6)
    count = exchange(part, gradient, 0.4, "ratio", 1.0, optimizers)
    assert count == 3 and len(part.index) == 9 and (part.index.diff() > 0).all()
    worth = mu.abs() / nn.functional.softplus(rho)
    best = [int(torch.where(before // 6 == r, worth, -1).argmax()) for r in range(3)]
    removable = [k for k in worth.argsort().tolist() if k not in best][:3]
    stay = [k for k in range(9) if k not in removable]
    outside = [p for p in range(18) if p not in before.tolist()]
    new = sorted(outside, key=lambda p: -abs(float(gradient.flatten()[p])))[:3]
    assert part.index.tolist() == sorted([*before[stay].tolist(), *new])
    for position, old in zip(before[stay].tolist(), stay, strict=True):
        k = part.index.tolist().index(position)
        assert part.mu[k] == mu[old] and part.rho[k] == rho[old]
        assert optimizers.state_of(part.mu)["exp_avg"][k] == moments[old]
    spread = nn.functional.softplus(rho).mean()
    for position in new:
        k = part.index.tolist().index(position)
        assert part.mu[k] == 0 and optimizers.state_of(part.mu)["exp_avg"][k] == 0
        torch.testing.assert_close(part.sigma[k].detach(), spread)
    assert float(optimizers.state_of(part.mu)["step"]) == steps


@given(seed=st.integers(0, 200), fraction=st.floats(0, 1), kept=st.integers(4, 20))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_counts_and_outputs_survive_every_exchange(seed, fraction, kept):
    part = layer(outputs=4, inputs=5, kept=kept)
    for k in range(3):
        exchange(part, draws(seed + k, 4, 5), fraction, "snr", 1.0)
        assert len(part.index.unique()) == kept and (part.index.diff() > 0).all()
        assert (part.index // 5).bincount(minlength=4).min() >= 1
        assert part.pattern.index.equal(part.index)
    if kept == 20:
        assert exchange(part, draws(seed, 4, 5), fraction, "snr", 1.0) == 0


def test_dense_gradients_are_those_of_the_dense_network():
    network = sparsified(net(), ["0", "2"], 0.3, "erk", "random", 0.1, 0).double().eval()
    layers, x = layers_of(network), draws(0, 6, 3)
    found = dense_gradients(layers, [lambda: network(x[:3]).square().sum(), lambda: network(x[3:]).square().sum()])
    weights = {f"{k}.weight": v.weight.detach().requires_grad_() for k, v in layers.items()}
    biases = {f"{k}.bias": v.bias for k, v in layers.items()}
    dense = torch.func.functional_call(net().double(), weights | biases, (x,)).square().sum()
    for (name, part), expected in zip(found.items(), torch.autograd.grad(dense, list(weights.values())), strict=True):
        torch.testing.assert_close(part, expected, msg=name)
    assert all(v.probe is None for v in layers.values())


def test_the_kept_set_finds_the_inputs_that_matter():
    """Of 40 inputs 4 matter; the first layer may keep one weight in ten."""
    x = draws(0, 400, 40)
    y = x[:, :4] @ torch.tensor([1.0, -1.0, 0.5, 2.0], dtype=torch.float64) + 0.1 * draws(1, 400)
    one = SSVI(net(40, 16), density=0.12, interval=20, train=Train(steps=400, batch=64, lr=1e-2, execution=CPU))
    post = one.fit(Data(x, y))
    columns = post.places["0.weight"][:, 1]
    weight = post.latent["0.weight"].loc.abs()
    assert float(weight[columns < 4].sum() / weight.sum()) > 0.6  # of random places it would be 0.1
    fixed = replace(one, exchange=0.0).fit(Data(x, y))
    assert float((columns < 4).double().mean()) > 2 * float((fixed.places["0.weight"][:, 1] < 4).double().mean())
    test_x = draws(2, 400, 40)
    test_y = test_x[:, :4] @ torch.tensor([1.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    errors = [float((p.predict(test_x).mean - test_y).square().mean()) for p in (post, fixed)]
    assert errors[0] < 0.5 * errors[1]


# --- resuming


class Stopped(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_that_is_stopped_goes_on_bit_for_bit(tmp_path, optimizer):
    """Stopped before and after exchanges, which happen at steps 10, 20, ..., whether or not a state was just saved."""
    x, y = rows()
    train = replace(QUICK, optimizer=optimizer)
    recipe = SSVI(net(), density=0.4, interval=10, train=train)
    whole = recipe.fit(Data(x, y)).model.state_dict()
    for number, stop in enumerate((9, 10, 11, 20, 33)):
        where = Execution(device="cpu", checkpoint_dir=str(tmp_path / str(number)), save_every=5)

        class Log:
            def log(self, metrics, step, /, stop=stop):
                if step == stop:
                    raise Stopped

        stopped = replace(recipe, train=replace(train, execution=where))
        with pytest.raises(Stopped):
            stopped.fit(Data(x, y), log=Log())
        again = stopped.fit(Data(x, y)).model.state_dict()
        assert whole.keys() == again.keys()
        assert all(torch.equal(whole[k], again[k]) for k in whole)


SCRIPT = """
import sys, time
import torch
import bayesvision as bv
from bayesvision.io.tensors import read_tensors

torch.set_num_threads(1)
net = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
net.load_state_dict(read_tensors("net.safetensors")[0])
data, _ = read_tensors("data.safetensors")

class Slow(bv.JsonLines):
    def log(self, metrics, step, /):
        super().log(metrics, step)
        time.sleep(float(sys.argv[1]))

train = bv.Train(
    steps=60, batch=16, lr=1e-2, execution=bv.Execution(device="cpu", checkpoint_dir="run", save_every=1)
)
post = bv.SSVI(net, density=0.4, interval=3, train=train).fit(bv.Data(data["x"], data["y"]), log=Slow("log.jsonl"))
bv.save(post, "post.safetensors")
"""


def test_a_run_that_was_killed_twice_ends_with_the_same_bits(tmp_path):
    """By SIGKILL, while a state is written after every step and weights are exchanged at every third."""
    x, y = rows()
    write_tensors(tmp_path / "net.safetensors", net().state_dict(), {})
    write_tensors(tmp_path / "data.safetensors", {"x": x, "y": y}, {})
    (tmp_path / "script.py").write_text(SCRIPT)
    log = tmp_path / "log.jsonl"
    for reached in (8, 25):
        process = subprocess.Popen([sys.executable, "script.py", "0.02"], cwd=tmp_path)
        end = time.monotonic() + 120
        while (len(log.read_text().splitlines()) if log.exists() else 0) < reached and time.monotonic() < end:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    assert not (tmp_path / "post.safetensors").exists()
    subprocess.run([sys.executable, "script.py", "0"], cwd=tmp_path, check=True, timeout=120)
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps.count(1) == 1 and steps[-1] == 60  # it went on, and did not start anew
    whole = SSVI(net(), density=0.4, interval=3, train=replace(QUICK, steps=60)).fit(Data(x, y))
    found = bv.load(tmp_path / "post.safetensors", net=net())
    expected = whole.model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in found.model.state_dict().items())


# --- predictions


@pytest.fixture(scope="module")
def fitted():
    x, y = rows()
    return SSVI(net(), density=0.4, draws=8, train=QUICK).fit(Data(x, y)), x, y


def test_component_k_is_the_same_draw_in_every_row(fitted):
    post, x, _ = fitted
    parts = post.predict(x).component_distribution.loc
    for k in (0, 5):
        torch.testing.assert_close(post.compact(draw=k)(x.float()).double(), parts[:, k], rtol=1e-4, atol=1e-5)
    alone = torch.cat([post.predict(x[k : k + 1]).component_distribution.loc for k in range(4)])
    torch.testing.assert_close(alone, parts[:4], rtol=1e-5, atol=1e-6)


def test_variances_add_up(fitted):
    post, x, _ = fitted
    law = post.predict(x)
    torch.testing.assert_close(law.epistemic_variance + law.aleatoric_variance, law.variance)
    assert (law.epistemic_variance > 0).all()


def test_draws_are_those_of_the_normals(fitted):
    # False alarms: a Kolmogorov-Smirnov test of about 1,500 numbers with p < 1e-6.
    post, _, _ = fitted
    found = []
    for k in range(60):
        weights = post._drawn(k)
        for name, part in layers_of(post.model).items():
            found.append((weights[f"{name}.mu"] - part.mu) / part.sigma)
    z = torch.cat(found).double()
    assert scipy.stats.kstest(z.numpy(), "norm").pvalue > 1e-6
    assert scipy.stats.kstest(2 * z.numpy(), "norm").pvalue < 1e-6


def test_mutual_information_of_members():
    logits = torch.log(torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]], dtype=torch.float64))
    law = bv.distributions.Categorical.of_members(logits)
    each = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert float(law.mutual_information) == pytest.approx(math.log(2) - each)
    assert float(law.expand((3,)).mutual_information[2]) == pytest.approx(math.log(2) - each)
    assert float(law[0].mutual_information) == pytest.approx(math.log(2) - each)
    assert law.members.batch_shape == (1, 2)
    alone = bv.distributions.Categorical(logits=logits[0])
    assert float(alone.mutual_information) == pytest.approx(0, abs=1e-12)


def test_noise_that_the_network_gives():
    x = draws(0, 600, 1)
    y = torch.where(x[:, 0] > 0, 1.0, 0.1) * draws(1, 600)
    recipe = SSVI(net(1, 32, 2), density=1.0, noise="output", train=Train(steps=800, batch=64, lr=1e-2, execution=CPU))
    law = recipe.fit(Data(x, y)).predict(torch.tensor([[-1.0], [1.0]]))
    assert law.stddev[0] < 0.3 and 0.7 < law.stddev[1] < 1.4


def test_learned_noise_and_units():
    x, y = rows(400)
    post = SSVI(net(), density=0.5, train=Train(steps=800, batch=64, lr=1e-2, execution=CPU)).fit(
        Data(x, 1e4 + 100 * y)
    )
    assert post.metadata["noise"] == pytest.approx(10, rel=0.4)
    law = post.predict(x)
    assert float((law.mean - 1e4 - 100 * y).abs().mean()) < 15
    assert float(bv.metrics.coverage(law, 1e4 + 100 * y, 0.9)) > 0.87  # mean field is wider than it need be


def test_several_outputs():
    x, _ = rows(200)
    y = torch.stack([x[:, 0], 10 * x[:, 1]], -1) + 0.1 * draws(3, 200, 2)
    post = SSVI(net(outputs=2), density=0.5, train=Train(steps=500, batch=64, lr=1e-2, execution=CPU)).fit(Data(x, y))
    law = post.predict(x)
    assert law.batch_shape == (200, 2) and post.compact()(x.float()).shape == (200, 2)
    assert float((law.mean - y).square().mean()) < 0.5
    assert len(post.metadata["noise"]) == 2


# --- sources


class Pairs(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index].numpy(), float(self.y[index])


def test_every_source_of_the_same_examples_gives_the_same_bits(fitted):
    post, x, y = fitted
    said = post.predict(x).mean
    recipe = SSVI(net(), density=0.4, draws=8, train=QUICK)
    loader = DataLoader(TensorDataset(x, y), batch_size=7)
    for source in (loader, TensorDataset(x, y), Pairs(x, y), [(x[:50], y[:50]), (x[50:], y[50:])]):
        assert torch.equal(recipe.fit(source).predict(x).mean, said)
    assert torch.equal(recipe.fit(Data(x.numpy(), y.numpy())).predict(x).mean, said)


def test_examples_in_a_file_give_the_same_bits(fitted, monkeypatch):
    from bayesvision.training import batches

    post, x, y = fitted
    monkeypatch.setattr(batches.Examples.__init__, "__defaults__", (1_000,))
    assert torch.equal(
        SSVI(net(), density=0.4, draws=8, train=QUICK).fit(Data(x, y)).predict(x).mean, post.predict(x).mean
    )


def test_an_array_mapped_from_a_file(tmp_path):
    images = draws(0, 70, 1, 4, 4).float().numpy()
    np.save(tmp_path / "x.npy", images)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    y = torch.as_tensor(images.mean((1, 2, 3)) > 0).long()
    recipe = SSVI(
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2)), density=0.5, classes=2, train=QUICK
    )
    a, b = (recipe.fit(Data(source, y)).predict(images).probs for source in (mapped, images))
    assert torch.equal(a, b)


def test_augmentation_is_a_function_of_the_step(fitted):
    _, x, y = fitted
    recipe, seen = SSVI(net(), density=0.4, draws=8, train=QUICK), []

    def noisy(x, source):
        seen.append(x)
        return x + 0.1 * torch.randn(x.shape, generator=source, dtype=x.dtype)

    posts = [recipe.fit(Data(x, y), augment=noisy) for _ in range(2)]
    assert torch.equal(posts[0].predict(x).mean, posts[1].predict(x).mean)
    assert not torch.equal(posts[0].predict(x).mean, recipe.fit(Data(x, y)).predict(x).mean)
    with pytest.raises(ValueError, match="augment must return inputs of the shape"):
        recipe.fit(Data(x, y), augment=lambda x, source: x[:, :2])


def test_batches_do_not_depend_on_how_many_are_asked(fitted):
    _, x, y = fitted
    learner, _ = _learner(SSVI(net(), train=QUICK), x, y)
    seen = torch.cat([learner.batch(k, 0)[0] for k in range(5)])
    assert torch.equal(seen.sort(0).values, x.sort(0).values)  # an epoch is a permutation
    assert torch.equal(learner.batch(3, 0)[0], learner.batch(3, 0)[0])


# --- networks


def test_the_network_itself_is_left_as_it_was(fitted):
    x, y = rows()
    own = net()
    before = copy.deepcopy(own.state_dict())
    SSVI(own, density=0.4, train=QUICK).fit(Data(x, y))
    assert all(torch.equal(v, before[k]) for k, v in own.state_dict().items())
    assert all(p.requires_grad for p in own.parameters()) and own.training


class Deep(nn.Module):
    """Layers in lists and inside others, a norm, a parameter of its own, and one layer called by itself."""

    def __init__(self):
        super().__init__()
        with seeded(3):
            self.first = nn.Linear(3, 16)
            self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU()) for _ in range(2))
            self.normal = nn.BatchNorm1d(16)
            self.gain = nn.Parameter(torch.ones(1))
            self.last = nn.Linear(16, 1)
        self.frozen = nn.Parameter(torch.tensor(0.5), requires_grad=False)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.gain * self.last(self.normal(x)) + self.frozen


def test_everything_else_stays_deterministic_and_is_listed():
    x, y = rows()
    post = SSVI(Deep(), density=0.5, train=QUICK).fit(Data(x, y))
    text = repr(post)
    assert list(layers_of(post.model.network)) == ["first", "blocks.0.1", "blocks.1.1", "last"]
    sparse, rest = text.split("deterministic:")
    assert "blocks.1.1: SparseLinear" in sparse and "normal: BatchNorm1d" in rest and "statistics" in rest
    assert "blocks.0.0: LayerNorm" in rest and "net: Deep" in rest
    assert float(post.model.network.gain) != 1.0 and float(post.model.network.frozen) == 0.5


def test_a_transformer_is_trained_where_it_calls_its_layers():
    with seeded(0):
        encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        own = nn.Sequential(encoder, nn.Flatten(), nn.Linear(24, 2))
    x = draws(0, 60, 3, 8).float()
    y = (x[:, 0, 0] > 0).long()
    post = SSVI(own, density=0.5, classes=2, draws=4, train=QUICK).fit(Data(x, y))
    assert list(layers_of(post.model.network)) == ["0.linear1", "0.linear2", "2"]
    with torch.no_grad():
        fast = post.predict(x).probs
    assert not torch.equal(fast, post.predict(x[:, [1, 0, 2]]).probs)
    assert "self_attn" in repr(post).split("deterministic:")[1]


def test_a_trained_network_keeps_its_largest_weights():
    own = net()
    post = SSVI(own, density=0.4, initial="trained", train=replace(QUICK, steps=1, lr=1e-9)).fit(Data(*rows()))
    for name, part in layers_of(post.model.network).items():
        dense = own[int(name)].weight.detach()
        kept = part.weight != 0
        torch.testing.assert_close(part.weight[kept], dense[kept], rtol=0, atol=1e-6)
        assert len(part.index) == part.size or dense[~kept].abs().max() <= dense.abs().median() * 2
    assert not post.model.x_loc.ndim and float(post.model.y_loc) == 0


def test_density_and_cost(fitted):
    post, _, _ = fitted
    kept = [len(v.index) for v in layers_of(post.model.network).values()]
    assert post.density.overall == pytest.approx(sum(kept) / (96 + 32))
    cost = post.cost
    assert cost.total.macs == sum(kept) and cost.total.dense_macs == 128
    assert cost.total.weights == 128 and [v.kept for v in cost.layers] == kept
    big = SSVI(net(200, 300), density=0.05, train=replace(QUICK, steps=1)).fit(Data(draws(0, 9, 200), draws(1, 9)))
    first = big.cost.layers[0]
    assert first.kernel == "compressed rows" and first.done_macs == first.macs
    share = first.kept / first.weights
    assert first.training_bytes < 4 * share * first.dense_training_bytes


def test_cost_of_a_convolution_counts_its_places():
    own = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    x = draws(0, 40, 1, 4, 4).float()
    post = SSVI(own, density=0.5, classes=2, train=replace(QUICK, steps=2)).fit(Data(x, (x.sum((1, 2, 3)) > 0).long()))
    first = post.cost.layers[0]
    assert first.dense_macs == 16 * 36 and first.macs == 16 * first.kept
    assert first.kernel == "masked dense" and first.done_macs == first.dense_macs
    assert post.cost.fewer_macs == post.cost.total.dense_macs / post.cost.total.macs


# --- compact


@pytest.mark.parametrize("kind", ["mlp", "conv", "deep", "single"])
def test_the_compact_module_says_the_same(kind):
    x = draws(0, 60, 3).float()
    own, fields = net(width=200), {}
    if kind == "conv":
        x = draws(0, 60, 2, 6, 6).float()
        own = nn.Sequential(
            nn.Conv2d(2, 12, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 8, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8, 1),
        )
    elif kind == "deep":
        own = Deep()
    elif kind == "single":
        own = nn.Linear(3, 1)
    y = x.flatten(1)[:, 0] + 0.1 * draws(1, 60).float()
    post = SSVI(own, density=0.1, draws=3, train=QUICK, **fields).fit(Data(x, y))
    plain = post.compact()
    assert not any("Sparse" in type(m).__name__ for m in plain.modules())
    with torch.no_grad():
        model = post.model
        torch.testing.assert_close(plain(x), model.y_loc + model.y_scale * model(x).squeeze(-1), rtol=1e-4, atol=1e-5)
    again = copy.deepcopy(plain)
    assert torch.equal(again(x), plain(x))


def test_dead_units_are_sliced_away():
    with seeded(0):
        own = nn.Sequential(nn.Linear(20, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 2))
    x = draws(0, 60, 20).float()
    post = SSVI(own, density=0.02, classes=2, train=QUICK).fit(Data(x, (x[:, 0] > 0).long()))
    plain = post.compact().network
    parts = [m for m in plain.modules() if hasattr(m, "shape") or isinstance(m, nn.Linear)]
    widths = [m.shape[0] if hasattr(m, "shape") else m.out_features for m in parts]
    assert widths[0] < 300 and widths[1] < 300 and widths[2] == 2
    numbers = sum(v.numel() for v in [*plain.parameters(), *plain.buffers()])
    assert numbers < 0.3 * sum(p.numel() for p in own.parameters())


class Halves(nn.Module):
    """A chain that is also called in parts, so that its units cannot be sliced away."""

    def __init__(self):
        super().__init__()
        with seeded(0):
            self.chain = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 1))

    def forward(self, x):
        return self.chain(x) + self.chain[0](x).mean(-1, keepdim=True)


def test_a_chain_that_is_called_in_parts_stays_whole():
    x, y = rows()
    post = SSVI(Halves(), density=0.2, train=QUICK).fit(Data(x, y))
    with torch.no_grad():
        expected = post.model.y_loc + post.model.y_scale * post.model(x.float()).squeeze(-1)
        torch.testing.assert_close(post.compact()(x.float()), expected, rtol=1e-4, atol=1e-5)


# --- files


def test_saved_without_the_network_and_loaded_around_it(fitted, tmp_path):
    post, x, _ = fitted
    bv.save(post, tmp_path / "s.safetensors")
    loaded = bv.load(tmp_path / "s.safetensors", net=net())
    assert torch.equal(loaded.predict(x).mean, post.predict(x).mean)
    assert repr(loaded) == repr(post) and loaded.metadata == post.metadata and loaded.density == post.density
    with pytest.raises(ValueError, match="net=net"):
        bv.load(tmp_path / "s.safetensors")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 2)),
            r"2: Linear\(in_features=32, out_features=1.* has 2: Linear\(in_features=32, out_features=2",
        ),
        (nn.Sequential(nn.Linear(3, 32), nn.Linear(32, 1)), r"1: Tanh.* has 1: Linear"),
        (nn.Sequential(nn.Conv1d(3, 32, 1), nn.Tanh(), nn.Linear(32, 1)), "0: Linear.* has 0: Conv1d"),
        (
            nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1), nn.LayerNorm(1)),
            "nothing where this one has 3: LayerNorm",
        ),
    ],
)
def test_another_network_is_refused_by_its_first_difference(fitted, tmp_path, other, words):
    bv.save(fitted[0], tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match=words):
        bv.load(tmp_path / "s.safetensors", net=other)


# --- the paper's recipe


def test_the_recipe_of_the_paper():
    own = net()
    recipe = SSVI.paper(own, 0.05)
    assert (recipe.beta, recipe.beta_warmup, recipe.prior_std) == (0.01, 0.5, 0.005)
    assert (recipe.train.optimizer, recipe.train.lr, recipe.allocation) == ("sgd", 0.01, "uniform")
    learner, _ = _learner(replace(recipe, train=replace(QUICK, steps=100)), *rows())
    assert [learner.batch(step, 0)[2] for step in (0, 25, 50, 99)] == [0.0, 0.005, 0.01, 0.01]
    assert SSVI.paper(own, 0.05, beta=1.0).beta == 1.0


# --- odd networks and odd data


class Reads(nn.Module):
    """Uses the weight of one layer without calling it."""

    def __init__(self):
        super().__init__()
        with seeded(0):
            self.first, self.last = nn.Linear(3, 16), nn.Linear(16, 1)

    def forward(self, x):
        return self.last(torch.tanh(nn.functional.linear(x, self.first.weight, self.first.bias)))


def test_a_layer_whose_weight_is_read_is_bayesian_too():
    x, y = rows(300)
    train = Train(steps=500, batch=32, lr=1e-2, execution=CPU)
    post = SSVI(Reads(), density=1.0, train=train).fit(Data(x, y))
    assert float((post.predict(x).mean - y).square().mean().sqrt()) < 0.25
    assert float(post.latent["first.weight"].scale.mean()) < 0.3 * layers_of(post.model.network)["first"].natural_std
    gradients = dense_gradients(layers_of(post.model), [lambda: post.model(x.float()).square().mean()])
    post.model.train()
    training = dense_gradients(layers_of(post.model), [lambda: post.model(x.float()).square().mean()])
    assert float(training["network.first"].abs().max()) > 0 and float(gradients["network.last"].abs().max()) > 0


def test_frozen_layers_stay_dense_and_as_they_are(tmp_path):
    own = net()
    own[0].requires_grad_(False)
    x, y = rows()
    post = SSVI(own, density=0.5, train=QUICK).fit(Data(x, y))
    assert list(layers_of(post.model.network)) == ["2"]
    assert torch.equal(post.model.network[0].weight, own[0].weight)
    assert "0: Linear" in repr(post).split("deterministic:")[1]
    bv.save(post, tmp_path / "s.safetensors")
    loaded = bv.load(tmp_path / "s.safetensors", net=net())  # whose weights are not frozen
    assert torch.equal(loaded.predict(x).mean, post.predict(x).mean)


def test_a_trained_network_in_its_own_units_learns_its_noise():
    x, y = rows(300)
    own, big = net(), 1_000 * y
    own.load_state_dict(own.state_dict() | {"2.weight": 300 * own[2].weight.detach()})
    train = Train(steps=400, batch=64, lr=2e-3, execution=CPU)
    post = SSVI(own, density=1.0, initial="trained", train=train).fit(Data(x, big))
    law = post.predict(x)
    rmse = float((law.mean - big).square().mean().sqrt())
    assert 0.5 * rmse < post.metadata["noise"] < 2 * rmse


@pytest.mark.parametrize("own", [nn.Sequential(*net(), nn.Flatten(0)), net()])
def test_a_last_batch_axis_of_one_stays(own):
    x, y = rows()
    post = SSVI(own, density=0.5, draws=2, train=QUICK).fit(Data(x, y))
    assert post.predict(x[:1]).batch_shape == (1,)
    assert post.predict(x[:6].view(6, 1, 3)).batch_shape == (6, 1)
    assert post.compact()(x[:1].float()).shape == (1,)


def test_large_numbers_that_vary_little():
    x, y = rows(200)
    train = Train(steps=300, batch=64, lr=1e-2, execution=CPU)
    plain = SSVI(net(), density=0.6, train=train).fit(Data(x, y)).predict(x)
    moved = x + torch.tensor([1.7e9, 0.0, 0.0], dtype=torch.float64)
    law = SSVI(net(), density=0.6, train=train).fit(Data(moved, y + 1e9)).predict(moved)
    torch.testing.assert_close(law.mean - 1e9, plain.mean, rtol=0, atol=1e-2)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_networks_of_other_precisions(kind, tmp_path):
    x, y = rows()
    own = net().to(kind)
    post = SSVI(own, density=0.15, draws=2, train=QUICK).fit(Data(x.float(), y.float()))
    expected = torch.float64 if kind == torch.float64 else torch.float32
    assert post.model.kind == expected and len(post.latent["0.weight"].scale.unique()) > 3
    plain = post.compact()
    for inputs in (x, x.float()):
        torch.testing.assert_close(plain(inputs).double(), plain(x).double(), rtol=1e-3, atol=1e-4)
    bv.save(post, tmp_path / "s.safetensors")
    loaded = bv.load(tmp_path / "s.safetensors", net=net().to(kind))
    for inputs in (x, x.float()):
        assert torch.equal(loaded.predict(inputs).mean, post.predict(inputs).mean)


def test_half_precision_of_the_products():
    x, y = rows()
    post = SSVI(net(3, 200), density=0.1, train=replace(QUICK, precision="bfloat16")).fit(Data(x, y))
    assert post.predict(x).mean.isfinite().all()


def test_tokens_stay_whole_numbers():
    x = torch.randint(20, (200, 5), generator=generator("cpu", 0))
    y = (x == 3).any(1).long()
    with seeded(0):
        own = nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(40, 2))
    post = SSVI(own, density=0.5, classes=2, train=replace(QUICK, steps=200)).fit(Data(x, y))
    assert float(bv.metrics.accuracy(post.predict(x), y)) > 0.9
    torch.testing.assert_close(post.compact()(x), post.model(x))
    assert post.cost.total.kept > 0
    with pytest.raises(ValueError, match="whole numbers"):
        post.predict(x + 0.5)


def test_a_grouped_convolution_before_another_is_compact():
    with seeded(0):
        layers = (
            nn.Conv2d(1, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.ReLU(),
            nn.Conv2d(8, 4, 1),
            nn.Flatten(),
        )
        own = nn.Sequential(*layers, nn.Linear(16, 2))
    x = draws(0, 40, 1, 6, 6).float()
    post = SSVI(own, density=0.1, classes=2, train=QUICK).fit(Data(x, (x.sum((1, 2, 3)) > 0).long()))
    torch.testing.assert_close(post.compact()(x), post.model(x), rtol=1e-4, atol=1e-5)


def test_a_transformer_is_compact():
    with seeded(0):
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 1)
        own = nn.Sequential(encoder, nn.Flatten(), nn.Linear(24, 2))
    x = draws(0, 60, 3, 8).float()
    post = SSVI(own, density=0.3, classes=2, draws=2, train=QUICK).fit(Data(x, (x[:, 0, 0] > 0).long()))
    with torch.no_grad():
        torch.testing.assert_close(post.compact()(x), post.model(x), rtol=1e-3, atol=1e-4)


def test_a_posterior_inside_a_module_that_trains_predicts_the_same(fitted):
    post, x, _ = fitted
    said = post.predict(x).mean
    nn.ModuleList([post]).train()
    assert torch.equal(post.predict(x).mean, said)


def test_a_shuffling_loader_gives_the_same_bits_and_leaves_the_generator_alone():
    x, y = rows()
    recipe = SSVI(net(), density=0.4, draws=2, train=QUICK)
    before = torch.get_rng_state()
    posts = [recipe.fit(DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(posts[0].predict(x).mean, posts[1].predict(x).mean)


def test_a_run_of_another_network_or_other_data_is_refused(tmp_path):
    x, y = rows()
    where = replace(QUICK, execution=Execution(device="cpu", checkpoint_dir=str(tmp_path)))
    SSVI(net(), density=0.4, train=where).fit(Data(x, y))
    relu = net()
    relu[1] = nn.ReLU()
    for own, data in ((relu, Data(x, y)), (net(), Data(x, -y)), (net(), Data(x[:79], y[:79]))):
        with pytest.raises(ValueError, match="state of another recipe"):
            SSVI(own, density=0.4, train=where).fit(data)


def test_exchanges_leave_batch_norms_alone():
    x, y = rows()
    with seeded(0):
        own = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))
    post = SSVI(own, density=0.5, interval=5, train=QUICK).fit(Data(x, y))
    assert int(post.model.network[1].num_batches_tracked) == QUICK.steps


def test_one_of_several_targets_is_constant():
    x, y = rows(20)
    with pytest.raises(ValueError, match="y is constant"):
        SSVI(net(outputs=2), train=QUICK).fit(Data(x, torch.stack([y, torch.ones(20)], -1)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.utils.spectral_norm(nn.Linear(3, 1)), "has hooks"),
        (lambda: nn.utils.weight_norm(nn.Linear(3, 1)), "has hooks"),
        (lambda: nn.Linear(3, 1, dtype=torch.complex64), "complex64"),
        (lambda: nn.Linear(3, 1, device="meta"), "meta device"),
        (lambda: nn.Linear(3, 1).requires_grad_(False), "only frozen ones"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_layers_that_cannot_be_sparse(make, words):
    with pytest.raises(ValueError, match=words):
        SSVI(make(), density=0.5, train=QUICK).fit(Data(*rows()))


# --- what is refused


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"density": 0.0}, r"density must lie in \(0, 1\]"),
        ({"density": 1.5}, "density"),
        ({"draws": 0}, "draws"),
        ({"classes": 1}, "classes"),
        ({"noise": -1.0}, "noise must be a positive number"),
        ({"noise": "output", "classes": 3}, "leave it out with classes"),
        ({"beta": -1.0}, "beta"),
        ({"prior_std": 0.0}, "prior_std"),
        ({"until": 1.5}, "until"),
        ({"train": Train(execution=Execution(sharding="fsdp"))}, "ddp"),
    ],
)
def test_bad_recipes(fields, words):
    with pytest.raises(ValueError, match=words):
        SSVI(net(), **fields)


def shared():
    own = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 1))
    own[2].weight = own[0].weight
    return own


def twice():
    one = nn.Linear(3, 3)
    return nn.Sequential(one, one, nn.Linear(3, 1))


@pytest.mark.parametrize(
    ("own", "error", "words"),
    [
        (shared(), ValueError, r"0\.weight is 2\.weight too"),
        (twice(), ValueError, r"0\.weight is 1\.weight too"),
        (nn.Sequential(nn.LayerNorm(3), nn.ReLU()), ValueError, "Linear, Conv1d or Conv2d layer .* got LayerNorm"),
        (nn.Sequential(nn.LazyLinear(3)), ValueError, "lazy"),
        (lambda x: x, TypeError, "torch module"),
        (nn.Linear(4, 1), ValueError, r"net must take inputs of the shape \(80, 3\)"),
        (nn.Linear(3, 2), ValueError, r"net must give 1 numbers an example"),
    ],
)
def test_bad_networks(own, error, words):
    with pytest.raises(error, match=words):
        SSVI(own, density=0.5, train=QUICK).fit(Data(*rows()))


class Endless(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (Endless(), ValueError, "wrap it in a DataLoader"),
        (5, TypeError, "Data\\(x, y\\), a Dataset or a loader"),
        ([], ValueError, "no batch"),
        ([torch.zeros(3, 3)], ValueError, r"batches \(x, y\)"),
        ([(torch.zeros(3, 3), torch.zeros(4))], ValueError, "one value for each row"),
        ([(torch.full((3, 3), torch.nan), torch.zeros(3))], ValueError, "x must be finite .* example 0"),
        ([(torch.zeros(3, 3), torch.arange(3.0)), (torch.zeros(3, 4), torch.arange(3.0))], ValueError, "one shape"),
    ],
)
def test_bad_sources(source, error, words):
    with pytest.raises(error, match=words):
        SSVI(net(), train=QUICK).fit(source)


def test_labels_out_of_range_are_refused():
    x, _ = rows(20)
    with pytest.raises(ValueError, match="classes 0 to 2"):
        SSVI(net(outputs=3), classes=3, train=QUICK).fit(Data(x, torch.arange(20) % 4))


def test_a_layer_too_small_for_the_density_keeps_one_weight_of_every_output():
    post = SSVI(net(), density=1e-6, train=QUICK).fit(Data(*rows()))
    assert {k: len(v.index) for k, v in layers_of(post.model.network).items()} == {"0": 32, "2": 1}


def test_layers_of_these_classes_alone_become_sparse():
    sparse = sparsified(net(), ["0", "2"], 0.5, "erk", "random", 0.1, 0)
    assert {type(v) for v in layers_of(sparse).values()} == {SparseLinear}
    assert isinstance(sparsified(nn.Conv2d(1, 2, 3), [""], 0.5, "erk", "random", 0.1, 0), SparseConv)
