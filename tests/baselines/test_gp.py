import copy
import json
import pickle

import gpytorch
import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributions as td
from hypothesis import given, settings
from hypothesis import strategies as st

import bayesvision as bv
import priors
from bayesvision.baselines.gp import GP, GPPosterior
from bayesvision.baselines.marginal_likelihood import infinite_width
from bayesvision.core.data import Data
from bayesvision.core.roles import Storable
from bayesvision.io.tensors import read_tensors, write_tensors
from bayesvision.nn.kernels import GramKernel

KERNELS = ["rbf", "matern12", "matern32", "matern52"]
EXACT = {"rtol": 0, "atol": 1e-6}


def draw(prior, rows, seed=0):
    task = prior.sample(1, rows, generator=torch.Generator().manual_seed(seed))
    return task.x[0].double(), task.y[0].double()


def fixed(features=2, kernel="rbf", seed=0, standardize=False):
    lengthscale = tuple(0.3 + 0.2 * d for d in range(features))
    prior = priors.GaussianProcess(features, lengthscale, 0.01, 1.5, kernel=kernel)
    return prior, GP(kernel, lengthscale, 0.01, 1.5, standardize=standardize), draw(prior, 24, seed)


@pytest.mark.parametrize("features", [1, 3])
@pytest.mark.parametrize("kernel", KERNELS)
def test_given_hyperparameters_equal_the_closed_form(kernel, features):
    prior, method, (x, y) = fixed(features, kernel)
    ours, exact = method.fit(Data(x[:16], y[:16])), prior.posterior(x[:16], y[:16])
    for name in ("mean", "stddev"):
        torch.testing.assert_close(getattr(ours.predict(x), name), getattr(exact.predict(x), name), **EXACT)
    joint, truth = ours.joint(x[10:]), exact.joint(x[10:])
    torch.testing.assert_close(joint.mean, truth.mean, **EXACT)
    torch.testing.assert_close(joint.covariance_matrix, truth.covariance_matrix, **EXACT)


@pytest.mark.parametrize("kernel", KERNELS)
def test_learnt_hyperparameters_equal_gpytorchs_own_prediction(kernel):
    x, y = draw(priors.GaussianProcess(2, 0.4, 0.02), 30)
    y = 5 + 3 * y
    ours = GP(kernel, restarts=0).fit(Data(x[:20], y[:20]))
    smoothness = {"matern12": 0.5, "matern32": 1.5, "matern52": 2.5}
    base = (
        gpytorch.kernels.RBFKernel(ard_num_dims=2)
        if kernel == "rbf"
        else gpytorch.kernels.MaternKernel(smoothness[kernel], ard_num_dims=2)
    )

    class Model(gpytorch.models.ExactGP):
        def __init__(self, x, y, likelihood):
            super().__init__(x, y, likelihood)
            self.mean_module = gpytorch.means.ConstantMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(base)

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    model = Model(x[:20], y[:20], likelihood).double()  # in the user's units, unlike ours
    model.mean_module.constant = ours.y_loc
    base.lengthscale = ours.lengthscale * ours.x_scale
    model.covar_module.outputscale = ours.variance * ours.y_scale**2
    likelihood.noise = ours.noise * ours.y_scale**2
    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
        model.train()
        evidence = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)(model(x[:20]), y[:20]) * 20
        model.eval(), likelihood.eval()
        truth = likelihood(model(x[20:]))
        mean, covariance = truth.mean, truth.covariance_matrix
    torch.testing.assert_close(ours.predict(x[20:]).mean, mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.predict(x[20:]).variance, covariance.diagonal(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.joint(x[20:]).covariance_matrix, covariance, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.log_evidence, evidence, rtol=1e-6, atol=1e-6)


def test_log_evidence_is_the_normal_density_of_the_targets():
    prior, method, (x, y) = fixed(2)
    covariance = prior.covariance(x, x) + 0.01 * torch.eye(len(x))
    truth = td.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y)
    torch.testing.assert_close(method.fit(Data(x, y)).log_evidence, truth)


@pytest.mark.parametrize("kernel", KERNELS)
def test_learning_recovers_known_hyperparameters_and_beats_the_truth(kernel):
    # With 150 rows the estimates of log-lengthscale and log-noise spread by less than 0.25; the bounds are 3 times
    # that, for fixed draws, and a lengthscale or a noise off by a factor of 3 would be rejected.
    truth = priors.GaussianProcess(2, (0.2, 0.5), 0.05, 1.0, kernel=kernel)
    x, y = draw(truth, 150, 3)
    learnt = GP(kernel, standardize=False, restarts=1).fit(Data(x, y))
    start = GP(kernel, (2**0.5,) * 2, 0.1, 1.0, standardize=False).fit(Data(x, y))
    known = GP(kernel, (0.2, 0.5), 0.05, 1.0, standardize=False).fit(Data(x, y))
    assert learnt.log_evidence > start.log_evidence + 10
    assert learnt.log_evidence >= known.log_evidence
    assert (learnt.lengthscale / torch.tensor([0.2, 0.5])).log().abs().max() < 0.75
    assert (learnt.noise / 0.05).log().abs() < 0.75


