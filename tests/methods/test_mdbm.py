"""Monotone Boltzmann machines: the activation, the only fixed point and its certificate, gradients, enumeration."""

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesvision.methods.mdbm.activation import activate
from bayesvision.methods.mdbm.couplings import DenseCoupling, bounded_blocks
from bayesvision.methods.mdbm.inference import elbo, largest_eigenvalue, mean_field
from bayesvision.methods.mdbm.mdbm import MDBM
from bayesvision.training.batches import places
from bayesvision.training.seeds import generator
from bayesvision.training.train import Execution, Train

GROUPS, RANK, LEVELS, MARGIN = 5, 6, 3, 0.1


def machine(seed=0, size=2.0, margin=MARGIN):
    """Couplings at their bound, and biases, in float64."""
    rng = generator("cpu", seed)
    blocks = size * torch.randn(GROUPS, RANK, LEVELS, generator=rng, dtype=torch.float64)
    bias = torch.randn(GROUPS, LEVELS, generator=rng, dtype=torch.float64)
    return DenseCoupling(bounded_blocks(blocks, margin), margin), bias


def solved(coupling, bias, known=None, start=None, tolerance=1e-10):
    known = torch.zeros(bias.shape[:-1], dtype=torch.bool) if known is None else known
    start = bias.softmax(-1) if start is None else start
    bound = largest_eigenvalue(coupling, start.reshape(-1, *start.shape[-2:])[0])
    return mean_field(coupling, bias, known, start, bound, tolerance, 5_000)


@pytest.mark.parametrize("step", [0.5, 0.45, 0.25, 0.05, 0.01])
@pytest.mark.parametrize("scale", [0.1, 10.0, 1e4])
def test_the_activation_solves_its_equation(step, scale):
    y = scale * torch.randn(50, 6, generator=generator("cpu", 1), dtype=torch.float64)
    z = activate(y, step)
    torch.testing.assert_close(z.sum(-1), torch.ones(50).double())
    off = step * (1 + z.log()) + (1 - 2 * step) * z - y
    off = torch.where(z > 1e-200, off, torch.nan)
    same = off - off.nanmean(-1, keepdim=True)
    assert float(same[~same.isnan()].abs().max()) < 1e-12 * max(1.0, scale)
    if step == 0.5:
        torch.testing.assert_close(z, (2 * y).softmax(-1))


