"""Tables beyond the sizes of training: which rows and columns count, and how contexts are mixed."""

import numpy as np
import pandas as pd
import pytest
import torch

import bayesvision as bv
from bayesvision.distributions import Categorical, Mixture
from bayesvision.methods.tables.contexts import screened, spread

SMALL = {"columns": 3, "context": 8, "width": 16, "layers": 1, "heads": 2}


def untrained(classes=None):
    return bv.TablePFN(classes=classes, components=2, **SMALL).untrained().requires_grad_(False).eval()


def rows(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("n", "shape"), [(8, None), (9, (2, 4)), (20, (3, 6)), (1000, (4, 8))])
def test_contexts_are_disjoint_subsets(n, shape):
    found = spread(n, 8)
    if shape is None:
        assert found is None
    else:
        assert found.shape == shape and len(found.unique()) == found.numel() and found.max() < n


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_the_prediction_is_the_mixture_over_contexts(classes, batch):
    post, x = untrained(classes), rows(20, 3).expand(*batch, 20, 3)
    y = rows(20, 1, 5)[:, 0]
    if classes is not None:  # every class in every context
        y = torch.zeros(20, dtype=torch.long).index_copy(0, spread(20, 8).flatten(), torch.arange(18) % 3)
    query = rows(4, 3, 1)
    law = post.condition(x, y.expand(*batch, 20)).predict(query)
    parts = [post.condition(x[..., index, :], y[index].expand(*batch, -1)).predict(query) for index in spread(20, 8)]
    assert law.batch_shape == (*batch, 4)
    if isinstance(law, Categorical):
        mean = torch.stack([part.class_probs for part in parts]).mean(0)
        torch.testing.assert_close(law.class_probs, mean, rtol=1e-5, atol=1e-7)
    else:
        assert isinstance(law, Mixture)
        value = torch.zeros(*batch, 4, dtype=torch.float64)
        density = torch.stack([part.log_prob(value).exp() for part in parts]).mean(0)
        torch.testing.assert_close(law.log_prob(value).exp(), density, rtol=1e-5, atol=1e-9)


def test_a_context_that_fits_is_not_touched():
    post, x, y = untrained(), rows(8, 3), rows(8, 1, 5)[:, 0]
    assert post.condition(x, y).summary == "8 rows, 3 columns"
    assert (
        post.condition(rows(20, 5), rows(20, 1)[:, 0]).summary == "3 contexts of 6 of the 20 rows, 3 of the 5 columns"
    )


@pytest.mark.parametrize(("classes", "n"), [(None, 60), (None, 400), (2, 400)])
def test_the_columns_that_tell_the_target_are_kept(classes, n):
    x = rows(n, 30)
    x[:, 7] = torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(2)).double()
    level = torch.tensor([0.0, 3.0, -2.0, 1.0], dtype=torch.float64)[x[:, 7].long()]
    y = x[:, 3] ** 3 + 2 * (x[:, 20] ** 2 - 1) + 2 * level + 0.1 * x[:, 11]
    x[::5, 3] = torch.nan
    categorical = torch.arange(30) == 7
    y = y if classes is None else (y > 0).long()
    kept = screened(x, y, categorical, classes, 6)
    assert {3, 7, 20} <= set(kept.tolist()) and len(kept) == 6 and kept.tolist() == sorted(kept.tolist())
    assert screened(x, y, categorical, classes, 30) is None
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    assert torch.equal(screened(x[shuffled], y[shuffled], categorical, classes, 6), kept)


def test_screening_and_contexts_survive_a_file_and_a_frame(tmp_path):
    frame = pd.DataFrame(rows(20, 6).numpy(), columns=list("abcdef"))
    frame["g"] = np.where(np.arange(20) % 3 == 0, "x", "y")
    post = untrained().condition(frame, frame["b"])
    bv.save(post, tmp_path / "t.safetensors")
    loaded = bv.load(tmp_path / "t.safetensors")
    assert loaded.summary == post.summary
    assert torch.equal(loaded.predict(frame).mean, post.predict(frame).mean)
    bare = loaded.unconditioned()
    assert bare.contexts is None and bare.kept is None and bare.predict(rows(3, 2)).mean.shape == (3,)
