"""Monotone Boltzmann machines: the only fixed point, its certificate and gradients, enumeration, and the recipe."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesvision.methods.mdbm.ascent import Ascent, Bounded
from bayesvision.methods.mdbm.couplings import DenseCoupling, polynomials
from bayesvision.methods.mdbm.inference import Exactness, elbo, mean_field
from bayesvision.methods.mdbm.layout import Block, Layout
from bayesvision.methods.mdbm.machine import dense, images
from bayesvision.methods.mdbm.mdbm import MDBM
from bayesvision.methods.mdbm.tasks import MaskedRows
from bayesvision.training.batches import places
from bayesvision.training.seeds import generator
from bayesvision.training.train import Execution, Train

GROUPS, LEVELS, MARGIN = 5, 3, 0.1
SIZE = GROUPS * LEVELS
LAYOUT = Layout(((Block(1, 1, GROUPS, LEVELS),),))
EXACT = Exactness(1e-10, 5_000, 1e-12)


def machine(seed=0, size=2.0, margin=MARGIN):
    """Couplings at their bound, and biases, in float64."""
    rng = generator("cpu", seed)
    columns = size * torch.randn(SIZE, SIZE, generator=rng, dtype=torch.float64)
    bias = torch.randn(SIZE, generator=rng, dtype=torch.float64)
    coupling = DenseCoupling(columns, LAYOUT, margin)
    opposite = float(torch.linalg.eigvalsh(-coupling.matrix)[-1])
    return Bounded(coupling, margin, opposite), bias


def one_hot(codes):
    return torch.nn.functional.one_hot(codes, LEVELS).double().flatten(-2)


def entries(known):
    return ~known.repeat_interleave(LEVELS, -1)


def solved(bounded, bias, known=None, codes=None, exactness=EXACT):
    known = torch.zeros(1, GROUPS, dtype=torch.bool) if known is None else known
    codes = torch.zeros(known.shape, dtype=torch.long) if codes is None else codes
    return mean_field(bounded, bias, entries(known), one_hot(codes), exactness)


# The interactions


def curvature(phi, z, layout):
    """The least eigenvalue of -d^2 E at z, along the simplices."""
    names = layout.names(z.device)
    along = torch.eye(len(z), dtype=z.dtype)
    for name in names.unique():
        inside = (names == name).to(z.dtype)
        along = along - torch.outer(inside, inside) / inside.sum()
    values = torch.linalg.eigvalsh(
        along @ (torch.diag(1 / z) - phi) @ along + 1e6 * (torch.eye(len(z)).double() - along)
    )
    return float(values[0])


MACHINES = {
    "dense": lambda: dense((3, 2, 5, 3), (True, False, True, False), (8, 4), 2, MARGIN),
    "conv": lambda: images((2, 4, 4), 3, 4, (3,), 2, MARGIN),
    "two layers": lambda: images((1, 8, 8), 2, 3, (2, 3), 2, MARGIN),
    "down to one place": lambda: images((1, 4, 4), 2, 3, (2, 3), 2, MARGIN),
    "no label": lambda: images((1, 4, 4), 3, None, (3,), 2, MARGIN),
}


@pytest.fixture(params=MACHINES)
def strong(request):
    """A machine with interactions at their bound."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        found = MACHINES[request.param]().double()
        for p in found.interactions.parameters():
            p.data += 0.5 * torch.randn_like(p)
        found.bias.data = torch.randn_like(found.bias)
    return found.requires_grad_(False)


def test_interactions_are_symmetric_and_let_mean_field_be_strongly_concave(strong):
    coupling, layout = strong.bounded().coupling, strong.layout
    phi = coupling.rows(0, layout.size)
    if isinstance(coupling, DenseCoupling):
        assert torch.equal(phi, phi.mT)
    torch.testing.assert_close(phi, phi.mT, rtol=0, atol=1e-14)
    names = layout.names(phi.device)
    own = names.unsqueeze(-1) == names
    assert phi[own].abs().max() < 1e-13 and phi[~own].abs().max() > 0.1
    rng = generator("cpu", 2)
    for scale in (0.0, 1.0, 3.0, 6.0):  # up to nearly all mass on few levels
        z = layout.softmax(scale * torch.randn(layout.size, generator=rng, dtype=torch.float64))
        assert curvature(phi, z, layout) >= MARGIN - 1e-9
    values = torch.linalg.eigvalsh(phi)
    assert -values[0] <= strong.bounded().opposite <= -1.2 * values[0]
    assert values[-1] <= coupling.most


