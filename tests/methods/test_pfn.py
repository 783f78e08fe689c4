"""PFN: against the exact posterior of its prior, then its units, its limits and its stream of tasks."""

import math
from dataclasses import replace
from functools import lru_cache

import pytest
import scipy.stats
import torch
from torch.nn.functional import one_hot

from bayesvision import PFN, Execution, Train
from bayesvision.core.standardize import statistics
from bayesvision.distributions import Categorical
from bayesvision.methods.pfn.pfn import CHUNK
from bayesvision.methods.pfn.tasks import TaskStream
from bayesvision.training import seeds
from bayesvision.training.seeds import seeded
from priors import BayesianLinear, PriorMixture, RandomNetwork, Task

LINE = BayesianLinear(1, noise=0.1)
CLASSES = RandomNetwork(2, classes=3)
NARROW = PFN(features=4, context=8, width=16, layers=2, heads=2, bars=20)
BORDERS = torch.linspace(-3, 3, 21)
TASKS, QUERIES = 200, 20


def generator(seed):
    return torch.Generator().manual_seed(seed)


def untrained(**fields):
    """A network with random weights whose context matters, though nobody trained it."""
    method = replace(NARROW, **fields)
    posterior = method.untrained(BORDERS if method.classes is None else None).requires_grad_(False)
    with seeded(1):
        for block in posterior.network.blocks:
            for layer in (block.attention_out, block.forward_out):
                torch.nn.init.normal_(layer.weight, std=0.3)
    return posterior


def rows(n=6, features=4, seed=0):
    x = torch.rand(n, features, generator=generator(seed), dtype=torch.float64)
    return x, torch.randn(n, generator=generator(seed + 1), dtype=torch.float64)


# Closed form first


@lru_cache
def trained():
    train = Train(steps=1000, batch=16, lr=5e-3, warmup=0.1, execution=Execution(device="cpu"))
    return PFN(features=1, context=20, width=32, layers=2, heads=2, bars=100, train=train).fit(LINE)


@lru_cache
def fresh(n):
    """Predictions on fresh data sets with n context rows, with the exact ones and the truth."""
    task = LINE.sample(TASKS, n + QUERIES, generator=generator(n + 1))
    x, y, query, truth = task.x[:, :n], task.y[:, :n], task.x[:, n:], task.y[:, n:]
    posterior = trained().condition(x, y) if n else trained()
    return posterior.predict(query), LINE.posterior(x, y).predict(query), truth


def gap(law, exact, truth):
    """Mean excess of the negative log-likelihood over the exact posterior's, in nats."""
    return (exact.log_prob(truth.double()) - law.log_prob(truth).double()).mean().item()


def doubled(law):
    return law.affine(-law.mean, 2.0)


@pytest.mark.parametrize("n", [0, 1, 3, 10, 20])
def test_training_comes_close_to_the_exact_posterior(n):
    # Measured 0.03 to 0.10 nats with a standard error of 0.02: the limit is 4 of them away. Doubling costs 0.3 or more.
    law, exact, truth = fresh(n)
    assert gap(law, exact, truth) < 0.2
    assert gap(doubled(law), exact, truth) > 0.25


@pytest.mark.parametrize("n", [0, 3, 20])
def test_coverage(n):
    # 200 data sets of 20 dependent rows: a standard error below 0.021, as of 200 independent rows; the limit is 4.
    law, _, truth = fresh(n)

    def covered(law):
        low, high = law.interval(0.9)
        return ((low <= truth) & (truth <= high)).double().mean().item()

    assert abs(covered(law) - 0.9) < 0.085
    assert covered(doubled(law)) > 0.985


