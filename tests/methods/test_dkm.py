"""Deep kernel machines: closed forms, limits, numerics, and what is refused."""

import math
import warnings
from dataclasses import replace

import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

import bayesvision as bv
from bayesvision import DKM, Data, Execution, Train
from bayesvision.methods.dkm.machine import Machine
from bayesvision.methods.dkm.outputs import GaussianOutput, Statistics
from bayesvision.nn.kernels import GramKernel, arc_cosine, factor
from bayesvision.training.seeds import generator

QUICK = Train(steps=40, batch=1_000, lr=2e-2, execution=Execution(device="cpu"))
KERNELS = ("arccos", "gaussian", "rbf")
CHECKS = settings(max_examples=25, deadline=None, derandomize=True)


def draws(seed, *shape):
    return torch.randn(*shape, generator=generator("cpu", seed), dtype=torch.float64)


def machine(inducing, layers=2, kernel="arccos", ard=True, bias=0.1, moved=0.3, seed=3):
    """A machine whose Gram matrices have moved from those of the kernel."""
    made = Machine(inducing, layers, kernel, ard, (False,) * layers, True, bias)
    with torch.no_grad():
        for number, layer in enumerate(made.layers):
            layer.lower += moved * draws(seed + number, *layer.lower.shape) / len(inducing) ** 0.5
    return made


def normal(y, covariance):
    return torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y)


# --- kernels


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_are_those_of_features(kernel):
    x = draws(0, 6, 4)
    gram, g = x @ x.T, x.square().sum(1)
    found = GramKernel(kernel).double()(gram, g, g)
    cosine = gram / (g.unsqueeze(0) * g.unsqueeze(1)).sqrt()
    angle = torch.acos(cosine.clamp(-1, 1))
    norm = (g.unsqueeze(0) * g.unsqueeze(1)).sqrt()
    kappa = {
        "arccos": norm * (angle.sin() + (math.pi - angle) * cosine) / math.pi,
        "gaussian": norm * (cosine - 1).exp(),
        "rbf": (-torch.cdist(x, x).square() / 2).exp(),
    }[kernel]
    torch.testing.assert_close(found, kappa + 0.1, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(GramKernel(kernel).diagonal(g), found.diagonal())


def test_the_arc_cosine_kernel_is_the_covariance_of_a_rectifying_layer():
    # False alarms: 9 means of a million draws beyond 6 standard errors, below 1e-7.
    x = draws(0, 3, 3)
    h = (2**0.5 * (x @ draws(1, 3, 1_000_000))).clamp(min=0)
    products = h.unsqueeze(0) * h.unsqueeze(1)
    gram, g = x @ x.T, x.square().sum(1)
    kappa = GramKernel("arccos", 0.0)(gram, g, g)
    error = products.std(-1) / 1_000
    assert ((products.mean(-1) - kappa).abs() < 6 * error).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_with_duplicated_rows(kernel):
    x = draws(0, 4, 3)
    x[2] = x[0]
    made = GramKernel(kernel)

    def say(x):
        gram, g = x @ x.T, x.square().sum(1)
        return made(gram, g, g)

    other = draws(1, 3, 3)

    def cross(x):
        return made(x @ other.T, x.square().sum(1), other.square().sum(1))

    assert torch.autograd.gradcheck(cross, (x.requires_grad_(),))
    (gradient,) = torch.autograd.grad(say(x).sum(), x)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient[0], gradient[2])
    way = draws(5, 4, 3)
    way[2] = way[0]  # moved together, so that rows stay the same and the angle has no kink
    with torch.no_grad():
        sides = [float(say(x + step * way).sum()) for step in (1e-6, -1e-6)]
    assert float((gradient * way).sum()) == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-5)


