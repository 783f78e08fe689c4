"""Sparse networks in training: closed forms, resuming, sources of examples, and the recipe of the paper."""

import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from sparse_nets import CPU, QUICK, draws, learner_of, net, rows
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import bayesvision as bv
from bayesvision import SSVI, Data, Execution, Train
from bayesvision.io.tensors import write_tensors
from bayesvision.methods.ssvi.network import layers_of
from bayesvision.training.seeds import generator, seeded

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
    learner, model = learner_of(method, x, y)
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


def test_at_the_exact_posterior_the_bound_has_no_noise():
    """With orthogonal columns mean field is exact: log p(y, w) - log q(w) is log p(y) for every draw of w."""
    x = torch.linalg.qr(draws(11, 40, 3)).Q * torch.tensor([3.0, 1.0, 5.0], dtype=torch.float64)
    y = x @ torch.tensor([0.7, -1.1, 0.2], dtype=torch.float64) + 0.5 * draws(12, 40)
    method = linear_model(draws=5, train=replace(QUICK, batch=40))
    post = method.fit(Data(x, y))
    mean, std = mean_field_optimum(x, y)
    layer = post.model.network
    layer.mu.copy_(mean)
    layer.rho.copy_(std.expm1().log())
    covariance = 0.64 * x @ x.T + 0.25 * torch.eye(40, dtype=torch.float64)
    evidence = torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y)
    own, prior = post.latent["weight"], torch.distributions.Normal(torch.zeros_like(mean), 0.8)
    parts = post.predict(x).component_distribution
    for k in range(5):
        w = post._drawn(k)["network.mu"]
        told = parts[:, k].log_prob(y).sum() + prior.log_prob(w).sum() - own.log_prob(w).sum()
        torch.testing.assert_close(told, evidence, rtol=1e-9, atol=1e-8)


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
    learner, _ = learner_of(method, x, y)
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
    learner, _ = learner_of(SSVI(net(), train=QUICK), x, y)
    seen = torch.cat([learner.batch(k, 0)[0] for k in range(5)])
    assert torch.equal(seen.sort(0).values, x.sort(0).values)  # an epoch is a permutation
    assert torch.equal(learner.batch(3, 0)[0], learner.batch(3, 0)[0])


# --- the paper's recipe


def test_the_recipe_of_the_paper():
    own = net()
    recipe = SSVI.paper(own, 0.05)
    assert (recipe.beta, recipe.beta_warmup, recipe.prior_std) == (0.01, 0.5, 0.005)
    assert (recipe.train.optimizer, recipe.train.lr, recipe.allocation) == ("sgd", 0.01, "uniform")
    learner, _ = learner_of(replace(recipe, train=replace(QUICK, steps=100)), *rows())
    assert [learner.batch(step, 0)[2] for step in (0, 25, 50, 99)] == [0.0, 0.005, 0.01, 0.01]
    assert SSVI.paper(own, 0.05, beta=1.0).beta == 1.0
