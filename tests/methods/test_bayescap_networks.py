"""`RandomNetwork`: random functions that are not lines, and the two links to classes."""

import math

import pytest
import scipy.stats
import torch
from checks import rejected
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from priors import RandomNetwork


def source(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def linear_share(prior: RandomNetwork) -> float:
    """Median share of the variance of f that a line in x explains."""
    task = prior.sample(200, 40, generator=source())
    f = prior.function(task.x, task.theta).double()
    f = f - f.mean(1, keepdim=True)
    x = task.x.double()
    x = x - x.mean(1, keepdim=True)
    line = x @ torch.linalg.lstsq(x, f).solution
    return (line.square().sum(1) / f.square().sum(1)).median().item()


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu"])
def test_activations_stand_between_the_layers(activation):
    assert linear_share(RandomNetwork(1, activation=activation, gain=4.0, layers=3)) < 0.97


def test_function_is_the_stated_network():
    prior = RandomNetwork(3, width=5, layers=2, gain=1.7, noise=1e-12)
    task = prior.sample(4, 6, generator=source())
    theta = {name: value.double() for name, value in task.theta.items()}
    h = task.x.double() - 0.5
    for k, size in enumerate((3, 5)):
        h = torch.tanh(1.7 / math.sqrt(size) * h @ theta[f"weight{k}"] + 1.7 / 2 * theta[f"bias{k}"].unsqueeze(1))
    f = 1.7 / math.sqrt(5) * h @ theta["weight2"] + 1.7 / 2 * theta["bias2"].unsqueeze(1)
    torch.testing.assert_close(task.y.double(), f.squeeze(-1), atol=1e-4, rtol=1e-4)


def test_without_hidden_nonlinearity_the_same_test_sees_a_line():
    # tanh is a line at a tiny gain, which shows that `linear_share` can tell
    assert linear_share(RandomNetwork(1, gain=0.05)) > 0.999


def test_parameters_are_standard_normal():
    # 6 tests at a level of 1e-6
    theta = RandomNetwork(2, width=8).sample(300, 2, generator=source()).theta
    assert set(theta) == {f"{kind}{k}" for kind in ("weight", "bias") for k in range(3)}
    for values in theta.values():
        assert scipy.stats.kstest(values.flatten().numpy(), "norm").pvalue > 1e-6


@pytest.mark.parametrize("width", [8, 256])
def test_scale_is_near_the_gain_at_any_width(width):
    task = RandomNetwork(1, width=width, gain=2.0).sample(500, 4, generator=source())
    assert 1 < task.y.std() < 3


def test_noise_is_added_in_regression():
    # a test at a level of 1e-6
    prior = RandomNetwork(1, noise=0.25)
    task = prior.sample(500, 8, generator=source())
    residual = task.y - prior.function(task.x, task.theta).squeeze(-1)
    assert scipy.stats.kstest(residual.flatten().numpy(), scipy.stats.norm(0, 0.5).cdf).pvalue > 1e-6
    assert scipy.stats.kstest(2 * residual.flatten().numpy(), scipy.stats.norm(0, 0.5).cdf).pvalue < 1e-6


@settings(max_examples=30, deadline=None)
@given(
    classes=st.integers(2, 10),
    link=st.sampled_from(["threshold", "softmax"]),
    rows=st.integers(1, 30),
    seed=st.integers(0, 2**30),
)
def test_classes_are_in_range(classes, link, rows, seed):
    task = RandomNetwork(2, classes=classes, link=link).sample(5, rows, generator=source(seed))
    assert task.y.dtype == torch.int64
    assert task.y.min() >= 0
    assert task.y.max() < classes


@pytest.mark.parametrize("link", ["threshold", "softmax"])
def test_every_class_comes_up(link):
    y = RandomNetwork(2, classes=4, link=link).sample(100, 20, generator=source()).y
    assert set(y.unique().tolist()) == {0, 1, 2, 3}
    shares = torch.bincount(y.flatten()) / y.numel()
    assert shares.min() > 0.15


def test_threshold_classes_are_intervals_of_f():
    prior = RandomNetwork(2, classes=4, link="threshold")
    task = prior.sample(50, 30, generator=source())
    f = prior.function(task.x, task.theta).squeeze(-1)
    order = f.argsort(-1)
    assert (task.y.gather(-1, order).diff(dim=-1) >= 0).all()


def test_softmax_classes_have_the_stated_probabilities():
    # y | x, theta ~ softmax(4 f): the randomised probability integral transform is uniform. A test at a level of 1e-6
    prior = RandomNetwork(2, classes=3)
    task = prior.sample(2000, 2, generator=source())
    probs = torch.softmax(4 * prior.function(task.x, task.theta).double(), -1)
    below = torch.cat([torch.zeros_like(probs[..., :1]), probs.cumsum(-1)], -1)
    low, high = (below.gather(-1, task.y.unsqueeze(-1) + k).squeeze(-1) for k in (0, 1))
    u = low + (high - low) * torch.rand(low.shape, generator=source(1), dtype=torch.float64)
    assert scipy.stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-6
    wrong = torch.softmax(prior.function(task.x, task.theta).double(), -1)  # without the 4
    hit = probs.gather(-1, task.y.unsqueeze(-1)).log().mean()
    assert hit > wrong.gather(-1, task.y.unsqueeze(-1)).log().mean()


def test_feature_ranges_are_drawn_anew_for_each_batch():
    generator, prior = source(), RandomNetwork((1, 3))
    widths = [prior.sample(1, 2, generator=generator).x.shape[-1] for _ in range(60)]
    assert set(widths) == {1, 2, 3}  # one is missed with probability 8e-11
    assert prior.shapes(3) == [(3, 32), (32, 32), (32, 1)]
    assert RandomNetwork(classes=5, layers=1).shapes(2) == [(2, 32), (32, 5)]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("width", 0, "width must be a positive integer"),
        ("layers", 1.5, "layers must be a positive integer"),
        ("gain", -1.0, "gain must be positive and finite"),
        ("noise", 0.0, "noise must be positive and finite"),
        ("activation", "sine", "activation must be tanh, relu or gelu"),
        ("link", "probit", "link must be threshold or softmax"),
        ("classes", 1, "classes must be None or at least 2"),
        ("classes", 2.5, "classes must be a positive integer"),
    ],
)
def test_bad_arguments_are_rejected(name, value, message):
    with rejected(message):
        RandomNetwork(**{name: value})