def test_the_prior_predictive_is_that_of_the_prior():
    x = torch.tensor([[0.05], [0.5], [0.95]], dtype=torch.float64)
    law, scale = trained().predict(x), (LINE.variance(x) + LINE.noise).sqrt()
    levels = torch.linspace(0.05, 0.95, 19, dtype=torch.float64).unsqueeze(-1)
    y = scale * torch.special.ndtri(levels)
    assert (law.cdf(y) - levels).abs().max() < 0.06
    assert (doubled(law).cdf(y) - levels).abs().max() > 0.12
    assert (law.affine(0.5, 1.0).cdf(y) - levels).abs().max() > 0.12


def test_classification_beats_the_class_frequencies():
    # Paired over 200 data sets; measured 13 standard errors.
    train = Train(steps=300, batch=16, lr=3e-3, execution=Execution(device="cpu"))
    method = PFN(features=2, classes=3, context=32, width=32, layers=2, heads=2, train=train)
    task = CLASSES.sample(TASKS, 32 + QUERIES, generator=generator(9))
    x, y, query, truth = task.x[:, :32], task.y[:, :32], task.x[:, 32:], task.y[:, 32:]
    posterior = method.fit(CLASSES)
    frequency = (one_hot(y, 3).sum(1) + 1) / 35
    gain = (posterior.condition(x, y).predict(query).log_prob(truth) - frequency.log().gather(1, truth)).mean(-1)
    assert gain.mean() > 4 * gain.std() / math.sqrt(TASKS)
    wrong = posterior.condition(x, y.flip(1)).predict(query)  # rows with other rows' classes
    assert wrong.log_prob(truth).mean() < frequency.log().gather(1, truth).mean()


# Standardization


def test_fewer_columns_are_scaled_and_padded():
    posterior, (x, y), query = untrained(), rows(features=2), rows(5, 2, seed=7)[0]

    def widen(part):
        return torch.cat([part, torch.zeros_like(part)], -1)

    wide = posterior.condition(widen(x), y).predict(widen(query))  # columns that do not vary do not count
    assert torch.equal(posterior.condition(x, y).predict(query).logits, wide.logits)
    assert not torch.equal(posterior.condition(widen(x) / 2, y).predict(widen(query)).logits, wide.logits)
    assert torch.equal(posterior.predict(query).logits, posterior.predict(widen(query * 4 / 2)).logits)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e9])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_standardize_follows_affine_maps(offset, scale):
    posterior, (x, y), (query, target) = untrained(standardize=True), rows(), rows(5, seed=7)
    law = posterior.condition(x, y).predict(query)
    slopes, shifts = torch.tensor([[1e-3, 2.0, 50.0, 1e5]]).double(), torch.tensor([[3.0, -1e3, 0.0, 1e6]]).double()
    mapped = posterior.condition(slopes * x + shifts, scale * y + offset).predict(slopes * query + shifts)
    # y itself is rounded to 1e-7 near 1e9, that is to 1e-4 of the smallest scale
    close = {"rtol": 1e-5, "atol": max(1e-5, 5e-16 * offset / scale)}
    torch.testing.assert_close(mapped.logits, law.logits, **close)
    torch.testing.assert_close((mapped.mean - offset) / scale, law.mean, **close)
    torch.testing.assert_close(mapped.stddev / scale, law.stddev, **close)
    torch.testing.assert_close(
        mapped.log_prob(scale * target + offset) + math.log(scale), law.log_prob(target), **close
    )
    assert torch.equal(untrained().predict(query).logits, posterior.predict(query).logits)  # no rows, no statistics


def test_standardize_copes_with_columns_that_do_not_vary():
    posterior, (x, y) = untrained(standardize=True), rows()
    x[:, 1] = 0.1
    law = posterior.condition(x, y).predict(x + 1)
    assert torch.isfinite(law.mean).all()
    for kind in (torch.float32, torch.float64):  # rounding of their mean is no spread
        assert all(statistics(torch.full((n,), 0.1, dtype=kind), 0)[1] == 1 for n in range(1, 200))