def test_the_bound_of_a_block_is_exact():
    """Two binary variables that are the same: at m = 0 the curvature would be zero, and beyond it are two maxima."""
    layout = Layout(((Block(1, 1, 2, 2),),))
    columns = torch.tensor([[1.0, -1.0, -1.0, 1.0]] * 4, dtype=torch.float64)
    phi = DenseCoupling(columns, layout, 1e-9).matrix
    assert curvature(phi, torch.full((4,), 0.5).double(), layout) == pytest.approx(0, abs=1e-6)
    ends = []
    for first in (0.9, 0.1):
        z = torch.tensor([first, 1 - first] * 2, dtype=torch.float64)
        for _ in range(500):
            z = layout.softmax(1.5 * phi @ z)
        ends.append(z)
    assert (ends[0] - ends[1]).abs().max() > 0.5


def test_levels_in_an_order_are_coupled_by_polynomials():
    kept = polynomials(9)
    torch.testing.assert_close(kept @ kept, kept)
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(kept @ (x**3 - x), x**3 - x)
    assert float(kept.trace()) == pytest.approx(4)
    torch.testing.assert_close(polynomials(3), torch.eye(3).double())


# The solver


def test_fifty_starts_lead_to_one_point_which_is_the_convex_optimum():
    bounded, bias = machine(size=50.0)
    rng = generator("cpu", 3)
    logits = 5 * torch.randn(50, SIZE, generator=rng, dtype=torch.float64)
    start = torch.zeros(50, SIZE, dtype=torch.float64)
    q, bound, _, converged = Ascent(bounded, bias).solve(start == 0, start, 1e-10, 5_000, logits)
    assert converged.all() and (bound <= 1e-10).all() and (q - q[0]).abs().max() < 1e-8
    torch.testing.assert_close(LAYOUT.softmax(bounded.coupling(q) + bias), q, rtol=0, atol=1e-9)

    def loss(w):
        return -float(elbo(bounded.coupling, bias, LAYOUT.softmax(torch.as_tensor(w))))

    best = scipy.optimize.minimize(loss, np.zeros(SIZE), tol=1e-13).x
    torch.testing.assert_close(LAYOUT.softmax(torch.as_tensor(best)), q[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [0.5, 50.0])
def test_the_bound_rises_with_every_step(size):
    bounded, bias = machine(size=size)
    solver, free = Ascent(bounded, bias), torch.ones(4, SIZE, dtype=torch.bool)
    start = torch.zeros(4, SIZE, dtype=torch.float64)
    logits = 3 * torch.randn(4, SIZE, generator=generator("cpu", 4), dtype=torch.float64)
    steps, values = None, []
    for _ in range(60):
        _, _, steps = solver._look(logits, free, start, steps)
        values.append(steps.value)
        logits = solver._next(steps)
    rise = torch.stack(values).diff(dim=0)
    assert (rise >= -1e-12).all() and (rise[0] > 0).all()


def enumerated(coupling, bias, known, codes):
    """log Z given the known groups, and the marginals, by a sum over all states."""
    states = torch.tensor(list(itertools.product(range(LEVELS), repeat=GROUPS)))
    states = states[(states == codes)[:, known].all(-1)]
    x = one_hot(states)
    log = (x * (coupling(x) / 2 + bias)).sum(-1)
    return float(log.logsumexp(0)), (log.softmax(0).unsqueeze(-1) * x).sum(0)


@pytest.mark.parametrize("seen", [0, 2, 4, 5])
def test_the_bound_of_the_normaliser_and_the_marginals_by_enumeration(seen):
    bounded, bias = machine(size=0.1)
    codes = torch.tensor([[0, 2, 1, 1, 0]])
    known = (torch.arange(GROUPS) < seen).unsqueeze(0)
    q, certificate = solved(bounded, bias, known, codes)
    log_z, marginals = enumerated(bounded.coupling, bias, known[0], codes[0])
    value = float(elbo(bounded.coupling, bias, q))
    assert certificate.converged.all() and value <= log_z + 1e-9
    if seen >= GROUPS - 1:  # one variable, or none: mean field is exact
        assert value == pytest.approx(log_z, abs=1e-8)
        torch.testing.assert_close(q[0], marginals, rtol=0, atol=1e-8)
    else:
        assert log_z - value < 0.2 and (q - marginals).abs().max() < 0.1


def test_without_interactions_it_is_exact():
    bounded, bias = machine(size=0.0)
    q, _ = solved(bounded, bias)
    torch.testing.assert_close(q[0], LAYOUT.softmax(bias))
    assert float(elbo(bounded.coupling, bias, q)) == pytest.approx(float(bias.reshape(GROUPS, -1).logsumexp(-1).sum()))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.floats(0.01, 100),
    margin=st.floats(0.02, 2.0),
    scale=st.floats(0, 1e4),
    iterations=st.integers(1, 40),
)
def test_the_certificate_bounds_the_error(seed, size, margin, scale, iterations):
    bounded, bias = machine(seed, size, margin)
    bias = scale * bias
    known = torch.rand(1, GROUPS, generator=generator("cpu", seed, 1)) < 0.3
    exact, done = solved(bounded, bias, known, exactness=Exactness(1e-9, 20_000))
    rough, certificate = solved(bounded, bias, known, exactness=Exactness(0.0, iterations))
    assert done.converged.all() and int(certificate.iterations) <= iterations
    assert float((rough - exact).norm()) <= float(certificate.bound) + 1e-8
    value = float(elbo(bounded.coupling, bias, exact))
    assert float(elbo(bounded.coupling, bias, rough)) <= value + 1e-7 * max(1.0, abs(value))


