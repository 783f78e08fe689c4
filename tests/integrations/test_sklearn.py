import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import bayesvision as bv
from bayesvision.integrations.sklearn import PFNRegressor
from priors import GaussianProcessMixture, RandomNetwork


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    train = bv.Train(steps=300, batch=4, lr=3e-3)
    pfn = bv.PFN(features=2, context=30, width=32, layers=2, heads=2, bars=50, standardize=True, train=train)
    bv.save(pfn.fit(GaussianProcessMixture(features=2)), path)
    return str(path)


@pytest.fixture
def line() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).uniform(size=(60, 2))
    return x, 100 + 20 * x[:, 0]


def test_agrees_with_the_posterior(model, line):
    x, y = line
    fitted = PFNRegressor(model).fit(x[:30], y[:30])
    expected = bv.load(model).condition(x[:30], y[:30]).predict(x[30:])
    np.testing.assert_array_equal(fitted.predict(x[30:]), expected.mean.numpy())
    assert (fitted.predict_distribution(x[30:]).stddev.numpy() == expected.stddev.numpy()).all()


def test_works_in_pipelines_and_cross_validation(model, line):
    x, y = line
    pipeline = make_pipeline(StandardScaler(), PFNRegressor())
    scores = cross_val_score(pipeline, x, y, cv=3)  # R^2: 0 is a constant prediction
    assert scores.mean() > 0.9
    assert clone(PFNRegressor(model, subsample=True)).get_params()["subsample"] is True


def test_bad_input(model, line, tmp_path):
    x, y = line
    with pytest.raises(ValueError, match="at most 30"):
        PFNRegressor(model).fit(x, y)
    with pytest.raises(ValueError, match="NaN"):
        PFNRegressor(model).fit(np.full((3, 2), np.nan), np.arange(3.0))
    with pytest.raises(ValueError, match="1 features"):
        PFNRegressor(model).fit(x[:9], y[:9]).predict(x[:, :1])
    train = bv.Train(steps=1, batch=1)
    classes = bv.PFN(features=1, classes=2, context=5, width=8, layers=1, heads=1, train=train)
    bv.save(classes.fit(RandomNetwork(classes=2)), tmp_path / "classes.safetensors")
    with pytest.raises(ValueError, match="regression"):
        PFNRegressor(str(tmp_path / "classes.safetensors")).fit(x[:5], y[:5])


def test_a_network_for_tables_takes_holes_and_many_columns():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 12))
    y = x[:, 0] - x[:, 3]
    x[rng.random(x.shape) < 0.05] = np.nan
    fitted = PFNRegressor("pfn-table").fit(x[:45], y[:45])
    assert np.isfinite(fitted.predict(x[45:])).all()
    assert fitted.score(x[45:], y[45:]) > 0.5
    with pytest.raises(ValueError, match="NaN"):
        PFNRegressor("pfn-gp").fit(x[:45, :8], y[:45])
