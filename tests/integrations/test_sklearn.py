import pickle
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from checks import unchecked
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import bayesvision as bv
from bayesvision.distributions import Categorical
from bayesvision.integrations.sklearn import PFNClassifier, PFNRegressor, PredictiveClassifier, PredictiveRegressor
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


# scikit-learn's own checks

ROUNDING = {  # the network computes in float32, whose last digit depends on how many rows are asked at once
    "check_methods_subset_invariance": "float32",
}


@parametrize_with_checks(
    [PFNRegressor(), PFNClassifier(), PredictiveRegressor(bv.GP(restarts=0))],
    expected_failed_checks=lambda e: ROUNDING if isinstance(e, PFNClassifier) else {},
)
def test_scikit_learn_agrees(estimator, check):
    with unchecked():  # arguments are checked in fit, as scikit-learn wants it
        check(estimator)


# Frames


@pytest.fixture
def people():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"age": rng.integers(18, 80, 90).astype(float), "city": rng.choice(["Rome", "Oslo"], 90)})
    y = frame.age / 10 + 3 * (frame.city == "Oslo") + 0.1 * rng.standard_normal(90)
    frame.loc[rng.random(90) < 0.1, "age"] = np.nan
    return frame, y


def test_frames_are_taken_as_they_are(people):
    frame, y = people
    model = PFNRegressor().fit(frame[:60], y[:60])
    assert list(model.feature_names_in_) == ["age", "city"] and model.n_features_in_ == 2
    expected = bv.pretrained("pfn-table").condition(frame[:60], y[:60]).predict(frame[60:])
    mean, std = model.predict(frame[60:], return_std=True)
    np.testing.assert_array_equal(mean, expected.mean.numpy())
    np.testing.assert_array_equal(std, expected.stddev.numpy())
    low, high = model.predict_interval(frame[60:], 0.8).T
    np.testing.assert_array_equal(low, expected.interval(0.8)[0].numpy())
    assert ((low < y[60:]) & (y[60:] < high)).mean() > 0.6
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(frame[60:]), mean)
    assert cross_val_score(PFNRegressor(), frame, y, cv=3).mean() > 0.8
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[60:].rename(columns={"age": "years"}))


def test_labels_of_any_kind_are_classes(people):
    frame, y = people
    for labels in (
        np.where(y > 6, "rich", "poor"),
        (y > 6).to_numpy(),
        np.where(y > 6, 7, -3),
        pd.cut(y, 3).astype(str),
    ):
        model = PFNClassifier().fit(frame[:60], labels[:60])
        probs = model.predict_proba(frame[60:])
        assert list(model.classes_) == sorted(set(labels[:60])) and probs.shape == (30, len(model.classes_))
        np.testing.assert_allclose(probs.sum(1), 1)
        assert model.score(frame[60:], labels[60:]) > 0.6
        assert isinstance(model.predict_distribution(frame[60:]), Categorical)
    with pytest.raises(ValueError, match="PFNClassifier"):
        PFNRegressor().fit(frame, np.where(y > 6, "rich", "poor"))
    with pytest.raises(ValueError, match="at most 10"):
        PFNClassifier().fit(frame, np.arange(90) % 11)
    with pytest.raises(ValueError, match="PFN for classes"):
        PFNClassifier("pfn-table").fit(frame, y > 6)


# Any recipe


def test_a_grid_search_over_the_fields_of_a_recipe(line):
    x, y = line
    y = np.sin(x[:, 0] * 6) + x[:, 1]
    search = GridSearchCV(PredictiveRegressor(bv.GP(restarts=0)), {"model__lengthscale": [0.001, 0.7]}, cv=3).fit(x, y)
    assert search.best_params_ == {"model__lengthscale": 0.7}
    assert search.best_estimator_.model == bv.GP(restarts=0, lengthscale=0.7)
    assert search.best_estimator_.predict_interval(x[:3]).shape == (3, 2)
    assert clone(search.best_estimator_).get_params()["model__lengthscale"] == 0.7
    with pytest.raises(ValueError, match="no field 'lengthscales'"):
        PredictiveRegressor(bv.GP()).set_params(model__lengthscales=1.0)
    with pytest.raises(ValueError, match="lengthscale must be positive"):
        PredictiveRegressor(bv.GP()).set_params(model__lengthscale=-1.0)


@dataclass(frozen=True)
class Frequencies:
    """Classes by how often they were seen."""

    classes: int = 2

    def fit(self, source, log=None):
        count = torch.bincount(torch.as_tensor(source.y), minlength=self.classes).double()

        class Seen:
            def predict(self, x):
                return Categorical(probs=(count / count.sum()).expand(len(x), -1))

        return Seen()


def test_a_recipe_for_classes_learns_how_many_there_are(line):
    x, _ = line
    model = PredictiveClassifier(Frequencies()).fit(x, np.array(["a", "b", "c", "c"] * 15))
    np.testing.assert_allclose(model.predict_proba(x[:2]), [[0.25, 0.25, 0.5]] * 2)
    assert list(model.predict(x[:2])) == ["c", "c"] and model.model == Frequencies()
    assert replace(model.model, classes=3) == Frequencies(3)
