"""Output layers of deep kernel machines: natural gradients, noise that varies, and the softmax."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import bayesvision as bv
from bayesvision import DKM, Data, Execution, Train
from bayesvision.methods.dkm.machine import Features
from bayesvision.methods.dkm.outputs import GaussianOutput, SoftmaxOutput, Statistics, Weights
from bayesvision.training.seeds import generator, seeded

QUICK = Train(steps=200, batch=1_000, lr=2e-2, execution=Execution(device="cpu"))


def draws(seed, *shape):
    return torch.randn(*shape, generator=generator("cpu", seed), dtype=torch.float64)


def features(seed, count=5, rows=60):
    rest = draws(seed + 1, rows).square() / 10
    return Features(draws(seed, count, rows) / count**0.5, rest, draws(0, 0))


# --- natural gradients


def test_natural_steps_with_gaussian_noise_end_at_the_optimum():
    seen, y = features(0), draws(2, 60, 2)
    output = GaussianOutput(2, 5, True)
    with torch.no_grad():
        output.log_noise.copy_(torch.tensor([-1.0, 0.3]))
        for _ in range(400):
            output.batch_bound(seen, y, 1.0)
    known = Statistics((seen.a @ seen.a.T).unsqueeze(0), y.T @ seen.a.T)
    for found, best in zip(output.weights.mean_and_factor(), output.posterior(known), strict=True):
        torch.testing.assert_close(found, best.detach(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(output.eval().batch_bound(seen, y, 1.0), output.bound(seen, y))


def test_natural_steps_with_parts_of_the_rows_come_near_it():
    # A mean of about 80 batches, each of which is off by 3^1/2 deviations of the posterior: 0.2, so 0.5 is far away.
    seen, y = features(0), draws(2, 60, 1)
    output = GaussianOutput(1, 5, True)
    with torch.no_grad():
        output.log_noise.zero_()
        for step in range(1_500):
            part = torch.randperm(60, generator=generator("cpu", step))[:15]
            output.batch_bound(Features(seen.a[:, part], seen.rest[part], seen.penalty), y[part], 0.25)
        known = Statistics((seen.a @ seen.a.T).unsqueeze(0), y.T @ seen.a.T)
        mean, root = output.posterior(known)
        error = torch.linalg.solve(root[0], output.weights.mean_and_factor()[0][0] - mean[0])
    assert error.square().mean().sqrt() < 0.5


def test_the_divergence_of_q_is_that_of_normals():
    weights = Weights(4, 3, shared=False)
    half = draws(1, 3, 4, 4)
    weights.square.copy_(half @ half.mT)
    weights.shift.copy_(draws(2, 3, 4))
    mean, root = weights.mean_and_factor()
    eye = torch.eye(4, dtype=torch.float64)
    prior = torch.distributions.MultivariateNormal(torch.zeros_like(mean), eye)
    own = torch.distributions.MultivariateNormal(mean, root @ root.mT)
    torch.testing.assert_close(weights.divergence(), torch.distributions.kl_divergence(own, prior).sum())
    torch.testing.assert_close(root @ root.mT, torch.linalg.inv(eye + weights.square))
    seen = features(3, 4, 9)
    found_mean, variance = weights(seen.a, seen.rest)
    torch.testing.assert_close(found_mean.T, (mean.unsqueeze(1) @ seen.a).squeeze(1))
    spread = (seen.a.T @ root @ root.mT @ seen.a).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(variance.T, seen.rest + spread)


def test_one_covariance_for_all_classes_counts_for_each():
    weights = Weights(4, 3, shared=True)
    weights.square.copy_((draws(1, 4, 4) @ draws(1, 4, 4).T).unsqueeze(0))
    alone = Weights(4, 3, shared=False)
    alone.square.copy_(weights.square.expand(3, 4, 4))
    torch.testing.assert_close(weights.divergence(), alone.divergence())


def test_the_natural_gradient_of_the_softmax_is_that_of_its_expectation():
    """At the end of natural steps the gradient of the bound to q's mean vanishes; it does not before."""
    seen, y = features(0, 3, 40), torch.randint(0, 3, (40,), generator=generator("cpu", 5))
    output = SoftmaxOutput(3, 3, 20_000)

    def slope():
        mean, root = output.weights.mean_and_factor()
        mean = mean.clone().requires_grad_()
        noise = draws(9, 2_000, 40, 3)
        deviation = (seen.rest + (root[0].T @ seen.a).square().sum(0)).sqrt()
        chance = (seen.a.T @ mean.T + deviation.unsqueeze(-1) * noise).log_softmax(-1)
        told = chance[:, torch.arange(40), y].mean(0).sum() - mean.square().sum() / 2
        return torch.autograd.grad(told, mean)[0].abs().max()

    before = slope()
    with seeded(0), torch.no_grad():
        for _ in range(300):
            output.batch_bound(seen, y, 1.0)
    assert slope() < 0.1 < before / 10


# --- noise that varies