def test_what_is_given_stays_and_the_rest_is_learnt():
    x, y = draw(priors.GaussianProcess(1, 0.3, 0.05), 40)
    learnt = GP(noise=0.07).fit(Data(x, y))
    assert learnt.noise.item() == pytest.approx(0.07, rel=1e-12)
    for factor in (0.8, 1.25):  # a maximum in the others
        for name in ("lengthscale", "variance"):
            values = {"lengthscale": learnt.lengthscale.item(), "variance": learnt.variance.item()}
            other = GP(noise=0.07, **values | {name: values[name] * factor}).fit(Data(x, y))
            assert other.log_evidence < learnt.log_evidence


def test_a_change_of_units_changes_nothing():
    x, y = draw(priors.GaussianProcess(2, 0.4, 0.02), 40)
    base = GP(restarts=0).fit(Data(x[:30], y[:30])).predict(x[30:])
    scale, shift = torch.tensor([1e3, 1e-3]), torch.tensor([7.0, -0.2])
    other = GP(restarts=0).fit(Data(scale * x[:30] + shift, 1e4 * y[:30] - 3e5)).predict(scale * x[30:] + shift)
    torch.testing.assert_close(other.mean, 1e4 * base.mean - 3e5, rtol=1e-6, atol=1.0)
    torch.testing.assert_close(other.stddev, 1e4 * base.stddev, rtol=1e-3, atol=0)


@pytest.mark.parametrize("standardize", [False, True])
@settings(max_examples=20, deadline=None)
@given(first=st.integers(4, 20), seed=st.integers(0, 100))
def test_conditioning_laws(standardize, first, seed):
    _, method, (x, y) = fixed(2, "matern52", seed, standardize)
    start = method.fit(Data(x[:3], y[:3]))
    before = start.predict(x).mean.clone()
    a, b, both = (x[3:first], y[3:first]), (x[first:], y[first:]), (x[3:], y[3:])
    if len(a[1]) == 0:
        return
    order = torch.randperm(len(both[1]), generator=torch.Generator().manual_seed(seed))
    twice, once = start.condition(*a).condition(*b), start.condition(*both)
    shuffled = start.condition(both[0][order], both[1][order])
    for other in (twice, shuffled):
        torch.testing.assert_close(other.predict(x).mean, once.predict(x).mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(other.predict(x).stddev, once.predict(x).stddev, rtol=1e-7, atol=1e-9)
    assert torch.equal(start.predict(x).mean, before) and len(start.y) == 3
    if not standardize:  # with units of its own, conditioning is the same as fitting on all rows
        whole = method.fit(Data(x, y)).predict(x)
        torch.testing.assert_close(once.predict(x).mean, whole.mean, rtol=1e-9, atol=1e-9)


def test_far_from_the_data_the_prior_comes_back():
    _, method, (x, y) = fixed(1)
    far = method.fit(Data(x, y)).predict(torch.tensor([1e4], dtype=torch.float64))
    assert far.mean.abs().item() < 1e-12 and far.variance.item() == pytest.approx(1.51)


def test_marginals_are_those_of_the_joint_and_batches_are_kept():
    _, method, (x, y) = fixed(2)
    posterior = method.fit(Data(x[:10], y[:10]))
    query = x[:12].reshape(3, 4, 2)
    marginals, joint = posterior.predict(query), posterior.joint(query)
    assert marginals.batch_shape == (3, 4) and marginals.event_shape == () and joint.batch_shape == (3,)
    torch.testing.assert_close(joint.mean, marginals.mean)
    torch.testing.assert_close(joint.variance, marginals.variance)
    torch.testing.assert_close(marginals.mean.flatten(), posterior.predict(x[:12]).mean)


@pytest.mark.parametrize("kernel", KERNELS)
def test_predictions_are_differentiable_in_x(kernel):
    _, method, (x, y) = fixed(2, kernel)
    posterior = method.fit(Data(x[:10], y[:10]))
    query = x[10:14].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda q: (posterior.predict(q).mean, posterior.predict(q).stddev), (query,))
    seen = x[:3].clone().requires_grad_()  # at distance zero too
    (gradient,) = torch.autograd.grad(posterior.predict(seen).stddev.sum(), seen)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_outputs_have_the_dtype_of_the_data(kind):
    _, method, (x, y) = fixed(2)
    posterior = method.fit(Data(x.to(kind), y.to(kind)))
    assert posterior.predict(x.to(kind)).mean.dtype == kind
    assert posterior.joint(x.to(kind)).covariance_matrix.dtype == kind
    assert posterior.predict(x.half()).stddev.dtype == kind


