"""A table of scores that compares posteriors."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from bayesvision.core.data import Data
from bayesvision.core.roles import Posterior
from bayesvision.distributions import Discrete
from bayesvision.metrics.calibration import coverage, expected_calibration_error, quantile_calibration_error
from bayesvision.metrics.scores import accuracy, brier, crps, interval_width, nll, rmse

if TYPE_CHECKING:
    import pandas

__all__ = ["compare"]


def compare(posteriors: Mapping[str, Posterior], data: Data) -> "pandas.DataFrame":
    """Table of scores on `data`, a row for each posterior.

    For numbers the columns are nll, crps, rmse, coverage_90, width_90, calibration_error (of quantiles) and seconds,
    for classes nll, brier, accuracy, ece and seconds. `seconds` is the wall time of one `predict` of all rows, with
    no call before it to warm up.

    Raises:
        ImportError: pandas is missing.
        TypeError: some posteriors predict numbers and others classes.
        ValueError: no posteriors, no targets, or targets that do not fit the predictions.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ImportError('compare needs pandas: pip install "bayesvision[frame]"') from error
    x, y = data
    if not posteriors or y is None:
        raise ValueError("compare needs at least one posterior and data with targets: compare({name: ...}, Data(x, y))")
    rows = {name: _row(posterior, x, y) for name, posterior in posteriors.items()}
    if len({tuple(row) for row in rows.values()}) > 1:
        kinds = {name: "classes" if "ece" in row else "numbers" for name, row in rows.items()}
        raise TypeError(f"posteriors must all predict numbers or all predict classes, got {kinds}; compare them apart")
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("posterior")


@torch.no_grad()
def _row(posterior: Posterior, x: Any, y: Any) -> dict[str, float]:
    start = time.perf_counter()
    predictive = posterior.predict(x)
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    seconds = time.perf_counter() - start
    scores = {"nll": nll(predictive, y)}
    if isinstance(predictive, Discrete):
        scores |= {"brier": brier(predictive, y), "accuracy": accuracy(predictive, y)}
        scores |= {"ece": expected_calibration_error(predictive, y)}
    else:
        scores |= {"crps": crps(predictive, y), "rmse": rmse(predictive, y)}
        scores |= {"coverage_90": coverage(predictive, y, 0.9), "width_90": interval_width(predictive, 0.9)}
        scores |= {"calibration_error": quantile_calibration_error(predictive, y)}
    return {name: score.item() for name, score in scores.items()} | {"seconds": seconds}
