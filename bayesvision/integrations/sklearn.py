"""Posteriors as scikit-learn estimators: for pipelines, cross-validation and grid searches."""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, Self, cast

import numpy as np
import torch

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
except ModuleNotFoundError as error:
    raise ImportError('this needs scikit-learn: pip install "bayesvision[sklearn]"') from error

from bayesvision.core.checks import columns_of
from bayesvision.core.data import Data
from bayesvision.distributions import Categorical, Continuous, Discrete
from bayesvision.io.checkpoints import find
from bayesvision.methods.pfn.pfn import PFNPosterior
from bayesvision.methods.tables.tables import TablePFNPosterior

__all__ = ["PFNClassifier", "PFNRegressor", "PredictiveClassifier", "PredictiveRegressor"]


class _Estimator(BaseEstimator, ABC):
    """What all four share: checks of scikit-learn's kind, fields of a recipe as parameters, and the distribution."""

    model: Any
    posterior_: Any
    _tables = False  # whether frames, text and holes are inputs

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters; with `deep` those of a recipe too, as `model__field`."""
        params = super().get_params(deep=False)
        if deep and dataclasses.is_dataclass(self.model) and not isinstance(self.model, type):
            params |= {f"model__{f.name}": getattr(self.model, f.name) for f in dataclasses.fields(self.model)}
        return params

    def set_params(self, **params: Any) -> Self:
        """Set parameters; `model__field` replaces the recipe by one with that field.

        Raises:
            ValueError: no such parameter, or a value that the recipe refuses.
        """
        fields = {k.removeprefix("model__"): params.pop(k) for k in list(params) if k.startswith("model__")}
        super().set_params(**params)
        if fields:
            recipe = dataclasses.is_dataclass(self.model) and not isinstance(self.model, type)
            known = {f.name for f in dataclasses.fields(self.model)} if recipe else set()
            if unknown := sorted(set(fields) - known):
                raise ValueError(f"model has no field {unknown[0]!r}; it has {', '.join(sorted(known)) or 'none'}")
            self.model = dataclasses.replace(cast(Any, self.model), **fields)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._tables
        tags.input_tags.categorical = self._tables
        tags.input_tags.string = False  # text in frames alone
        return tags

    def _inputs(self, X: Any, y: Any = None) -> Any:
        """Rows as an array, or as the frame that they are where the model reads frames."""
        finite = "allow-nan" if self._tables else True
        if self._tables and columns_of(X) is not None:
            validate_data(self, X, reset=y is not None, skip_check_array=True)
            if not len(X):
                raise ValueError(f"Found array with 0 sample(s) (shape={X.shape}) while a minimum of 1 is required.")
            return X
        if y is None:
            return validate_data(self, X, dtype=np.float64, reset=False, ensure_all_finite=finite)
        return validate_data(self, X, dtype=np.float64, ensure_min_samples=2, ensure_all_finite=finite)

    @abstractmethod
    def _learn(self, X: Any, y: np.ndarray, classes: int | None) -> Any:
        """The posterior given the rows."""

    def predict_distribution(self, X: Any) -> Any:
        """Predictive distribution of every row."""
        check_is_fitted(self)
        X = self._inputs(X)
        with torch.no_grad():
            return self.posterior_.predict(X)


class _Regressor(RegressorMixin, _Estimator):
    """Predictive means as predictions."""

    def fit(self, X: Any, y: Any) -> Self:
        """Learn from the rows (X, y).

        Raises:
            ValueError: values that are not numbers, a constant target, or a model that does not predict numbers.
        """
        if y is None:
            raise ValueError("this estimator requires y to be passed, but the target y is None")
        X = self._inputs(X, y)
        y = column_or_1d(y, warn=True)
        if y.dtype.kind not in "fiub":
            try:
                y = y.astype(np.float64)
            except ValueError:
                raise ValueError(
                    f"y must hold numbers, got {y[0]!r}; for classes take PFNClassifier or PredictiveClassifier"
                ) from None
        _check_length(X, y)
        if not np.isfinite(y.astype(float)).all():
            raise ValueError("Input y contains NaN or infinity; leave these rows out")
        self.posterior_ = self._learn(X, y.astype(np.float64), None)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predictive mean of every row; with `return_std` its standard deviation too, noise included."""
        law: Continuous = self.predict_distribution(X)
        mean = law.mean.cpu().numpy()
        return (mean, law.stddev.cpu().numpy()) if return_std else mean

    def predict_interval(self, X: Any, mass: float = 0.9) -> np.ndarray:
        """Ends [rows, 2] of the central interval of probability `mass`."""
        low, high = self.predict_distribution(X).interval(mass)
        return torch.stack([low, high], -1).cpu().numpy()