def test_rows_keep_their_digits_when_the_weights_do_not():
    (x, y), query = rows(), rows(5, seed=7)[0]
    posterior = untrained(standardize=True).condition(x, y + 1e9)
    before = posterior.predict(query)
    assert posterior.double().x.dtype == torch.float64
    torch.testing.assert_close(posterior.float().predict(query).mean, before.mean, rtol=0, atol=1e-5)
    assert torch.equal(posterior.half().y, y + 1e9)


@pytest.mark.parametrize("standardize", [False, True])
def test_nothing_that_passes_the_checks_is_nan(standardize):
    posterior, (x, y), (query, _) = untrained(standardize=standardize), rows(), rows(5, seed=7)
    for size in (1e-30, 1e15, 9e29):
        unit = size / max(x.max(), query.max(), y.abs().max())
        for law in (
            posterior.predict(unit * query),
            posterior.condition(unit * x, y).predict(query),
            posterior.condition(x, unit * y).predict(query),
            posterior.condition(x, y).predict(unit * query),
        ):
            assert torch.isfinite(torch.stack([law.mean, law.stddev])).all()


# Limits


def test_limits_say_what_to_do():
    posterior, (x, y) = untrained(), rows(9)
    with pytest.raises(ValueError, match=r"the context has 9 rows .* at most 8; condition on a subsample, or train"):
        posterior.condition(x, y)
    with pytest.raises(ValueError, match=r"the context has 9 rows .* at most 8"):
        posterior.condition(x[:5], y[:5]).condition(x[5:], y[5:])
    for ask in (posterior.predict, lambda x: posterior.condition(x, y[:3])):
        with pytest.raises(ValueError, match=r"x has 5 columns .* at most 4; choose fewer columns, or train"):
            ask(torch.rand(3, 5))
    with pytest.raises(ValueError, match=r"y must hold classes 0 to 2, got values from 0 to 3"):
        untrained(classes=3).condition(x[:2], [0, 3])
    with pytest.raises(ValueError, match=r"x must have the batch axes \(\), got \(2,\)"):
        posterior.condition(x[:3], y[:3]).condition(torch.rand(2, 3, 4), torch.rand(2, 3))
    with pytest.raises(
        ValueError, match=r"x must have batch axes that broadcast with the context's \(2,\), got \(3,\)"
    ):
        posterior.condition(torch.rand(2, 3, 4), torch.rand(2, 3)).predict(torch.rand(3, 5, 4))


OUT = {"features": 0, "context": 0, "layers": 0, "width": 0, "bars": 1, "heads": 3, "classes": 11}


@pytest.mark.parametrize(("name", "value"), [*OUT.items(), ("classes", 1)])
def test_recipes_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"{name}.*got.*{value}"):
        replace(NARROW, **{name: value})


def test_batches_of_data_sets_are_conditioned_one_by_one():
    posterior, query = untrained(standardize=True), rows(5, seed=7)[0]
    (x, y), (other_x, other_y) = rows(), rows(seed=3)
    law = posterior.condition(torch.stack([x, other_x]), torch.stack([y, other_y])).predict(query)
    assert law.batch_shape == (2, 5)
    for k, (a, b) in enumerate([(x, y), (other_x, other_y)]):
        torch.testing.assert_close(law.mean[k], posterior.condition(a, b).predict(query).mean, rtol=1e-5, atol=1e-5)


def test_many_queries_come_in_chunks():
    posterior = untrained(context=1000).condition(*rows(1000))
    query = rows(10_000, seed=7)[0]
    law = posterior.predict(query)
    assert law.batch_shape == (10_000,)
    assert torch.isfinite(torch.stack([law.mean, law.stddev])).all()
    assert CHUNK < 10_000
    few = posterior.predict(query[CHUNK - 3 : CHUNK + 3]).logits
    torch.testing.assert_close(law.logits[CHUNK - 3 : CHUNK + 3], few, rtol=1e-5, atol=1e-5)


# The stream of tasks


def stream(prior=LINE, **fields):
    return TaskStream(
        PFN(**{"features": 1, "context": 50, "train": Train(batch=8, execution=Execution(device="cpu")), **fields}),
        prior,
    )