def test_copies_pickles_files_and_conversions_predict_the_same(tmp_path):
    x, y = draw(priors.GaussianProcess(2, 0.3, 1e-4), 60)
    posterior = GP(restarts=0).fit(Data(pd.DataFrame(x[:40].numpy(), columns=["a", "b"]), y[:40]))
    truth = posterior.predict(x)
    assert isinstance(posterior, Storable)
    _, tensors, header = posterior.export()
    write_tensors(tmp_path / "gp.safetensors", tensors, header)
    tensors, header = read_tensors(tmp_path / "gp.safetensors")
    assert json.loads(json.dumps(header)) == header
    restored = GPPosterior.restore(posterior.method, tensors, header)
    assert restored.method == posterior.method and restored.columns == ("a", "b")
    for other in (restored, copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior))):
        assert torch.equal(other.predict(x).mean, truth.mean) and torch.equal(other.predict(x).stddev, truth.stddev)
    narrow = copy.deepcopy(posterior).to(torch.float32)
    torch.testing.assert_close(narrow.predict(x).stddev, truth.stddev, rtol=1e-3, atol=0)
    torch.testing.assert_close(narrow.predict(x).mean, truth.mean, rtol=1e-3, atol=1e-4)
    assert posterior.x.dtype == torch.float64  # the copy shares nothing
    with pytest.raises(ValueError, match="shapes"):
        GPPosterior.restore(posterior.method, {k: v for k, v in tensors.items() if k != "factor"}, header)
    with pytest.raises(ValueError, match="shapes"):
        GPPosterior.restore(posterior.method, tensors | {"x": tensors["x"][:7]}, header)


def test_a_given_tuple_of_lengthscales_survives_a_file(tmp_path):
    _, method, (x, y) = fixed(2)
    bv.save(method.fit(Data(x, y)), tmp_path / "gp.safetensors")
    assert bv.load(tmp_path / "gp.safetensors").method == method


def test_fit_is_deterministic_and_leaves_global_state_alone():
    x, y = draw(priors.GaussianProcess(1, 0.3, 0.05), 25)
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    fast = gpytorch.settings.fast_computations.log_prob.on()  # BoTorch switches it off
    with torch.no_grad():
        first = GP(restarts=2, seed=5).fit(Data(x, y))
        assert not torch.is_grad_enabled()
    second = GP(restarts=2, seed=5).fit(Data(x, y))
    assert torch.equal(first.predict(x).stddev, second.predict(x).stddev)
    first.joint(x), first.condition(x, y)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_default_dtype() == dtype
    assert gpytorch.settings.fast_computations.log_prob.on() == fast


def test_fit_logs_the_loss_of_every_start():
    class KVCache(list):
        def log(self, metrics, step, /):
            self.append((step, metrics["loss"]))

    x, y = draw(priors.GaussianProcess(1, 0.3, 0.05), 25)
    memory = KVCache()
    posterior = GP(restarts=2, standardize=False).fit(Data(x, y), memory)
    assert [step for step, _ in memory] == [1, 2, 3]
    assert -min(loss for _, loss in memory) * 25 == pytest.approx(posterior.log_evidence.item(), rel=1e-6)


def test_arrays_and_frames_are_read_and_columns_are_matched_by_name():
    x, y = draw(priors.GaussianProcess(2, (0.2, 0.8), 0.05), 20)
    frame = pd.DataFrame(x.numpy(), columns=["a", "b"])
    method = GP(lengthscale=(0.5, 2.0), noise=0.1, variance=1.0)
    posterior = method.fit(Data(frame, pd.Series(y.numpy())))
    truth = method.fit(Data(x, y)).predict(x).mean
    assert torch.equal(posterior.predict(frame[["b", "a"]]).mean, truth)
    assert torch.equal(method.fit(Data(x.numpy(), y.numpy())).predict(np.asarray(x)).mean, truth)
    with pytest.raises(ValueError, match="lacks"):
        posterior.predict(frame[["a"]])


def test_a_constant_column_and_duplicate_rows_do_no_harm():
    x, y = draw(priors.GaussianProcess(1, 0.3, 0.05), 30)
    wide = torch.cat([x, torch.full_like(x, 4.0)], 1)
    wide, y = torch.cat([wide, wide]), torch.cat([y, y + 0.01])
    law = GP(restarts=0).fit(Data(wide, y)).predict(wide)
    assert law.mean.isfinite().all() and (law.stddev > 0).all()


