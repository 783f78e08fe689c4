"""The recipe for images: what is seen, completed, classified, and refused."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import bayesvision as bv
from bayesvision.methods.mdbm.mdbm import MDBM
from bayesvision.training.seeds import generator
from bayesvision.training.train import Execution, Train

TRAIN = Train(steps=80, batch=32, lr=2e-2, execution=Execution(device="cpu"))


def stripes(count, seed):
    """Images 4 x 4 of vertical (class 0) or horizontal (class 1) stripes, and a few wrong pixels."""
    rng = generator("cpu", seed)
    label = torch.randint(2, (count,), generator=rng)
    down = (torch.arange(4) % 2).float().expand(4, 4)
    image = torch.where(label.reshape(-1, 1, 1).bool(), down.mT, down)
    wrong = torch.rand(count, 4, 4, generator=rng) < 0.05
    return torch.where(wrong, 1 - image, image).unsqueeze(1), label


@pytest.fixture(scope="module", params=["dense", "convolutional"])
def post(request):
    method = MDBM.images(
        shape=(1, 4, 4), classes=2, grey=3, hidden=() if request.param == "dense" else (3,), train=TRAIN
    )
    return method.fit(bv.Data(*stripes(400, 1)))


def test_half_of_an_image_tells_the_rest_and_the_class(post):
    x, y = stripes(60, 2)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:2] = True
    done = post.complete(x, mask)
    assert done.mean.shape == x.shape == done.stddev.shape and done.certificate.converged.all()
    assert float((done.label.mode == y).double().mean()) > 0.9
    off = (done.mean - x)[:, :, 2:].abs()
    assert float(off.mean()) < 0.35 < 0.5
    assert torch.equal(done.mean[:, :, :2].float(), x[:, :, :2]) and (done.stddev[:, :, :2] == 0).all()
    assert torch.equal(post.classify(x, mask).probs, done.label.probs)
    assert float((post.classify(x).mode == y).double().mean()) > 0.95


def test_pixels_and_label_are_variables_as_in_every_other_method(post):
    x, _ = stripes(1, 3)
    where = torch.tensor([0, 1, 5, 6])
    codes = (2 * x).flatten()[where]
    seen = post.condition(where, codes)
    mask = torch.zeros(16, dtype=torch.bool)
    mask[where] = True
    same = post.observe(x[0], mask.reshape(1, 4, 4))
    torch.testing.assert_close(seen.predict([3]).probs, same.predict([3]).probs)
    torch.testing.assert_close(seen.predict([16]).probs[0, :2], seen.label.probs)
    told = post.condition([16], [1])
    assert float(told.label.probs[1]) == 1
    assert told.completion.mean[0, 1].mean() > told.completion.mean[0, 0].mean()  # horizontal stripes
    draws = told.sample((3,), sweeps=2)
    assert draws.shape == (3, 17) and (draws[:, 16] == 1).all()


def test_bytes_loaders_and_files_say_the_same(post, tmp_path):
    x, y = stripes(20, 4)
    as_bytes = (255 * x).to(torch.uint8)
    assert torch.equal(post.classify(as_bytes).probs, post.classify(x.numpy()).probs)
    assert torch.equal(post.classify(x[:, 0]).probs, post.classify(x).probs)
    bv.save(post, tmp_path / "m.safetensors")
    assert torch.equal(bv.load(tmp_path / "m.safetensors").classify(x).probs, post.classify(x).probs)
    x, y = stripes(400, 1)
    again = post.method.fit(DataLoader(TensorDataset(x, y), batch_size=64))
    for a, b in zip(again.parameters(), post.parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_classes():
    x, y = stripes(100, 1)
    method = MDBM.images(shape=(1, 4, 4), hidden=(2,), grey=2, train=Train(steps=3, execution=Execution(device="cpu")))
    post = method.fit(bv.Data(x, y))
    assert post.complete(x[0], torch.ones(4, 4, dtype=torch.bool)).label is None
    with pytest.raises(ValueError, match="knows no classes"):
        _ = post.label


def test_bad_images_masks_and_labels(post):
    x, y = stripes(5, 1)
    mask = torch.ones(4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"images must be \[\*batch, 1, 4, 4\]"):
        post.classify(x[..., :3])
    with pytest.raises(ValueError, match="mask must have the shape"):
        post.complete(x, mask[:3])
    with pytest.raises(ValueError, match="mask must be True"):
        post.complete(x, mask.double())
    with pytest.raises(ValueError, match="between 0 and 1"):
        post.classify(2 * x)
    hole = x.clone()
    hole[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="between 0 and 1"):
        post.classify(hole)
    mask[0, 0] = False
    assert post.classify(hole, mask).probs.isfinite().all()
    with pytest.raises(ValueError, match="y must hold a class from 0 to 1"):
        post.method.fit(bv.Data(x, y + 1))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shape": (1, 6, 6), "hidden": (2, 2)}, "halve"),
        ({"shape": (0, 4, 4)}, "shape"),
        ({"shape": (1, 4, 4), "grey": 1}, "grey"),
        ({"shape": (1, 4, 4), "classes": 1}, "classes"),
        ({"shape": (1, 4, 4), "margin": 3.0}, "margin"),
    ],
)
def test_a_field_out_of_range_is_named(fields, words):
    with pytest.raises(ValueError, match=words):
        MDBM.images(**fields)
