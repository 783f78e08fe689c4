"""Sparse layers: their products, what they draw, and which weights they keep."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_nets import CPU, draws, layer, net
from torch import nn

from bayesvision import SSVI, Data, Train
from bayesvision.methods.ssvi.layers import sparse_layer
from bayesvision.methods.ssvi.network import dense_gradients, layers_of, sparsified
from bayesvision.methods.ssvi.products import Pattern, products
from bayesvision.methods.ssvi.selection import exchange, kept_counts, largest_places, random_places, score
from bayesvision.training.optimizers import Optimizers
from bayesvision.training.seeds import generator, seeded

CRITERIA = ("magnitude", "ratio", "expected_magnitude", "snr", "exponential", "exponential_snr")


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