# --- 1. the deep linear machine


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_deep_linear_machine_interpolates(layers):
    """K(G) = G and equal weights: G_l = (G_{L+1} G_0^-1)^{l / (L + 1)} G_0 (Yang et al. 2023, section 4.2)."""
    x, y = draws(0, 4, 9) * 3, draws(1, 4, 30)
    made = Machine(x, layers, "linear", False, (False,) * layers, False, 0.0)
    target = y @ y.T / y.shape[1]
    parameters = [layer.lower for layer in made.layers]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=2_000, tolerance_grad=1e-13, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def cost():
        optimizer.zero_grad()
        last = made.grams(x[:1])[-1].inducing
        told = torch.linalg.solve(last, target).diagonal().sum() + torch.logdet(last)
        value = told / 2 + made.kl().sum()
        value.backward()
        return value

    optimizer.step(cost)
    start = x @ x.T / 9
    values, vectors = torch.linalg.eig(target @ torch.linalg.inv(start))
    for number, gram in enumerate(made.grams(x[:1])):
        power = vectors @ torch.diag(values ** (number / (layers + 1))) @ torch.linalg.inv(vectors)
        torch.testing.assert_close(gram.inducing.detach(), power.real @ start, rtol=1e-5, atol=1e-6)


# --- 2. infinite width


def nngp(x, kernel, layers):
    """The composed kernel of an infinitely wide network, densely."""
    gram = x @ x.T / x.shape[1]
    for _ in range(layers + 1):
        gram = kernel(gram, gram.diagonal(), gram.diagonal())
    return gram


@pytest.mark.parametrize("kernel", KERNELS)
def test_at_infinite_width_it_is_the_exact_process(kernel):
    x, y, new = draws(0, 12, 3), draws(1, 12), draws(2, 5, 3)
    made = Machine(x, 2, kernel, False, (True,) * 2, False)
    output = GaussianOutput(1, 12, False)
    whole = nngp(torch.cat([x, new]), GramKernel(kernel), 2).detach()
    noise = float(output.noise.detach())
    covariance = whole[:12, :12] + noise * torch.eye(12, dtype=torch.float64)
    value = output.bound(made(x), y.unsqueeze(1))
    torch.testing.assert_close(value, normal(y, covariance), rtol=1e-6, atol=1e-6)
    seen = made(new)
    statistics = made(x).a
    known = Statistics((statistics @ statistics.T).unsqueeze(0), (statistics @ y).unsqueeze(0))
    mean, root = output.posterior(known)
    cross = whole[12:, :12]
    torch.testing.assert_close(
        (seen.a.T @ mean.T)[:, 0], cross @ torch.linalg.solve(covariance, y), rtol=1e-5, atol=1e-5
    )
    variance = whole[12:, 12:].diagonal() - (cross @ torch.linalg.solve(covariance, cross.T)).diagonal()
    found = seen.rest + (root[0].T @ seen.a).square().sum(0)
    torch.testing.assert_close(found, variance, rtol=1e-4, atol=1e-6)


