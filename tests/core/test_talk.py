"""What the library says: predictions as frames and pictures, fits that are followed, warnings at the caller's line."""

import io
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from instances import INSTANCES, QUERIES, seen

import bayesvision as bv
from bayesvision.core.warn import warn
from bayesvision.distributions import Categorical, Discrete, Mixture, Normal
from bayesvision.training.loggers import Progress
from priors import BayesianLinear

PLAIN = {i.name: i for i in INSTANCES}
TINY = {"context": 8, "width": 8, "layers": 1, "heads": 1, "bars": 8}


def svg(html):
    start, end = html.index("<svg"), html.index("</svg>") + len("</svg>")
    return xml.etree.ElementTree.fromstring(html[start:end])


@pytest.mark.parametrize("instance", INSTANCES, ids=lambda i: i.name)
def test_predictions_are_pictures_and_posteriors_lists_in_a_notebook(instance):
    posterior = seen(instance)
    law = posterior.predict(instance.rows(QUERIES, seed=2)[0])
    picture = svg(law._repr_html_())
    tags = [mark.tag.rsplit("}")[-1] for mark in picture]
    assert tags.count("rect" if isinstance(law, Discrete) else "circle") >= QUERIES
    assert "<li>" in posterior._repr_html_() and len(posterior._repr_html_()) < 4000


def test_a_picture_is_to_scale():
    law = Normal(torch.tensor([0.0, 10.0]), torch.tensor([1.0, 2.0]))
    circles = [mark for mark in svg(law._repr_html_()) if mark.tag.endswith("circle")]
    lines = [mark for mark in svg(law._repr_html_()) if mark.tag.endswith("line")]
    y = [float(c.get("cy", "nan")) for c in circles]
    tall = [abs(float(mark.get("y1", "nan")) - float(mark.get("y2", "nan"))) for mark in lines]
    per_unit = (y[0] - y[1]) / 10  # pixels; upwards is less
    assert per_unit > 0 and tall[0] == pytest.approx(2 * 1.6449 * per_unit, abs=0.2)
    assert tall[2] == pytest.approx(2 * tall[0], abs=0.3) and tall[1] == pytest.approx(2 * 0.6745 * per_unit, abs=0.2)
    assert "<svg" not in Normal(torch.empty(0), torch.empty(0))._repr_html_()
    bad = Normal(torch.tensor([0.0, float("nan")]), torch.ones(2), validate_args=False)
    assert "<svg" not in bad._repr_html_()


def test_predictions_are_frames():
    law = Normal(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0]))
    frame = law.to_frame(mass=0.5)
    assert list(frame.columns) == ["mean", "stddev", "median", "lower", "upper"] and len(frame) == 3
    np.testing.assert_allclose(frame["upper"] - frame["lower"], 2 * 0.67449 * np.array([1, 2, 3]), rtol=1e-4)
    np.testing.assert_allclose(frame["median"], [1, 2, 3])
    wide = Mixture.of(Normal(torch.zeros(2, 3, 4), torch.ones(2, 3, 4))).to_frame()
    assert wide.shape == (6, 5) and wide.index[4] == (1, 1)
    classes = Categorical(probs=torch.tensor([[0.2, 0.8], [0.6, 0.4]])).to_frame()
    assert list(classes["mode"]) == [1, 0] and classes["p1"].iloc[0] == pytest.approx(0.8)
    with pytest.raises(ValueError, match="mass"):
        law.to_frame(mass=1.5)
    assert Normal(torch.zeros(0, 2), torch.ones(0, 2)).to_frame().shape == (0, 5)


def test_rows_beside_their_targets():
    x, y = torch.rand(12, 2, dtype=torch.float64), torch.rand(12, dtype=torch.float64)
    for method in (bv.GP(steps=5, restarts=0), bv.DKM(layers=1, inducing=4, train=bv.Train(steps=3))):
        one, two = method.fit(bv.Data(x, y)).predict(x), method.fit(x, y).predict(x)
        assert torch.equal(one.mean, two.mean)
        with pytest.raises(TypeError, match="y came twice"):
            method.fit(bv.Data(x, y), y)

    class Column(np.ndarray):  # as polars' columns, it has a method log
        def log(self, metrics, step, /):
            raise AssertionError

    recipe = bv.GP(steps=5, restarts=0)
    assert torch.equal(recipe.fit(x, y.numpy().view(Column)).predict(x).mean, recipe.fit(x, y).predict(x).mean)
    with pytest.raises(TypeError, match=r"or x and y"):
        bv.GP().fit(x)
    with pytest.raises(TypeError, match=r"pretrained\('pfn-gp'\).condition\(x, y\)"):
        bv.PFN().fit(x, y)  # pyright: ignore


def test_a_fit_is_followed_when_asked_and_silent_otherwise(capfd):
    prior, recipe = BayesianLinear(1), bv.PFN(features=1, train=bv.Train(steps=3, batch=2), **TINY)
    recipe.fit(prior)
    assert capfd.readouterr() == ("", "")
    recipe.fit(prior, log="progress")
    out, err = capfd.readouterr()
    assert out == "" and "training" in err and "3/3" in err and "loss" in err
    with pytest.raises(ValueError, match="'progress'"):
        recipe.fit(prior, log="bar")  # pyright: ignore


def test_progress_bars_tell_the_first_metric():
    with Progress(10, "sampling") as bar:
        bar._bars.console.file = io.StringIO()
        bar.log({"divergences": 3.0, "other": 1.0}, 4)
        assert "divergences 3" in bar._bars.tasks[0].fields["told"] and bar._bars.tasks[0].completed == 4


def test_warnings_point_at_the_line_that_called():
    with pytest.warns(UserWarning, match="observations are more") as caught:
        bv.pretrained("dt-variance").condition(y=torch.randn(5_000))
    assert caught[0].filename == __file__
    with pytest.warns(RuntimeWarning) as caught:
        warn("here", RuntimeWarning)
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning) as caught:  # from a generated __init__
        bv.Train(clip=1.0)
    assert caught[0].filename == __file__
    named = compile("warn('theirs')", "/home/me/bayesvision_runs/jaxtyping_tests.py", "exec")
    with pytest.warns(UserWarning) as caught:
        exec(named, {"warn": warn, "__name__": "bayesvision_runs"})
    assert caught[0].filename == "/home/me/bayesvision_runs/jaxtyping_tests.py"


def test_every_warning_of_the_library_goes_through_warn():
    package = Path(bv.__file__).parent
    own = {package / "core" / "warn.py", package / "__init__.py"}  # a former name has one caller, its reader
    assert not [p for p in package.rglob("*.py") if p not in own and "warnings.warn(" in p.read_text()]


def test_dir_is_whole():
    assert {"__version__", "GP", "pretrained", "shipped", "metrics"} <= set(dir(bv))
