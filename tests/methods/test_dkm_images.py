"""Convolutional deep kernel machines: Gram matrices against features, regularisation, images, and what is refused."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

import bayesvision as bv
from bayesvision import DKM, Data, Execution, Train
from bayesvision.methods.dkm.convolution import ConvMachine, Mixing, Places, normalised
from bayesvision.methods.dkm.machine import GramLayer, Grams, spread, taylor
from bayesvision.nn.kernels import GramKernel
from bayesvision.training.seeds import generator, seeded

QUICK = Train(steps=40, batch=32, lr=2e-2, max_grad_norm=10.0, execution=Execution(device="cpu"))


def draws(seed, *shape):
    return torch.randn(*shape, generator=generator("cpu", seed), dtype=torch.float64)


def places(points, maps):
    """Gram matrices of points [P, features] and of maps of features [images, features, height, width]."""
    cross = torch.einsum("pf,nfhw->nphw", points, maps)
    return Places.of(points @ points.T, cross, maps.square().sum(1, keepdim=True))


# --- Gram matrices are those of features


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_that_of_features(stride):
    points, maps = draws(0, 4, 3), draws(1, 2, 3, 6, 5)
    mixing = Mixing(4, 7, stride)
    with torch.no_grad():
        mixing.mix.copy_(draws(2, 7, 4, 3, 3))
    found = mixing(places(points, maps))
    parts = functional.unfold(maps, 3, padding=1, stride=stride)  # [images, features * 9, places]
    size = (2, 27, math.ceil(6 / stride), math.ceil(5 / stride))
    own = torch.einsum("ijhw,jf->ifhw", mixing.mix, points).flatten(1)
    expected = places(own / 3, parts.reshape(size) / 3)
    torch.testing.assert_close(found.grams, expected.grams)
    assert found.shape == expected.shape


def machine(counts=(4, 6), strides=(1, 2), shape=(2, 6, 6), fixed=None, ridge=0.0, images=None):
    fixed = (True,) * len(counts) if fixed is None else fixed
    made = ConvMachine(shape, counts, strides, "arccos", fixed, ridge, "kl")
    made.start(draws(0, 5, *shape) if images is None else images, 0)
    return made.eval()


def test_the_first_gram_matrix_is_that_of_patches():
    made, x = machine(), draws(3, 2, 2, 6, 6)
    parts = functional.unfold(x, 3, padding=1).unflatten(2, (6, 6))
    with torch.no_grad():
        expected = places(made.inducing.flatten(1) / 18**0.5, parts / 18**0.5)
        torch.testing.assert_close(made.patches(x).grams, expected.grams)


def test_with_every_patch_inducing_it_is_the_process_of_an_infinitely_wide_network():
    x = draws(1, 2, 1, 3, 3)
    made = ConvMachine((1, 3, 3), (18,), (1,), "arccos", (True,), 0.0, "kl").eval()
    parts = functional.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)  # image by image, place by place
    with torch.no_grad():
        made.inducing.copy_(parts.view(18, 1, 3, 3))
        gram = parts @ parts.T / 9
        dense = GramKernel("arccos")(gram, gram.diagonal(), gram.diagonal())
        middle = torch.eye(18, dtype=torch.float64) - 1 / 18
        dense = middle @ dense @ middle  # the inducing patches are all patches, whose mean is left out
        dense = (dense / dense.diagonal().mean()).view(2, 9, 2, 9).mean((1, 3))
        layer = made.layer(0, made.patches(x))
        found = made.average(layer)
        scale = layer.grams.inducing.diagonal().mean()  # the average is centred and scaled again, by nothing here
    torch.testing.assert_close(found.rows * scale, dense.diagonal(), rtol=1e-5, atol=1e-6)


def test_normalised_gram_matrices_are_those_of_centred_features():
    points, maps = draws(0, 4, 3) + 2, draws(1, 3, 3, 4, 4) + 1
    found = normalised(places(points, maps).grams)
    mean = points.mean(0)
    scale = (points - mean).square().sum(1).mean().sqrt()
    expected = places((points - mean) / scale, (maps - mean.view(3, 1, 1)) / scale).grams
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert float(found.inducing.diagonal().mean()) == pytest.approx(1.0)


def test_an_image_does_not_depend_on_those_beside_it():
    made, x = machine(fixed=(False, False)), draws(3, 4, 2, 6, 6)
    with torch.no_grad():
        whole, alone = made(x), made(x[1:2])
    torch.testing.assert_close(whole.a[:, 1:2], alone.a)
    torch.testing.assert_close(whole.rest[1:2], alone.rest)
    assert (whole.rest >= 0).all()


def test_inducing_patches_start_where_the_images_are():
    steps = torch.arange(6, dtype=torch.float64)
    wave = torch.sin(steps + 6 * torch.rand(20, 2, 1, generator=generator("cpu", 0), dtype=torch.float64))
    x = wave.unsqueeze(2).expand(-1, -1, 6, -1)  # patches are alike, as those of pictures are
    made = machine((12, 12), images=x)
    with torch.no_grad():
        found = made.grams(x)[-1].grams
        told = torch.linalg.solve(found.inducing + 1e-9 * torch.eye(12, dtype=torch.float64), found.cross)
        share = (found.cross * told).sum() / found.rows.sum()
        made.inducing.copy_(draws(1, *made.inducing.shape))
        made.mixings[0].mix.copy_(draws(2, *made.mixings[0].mix.shape))
        found = made.grams(x)[-1].grams
        told = torch.linalg.solve(found.inducing + 1e-9 * torch.eye(12, dtype=torch.float64), found.cross)
        chance = (found.cross * told).sum() / found.rows.sum()
    assert float(share) > float(chance) + 0.1, (share, chance)  # of the variance of places, and with others


# --- regularisation and the second order


def test_the_taylor_objective_is_the_divergence_near_the_kernel():
    lower = draws(0, 6, 6).tril()
    for step, tolerance in ((1e-3, 1e-2), (1e-2, 1e-1)):
        assert float(taylor(step * lower)) == pytest.approx(float(spread(step * lower)), rel=tolerance)
    assert float(taylor(lower)) > 3 * float(spread(lower))
    assert float(taylor(0 * lower)) == 0.0
    # the square in units of Gram matrices: tr (G^-1 K - I)^2 / 4
    root, eye = torch.linalg.cholesky(draws(1, 6, 9) @ draws(1, 6, 9).T), torch.eye(6, dtype=torch.float64)
    w = (0.1 * lower).tril(-1) + torch.diag((0.1 * lower).diagonal().exp())
    gap = torch.linalg.solve(root @ w @ w.T @ root.T, root @ root.T) - eye
    torch.testing.assert_close(taylor(0.1 * lower), (gap @ gap).trace() / 4)


def test_the_ridge_draws_around_the_gram_matrix():
    # False alarms: 16 means of 4,000 draws beyond 6 standard errors, below 1e-6.
    points = draws(0, 4, 6)
    gram = points @ points.T
    below = Grams(gram, gram, gram.diagonal())
    layer = GramLayer(4, GramKernel("arccos"), False, ridge=0.1)
    plain = GramLayer(4, GramKernel("arccos"), False)
    with torch.no_grad():
        layer.lower.copy_(draws(1, 4, 4) / 3)
        plain.lower.copy_(layer.lower)
        exact = plain(below, "layer 1")
        still = layer.eval()(below, "layer 1")
        eye = torch.eye(4, dtype=torch.float64)
        torch.testing.assert_close(still.inducing, exact.inducing + 0.1 * exact.inducing.diagonal().mean() * eye)
        torch.testing.assert_close(still.cross, exact.cross)
        layer.train()
        with seeded(3):
            crosses = torch.stack([layer(below, "layer 1").cross for _ in range(4_000)])
    error = crosses.std(0) / 4_000**0.5
    assert ((crosses.mean(0) - exact.cross).abs() < 6 * error).all()
    assert (error > 0).all()


# --- learning


def stripes(count, seed):
    """Images with stripes along their rows, or along their columns."""
    y = torch.randint(0, 2, (count,), generator=generator("cpu", seed))
    wave = torch.sin(1.6 * torch.arange(8.0, dtype=torch.float64) + 6 * draws(seed + 1, count, 1))
    x = wave.unsqueeze(1).expand(-1, 8, -1)
    x = torch.where(y.view(-1, 1, 1) == 0, x, x.transpose(1, 2)) + 0.5 * draws(seed + 2, count, 8, 8)
    return (40 * x + 100).unsqueeze(1).float(), y


@pytest.mark.parametrize(
    "fields", [{}, {"ridge": 0.1, "inducing": (16, 32)}, {"kernel": "gaussian", "layers": 2, "objective": "taylor"}]
)
def test_it_learns_classes_of_images(fields):
    x, y = stripes(200, 0)
    fields = {"inducing": (8, 8), **fields}
    recipe = DKM.conv(shape=(1, 8, 8), classes=2, draws=100, train=replace(QUICK, steps=80), **fields)
    post = recipe.fit([(x[:100], y[:100]), (x[100:], y[100:])])
    new, truth = stripes(200, 10)
    law = post.predict(new)
    assert float(bv.metrics.accuracy(law, truth)) > 0.9
    torch.testing.assert_close(post.predict(new[3:4]).probs, law.probs[3:4])
    layers = 2 * fields.get("layers", 1)
    assert post.drift().shape == (layers,) and (post.drift() > 0).all()
    assert tuple(post.gram(layers).shape) == (fields["inducing"][1],) * 2


def test_augmented_images_and_a_network_of_infinite_width(tmp_path):
    x, y = stripes(60, 0)
    recipe = DKM.conv(shape=(1, 8, 8), classes=2, inducing=(8, 8), nu=(math.inf, 1.0), draws=50, train=QUICK)
    post = recipe.fit(Data(x, y), augment=lambda images, source: images + 0 * torch.rand((), generator=source))
    assert float(post.drift()[0]) == 0.0 < float(post.drift()[1])
    seen = []
    few = replace(recipe, train=replace(QUICK, steps=3, batch=1_000))
    few.fit(Data(x, y), augment=lambda images, source: seen.append(len(images)) or images)
    assert len(seen) == 3  # where a batch would hold all images, too
    bv.save(post, tmp_path / "conv.safetensors")
    again = bv.load(tmp_path / "conv.safetensors")
    assert torch.equal(again.predict(x).probs, post.predict(x).probs)
    assert torch.equal(again.gram(2), post.gram(2)) and again.method == replace(recipe, train=again.method.train)


def test_blank_and_repeated_images():
    x, y = stripes(40, 0)
    x[::2] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jitter that is told
        post = DKM.conv(shape=(1, 8, 8), classes=2, inducing=(8, 40), draws=50, train=QUICK).fit(Data(x, y))
        assert post.predict(torch.zeros(2, 1, 8, 8)).probs.isfinite().all()
        for kernel in ("gaussian", "arccos", "rbf"):
            blank = DKM.conv((1, 8, 8), 2, inducing=(4, 4), kernel=kernel, draws=50, train=replace(QUICK, steps=5))
            for value in (0.0, 1.0):
                same = Data(torch.full((6, 1, 8, 8), value), torch.tensor([0, 1, 0, 1, 0, 1]))
                assert blank.fit(same).predict(x).probs.isfinite().all()


def test_images_in_the_order_of_their_classes():
    x = torch.cat([1e-3 * draws(0, 5_100, 1, 4, 4), 100 + draws(1, 300, 1, 4, 4)])
    y = (torch.arange(5_400) >= 5_100).long()
    post = DKM.conv((1, 4, 4), 2, inducing=(4,), draws=20, train=replace(QUICK, steps=2)).fit(Data(x, y))
    assert 15 < float(post.x_scale) < 30 and 3 < float(post.x_loc) < 8


def test_drift_is_the_divergence_whatever_the_objective():
    x, y = stripes(40, 0)
    post = DKM.conv((1, 8, 8), 2, inducing=(4, 4), objective="taylor", draws=20, train=QUICK).fit(Data(x, y))
    layers = post.model.machine.layers
    torch.testing.assert_close(post.drift(), torch.stack([spread(layer.lower) / 4 for layer in layers]))
    assert not torch.allclose(post.drift() * 4, post.model.machine.penalty())
    before = post.predict(x).probs
    assert torch.equal(post.train().predict(x).probs, before)
    with pytest.raises(ValueError, match="order must hold each of 4 inducing points"):
        bv.plots.gram_matrices({"conv": post}, order=range(3))


# --- what is refused


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shape": (0, 8, 8)}, "shape"),
        ({"inducing": ()}, "inducing must hold"),
        ({"inducing": (4, 1)}, "inducing"),
        ({"classes": 1}, "classes"),
        ({"layers": 0}, "layers"),
        ({"nu": (1.0,)}, "one for each of 3 layers"),
        ({"ridge": -1.0}, "ridge must be 0 or more"),
        ({"kernel": "linear"}, "checks of tables"),
    ],
)
def test_bad_recipes(fields, words):
    with pytest.raises(ValueError, match=words):
        DKM.conv(**{"shape": (1, 8, 8), "classes": 2, **fields})


def test_bad_images():
    x, y = stripes(10, 0)
    recipe = DKM.conv(shape=(1, 8, 8), classes=2, inducing=(4,), draws=20, train=replace(QUICK, steps=3))
    with pytest.raises(ValueError, match=r"x must hold images of the shape \(1, 8, 8\), got \(1, 8, 6\)"):
        recipe.fit(Data(x[..., :6], y))
    with pytest.raises(ValueError, match="classes 0 to 1"):
        recipe.fit(Data(x, y + 1))
    with pytest.raises(ValueError, match="finite"):
        recipe.fit(Data(torch.full_like(x, math.nan), y))
    post = recipe.fit(Data(x, y))
    with pytest.raises(ValueError, match="1, 8, 8"):
        post.predict(x[..., :6])
    with pytest.raises(ValueError, match="finite"):
        post.predict(torch.full_like(x, math.nan))
    with pytest.raises(ValueError, match="layer must be one of 0 to 1"):
        post.gram(2)