def test_the_activation_is_a_proximal_map():
    """No other point of the simplex has a lower objective, by scipy."""
    y, step = np.array([0.4, -0.3, 1.1, 0.0]), 0.3

    def objective(w):
        z = np.exp(w - w.max()) / np.exp(w - w.max()).sum()
        return ((z - y) ** 2).sum() / 2 + step * ((z * np.log(z)).sum() - (z**2).sum())

    best = scipy.optimize.minimize(objective, np.zeros(4), tol=1e-14).x
    expected = np.exp(best) / np.exp(best).sum()
    np.testing.assert_allclose(activate(torch.as_tensor(y).unsqueeze(0), step)[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("step", [0.5, 0.25, 0.05])
def test_gradients_of_the_activation(step):
    y = torch.randn(4, 5, generator=generator("cpu", 2), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: activate(v, step), y)


def test_logits_of_minus_infinity_have_no_probability():
    z = activate(torch.tensor([[0.3, -torch.inf, 0.1]], dtype=torch.float64), 0.4)
    assert z[0, 1] == 0 and float(z.sum()) == pytest.approx(1)
    with pytest.raises(ValueError, match="step"):
        activate(z, 1.5)


def test_interactions_are_symmetric_to_the_last_bit_and_bounded():
    coupling, _ = machine(size=50.0)
    phi = coupling.matrix()
    assert torch.equal(phi, phi.mT)
    for i in range(GROUPS):
        block = slice(LEVELS * i, LEVELS * (i + 1))
        torch.testing.assert_close(phi[block, block], torch.zeros(LEVELS, LEVELS).double(), rtol=0, atol=1e-12)
    values = torch.linalg.eigvalsh(2 * torch.eye(len(phi)).double() - phi)
    assert values[0] >= MARGIN - 1e-9
    bound = largest_eigenvalue(coupling, torch.zeros(GROUPS, LEVELS).double())
    assert values[-1] <= bound <= 1.1 * values[-1]


def test_fifty_starts_lead_to_one_point_which_is_the_convex_optimum():
    coupling, bias = machine(size=50.0)
    rng = generator("cpu", 3)
    start = torch.randn(50, GROUPS, LEVELS, generator=rng, dtype=torch.float64).mul(5).softmax(-1)
    q, certificate = solved(coupling, bias.expand(start.shape), start=start)
    assert certificate.converged.all() and (q - q[0]).abs().max() < 1e-8
    fixed = (coupling(q) + bias).softmax(-1)
    torch.testing.assert_close(fixed, q, rtol=0, atol=1e-9)

    def loss(w):
        z = torch.as_tensor(w).reshape(GROUPS, LEVELS).softmax(-1)
        return -float(elbo(coupling, bias, z))

    best = scipy.optimize.minimize(loss, np.zeros(GROUPS * LEVELS), tol=1e-13).x
    torch.testing.assert_close(torch.as_tensor(best).reshape(GROUPS, LEVELS).softmax(-1), q[0], rtol=0, atol=1e-5)


def test_beyond_the_bound_there_is_more_than_one_fixed_point():
    """The same machine with blocks that are too large: starts lead to different points."""
    blocks = torch.tensor([[[1.0, -1.0]], [[-1.0, 1.0]]], dtype=torch.float64)
    strong = DenseCoupling(1.5 * blocks, MARGIN)
    ends = []
    for first in (0.9, 0.1):
        z = torch.tensor([[first, 1 - first]] * 2, dtype=torch.float64)
        for _ in range(500):
            z = strong(z).softmax(-1)
        ends.append(z)
    assert (ends[0] - ends[1]).abs().max() > 0.5
    bounded = DenseCoupling(bounded_blocks(1.5 * blocks, MARGIN), MARGIN)
    bias = torch.zeros(2, 2, dtype=torch.float64)
    for first in (0.9, 0.1):
        start = torch.tensor([[first, 1 - first]] * 2, dtype=torch.float64)
        q, _ = solved(bounded, bias, start=start)
        torch.testing.assert_close(q, torch.full((2, 2), 0.5).double(), rtol=0, atol=1e-8)


def enumerated(coupling, bias, known, codes):
    """log Z given the known groups, and the marginals, by a sum over all states."""
    states = torch.tensor(list(itertools.product(range(LEVELS), repeat=GROUPS)))
    states = states[(states == codes)[:, known].all(-1)]
    x = torch.nn.functional.one_hot(states, LEVELS).double()
    log = (x * (coupling(x) / 2 + bias)).sum((-1, -2))
    return float(log.logsumexp(0)), (log.softmax(0)[:, None, None] * x).sum(0)


@pytest.mark.parametrize("seen", [0, 2, 4, 5])
def test_the_bound_of_the_normaliser_and_the_marginals_by_enumeration(seen):
    coupling, bias = machine(size=0.5)
    codes = torch.tensor([0, 2, 1, 1, 0])
    known = torch.arange(GROUPS) < seen
    start = torch.where(known.unsqueeze(-1), torch.nn.functional.one_hot(codes, LEVELS).double(), bias.softmax(-1))
    q, certificate = solved(coupling, bias, known, start)
    log_z, marginals = enumerated(coupling, bias, known, codes)
    value = float(elbo(coupling, bias, q))
    assert certificate.converged and value <= log_z + 1e-9
    if seen >= GROUPS - 1:  # one variable, or none: mean field is exact
        assert value == pytest.approx(log_z, abs=1e-8)
        torch.testing.assert_close(q, marginals, rtol=0, atol=1e-8)
    else:
        assert log_z - value < 0.2 and (q - marginals).abs().max() < 0.1


def test_without_interactions_it_is_exact():
    coupling, bias = machine(size=0.0)
    q, _ = solved(coupling, bias)
    torch.testing.assert_close(q, bias.softmax(-1))
    assert float(elbo(coupling, bias, q)) == pytest.approx(float(bias.logsumexp(-1).sum()))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.floats(0.01, 100),
    margin=st.floats(0.02, 2.0),
    scale=st.floats(0, 50),
    iterations=st.integers(1, 40),
)
def test_the_certificate_bounds_the_error(seed, size, margin, scale, iterations):
    coupling, bias = machine(seed, size, margin)
    bias = scale * bias
    known = torch.rand(GROUPS, generator=generator("cpu", seed, 1)) < 0.3
    start = torch.nn.functional.one_hot(torch.zeros(GROUPS, dtype=torch.long), LEVELS).double()
    bound = largest_eigenvalue(coupling, bias)
    exact, done = mean_field(coupling, bias, known, start, bound, 1e-9, 20_000)
    rough, certificate = mean_field(coupling, bias, known, start, bound, 0.0, iterations)
    assert done.converged
    assert float((rough - exact).norm()) <= float(certificate.bound) + 1e-8
    value = float(elbo(coupling, bias, exact))
    assert float(elbo(coupling, bias, rough)) <= value + 1e-7 * max(1.0, abs(value))


def test_gradients_are_those_of_the_fixed_point():
    rng = generator("cpu", 5)
    blocks = torch.randn(3, 4, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 3, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    known = torch.tensor([[True, False, False], [False, False, False]])
    start = torch.nn.functional.one_hot(torch.tensor([[1, 0, 0], [0, 0, 0]]), 3).double()

    def field(blocks, bias):
        coupling = DenseCoupling(bounded_blocks(blocks, 0.3), 0.3)
        return mean_field(coupling, bias, known, start, 8.0, 1e-13, 5_000)[0]

    assert torch.autograd.gradcheck(field, (blocks, bias), check_undefined_grad=False)


def test_examples_pass_in_a_new_order_each_epoch():
    seen = torch.cat([places(3, step, 4, 10) for step in range(5)])
    assert sorted(seen[:10].tolist()) == list(range(10)) and sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert torch.equal(places(3, 2, 4, 10), seen[8:12])
    assert len(places(0, 0, 25, 10)) == 25


# The recipe

TRAIN = {"batch": 32, "lr": 5e-2, "execution": Execution(device="cpu")}


def rows_of(count, seed):
    """Three levels; the second and third variables copy the first, nine times in ten, and the fourth is noise.

    A machine with one fixed point is less sure than that: its interactions are bounded.
    """
    rng = generator("cpu", seed)
    first = torch.randint(3, (count,), generator=rng)
    keep = torch.rand(count, 2, generator=rng) < 0.9
    other = torch.randint(3, (count, 2), generator=rng)
    copies = torch.where(keep, first.unsqueeze(-1), other)
    return torch.cat([first.unsqueeze(-1), copies, torch.randint(2, (count, 1), generator=rng)], -1).double()


@pytest.fixture(scope="module")
def post():
    method = MDBM(hidden=(8,), rank=16, train=Train(steps=150, **TRAIN))
    return method.fit(rows_of(1_000, 1))


def test_copies_are_completed_and_noise_is_not(post):
    law = post.condition([0, 1], [2, 2]).predict([2, 3])
    assert float(law.probs[0, 2]) > 0.6 and abs(float(law.probs[1, 0]) - 0.5) < 0.1 and law.probs[1, 2] == 0
    alone = post.predict([0]).probs[0]
    torch.testing.assert_close(alone, torch.full((3,), 1 / 3).double(), rtol=0, atol=0.08)


def test_holes_are_filled_and_what_is_there_stays(post):
    rows = rows_of(200, 2)
    holes = rows.clone()
    holes[:, 2] = math.nan
    law, filled = post.impute(holes)
    assert float((filled[:, 2] == rows[:, 2]).double().mean()) > 0.8
    assert torch.equal(filled[:, [0, 1, 3]], rows[:, [0, 1, 3]])
    nll = -law.log_prob(rows)[:, 2].mean()
    assert float(nll) < 0.75 < math.log(3)


def test_parts_equal_the_whole_in_any_order(post):
    whole = post.condition([0, 2, 3], [1, 1, 0])
    parts = post.condition([3], [0]).condition([2, 0], [1, 1])
    torch.testing.assert_close(parts.predict([1]).probs, whole.predict([1]).probs, rtol=0, atol=1e-5)
    assert post.rows == 0 and whole.rows == 3 and whole.certificate.converged
    assert whole.predict([0]).probs[0, 1] == 1
    assert float(whole.elbo) < float(post.elbo)


def test_batches_are_single_problems(post):
    both = post.condition([[[0]], [[1]]], [[2], [0]])
    one = post.condition([1], [0])
    torch.testing.assert_close(both.predict([2]).probs[1], one.predict([2]).probs, rtol=0, atol=1e-5)


def test_draws_keep_what_was_seen_and_agree_with_the_field(post):
    seen = post.condition([0], [1])
    draws = seen.sample((400,), sweeps=10)
    assert draws.shape == (400, 4) and (draws[:, 0] == 1).all()
    share = float((draws[:, 1] == 1).double().mean())
    assert share == pytest.approx(float(seen.predict([1]).probs[0, 1]), abs=0.15)


def test_a_killed_training_goes_on_bit_for_bit(tmp_path):
    class Stop:
        def log(self, metrics, step):
            if step == 4:
                raise KeyboardInterrupt

    def method(folder=None):
        execution = Execution(device="cpu", checkpoint_dir=folder, save_every=2)
        return MDBM(hidden=(4,), rank=4, train=Train(steps=6, batch=16, execution=execution))

    whole = method().fit(rows_of(50, 1))
    with pytest.raises(KeyboardInterrupt):
        method(str(tmp_path)).fit(rows_of(50, 1), Stop())
    resumed = method(str(tmp_path)).fit(rows_of(50, 1))
    assert torch.equal(whole.blocks, resumed.blocks) and torch.equal(whole.bias, resumed.bias)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([0, 0], [1, 2], "twice"),
        ([9], [0], "numbers of variables"),
        ([0], [3], "levels 0 to 2 of variable 0"),
        ([3], [2], "levels 0 to 1 of variable 3"),
        ([0], [0.5], "levels 0 to 2"),
        ([0, 1], [1], "a level for each"),
        ([0], [math.nan], "finite"),
    ],
)
def test_what_was_not_there_cannot_be_seen(post, x, y, words):
    with pytest.raises(ValueError, match=words):
        post.condition(x, y)


@pytest.mark.parametrize("fields", [{"margin": 0.0}, {"margin": 2.5}, {"rank": 0}, {"hidden": (0,)}, {"levels": 0}])
def test_a_field_out_of_range_is_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        MDBM(**fields)


def test_levels_and_rows_that_do_not_fit_are_refused(post):
    with pytest.raises(ValueError, match="variable 0 2, and the data"):
        MDBM(levels=2).fit(rows_of(20, 1))
    with pytest.raises(ValueError, match="label must be a column"):
        MDBM(label=7).fit(rows_of(20, 1))
    with pytest.raises(ValueError, match="whole numbers"):
        MDBM().fit(rows_of(20, 1) + 0.5)
    with pytest.raises(ValueError, match="4 columns"):
        post.impute(rows_of(5, 1)[:, :2])
    with pytest.raises(ValueError, match="number the categories"):
        post.impute(rows_of(5, 1) + 2)
