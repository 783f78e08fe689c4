"""The laws that every method obeys, over every instance."""

import copy
import inspect
import pickle

import pytest
import scipy.stats
import torch
import torch.distributions as td
from instances import CONDITIONABLE, INSTANCES, JOINT, LATENT, QUERIES, ROWS, STORABLE, playing, seen

import bayesvision as bv
from bayesvision.core.roles import Conditionable, Joint, Latent, Posterior, Storable
from bayesvision.distributions import Continuous, Discrete

CONTINUOUS = [i for i in INSTANCES if i.classes is None]
DISCRETE = [i for i in INSTANCES if i.classes is not None]


def each(instances):
    return pytest.mark.parametrize("instance", instances, ids=lambda i: i.name)


def queries(instance, dtype=torch.float64):
    return instance.rows(QUERIES, seed=2)[0].to(dtype)


def answers(instance):
    return instance.rows(QUERIES, seed=2)[1]


def numbers(posterior, instance, dtype=torch.float32):
    """Everything that a prediction says, as one tensor."""
    law = posterior.predict(queries(instance, dtype))
    if isinstance(law, Discrete):
        return law.class_probs
    y = answers(instance).to(dtype)
    return torch.stack([law.mean, law.stddev, law.log_prob(y), law.cdf(y)])


def state(posterior):
    buffers = dict(posterior.named_parameters()) | dict(posterior.named_buffers())
    return {name: value.detach().clone() for name, value in buffers.items()}


def assert_same_state(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, equal_nan=True, msg=name)


# What is printed


@each(INSTANCES)
def test_repr_speaks(instance):
    """A posterior says on one screen what it is and what it has seen, a prediction what it predicts."""
    posterior = seen(instance)
    lines = repr(posterior).splitlines()
    assert type(posterior).__name__ in lines[0] and len(lines) <= 24 and max(map(len, lines)) <= 200
    assert any(digit in repr(posterior) for digit in "123456789") and "0x" not in repr(posterior)
    if CONDITIONABLE in instance.roles and instance.prior is not None:
        assert repr(posterior) != repr(posterior.unconditioned() if hasattr(posterior, "unconditioned") else None)
        assert str(ROWS) in repr(posterior)
    law = posterior.predict(queries(instance))
    text, first = repr(law), law[(0,) * len(law.batch_shape)]
    assert text.startswith(type(law).__name__) and len(text) <= 200
    said = first.mode if isinstance(law, Discrete) else first.quantile(0.5)
    assert f"{float(said):.4g}" in text


# Roles


@each(INSTANCES)
def test_roles_are_those_declared(instance):
    posterior = seen(instance)
    assert isinstance(posterior, Posterior)
    assert isinstance(posterior, Conditionable) == (CONDITIONABLE in instance.roles)
    assert isinstance(posterior, Storable) == (STORABLE in instance.roles)
    assert isinstance(posterior, Joint) == (JOINT in instance.roles)
    assert isinstance(posterior, Latent) == (LATENT in instance.roles)


@each(playing(JOINT))
def test_the_joint_law_has_the_marginals_of_predict(instance):
    x = queries(instance)
    joint, marginal = seen(instance).joint(x), seen(instance).predict(x)
    torch.testing.assert_close(joint.mean, marginal.mean)
    torch.testing.assert_close(joint.variance, marginal.variance)


# 1. Conditioning


@each(playing(CONDITIONABLE))
def test_condition_leaves_self_unchanged(instance):
    posterior = seen(instance)
    before, said = state(posterior), numbers(posterior, instance)
    child = posterior.condition(*instance.rows(5, seed=3))
    assert type(child) is type(posterior)
    assert not torch.equal(numbers(child, instance), said)  # the new rows count
    child.to(torch.float64)
    assert_same_state(state(posterior), before)
    assert torch.equal(numbers(posterior, instance), said)


@each(playing(CONDITIONABLE))
def test_conditioning_in_parts(instance):
    x, y = instance.rows(9, seed=3)
    whole = seen(instance).condition(x, y)
    parts = seen(instance).condition(x[:4], y[:4]).condition(x[4:], y[4:])
    torch.testing.assert_close(numbers(parts, instance), numbers(whole, instance), rtol=1e-4, atol=1e-5)