def test_a_batch_is_a_function_of_seed_step_and_part():
    first, again, other = stream(), stream(), stream(train=Train(batch=8, execution=Execution(device="cpu"), seed=1))
    torch.rand(3), first.batch(4, 0)  # what came before is forgotten
    assert all(torch.equal(a, b) for a, b in zip(first.batch(7, 1), again.batch(7, 1), strict=True))
    answers = [s.batch(*place)[-1] for s, *place in ((first, 7, 1), (first, 7, 0), (first, 8, 1), (other, 7, 1))]
    assert not any(torch.equal(answers[k], answers[0]) for k in range(1, 4))


def test_splits():
    # Deterministic; at other seeds 3 of 1000 runs would be beyond 3 standard errors, and a KS test below p = 1e-3.
    source, steps = stream(), 2000
    sizes = [source.sizes(step) for step in range(steps)]
    contexts = torch.tensor([context for _, _, context in sizes])
    assert abs((contexts == 0).double().mean() - 0.1) < 3 * math.sqrt(0.09 / steps)
    assert (contexts.max(), contexts[contexts > 0].min()) == (50, 1)
    assert all(rows - context >= max(16, context) and 8 <= size <= 64 for size, rows, context in sizes)
    some, u = contexts[contexts > 0].double(), torch.rand(steps, generator=generator(0), dtype=torch.float64)
    # n = floor(51^u): adding u to n spreads it over [n, n + 1), so that P(v < k) at whole k is log k / log 51
    inside = (some.log() + u[: len(some)] * ((some + 1) / some).log()) / math.log(51)
    assert scipy.stats.kstest(inside, "uniform").pvalue > 1e-3
    (x, y, query, answers), (size, count, context) = source.batch(3, 0), source.sizes(3)
    assert (x.shape, y.shape) == ((size, context, 1), (size, context, 1))
    assert (query.shape, answers.shape) == ((size, count - context, 1), (size, count - context))
    assert source.tasks() == sum(source.sizes(step)[0] for step in range(10_000))


@pytest.mark.parametrize("standardize", [False, True])
def test_borders_are_quantiles_of_the_training_targets(standardize):
    # Over 2000 data sets, each worth an answer at least: a standard error below 0.007; the limit is 4 of them.
    source = stream(bars=10, standardize=standardize)
    borders = source.borders()
    assert borders.shape == (11,)
    answers = torch.cat([source.batch(step, 0)[-1].flatten() for step in range(200)])
    share = torch.bucketize(answers, borders).bincount(minlength=12)[1:-1] / len(answers)
    torch.testing.assert_close(share, torch.full_like(share, 0.1), rtol=0, atol=0.03)