class _Classifier(ClassifierMixin, _Estimator):
    """Most probable classes as predictions."""

    classes_: np.ndarray

    def fit(self, X: Any, y: Any) -> Self:
        """Learn from the rows (X, y).

        Raises:
            ValueError: fewer than two classes or more than the model takes, or a model that does not predict classes.
        """
        if y is None:
            raise ValueError("this estimator requires y to be passed, but the target y is None")
        X = self._inputs(X, y)
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        _check_length(X, y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold at least 2 classes, got 1 class: {self.classes_[0]!r}")
        self.posterior_ = self._learn(X, codes, len(self.classes_))
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability [rows, classes] of each of `classes_`."""
        law: Discrete = self.predict_distribution(X)
        probs = law.class_probs.double().cpu().numpy()
        return probs / probs.sum(-1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of every row."""
        probs = self.predict_proba(X)
        return self.classes_[probs.argmax(-1)]


def _check_length(X: Any, y: np.ndarray) -> None:
    if len(X) != len(y):
        raise ValueError(f"Found input variables with inconsistent numbers of samples: {[len(X), len(y)]}")


def _conditioned(model: Any, X: Any, y: np.ndarray, classes: int | None, subsample: bool, seed: int) -> Any:
    """The pretrained network `model` given the rows."""
    posterior = cast(Any, find(model))
    kind = "regression" if classes is None else "classes"
    if not isinstance(posterior, PFNPosterior | TablePFNPosterior) or (posterior.method.classes is None) != (
        classes is None
    ):
        raise ValueError(f"model must be a PFN for {kind}, got {model!r}")
    most = posterior.method.classes or 0
    if classes is not None and classes > most:
        raise ValueError(f"y has {classes} classes and {model!r} takes at most {most}")
    limit = posterior.method.context
    if isinstance(posterior, PFNPosterior):
        if columns_of(X) is not None:
            X = X.to_numpy(dtype=np.float64)
        if np.isnan(X).any():
            raise ValueError(f"Input X contains NaN, and {model!r} takes none; 'pfn-table' and 'pfn-classes' do")
        if subsample and len(y) > limit:
            kept = np.random.default_rng(seed).permutation(len(y))[:limit]
            X, y = X[kept], y[kept]
    return posterior.condition(X, y)


class PFNRegressor(_Regressor):
    """A pretrained network for regression as a scikit-learn estimator; `fit` conditions it, nothing is trained.

    Frames may hold numbers, text, dates and holes; NaN in an array is a missing value.

    Example:
        >>> PFNRegressor().fit(frame, y).predict_distribution(new).interval(0.9)

    Args:
        model: a shipped name, or a checkpoint file. A plain PFN takes numbers without holes.
        subsample: give a plain PFN a random subset where there are more rows than it was trained for, instead of
            refusing them; networks for tables use them all.
        random_state: seed of that subset.
    """

    _tables = True

    def __init__(self, model: str = "pfn-table", subsample: bool = False, random_state: int = 0) -> None:
        self.model = model
        self.subsample = subsample
        self.random_state = random_state

    def _learn(self, X: Any, y: np.ndarray, classes: int | None) -> Any:
        return _conditioned(self.model, X, y, classes, self.subsample, self.random_state)


class PFNClassifier(_Classifier):
    """A pretrained network for 2 to 10 classes as a scikit-learn estimator; `fit` conditions it, nothing is trained.

    Frames may hold numbers, text, dates and holes; NaN in an array is a missing value.

    Example:
        >>> PFNClassifier().fit(frame, labels).predict_proba(new)

    Args:
        model: a shipped name, or a checkpoint file.
    """

    _tables = True

    def __init__(self, model: str = "pfn-classes") -> None:
        self.model = model

    def _learn(self, X: Any, y: np.ndarray, classes: int | None) -> Any:
        return _conditioned(self.model, X, y, classes, False, 0)


class PredictiveRegressor(_Regressor):
    """Any recipe that learns numbers from data, such as `bayesvision.GP()`, as a scikit-learn estimator.

    Example:
        >>> GridSearchCV(PredictiveRegressor(bv.GP()), {"model__kernel": ["rbf", "matern52"]}).fit(X, y)

    Args:
        model: the recipe; its fields are parameters `model__field`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def _learn(self, X: Any, y: np.ndarray, classes: int | None) -> Any:
        return self.model.fit(Data(X, y))


class PredictiveClassifier(_Classifier):
    """Any recipe that learns classes from data as a scikit-learn estimator.

    Args:
        model: the recipe, whose `classes` is set to what `fit` finds; its fields are parameters `model__field`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def _learn(self, X: Any, y: np.ndarray, classes: int | None) -> Any:
        posterior = dataclasses.replace(self.model, classes=classes).fit(Data(X, y))
        with torch.no_grad():
            law = posterior.predict(X[:1])
        if not isinstance(law, Categorical):
            raise ValueError(f"model must predict classes, got {type(self.model).__name__}")
        return posterior