@each([i for i in playing(CONDITIONABLE) if i.classes is None])
def test_a_part_may_be_constant_if_the_whole_is_not(instance):
    x, y = instance.rows(3, seed=3)
    y[:2] = y[0]
    whole, parts = seen(instance).condition(x, y), seen(instance).condition(x[:2], y[:2]).condition(x[2:], y[2:])
    torch.testing.assert_close(numbers(parts, instance), numbers(whole, instance), rtol=1e-4, atol=1e-5)


@each(playing(CONDITIONABLE))
def test_row_order_does_not_matter(instance):
    x, y = instance.rows(9, seed=3)
    a, b = seen(instance).condition(x, y), seen(instance).condition(x.flip(0), y.flip(0))
    torch.testing.assert_close(numbers(a, instance), numbers(b, instance), rtol=1e-4, atol=1e-5)


@each(INSTANCES)
def test_a_posterior_shares_no_memory_with_the_data(instance):
    x, y = instance.rows(ROWS, seed=1)
    posterior = instance.learn(x, y)
    said = numbers(posterior, instance)
    x.zero_(), y.zero_()
    assert torch.equal(numbers(posterior, instance), said)


# 2. Same recipe, same bits; global state is left alone


@each(INSTANCES)
def test_same_recipe_same_bits_whatever_the_global_state(instance):
    flag = td.Distribution._validate_args
    data, said = instance.rows(ROWS, seed=1), numbers(seen(instance), instance)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(987)
        torch.set_default_dtype(torch.float64)
        td.Distribution.set_default_validate_args(False)
        try:
            before = torch.random.get_rng_state()
            again = numbers(instance.fit(*data), instance)
            assert torch.equal(torch.random.get_rng_state(), before)
            assert torch.get_default_dtype() == torch.float64
            assert not torch.is_grad_enabled()
            assert not td.Distribution._validate_args
        finally:
            torch.set_default_dtype(torch.float32)
            td.Distribution.set_default_validate_args(flag)
    assert torch.equal(again, said)


@each(INSTANCES)
def test_inference_mode_around_fit_changes_nothing(instance):
    data, said = instance.rows(ROWS, seed=1), numbers(seen(instance), instance)
    with torch.inference_mode():
        posterior = instance.fit(*(value.clone() for value in data))
        torch.testing.assert_close(numbers(posterior, instance), said, rtol=0, atol=0)
    x = queries(instance).requires_grad_()
    law = posterior.predict(x)
    value = law.mean if instance.classes is None else law.class_probs
    if instance.smooth:
        (gradient,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
        assert gradient is None or gradient.isfinite().all()


# 3. Copies


@each(INSTANCES)
def test_copies_say_the_same_bit_for_bit(instance):
    posterior, said = seen(instance), numbers(seen(instance), instance)
    before = state(posterior)
    for other in (copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior)), copy.deepcopy(posterior).to("cpu")):
        assert torch.equal(numbers(other, instance), said)
    wide = copy.deepcopy(posterior).to(torch.float64)
    torch.testing.assert_close(numbers(wide, instance), said, rtol=1e-3, atol=1e-4)
    assert numbers(wide, instance, torch.float64).dtype == torch.float64
    assert_same_state(state(posterior), before)


@each(playing(STORABLE))
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_saved_and_loaded_say_the_same_bit_for_bit(instance, kind, tmp_path):
    posterior = copy.deepcopy(seen(instance)).to(kind)
    more = [posterior.condition(*instance.rows(5, seed=3))] if CONDITIONABLE in instance.roles else []
    for k, one in enumerate([posterior, *more]):
        bv.save(one, tmp_path / f"{k}.safetensors")
        loaded = bv.load(tmp_path / f"{k}.safetensors", net=instance.net)
        assert type(loaded) is type(one)
        assert loaded.method == one.method
        assert torch.equal(numbers(loaded, instance), numbers(one, instance))
        assert torch.equal(numbers(loaded, instance, torch.float64), numbers(one, instance, torch.float64))


@each([i for i in INSTANCES if STORABLE not in i.roles])
def test_what_is_not_data_is_not_saved(instance, tmp_path):
    with pytest.raises(TypeError, match="data alone"):
        inspect.unwrap(bv.save)(seen(instance), tmp_path / "no.safetensors")  # unwrapped: not by its annotation
    assert not list(tmp_path.iterdir())


# 4. Finite and differentiable