class Own:
    """A prior of one's own."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def sample(self, batch, rows, *, generator):
        return Task(self.x(batch, rows), self.y(batch, rows))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_priors_of_ones_own(kind):
    method = replace(NARROW, train=Train(steps=2, batch=4, execution=Execution(device="cpu")))
    good = Own(lambda b, n: torch.rand(b, n, 2, dtype=kind), lambda b, n: torch.randn(b, n, dtype=kind))
    assert method.fit(good).head.borders.dtype == torch.float32
    wide, tall = Own(lambda b, n: torch.rand(b, n, 5), good.y), Own(good.x, lambda b, n: torch.randn(b, n, 1))
    with pytest.raises(ValueError, match="features=4 is less than the 5 columns that the prior draws"):
        method.fit(wide)
    with pytest.raises(
        ValueError, match=r"the prior \w+ must draw x \[.*\] and y \[\d+, \d+\], got .* \[\d+, \d+, 1\]"
    ):
        method.fit(tall)
    with pytest.raises(ValueError, match=r"the prior's y must hold classes 0 to 1, got values from 2 to 2"):
        replace(method, classes=2).fit(Own(good.x, lambda b, n: torch.full((b, n), 2)))


def test_a_single_row_has_no_scale():
    standardized = replace(NARROW, standardize=True).untrained(BORDERS)
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        standardized.condition([[0.1]], [1e6])
    assert torch.isfinite(NARROW.untrained(BORDERS).condition([[0.1]], [1.0]).predict([[0.2]]).mean).all()


def test_padding_of_a_mixtures_narrower_members_is_no_column():
    mixture = PriorMixture((BayesianLinear(1), BayesianLinear(4)))
    stream = TaskStream(replace(NARROW, train=Train(batch=64, seed=1)), mixture)
    step = next(k for k in range(99) if stream.sizes(k)[2] > 1)
    size, rows, context = stream.sizes(step)
    x, _, _, _ = stream.batch(step, 0)
    task = mixture.sample(size, rows, generator=seeds.generator("cpu", 1, step, 0))
    narrow = task.theta["member"] == 0
    assert 0 < narrow.sum() < size
    torch.testing.assert_close(x[narrow], 4 * task.x[narrow, :context])  # scaled by features / used
    torch.testing.assert_close(x[~narrow], task.x[~narrow, :context])


def test_columns_that_are_constant_in_the_context_do_not_count():
    network = replace(NARROW, features=5, context=40, standardize=True).untrained(BORDERS)
    source = generator(3)
    x, new = (torch.rand(n, 1, generator=source, dtype=torch.float64) for n in (40, 9))
    y = (12 * x[:, 0]).sin()
    alone = network.condition(x, y).predict(new)

    def beside(values):
        return torch.cat([torch.full((len(values), 2), 3.0).double(), values, torch.ones(len(values), 2).double()], -1)

    found = network.condition(beside(x), y).predict(beside(new))
    assert torch.equal(found.mean, alone.mean) and torch.equal(found.stddev, alone.stddev)


class Broken:
    """A prior that draws one NaN."""

    def sample(self, batch, rows, *, generator):
        task = BayesianLinear().sample(batch, rows, generator=generator)
        task.y[0, 1] = torch.nan
        return task


def test_a_prior_that_draws_nan_is_named():
    with pytest.raises(ValueError, match=r"the prior Broken drew y\[0, 1\] = nan in the batch \(\d+, 0\)"):
        NARROW.fit(Broken())


@pytest.mark.parametrize("name", ["regression", "classes", "bare"])
def test_the_average_over_column_orders_is_that_of_its_members(name):
    classes = 3 if name == "classes" else None
    post = untrained(features=3, classes=classes)
    rng = torch.Generator().manual_seed(0)
    x, new = torch.randn(2, 6, 3, generator=rng), torch.randn(2, 4, 3, generator=rng)
    y = torch.randint(0, 3, (2, 6), generator=rng) if classes else torch.randn(2, 6, generator=rng)
    given = post if name == "bare" else post.condition(x, y)
    law = given.predict_averaged(new, orders=5, seed=3)
    assert law.batch_shape == (2, 4)
    rng = torch.Generator().manual_seed(3)
    orders = [torch.arange(3), *(torch.randperm(3, generator=rng) for _ in range(4))]
    members = []
    for order in orders:
        part = post if name == "bare" else post.condition(x[..., order], y)
        members.append(part.predict(new[..., order]))
    if isinstance(law, Categorical):
        expected = torch.stack([m.class_probs for m in members]).mean(0)
        torch.testing.assert_close(law.class_probs, expected, rtol=1e-4, atol=1e-6)
    else:
        value = torch.zeros(2, 4)
        expected = torch.stack([m.log_prob(value).exp() for m in members]).mean(0)
        torch.testing.assert_close(law.log_prob(value).exp(), expected, rtol=1e-4, atol=1e-6)
    one = given.predict_averaged(new, orders=1)
    torch.testing.assert_close(one.mean, given.predict(new).mean, rtol=1e-4, atol=1e-5, equal_nan=True)
    with pytest.raises(ValueError, match="orders"):
        given.predict_averaged(new, orders=0)
