"""Posteriors as scikit-learn regressors: for pipelines, cross-validation and grid searches."""

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from bayesvision.distributions import Continuous
from bayesvision.io.checkpoints import find
from bayesvision.methods.pfn.pfn import PFNPosterior
from bayesvision.methods.tables.tables import TablePFNPosterior

__all__ = ["PFNRegressor"]


class PFNRegressor(RegressorMixin, BaseEstimator):
    """A pretrained PFN for regression as a scikit-learn estimator; `fit` conditions it, nothing is trained.

    A network for tables, such as "pfn-table", takes NaN for a missing value and any number of columns.

    Args:
        model: a shipped name, or a checkpoint file.
        subsample: condition on a random subset when there are more rows than the network was trained for, instead of
            refusing them.
        random_state: seed of that subset.
    """

    def __init__(self, model: str = "pfn-gp", subsample: bool = False, random_state: int = 0) -> None:
        self.model = model
        self.subsample = subsample
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Condition the network on the rows (X, y).

        Raises:
            ValueError: values that are not numbers, a constant target, a model that is no PFN for regression, or more
                columns or rows than it was trained for.
        """
        posterior = find(self.model)
        finite = "allow-nan" if isinstance(posterior, TablePFNPosterior) else True
        X, y = validate_data(
            self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2, ensure_all_finite=finite
        )
        if not isinstance(posterior, PFNPosterior | TablePFNPosterior) or posterior.method.classes is not None:
            raise ValueError(f"model must be a PFN for regression, got {self.model!r}")
        limit = posterior.method.context
        if self.subsample and len(y) > limit:
            kept = np.random.default_rng(self.random_state).permutation(len(y))[:limit]
            X, y = X[kept], y[kept]
        self.posterior_ = posterior.condition(X, y)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predictive mean of every row."""
        return self.predict_distribution(X).mean.numpy()

    def predict_distribution(self, X: Any) -> Continuous:
        """Predictive distribution of every row."""
        check_is_fitted(self)
        finite = "allow-nan" if isinstance(self.posterior_, TablePFNPosterior) else True
        X = validate_data(self, X, dtype=np.float64, reset=False, ensure_all_finite=finite)
        with torch.no_grad():
            predictive = self.posterior_.predict(X)
        assert isinstance(predictive, Continuous)  # fit took a network for regression
        return predictive