@each([i for i in INSTANCES if i.smooth])
def test_gradients_in_x(instance):
    posterior, y = copy.deepcopy(seen(instance)).to(torch.float64), answers(instance)

    def say(x):
        law = posterior.predict(x)
        return law.log_prob(y) if instance.classes else torch.stack([law.mean, law.stddev, law.log_prob(y)])

    x = queries(instance).requires_grad_()
    assert torch.isfinite(say(x)).all()
    (gradient,) = torch.autograd.grad(say(x).sum(), x)
    assert (gradient != 0).flatten(1).any(-1).all()
    assert torch.autograd.gradcheck(say, (x,))


@each(INSTANCES)
def test_far_away_is_finite(instance):
    law = seen(instance).predict(instance.far)
    found = law.class_probs if instance.classes else torch.stack([law.mean, law.stddev, law.log_prob(law.mean)])
    assert torch.isfinite(found).all()


# 5. The predictive law


@each(INSTANCES)
@pytest.mark.parametrize("batch", [(), (3,), (2, 1)])
def test_shapes(instance, batch):
    x = queries(instance)
    x = x.expand(*batch, *x.shape)
    law = seen(instance).predict(x)
    assert isinstance(law, Discrete if instance.classes else Continuous)
    assert (law.batch_shape, law.event_shape) == ((*batch, QUERIES), ())
    assert law.log_prob(answers(instance)).shape == (*batch, QUERIES)
    alone = seen(instance).predict(queries(instance))
    value, expected = (law.class_probs, alone.class_probs) if instance.classes else (law.mean, alone.mean)
    torch.testing.assert_close(value, expected.expand(value.shape), rtol=1e-4, atol=1e-5)


@each(CONTINUOUS)
def test_densities(instance):
    law = seen(instance).predict(queries(instance))
    low, high = law.interval(1 - 1e-9)
    grid = low + (high - low) * torch.linspace(0, 1, 40_001, dtype=torch.float64).unsqueeze(-1)
    mass = torch.trapezoid(law.log_prob(grid).exp(), grid, dim=0)
    torch.testing.assert_close(mass, torch.ones_like(mass), rtol=0, atol=2e-3)  # bars have jumps
    y = law.quantile(torch.tensor([0.013, 0.21, 0.52, 0.77, 0.991])).requires_grad_()
    (slope,) = torch.autograd.grad(law.cdf(y).sum(), y)
    torch.testing.assert_close(slope, law.log_prob(y).exp(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(law.icdf(law.cdf(y)), y, rtol=1e-7, atol=1e-7)


@each(CONTINUOUS)
def test_samples_and_crps(instance):
    # False alarms: 7 queries, p < 1e-5 each, and 7 scores beyond 5 standard errors: below 1e-4 together.
    law, y = seen(instance).predict(queries(instance)), answers(instance)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        draws = law.sample((20_000,))
    for k in range(QUERIES):
        u = law.cdf(draws)[:, k].numpy()
        assert scipy.stats.kstest(u, "uniform").pvalue > 1e-5
        wide = law.cdf(law.mean + 2 * (draws - law.mean))[:, k].numpy()
        assert scipy.stats.kstest(wide, "uniform").pvalue < 1e-5  # twice the standard deviation is noticed
    terms = (draws - y).abs() - (draws - draws.roll(1, 0)).abs() / 2
    error = terms.std(0) / len(draws) ** 0.5
    assert ((terms.mean(0) - law.crps(y)).abs() < 6 * error).all()


@each(DISCRETE)
def test_classes(instance):
    # False alarms: 7 queries, p < 1e-5 each.
    law, y = seen(instance).predict(queries(instance)), answers(instance)
    probs = law.class_probs
    torch.testing.assert_close(probs.sum(-1), torch.ones(QUERIES, dtype=probs.dtype))
    torch.testing.assert_close(law.log_prob(y), probs.log().gather(-1, y.unsqueeze(-1)).squeeze(-1))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        counts = torch.nn.functional.one_hot(law.sample((20_000,)), instance.classes).sum(0)
    for k in range(QUERIES):
        assert scipy.stats.chisquare(counts[k], 20_000 * probs[k]).pvalue > 1e-5
        assert scipy.stats.chisquare(counts[k], 20_000 * probs[k].roll(1)).pvalue < 1e-5