def test_the_expectation_under_varying_noise_is_that_of_draws():
    # False alarms: a mean of a million draws beyond 5 standard errors, below 1e-6.
    seen, y = features(0, 4, 1), draws(3, 1, 1)
    output = GaussianOutput(1, 4, False, varying=True).eval()
    output.weights.square.copy_(2 * torch.eye(4, dtype=torch.float64))
    output.weights.shift.copy_(draws(4, 1, 4))
    output.swing.shift.copy_(draws(5, 1, 4))
    with torch.no_grad():
        divergences = output.weights.divergence() + output.swing.divergence()
        found = output.batch_bound(seen, y, 1.0) + divergences
        (m, v), (n, w) = output.weights(seen.a, seen.rest), output._swing(seen)
        f = m[0, 0] + v[0, 0].sqrt() * draws(6, 1_000_000)
        g = n[0, 0] + w[0, 0].sqrt() * draws(7, 1_000_000)
        values = torch.distributions.Normal(f, (output.noise[0] * g.exp()).sqrt()).log_prob(y[0, 0])
        chance = output.noise[0] * g.exp()
        weight = (-g).exp()
    assert abs(values.mean() - found) < 5 * values.std() / 1_000
    assert abs(chance.mean() - output.noise_at(seen)[0, 0]) < 5 * chance.std() / 1_000
    assert abs(weight.mean() - output.weight(seen)[0, 0]) < 5 * weight.std() / 1_000


def wavy(count, seed):
    x = 4 * torch.rand(count, 1, generator=generator("cpu", seed), dtype=torch.float64) - 2
    scale = 0.05 + 0.4 * (x[:, 0] > 0)
    return x, torch.sin(2 * x[:, 0]) + scale * draws(seed + 1, count), scale


@pytest.mark.parametrize("batch", [1_000, 100])
def test_noise_that_varies_is_found(batch):
    x, y, _ = wavy(400, 0)
    new, truth, scale = wavy(1_000, 2)
    train = replace(QUICK, batch=batch)
    posts = {
        kind: DKM(layers=1, inducing=30, heteroscedastic=kind, kernel="rbf", train=train).fit(Data(x, y))
        for kind in (True, False)
    }
    law = posts[True].predict(new)
    away = (new[:, 0].abs() > 0.5) & (new[:, 0].abs() < 1.8)  # not where the noise jumps, and not at the ends
    ratio = (law.stddev / scale)[away]
    assert ((ratio > 0.6) & (ratio < 1.7)).double().mean() > 0.95
    nll = {kind: float(bv.metrics.nll(post.predict(new), truth)) for kind, post in posts.items()}
    assert nll[True] < nll[False] - 0.3
    more = posts[True].condition(new[:50], truth[:50])
    assert more.predict(new).stddev.isfinite().all()
    joint = posts[True].joint(new[:5])
    torch.testing.assert_close(joint.variance, law.variance[:5])


def test_several_outputs_have_noise_of_their_own():
    x, y, _ = wavy(200, 0)
    both = torch.stack([y, 3 + 0.01 * y.flip(0)], -1)
    post = DKM(layers=1, inducing=15, heteroscedastic=True, train=QUICK).fit(Data(x, both))
    law = post.predict(x[:7])
    assert law.batch_shape == (7, 2) and post.joint(x[:7]).batch_shape == (2,)
    again = post.condition(x, both).predict(x[:7])
    assert (again.stddev < law.stddev + 1e-9).all()


def test_it_is_refused_for_classes():
    with pytest.raises(ValueError, match="noise of numbers"):
        DKM(classes=2, heteroscedastic=True)


# --- classes


def test_classes_missing_in_a_batch_and_one_class_only():
    x = draws(0, 60, 2)
    y = torch.cat([torch.zeros(40), torch.ones(15), torch.full((5,), 2)]).long()
    post = DKM(layers=1, inducing=10, classes=3, draws=100, train=replace(QUICK, batch=8, steps=60)).fit(Data(x, y))
    assert post.predict(x).probs.isfinite().all()
    one = DKM(layers=1, inducing=10, classes=3, draws=100, train=replace(QUICK, steps=60)).fit(Data(x, torch.zeros(60)))
    chance = one.predict(x).probs
    assert (chance[:, 0] > 0.8).all() and (chance[:, 1:] > 0).all()  # sure of what was seen, and not certain


def test_the_softmax_of_draws_is_its_average():
    # False alarms: 12 means of 20,000 draws beyond 6 standard errors, below 1e-6.
    seen = features(0, 3, 4)
    output = SoftmaxOutput(3, 3, 20_000).eval()
    output.weights.shift.copy_(3 * draws(8, 3, 3))
    found = output.logits(seen, generator("cpu", 1)).softmax(-1)
    mean, variance = output.weights(seen.a, seen.rest)
    other = (mean + variance.sqrt() * draws(10, 20_000, 4, 3)).softmax(-1)
    error = (other.var(0) / 20_000 + found.var(0) / 20_000).sqrt()
    assert ((other.mean(0) - found.mean(0)).abs() < 6 * error).all()
    assert math.isclose(float(np.sum(found.mean(0).numpy())), 4.0)


# --- runs that end early


class Stopped(Exception):
    pass


class StopAt:
    """A log that ends the run after a step."""

    def __init__(self, step):
        self.step = step

    def log(self, values, step):
        if step == self.step:
            raise Stopped


@pytest.mark.parametrize("fields", [{"heteroscedastic": True}, {}, {"classes": 2, "draws": 20}])
def test_a_run_that_was_killed_ends_with_the_same_bits(fields, tmp_path):
    x, y, _ = wavy(60, 0)
    data = Data(x, (y > 0).long() if "classes" in fields else y)
    train = replace(QUICK, steps=12, batch=20)
    whole = DKM(layers=1, inducing=6, train=train, **fields).fit(data)
    kept = replace(train, execution=Execution(device="cpu", checkpoint_dir=str(tmp_path), save_every=4))
    recipe = DKM(layers=1, inducing=6, train=kept, **fields)
    with pytest.raises(Stopped):
        recipe.fit(data, log=StopAt(7))
    again = recipe.fit(data)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