def best(made, output, x, y, nu):
    """The Gram matrices of the largest bound, everything else as it is."""
    parameters = [layer.lower for layer in made.layers]
    optimizer = torch.optim.LBFGS(parameters, max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def cost():
        optimizer.zero_grad()
        seen = made(x)
        value = (nu * seen.penalty.sum() - output.bound(seen, y)) / max(nu, 1.0)
        value.backward()
        return value

    optimizer.step(cost)
    return made


def test_the_larger_nu_the_nearer_to_infinite_width():
    x, y, new = draws(0, 12, 2), draws(1, 12, 1), draws(2, 6, 2)
    output, fixed = GaussianOutput(1, 12, False), Machine(x, 2, "arccos", True, (True,) * 2, False)
    gaps, drifts = [], []
    for nu in (1.0, 100.0, 1e8):
        made = best(Machine(x, 2, "arccos", True, (False,) * 2, False), output, x, y, nu)
        gaps.append(float((made(new).a.square().sum(0) - fixed(new).a.square().sum(0)).abs().max()))
        drifts.append(float(made.kl().sum()))
    assert drifts[0] > 1e-2 and drifts[2] < 1e-10 and drifts[1] < drifts[0]
    assert gaps[2] < 1e-5 < gaps[0]


# --- 3. and 4. bounds


def test_without_a_hidden_layer_it_is_the_bound_of_titsias():
    x, y, z = draws(0, 15, 3), draws(1, 15), draws(2, 6, 3)
    made, output = Machine(z, 0, "arccos", True, (), True), GaussianOutput(1, 6, False)
    whole = nngp(torch.cat([x, z]), GramKernel("arccos"), 0).detach()
    noise, exact = float(output.noise.detach()), whole[:15, :15]
    low = whole[:15, 15:] @ torch.linalg.solve(whole[15:, 15:], whole[15:, :15])
    eye = torch.eye(15, dtype=torch.float64)
    expected = normal(y, low + noise * eye) - (exact - low).diagonal().sum() / (2 * noise)
    found = output.bound(made(x), y.unsqueeze(1))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    evidence = normal(y, exact + noise * eye)
    assert found < evidence
    full = Machine(x, 0, "arccos", True, (), True)
    torch.testing.assert_close(
        GaussianOutput(1, 15, False).bound(full(x), y.unsqueeze(1)), evidence, rtol=1e-6, atol=1e-5
    )


def test_the_bound_of_batches_is_that_of_all_at_the_optimum():
    x, y, z = draws(0, 40, 2), draws(1, 40, 2), draws(2, 5, 2)
    made, output = machine(z), GaussianOutput(2, 5, True)
    seen = made(x)
    with torch.no_grad():
        output.log_noise.copy_(torch.tensor([-1.0, 0.5]))
        noise = output.noise.unsqueeze(-1)
        output.weights.square.copy_((seen.a @ seen.a.T) / noise.unsqueeze(-1))
        output.weights.shift.copy_(y.T @ seen.a.T / noise)
    output.eval()
    torch.testing.assert_close(output.batch_bound(seen, y, 1.0), output.bound(seen, y), rtol=1e-8, atol=1e-8)
    parts = [output.batch_bound(made(x[k : k + 10]), y[k : k + 10], 0.25) for k in range(0, 40, 10)]
    torch.testing.assert_close(sum(parts), output.bound(seen, y), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kernel", KERNELS)
def test_with_the_data_as_inducing_points_it_is_the_full_machine(kernel):
    x, y = draws(0, 10, 3), draws(1, 10)
    made, output = machine(x, 2, kernel), GaussianOutput(1, 10, False)
    grams = made.grams(x)
    for below, gram, layer in zip(grams, grams[1:], made.layers, strict=False):
        torch.testing.assert_close(gram.cross, gram.inducing, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gram.rows, gram.inducing.diagonal(), rtol=1e-6, atol=1e-6)
        prior = layer.kernel(below.inducing, below.inducing.diagonal(), below.inducing.diagonal())
        zero = torch.zeros(10, dtype=torch.float64)
        own, other = (torch.distributions.MultivariateNormal(zero, v) for v in (gram.inducing, prior))
        torch.testing.assert_close(layer.kl(), torch.distributions.kl_divergence(own, other), rtol=1e-5, atol=1e-6)
    last = grams[-1].inducing
    covariance = made.output(last, last.diagonal(), last.diagonal()) + output.noise * torch.eye(10, dtype=torch.float64)
    torch.testing.assert_close(output.bound(made(x), y.unsqueeze(1)), normal(y, covariance), rtol=1e-5, atol=1e-5)


# --- 5. invariance


def test_rotations_of_the_inputs_change_nothing():
    x, z = draws(0, 7, 3), draws(1, 5, 3)
    turn = torch.linalg.qr(draws(2, 3, 3)).Q
    straight, turned = machine(z, ard=False), machine(z @ turn, ard=False)
    for a, b in zip(straight(x), turned(x @ turn), strict=True):
        torch.testing.assert_close(a, b)


def test_the_order_of_rows_changes_nothing():
    x, y, z, order = draws(0, 20, 2), draws(1, 20, 1), draws(2, 6, 2), torch.randperm(20, generator=generator("cpu", 0))
    made, output = machine(z), GaussianOutput(1, 6, False)
    torch.testing.assert_close(output.bound(made(x[order]), y[order]), output.bound(made(x), y))


# --- 6. divergences and positive definiteness


@given(st.integers(1, 6), st.integers(0, 99), st.one_of(st.just(0.0), st.floats(0.01, 2)))
@CHECKS
def test_the_divergence_is_zero_at_the_kernel_only(count, seed, moved):
    value = machine(draws(seed, count, 2), layers=1, moved=moved, seed=seed).kl()
    assert (value >= 0).all()
    assert bool((value < 1e-12).all()) == (moved == 0)


@given(
    st.sampled_from(KERNELS),
    st.integers(0, 99),
    st.sampled_from([1e-6, 1.0, 1e6]),
    st.sampled_from(["plain", "duplicated", "constant", "zero", "more points than columns"]),
)
@CHECKS
def test_gram_matrices_are_positive_semidefinite(kernel, seed, scale, kind):
    z = draws(seed, 8, 3) * scale
    if kind == "duplicated":
        z[4:] = z[:4]
    elif kind == "constant":
        z[:, 1] = scale
    elif kind == "zero":
        z[2] = 0
    elif kind == "more points than columns":
        z = z[:, :1]
    made, x = machine(z, kernel=kernel, seed=seed), draws(seed + 1, 5, z.shape[1]) * scale
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jitter that is told
        grams = made.grams(torch.cat([x, z[:2]]))
        seen = made(x)
    for gram in grams:
        values = torch.linalg.eigvalsh(gram.inducing)
        assert values.min() >= -1e-9 * values.max()
        assert (gram.rows >= 0).all()
    assert (seen.rest >= 0).all() and seen.a.isfinite().all()


def test_jitter_is_told_and_failure_is_explained():
    bad = torch.ones(4, 4, dtype=torch.float64)
    bad[0, 1] = bad[1, 0] = 1 + 1e-6
    with pytest.warns(UserWarning, match=r"kernel of layer 1 is nearly singular: 1e-0\d of its diagonal"):
        factor(bad, "layer 1")
    bad[0, 1] = bad[1, 0] = 3.0
    with pytest.raises(
        ValueError, match=r"kernel of layer 2 is not positive definite: its eigenvalues .* repeated rows"
    ):
        factor(bad, "layer 2")
    bad[0, 1] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        factor(bad, "the output")


# --- 8. nasty data


def nasty(seed):
    """Few rows, repeated ones, constant columns and wild scales, in float32."""
    source = generator("cpu", seed)

    def pick(low, high):
        return int(torch.randint(low, high, (), generator=source))

    n, columns = pick(2, 40), pick(1, 6)
    x = torch.randn(n, columns, generator=source) * 10.0 ** pick(-6, 7)
    if pick(0, 2):
        x[n // 2 :] = x[: n - n // 2].clone()
    if pick(0, 2):
        x[:, 0] = 3.0
    y = torch.randn(n, generator=source) * 10.0 ** pick(-6, 7)
    return x, y + torch.arange(n) * y.abs().max() / 100


def try_fits(seeds):
    for seed in seeds:
        x, y = nasty(seed)
        kernel = KERNELS[seed % 3]
        recipe = DKM(
            layers=1 + seed % 3, inducing=(5, 50, None)[seed % 3], kernel=kernel, nu=0.1, train=replace(QUICK, lr=0.1)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            law = recipe.fit(Data(x, y)).predict(x)
        assert law.mean.isfinite().all() and (law.stddev > 0).all(), seed


def test_twenty_fits_on_nasty_data():
    try_fits(range(20))


@pytest.mark.slow
def test_a_hundred_fits_on_nasty_data():
    try_fits(range(100, 200))


# --- predictions


def rows(count=120, seed=5):
    x = draws(seed, count, 3)
    return x, 50 + 10 * torch.sin(2 * x[:, 0]) + draws(seed + 1, count)


def test_conditioning_is_that_of_all_rows_in_closed_form():
    x, y = rows()
    post = DKM(layers=1, inducing=20, train=QUICK).fit(Data(x[:80], y[:80]))
    more = post.condition(x[80:], y[80:])
    units = (y - post.y_loc) / post.y_scale
    a = post.model.machine((x - post.x_loc) / post.x_scale).a
    torch.testing.assert_close(more.known.square[0], a @ a.T)
    torch.testing.assert_close(more.known.product[0], a @ units)
    new, truth = rows(300, 9)
    assert bv.metrics.nll(more.predict(new), truth) < bv.metrics.nll(post.predict(new), truth) + 0.02


def test_the_joint_law_has_the_correlations_of_the_process():
    x, y = rows(30)
    post = DKM(layers=1, inducing=None, nu=math.inf, train=QUICK).fit(Data(x, y))
    new = draws(7, 4, 3)
    joint = post.joint(new)
    alone = post.predict(new)
    torch.testing.assert_close(joint.mean, alone.mean)
    torch.testing.assert_close(joint.variance, alone.variance)
    pair = post.joint(torch.cat([new[:1], new[:1] + 1e-6]))
    noise = float(post.model.output.noise) * float(post.y_scale) ** 2
    torch.testing.assert_close(pair.covariance_matrix[0, 1] + noise, pair.covariance_matrix[0, 0], rtol=1e-3, atol=1e-6)


def test_parts_of_the_rows_at_a_time():
    x, y = rows(200)
    post = DKM(layers=1, inducing=20, train=replace(QUICK, steps=300, batch=100, lr=5e-2)).fit(Data(x, y))
    new, truth = rows(400, 11)
    alone = bv.distributions.Normal(y.mean().expand(400), y.std().expand(400))
    assert float(bv.metrics.nll(post.predict(new), truth)) < float(bv.metrics.nll(alone, truth)) - 0.5


def test_classes():
    x = draws(0, 200, 2)
    y = (x[:, 0] * x[:, 1] > 0).long()
    post = DKM(layers=1, inducing=30, classes=2, draws=100, train=replace(QUICK, steps=200, batch=100, lr=5e-2)).fit(
        Data(x, y)
    )
    new = draws(1, 300, 2)
    law = post.predict(new)
    assert float(bv.metrics.accuracy(law, (new[:, 0] * new[:, 1] > 0).long())) > 0.85
    torch.testing.assert_close(law.probs[:3], post.predict(new[:3]).probs)  # the same draws in every row


def test_several_outputs_and_the_gram_matrices():
    x, _ = rows(60)
    y = torch.stack([x[:, 0], 100 * x[:, 1]], -1) + draws(3, 60, 2)
    post = DKM(layers=2, inducing=10, train=QUICK).fit(Data(x, y))
    assert post.predict(x).batch_shape == (60, 2)
    joint = post.joint(x[:4])
    assert joint.batch_shape == (2,) and joint.event_shape == (4,)
    torch.testing.assert_close(joint.mean.T, post.predict(x[:4]).mean)
    assert [tuple(post.gram(k).shape) for k in range(3)] == [(10, 10)] * 3 and post.drift().shape == (2,)
    assert post.condition(x, y).predict(x).batch_shape == (60, 2)


def test_a_run_of_other_data_is_refused_and_a_shuffling_loader_is_read_by_the_seed(tmp_path):
    x, y = rows(40)
    where = replace(QUICK, execution=Execution(device="cpu", checkpoint_dir=str(tmp_path)))
    DKM(layers=1, inducing=5, train=where).fit(Data(x, y))
    with pytest.raises(ValueError, match="state of another recipe"):
        DKM(layers=1, inducing=5, train=where).fit(Data(x, -y))
    before = torch.get_rng_state()
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    posts = [DKM(layers=1, inducing=5, train=QUICK).fit(loader) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(posts[0].predict(x).mean, posts[1].predict(x).mean)


# --- what is refused


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layers": -1}, "layers"),
        ({"inducing": 0}, "inducing"),
        ({"nu": 0.0}, "nu must be positive"),
        ({"nu": (1.0,)}, "one for each of 2 layers"),
        ({"classes": 1}, "classes"),
        ({"draws": 0}, "draws"),
    ],
)
def test_bad_recipes(fields, words):
    with pytest.raises(ValueError, match=words):
        DKM(**fields)


def test_bad_data():
    x, y = rows(20)
    with pytest.raises(ValueError, match="constant"):
        DKM(train=QUICK).fit(Data(x, torch.ones(20)))
    with pytest.raises(ValueError, match="flatten them"):
        DKM(train=QUICK).fit(Data(x.view(20, 3, 1), y))
    with pytest.raises(ValueError, match="at most 2,000 rows"):
        DKM(inducing=None, train=QUICK).fit(Data(draws(0, 2_001, 1), draws(1, 2_001)))
    post = DKM(layers=1, inducing=50, train=QUICK).fit(Data(x, y))  # more points than rows
    assert len(post.model.machine.inducing) == 20
    many = post.joint(x.view(2, 10, 3))
    torch.testing.assert_close(many.covariance_matrix[1], post.joint(x[10:]).covariance_matrix)
    with pytest.raises(ValueError, match="layer must be one of 0 to 1"):
        post.gram(2)
    alone = DKM(layers=1, train=QUICK).fit(Data(x[:1], y[:1]))
    assert alone.predict(x).stddev.isfinite().all()


# --- 7. a wide deep process


class WideProcess:
    """N functions f ~ N(0, K(x x^T)), N copies of y with the covariance K(F F^T / N) and noise; a pyro program."""

    def __init__(self, width, noise):
        self.width, self.noise = width, noise

    def gram(self, x, z):
        first = GramKernel("arccos").double()
        gram = x @ x.T / x.shape[1]
        kernel = first(gram, gram.diagonal(), gram.diagonal()).detach()
        f = torch.linalg.cholesky(kernel + 1e-9 * torch.eye(len(x), dtype=x.dtype)) @ z
        return f @ f.mT / self.width

    def __call__(self, x, y=None):
        import pyro
        import pyro.distributions as dist

        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), self.width), 1.0).to_event(2))
        gram = self.gram(x, z)
        kernel = GramKernel("arccos").double()(gram, gram.diagonal(), gram.diagonal())
        covariance = kernel + self.noise * torch.eye(len(x), dtype=x.dtype)
        with pyro.poutine.scale(scale=float(self.width)):  # as many copies of y
            return pyro.sample("y", dist.MultivariateNormal(x.new_zeros(len(x)), covariance), obs=y)

    def predictive(self, draws, x_seen, y_seen, x):
        raise AssertionError("nothing is predicted")


