"""The baselines of `predict --compare`: each fitted to a table, with a predictive distribution like the network's."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas

    from bayesvision.core.columns import Columns
    from bayesvision.distributions import Predictive

__all__ = ["BASELINES", "baseline"]

BASELINES = {  # name -> as the table shows it
    "mean": "mean only",
    "gp": "GP",
    "nuts": "NUTS",
    "linear": "linear",
    "trees": "trees",
}
FOLDS = 5
MOST_LEVELS = 12  # of a category as columns of its own


def baseline(
    name: str,
    columns: "Columns",
    seen: "pandas.DataFrame",
    y: np.ndarray,
    new: "pandas.DataFrame",
    classes: int,
    seed: int,
) -> "Predictive":
    """What the baseline `name` predicts for `new` given (seen, y); `classes` is 0 for a numeric target.

    `mean` looks at no column: the normal, or the shares of the classes, of `y` alone. `gp` and `nuts` are Gaussian
    processes, `linear` Bayesian ridge or logistic regression, `trees` histogram gradient boosting, whose errors are
    normal with the deviation of five-fold cross-validation.

    Raises:
        ValueError: `gp` or `nuts` for classes.
        ImportError: what it needs is not installed.
    """
    import torch

    if name == "mean":
        return _constant(y, len(new), classes)
    if name == "trees":
        return _trees(columns, seen, y, new, classes, seed)
    x, unseen = _filled(columns, seen, new)
    if name == "linear":
        return _linear(x, y, unseen, classes)
    if classes:
        raise ValueError(f"--compare {name} predicts numbers alone; for classes compare with linear or trees")
    with torch.enable_grad():
        return _process(x, y, unseen, seed) if name == "gp" else _nuts(x, y, unseen, seed)


def _constant(y: np.ndarray, rows: int, classes: int) -> "Predictive":
    import torch

    from bayesvision.distributions import Categorical, Normal

    if classes:
        counts = np.bincount(y.astype(int), minlength=classes) + 1.0  # nothing is impossible
        return Categorical(probs=torch.as_tensor(counts / counts.sum()).expand(rows, -1))
    mean, deviation = (torch.full((rows,), float(v), dtype=torch.float64) for v in (y.mean(), y.std() or 1e-12))
    return Normal(mean, deviation)


def _filled(columns: "Columns", seen: "pandas.DataFrame", new: "pandas.DataFrame") -> tuple[np.ndarray, np.ndarray]:
    """Numbers with holes filled by the mean, and a column for each of the commonest levels of a category."""
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    both = columns.encode(seen), columns.encode(new)
    for k, column in enumerate(columns.kept):
        a, b = (table[:, k] for table in both)
        if column.kind == "category":
            levels = range(min(len(column.levels), MOST_LEVELS))
            parts += [((a == level).astype(float), (b == level).astype(float)) for level in levels]
        else:
            mean = np.nanmean(a) if not np.isnan(a).all() else 0.0
            parts.append((np.where(np.isnan(a), mean, a), np.where(np.isnan(b), mean, b)))
    a, b = (np.column_stack([part[k] for part in parts]) for k in (0, 1))
    varies = a.std(0) > 0
    return (a[:, varies], b[:, varies]) if varies.any() else (a, b)


def _process(x: np.ndarray, y: np.ndarray, new: np.ndarray, seed: int) -> Any:
    import bayesvision as bv

    return bv.GP(seed=seed).fit(bv.Data(x, y)).predict(new)


def _nuts(x: np.ndarray, y: np.ndarray, new: np.ndarray, seed: int) -> Any:
    """NUTS over the hyper-parameters of a Gaussian process, on the unit cube and a standardised target."""
    import torch

    import bayesvision as bv
    from bayesvision.distributions import Mixture, Normal
    from priors import GaussianProcessMixture, programs

    low, span = x.min(0), x.max(0) - x.min(0)
    span[span == 0] = 1
    loc, scale = y.mean(), y.std()
    program = programs.model(GaussianProcessMixture(features=x.shape[1], kernels=("rbf",)))
    data = bv.Data((x - low) / span, (y - loc) / scale)
    mixture = bv.MCMC(program, warmup=100, draws=100, chains=1, seed=seed).fit(data).predict((new - low) / span)
    parts = mixture.component_distribution
    weights = torch.as_tensor(mixture.mixture_distribution.logits)
    return Mixture.of(Normal(loc + scale * parts.mean, scale * parts.stddev), weights)


def _linear(x: np.ndarray, y: np.ndarray, new: np.ndarray, classes: int) -> Any:
    import torch

    from bayesvision.distributions import Normal

    linear_model = _sklearn("linear_model")
    loc, scale = x.mean(0), np.where(x.std(0) > 0, x.std(0), 1)
    x, new = (x - loc) / scale, (new - loc) / scale
    if classes:
        return _classes(linear_model.LogisticRegression(max_iter=2000).fit(x, y), new, classes)
    mean, stddev = linear_model.BayesianRidge().fit(x, y).predict(new, return_std=True)
    return Normal(torch.as_tensor(mean), torch.as_tensor(stddev))


def _trees(
    columns: "Columns", seen: "pandas.DataFrame", y: np.ndarray, new: "pandas.DataFrame", classes: int, seed: int
) -> Any:
    import torch

    from bayesvision.distributions import Normal

    ensemble, selection = _sklearn("ensemble"), _sklearn("model_selection")
    x, unseen = columns.encode(seen), columns.encode(new)
    flags = [c.kind == "category" and len(c.levels) <= 255 for c in columns.kept]
    options = {"categorical_features": np.array(flags), "random_state": seed}
    if classes:
        return _classes(ensemble.HistGradientBoostingClassifier(**options).fit(x, y), unseen, classes)
    model = ensemble.HistGradientBoostingRegressor(**options)
    folds = selection.KFold(min(FOLDS, len(y)), shuffle=True, random_state=seed)
    error = y - selection.cross_val_predict(model, x, y, cv=folds)
    mean = torch.as_tensor(model.fit(x, y).predict(unseen))
    floor = 1e-9 * (1 + np.abs(y).max())
    return Normal(mean, torch.full_like(mean, max(floor, float(np.sqrt(np.mean(error**2))))))


def _classes(model: Any, new: np.ndarray, classes: int) -> Any:
    import torch

    from bayesvision.distributions import Categorical

    probs = np.full((len(new), classes), 1e-12)
    probs[:, model.classes_.astype(int)] = np.maximum(model.predict_proba(new), 1e-12)
    return Categorical(probs=torch.as_tensor(probs / probs.sum(1, keepdims=True)))


def _sklearn(part: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"sklearn.{part}")
    except ModuleNotFoundError as error:
        raise ImportError('this comparison needs scikit-learn: pip install "bayesvision[sklearn]"') from error