def test_mistakes_are_named():
    x, y = draw(priors.GaussianProcess(2, 0.3, 0.05), 10)
    ready = GP(lengthscale=1.0, noise=0.1, variance=1.0)
    posterior = ready.fit(Data(x, y))
    cases = [
        (lambda: GP(lengthscale=-1.0), "lengthscale"),
        (lambda: GP(lengthscale=(1.0, 0.0)), "lengthscale"),
        (lambda: GP(noise=float("nan")), "noise"),
        (lambda: GP(restarts=-1), "restarts"),
        (lambda: GP(lengthscale=(1.0,) * 3).fit(Data(x, y)), "2 numbers, got 3"),
        (lambda: GP().fit(Data(x, None)), "y must"),
        (lambda: GP().fit(Data(x[None], y[None])), "one by one"),
        (lambda: GP().fit(Data(x, torch.ones(10))), "constant"),
        (lambda: GP().fit(Data(x, y[:4])), "one value for each row"),
        (lambda: GP().fit(Data(x[:1], y[:1])), "at least 2 rows"),
        (lambda: GP().fit(Data(x[:0], y[:0])), "at least one row"),
        (lambda: GP().fit(Data(x, torch.full((10,), float("nan")))), "finite"),
        (lambda: ready.fit(Data(x * float("inf"), y)), "finite"),
        (lambda: posterior.predict(x[:, :1]), "2 columns"),
        (lambda: posterior.condition(x[None], y[None]), "one data set"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(
        (ValueError, jaxtyping.TypeCheckError), match="kernel"
    ):  # the latter where annotations are checked
        GP("cubic")  # pyright: ignore
    same = torch.ones(3, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="raise the noise"):
        GP(lengthscale=1.0, noise=1e-18, variance=1.0, standardize=False).fit(Data(same, y[:3]))
    with pytest.raises(TypeError, match="Data"):
        GP().fit(x)
    assert ready.fit(Data(x[:1], y[:1])).predict(x).mean.isfinite().all()  # one row, nothing to learn


# The process of an infinitely wide network


def test_the_nngp_is_that_of_a_wide_network():
    # False alarms: 9 means of 20,000 networks beyond 6 standard errors, below 1e-7; their width biases by less.
    source = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, generator=source, dtype=torch.float64)

    def layer(h, width):
        weights = torch.randn(20_000, width, h.shape[-1], generator=source, dtype=torch.float64)
        bias = 0.1**0.5 * torch.randn(20_000, width, 1, generator=source, dtype=torch.float64)
        return weights @ h.mT * (2 / h.shape[-1]) ** 0.5, bias

    first = torch.randn(20_000, 40, 2, generator=source, dtype=torch.float64) @ x.mT  # covariance x x^T
    product, bias = layer(first.clamp(min=0).mT, 40)
    second, last_bias = layer((product + bias).clamp(min=0).mT, 1)
    outputs = (second + last_bias).squeeze(1)
    products = outputs.unsqueeze(1) * outputs.unsqueeze(2)
    error = products.std(0) / 20_000**0.5
    exact = infinite_width(x, x, 2)
    assert ((products.mean(0) - exact).abs() < 6 * error).all()
    assert ((products.mean(0) - 2 * exact).abs() > 6 * error).any()


def test_the_nngp_is_the_machine_that_learns_nothing():
    source = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=source, dtype=torch.float64)
    y = torch.randn(20, generator=source, dtype=torch.float64)
    post = bv.GP(kernel="nngp", depth=3, lengthscale=3**0.5, noise=0.1, variance=1.0, standardize=False).fit(Data(x, y))
    gram = x @ x.T / 3
    for _ in range(3):
        kernel = GramKernel("arccos")
        gram = kernel(gram, gram.diagonal(), gram.diagonal()).detach()
    law = torch.distributions.MultivariateNormal(torch.zeros_like(y), gram + 0.1 * torch.eye(20, dtype=torch.float64))
    torch.testing.assert_close(post.log_evidence, law.log_prob(y))
    joint = post.joint(x[:4])
    torch.testing.assert_close(joint.mean, post.predict(x[:4]).mean)
    torch.testing.assert_close(joint.variance, post.predict(x[:4]).variance)


def test_the_nngp_learns_its_hyper_parameters():
    source = torch.Generator().manual_seed(1)
    x = torch.randn(80, 2, generator=source, dtype=torch.float64)
    y = torch.relu(x[:, 0]) + 0.05 * torch.randn(80, generator=source, dtype=torch.float64)
    post = bv.GP(kernel="nngp", restarts=0).fit(Data(x[:60], y[:60]))
    assert float(bv.metrics.rmse(post.predict(x[60:]), y[60:])) < 0.1
    assert post.lengthscale[1] > 3 * post.lengthscale[0]
    with pytest.raises(ValueError, match="depth"):
        bv.GP(kernel="nngp", depth=0)
