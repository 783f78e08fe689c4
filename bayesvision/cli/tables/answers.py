"""What `predict` gives: the table of scores, the file of predictions and the picture."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesvision.cli.common import show
from bayesvision.cli.tables.question import Question

if TYPE_CHECKING:
    from bayesvision.core.columns import Columns

__all__ = ["Results", "draw", "report", "write"]

Results = dict[str, tuple[Any, float]]  # by the name of the model: its prediction, and the seconds it took


def report(results: Results, question: Question, mass: float) -> None:
    """Print the scores of every model where targets are known, otherwise what it predicts on the whole."""
    import numpy as np
    import torch

    from bayesvision import metrics

    truth, lines = question.truth, []
    known = None if truth is None else torch.as_tensor(np.flatnonzero(~np.isnan(truth)))
    for name, (law, seconds) in results.items():
        if known is None or truth is None:
            cells = _overview(law, question, mass)
        elif question.labels:
            part, y = law[known], torch.as_tensor(truth)[known]
            scores = [metrics.nll(part, y), metrics.brier(part, y), metrics.expected_calibration_error(part, y)]
            cells = [f"{float(metrics.accuracy(part, y)):.1%}", *(f"{float(v):.4g}" for v in scores)]
        else:
            part, y = law[known], torch.as_tensor(truth)[known]
            scores = [metrics.nll(part, y), metrics.crps(part, y), metrics.rmse(part, y)]
            cells = [f"{float(v):.4g}" for v in scores] + [f"{float(metrics.coverage(part, y, mass)):.1%}"]
        lines.append([name, *cells, f"{seconds:.3g}"])
    columns = ["NLL", "CRPS", "RMSE", f"{mass:.0%} coverage"]
    if question.labels:
        columns = ["accuracy", "NLL", "Brier", "ECE"]
    if known is None:
        columns = ["most often", "mean confidence"] if question.labels else ["mean", f"{mass:.0%} width"]
    held = ", held out at random" if question.held_out else ""
    title = f"{len(question.new)} rows predicted{held} from {len(question.y)}"
    show(title, ["model", *columns, "seconds"], lines)


def _overview(law: Any, question: Question, mass: float) -> list[str]:
    from bayesvision import metrics

    if question.labels:
        common = question.labels[int(law.mode.bincount().argmax())]
        return [common, f"{float(law.class_probs.amax(-1).mean()):.1%}"]
    return [f"{float(law.mean.mean()):.4g}", f"{float(metrics.interval_width(law, mass)):.4g}"]


def write(files: contextlib.ExitStack, out: Path, law: Any, question: Question, mass: float) -> None:
    """Write the prediction of every row, of rows held out with their line or row in the file."""
    import numpy as np

    from bayesvision.io.tables import write_csv
    from bayesvision.io.tensors import replacing

    values: dict[str, Any] = {}
    if question.held_out:
        values[str(question.new.index.name)] = [int(k) for k in question.new.index]
    labels, truth = question.labels, question.truth
    if truth is not None:
        named = [labels[int(t)] if not np.isnan(t) else "" for t in truth] if labels else None
        values["target"] = named if named is not None else ["" if np.isnan(t) else f"{t:.9g}" for t in truth]
    if labels:
        values["predicted"] = [labels[int(k)] for k in law.mode]
        values |= {f"p_{label}": p for label, p in zip(labels, law.class_probs.T.cpu().numpy(), strict=True)}
    else:
        low, high = law.interval(mass)
        columns = {"mean": law.mean, "stddev": law.stddev, "median": law.quantile(0.5)}
        columns |= {f"lower_{mass:g}": low, f"upper_{mass:g}": high}
        values |= {name: value.detach().cpu().numpy() for name, value in columns.items()}
    write_csv(files.enter_context(replacing(out)), values)


def draw(
    files: contextlib.ExitStack,
    path: Path,
    results: Results,
    posterior: Any,
    columns: "Columns",
    question: Question,
    source: str,
) -> None:
    """Draw the predictions into the picture `path`: one numeric column as a band over it, more against the truth."""
    import numpy as np
    import torch
    from matplotlib.figure import Figure

    from bayesvision import plots
    from bayesvision.io.tensors import replacing

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    figure.suptitle(
        f"{question.target}: {len(question.new):,} rows, predicted from {len(question.y):,} rows of {source}"
    )
    laws, truth = {name: law for name, (law, _) in results.items()}, question.truth
    if truth is not None:
        known = ~np.isnan(truth)
        laws, truth = {name: law[torch.as_tensor(known)] for name, law in laws.items()}, truth[known]
    alone = len(columns.kept) == 1 and columns.kept[0].kind == "number"
    if question.labels and truth is not None:
        left, right = figure.subplots(1, 2)
        plots.true_class_probabilities(laws, truth, ax=left)
        plots.reliability_diagram(laws, truth, ax=right)
    elif question.labels:
        plots.class_shares(laws, question.labels, ax=figure.subplots())
    elif alone:
        _draw_band(figure.subplots(), posterior, columns, question)
    elif truth is not None:
        left, right = figure.subplots(1, 2)
        plots.predicted_against_actual(laws["PFN"], truth, ax=left)
        plots.calibration_curve(laws, truth, ax=right)
    else:
        rank = laws["PFN"].quantile(0.5).argsort().argsort()
        axes = plots.predictive_band(laws["PFN"], rank, ax=figure.subplots())
        axes.set(xlabel="rows by predicted median", ylabel=question.target)
    figure.savefig(files.enter_context(replacing(path)), dpi=150)


def _draw_band(ax: Any, posterior: Any, columns: "Columns", question: Question) -> None:
    """The prediction over the only column, and the rows that it was learned from."""
    import numpy as np

    from bayesvision import plots
    from bayesvision.core.data import Data

    x, new = (columns.encode(frame)[:, 0] for frame in (question.seen, question.new))
    there = np.flatnonzero(~np.isnan(x))
    both = np.concatenate([x[there], new[~np.isnan(new)]])
    grid = np.linspace(both.min(), both.max(), 300)
    limit = there[: posterior.method.context]
    band = posterior.condition(x[limit, None], question.y[limit]).predict(grid[:, None])
    axes = plots.predictive_band(band, grid, Data(x[there], question.y[there]), ax=ax)
    axes.set(xlabel=columns.names[0], ylabel=question.target)