@pytest.mark.slow
def test_a_wide_deep_process_has_the_gram_matrix_of_the_machine():
    x = draws(0, 12, 2)
    y = 2 * torch.sin(2 * x[:, 0])
    made, output = Machine(x, 1, "arccos", False, (False,), False), GaussianOutput(1, 12, False)
    optimum = best(made, output, x, y.unsqueeze(1), 1.0).grams(x[:1])[1].inducing.detach()
    start = Machine(x, 1, "arccos", False, (True,), False).grams(x[:1])[1].inducing.detach()
    noise = float(output.noise.detach())
    errors = {}
    for width in (16, 64, 256):
        program = WideProcess(width, noise)
        post = bv.MCMC(program, warmup=100, draws=100, chains=1, max_tree_depth=6).fit(Data(x, y))
        grams = program.gram(x, post.latent["z"])
        errors[width] = float((grams - optimum).square().sum((-1, -2)).mean().sqrt() / optimum.norm())
    moved = float((start - optimum).norm() / optimum.norm())
    assert errors[256] < moved / 2  # nearer than the infinitely wide network by far
    for narrow, wide in ((16, 64), (64, 256)):  # N^-1/2: one half
        assert 0.35 < errors[wide] / errors[narrow] < 0.7, errors


def test_repeated_rows_are_one_inducing_point():
    x, y = rows(20)
    post = DKM(layers=1, inducing=30, train=QUICK).fit(Data(x.repeat(3, 1), y.repeat(3) + draws(0, 60)))
    assert len(post.model.machine.inducing) == 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = DKM(layers=1, inducing=5, train=QUICK).fit(Data(torch.ones(40, 3), draws(1, 40)))
    assert len(same.model.machine.inducing) == 1
    assert same.predict(torch.ones(2, 3)).stddev.isfinite().all()