def test_what_did_not_converge_is_said():
    bounded, bias = machine(size=50.0)
    _, certificate = solved(bounded, bias, exactness=Exactness(1e-10, 3))
    assert not certificate.converged.any() and (certificate.bound > 1e-10).all()


def test_problems_of_a_batch_do_not_meet():
    bounded, bias = machine(size=50.0)
    known = torch.rand(6, GROUPS, generator=generator("cpu", 6)) < torch.linspace(0, 1, 6).unsqueeze(-1)
    codes = torch.randint(LEVELS, (6, GROUPS), generator=generator("cpu", 7))
    q, _ = solved(bounded, bias, known, codes)
    for k in range(6):
        one, _ = solved(bounded, bias, known[k : k + 1], codes[k : k + 1])
        torch.testing.assert_close(one[0], q[k], rtol=0, atol=1e-9)


def test_gradients_are_those_of_the_fixed_point():
    rng = generator("cpu", 5)
    columns = torch.randn(SIZE, SIZE, generator=rng, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(SIZE, generator=rng, dtype=torch.float64, requires_grad=True)
    known = torch.tensor([[True, False, False, True, False], [False] * 5])

    def field(columns, bias):
        bounded = Bounded(DenseCoupling(columns, LAYOUT, 0.3), 0.3, 20.0)
        return solved(bounded, bias, known, exactness=Exactness(1e-13, 5_000, 1e-13))[0]

    assert torch.autograd.gradcheck(field, (columns, bias), check_undefined_grad=False)


def test_memory_does_not_depend_on_the_number_of_iterations():
    bounded, bias = machine(size=50.0)
    bias.requires_grad_()

    def kept(iterations):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda v: sizes.append(v.numel()) or v, lambda v: v):
            _, certificate = solved(bounded, bias, exactness=Exactness(0.0, iterations))
        assert int(certificate.iterations) == iterations
        return sum(sizes)

    assert 0 < kept(4) == kept(40)


def test_gradients_of_a_convolutional_machine(strong):
    strong.requires_grad_(True)
    codes = torch.full((2, len(strong.levels)), torch.nan, dtype=torch.float64)
    codes[0, ::2] = 1
    exactness = Exactness(1e-12, 5_000, 1e-12)

    def value():
        return strong.field(codes, exactness)[0].square().sum()

    value().backward()
    rng = generator("cpu", 9)
    for p in strong.parameters():
        way = torch.randn(p.shape, generator=rng, dtype=torch.float64)
        sides = []
        with torch.no_grad():
            for step in (1e-5, -1e-5):
                p += step * way
                sides.append(float(value()))
                p -= step * way
        assert p.grad is not None
        assert float((p.grad * way).sum()) == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-5, abs=1e-8)


# Batches and masks


def test_examples_pass_in_a_new_order_each_epoch():
    seen = torch.cat([places(3, step, 4, 10) for step in range(5)])
    assert sorted(seen[:10].tolist()) == list(range(10)) and sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert torch.equal(places(3, 2, 4, 10), seen[8:12])
    assert len(places(0, 0, 25, 10)) == 25


def test_masks_hide_the_share_that_was_asked_and_never_ask_what_is_missing():
    codes = torch.zeros(64, 65)
    codes[:, 3] = torch.nan
    method = MDBM(observed=(0.3, 0.3), train=Train(batch=64, execution=Execution(device="cpu")))
    batches = [MaskedRows(codes, method, 64, (8, 8)).batch(step, 0) for step in range(30)]
    seen = torch.cat([~b.seen.isnan() for b in batches])
    assert not any(b.asked[:, 3].any() or not b.seen[:, 3].isnan().all() for b in batches)
    assert float(seen[:, 4:64].double().mean()) == pytest.approx(0.3, abs=0.02)
    assert float(seen[:, 64].double().mean()) == pytest.approx(0.1, abs=0.03)
    pixels = seen[:, :64].reshape(-1, 8, 8).double()
    pairs = (pixels[:, 4:, 1:] == pixels[:, 4:, :-1]).double().mean()
    assert float(pairs) > 0.7  # rectangles: neighbours agree more often than the 0.58 of single pixels
    again = MaskedRows(codes, method, 64, (8, 8)).batch(7, 0)
    assert torch.equal(again.asked, batches[7].asked)
