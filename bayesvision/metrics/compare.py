"""A table of scores that compares posteriors."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from bayesvision.core.data import Data
from bayesvision.core.roles import Amortized, Conditionable, Method, Posterior
from bayesvision.distributions import Discrete
from bayesvision.metrics.calibration import coverage, expected_calibration_error, quantile_calibration_error
from bayesvision.metrics.scores import accuracy, brier, crps, interval_width, nll, rmse

if TYPE_CHECKING:
    import pandas

__all__ = ["compare"]


def compare(posteriors: Mapping[str, Any], data: Data, train: Data | None = None) -> "pandas.DataFrame":
    """Table of scores on `data`, a row for each posterior.

    For numbers the columns are nll, crps, rmse, coverage_90, width_90, calibration_error (of quantiles) and seconds,
    for classes nll, brier, accuracy, ece and seconds. With `train`, recipes are fitted to it and networks conditioned
    on it, and `seconds` is the wall time of that and of one `predict` of all rows; without, of `predict` alone, which
    says nothing of what a posterior cost. Nothing is called before to warm up.

    Example:
        >>> bv.metrics.compare({"pfn": bv.pretrained("pfn-gp"), "gp": bv.GP()}, test, train)

    Args:
        posteriors: by name; with `train`, recipes that learn from data, or networks that are conditioned.
        data: rows with targets to score.
        train: rows to learn from; models have seen nothing yet.

    Raises:
        ImportError: pandas is missing.
        TypeError: some predict numbers and others classes, or one can neither be fitted nor conditioned.
        ValueError: no posteriors, no targets, or targets that do not fit the predictions.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ImportError('compare needs pandas: pip install "bayesvision[frame]"') from error
    x, y = data
    if not posteriors or y is None:
        raise ValueError("compare needs at least one posterior and data with targets: compare({name: ...}, Data(x, y))")
    rows = {name: _row(posterior, x, y, train) for name, posterior in posteriors.items()}
    if len({tuple(row) for row in rows.values()}) > 1:
        kinds = {name: "classes" if "ece" in row else "numbers" for name, row in rows.items()}
        raise TypeError(f"posteriors must all predict numbers or all predict classes, got {kinds}; compare them apart")
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("posterior")


def _learned(model: Any, train: Data) -> Posterior:
    """A recipe fitted to the rows, or a posterior conditioned on them."""
    if isinstance(model, Amortized) and isinstance(model, Conditionable):
        if model.rows:
            raise ValueError(
                f"the posterior has seen {model.rows} rows already; give posterior.unconditioned(), or leave train out"
            )
        return model.condition(*train)
    if isinstance(model, Posterior) or not isinstance(model, Method):
        raise TypeError(
            "with train, a model must be a recipe such as GP() or a network that has seen nothing, got "
            f"{type(model).__name__}; leave train out to compare what is fitted"
        )
    return model.fit(train)


def _row(model: Any, x: Any, y: Any, train: Data | None) -> dict[str, float]:
    start = time.perf_counter()
    posterior = model if train is None else _learned(model, train)
    with torch.no_grad():
        predictive = posterior.predict(x)
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        seconds = time.perf_counter() - start
        return _scores(predictive, y) | {"seconds": seconds}


def _scores(predictive: Any, y: Any) -> dict[str, float]:
    scores = {"nll": nll(predictive, y)}
    if isinstance(predictive, Discrete):
        scores |= {"brier": brier(predictive, y), "accuracy": accuracy(predictive, y)}
        scores |= {"ece": expected_calibration_error(predictive, y)}
    else:
        scores |= {"crps": crps(predictive, y), "rmse": rmse(predictive, y)}
        scores |= {"coverage_90": coverage(predictive, y, 0.9), "width_90": interval_width(predictive, 0.9)}
        scores |= {"calibration_error": quantile_calibration_error(predictive, y)}
    return {name: score.item() for name, score in scores.items()}