def test_second_derivatives_are_those_of_differences():
    gram, left, right = draws(0, 3, 2) / 2, 1 + draws(1, 3).square(), 1 + draws(2, 2).square()
    values = tuple(v.requires_grad_() for v in (gram, left, right))
    assert torch.autograd.gradgradcheck(arc_cosine, values)
    post = DKM(layers=1, inducing=6, train=QUICK).fit(Data(*rows(20)))
    x = draws(3, 1, 3)

    def say(x):
        return post.predict(x).mean.sum()

    step = 1e-4 * torch.eye(3, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian
    slopes = torch.stack([slope(say, x + s) - slope(say, x - s) for s in step]).squeeze() / 2e-4
    torch.testing.assert_close(torch.autograd.functional.hessian(say, x).squeeze(), slopes, rtol=1e-4, atol=1e-4)
    plain = tuple(v.detach() for v in values)
    expected = torch.autograd.functional.jacobian(arc_cosine, plain)[0]
    torch.testing.assert_close(torch.func.jacrev(arc_cosine)(*plain), expected)


def test_a_large_nu_is_nearly_infinite_width_by_fit():
    x, y = rows(60)
    train = replace(QUICK, steps=200)
    posts = [DKM(layers=2, inducing=15, nu=nu, train=train).fit(Data(x, y)) for nu in (1e8, math.inf)]
    new = draws(7, 50, 3)
    far = (posts[0].predict(new).mean - posts[1].predict(new).mean).abs()
    assert (far < 0.2 * posts[1].predict(new).stddev).all()


def test_targets_to_condition_on_are_checked():
    x, _ = rows(20)
    both = torch.stack([x[:, 0], x[:, 1] + draws(1, 20)], -1)
    post = DKM(layers=1, inducing=5, train=QUICK).fit(Data(x, both))
    bad = both.clone()
    bad[3, 1] = math.nan
    with pytest.raises(ValueError, match="y must be finite"):
        post.condition(x, bad)
    with pytest.raises(ValueError, match="y must"):
        post.condition(x, both[:, 0])
    frame = pandas.DataFrame(both.numpy())
    torch.testing.assert_close(post.condition(x, frame).predict(x).mean, post.condition(x, both).predict(x).mean)


def test_what_a_machine_cannot_do_is_refused(monkeypatch):
    x, y = rows(30)
    with pytest.raises(ValueError, match="start must be left out"):
        DKM(train=replace(QUICK, start="other.safetensors")).fit(Data(x, y))
    with pytest.raises(ValueError, match="nothing to learn with classes"):
        DKM(kernel="linear", classes=2)
    with pytest.raises(ValueError, match=r"learning rate|lower lr"):
        DKM(layers=1, inducing=5, kernel="gaussian", train=replace(QUICK, lr=1e3, max_grad_norm=1e9)).fit(Data(x, y))
    DKM(layers=1, kernel="linear", inducing=None, nu=math.inf, train=QUICK).fit(Data(x, y))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="one process"):
        DKM(layers=1, inducing=5, classes=2, train=QUICK).fit(Data(x, (y > 50).long()))
