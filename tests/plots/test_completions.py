"""Pictures of holes and of what they were filled with."""

import numpy as np
import pytest
import torch

import bayesvision as bv
from bayesvision.plots import completions, holes

TRAIN = bv.Train(steps=5, batch=16, execution=bv.Execution(device="cpu"))


@pytest.mark.parametrize(("channels", "classes"), [(1, 3), (3, None)])
def test_images_masks_means_deviations_and_classes(channels, classes):
    rng = np.random.default_rng(0)
    x, y = rng.random((20, channels, 4, 4)), rng.integers(3, size=20)
    post = bv.MDBM.images(shape=(channels, 4, 4), classes=classes, hidden=(), grey=3, train=TRAIN).fit(bv.Data(x, y))
    mask = rng.random((20, channels, 4, 4)) < 0.5
    mask[:] = mask[:, :1]
    figure = completions(x, mask[:, 0], post.complete(x, mask), columns=5)
    assert len(figure.axes) == 5 * (4 + (classes is not None))
    names = {ax.get_ylabel() for ax in figure.axes} - {""}
    assert names == {"image", "seen", "mean", "deviation"} | ({"class"} if classes else set())
    shown = np.asarray(figure.axes[5].images[0].get_array())
    assert np.isnan(np.ma.filled(shown.astype(float), np.nan)).any()
    figure.savefig("/dev/null", format="png")
    with pytest.raises(ValueError, match="at least one image"):
        completions(x[:0], mask, post.complete(x, mask))


def test_holes_of_a_table():
    rows = torch.randint(3, (40, 4), generator=torch.Generator().manual_seed(1)).double()
    rows[3, 1] = rows[5, 2] = torch.nan
    done = bv.MDBM(train=TRAIN).fit(rows).impute(rows)
    ax = holes(done)
    drawn = np.ma.filled(np.ma.asarray(ax.images[0].get_array(), dtype=float), np.nan)
    assert drawn.shape == (2, 4) and np.isfinite(drawn).sum() == 2
    assert drawn[0, 1] == pytest.approx(float(done.chance[3, 1]))
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "1", "2", "3"]
