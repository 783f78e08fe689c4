"""`bayesvision predict`: from a table to predictions, a picture and a comparison."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bayesvision.cli.common import FILE, Command, check_output, open_model, show, timed, waiting

if TYPE_CHECKING:
    import numpy as np

    from bayesvision.distributions import Continuous
    from bayesvision.io.tables import Table

__all__ = ["predict"]


@click.command(cls=Command)
@click.argument("train", type=FILE)
@click.option("--target", required=True, help="Column of TRAIN to predict.")
@click.option("--test", type=FILE, help="Rows to predict; without it a fifth of TRAIN is held out.")
@click.option("--out", type=FILE, help="Write mean, stddev and quantiles of every predicted row as CSV.")
@click.option("--plot", type=FILE, help="Draw the predictions into this picture (png, pdf or svg).")
@click.option("--model", default="pfn-gp", show_default=True, help="A shipped name or a checkpoint file.")
@click.option("--compare", default="", metavar="NAMES", help="Also fit these baselines: gp, nuts (comma-separated).")
@click.option(
    "--mass", type=click.FloatRange(0, 1, True, True), default=0.9, show_default=True, help="Of the interval."
)
@click.option(
    "--subsample", is_flag=True, help="Condition on a random subset if TRAIN has more rows than the model takes."
)
@click.option("--keep-duplicates", is_flag=True, help="Accept rows of TRAIN that repeat another one exactly.")
@click.option("--seed", default=0, show_default=True, help="Of the hold-out, the subset and the baselines.")
def predict(
    train: Path,
    target: str,
    test: Path | None,
    out: Path | None,
    plot: Path | None,
    model: str,
    compare: str,
    mass: float,
    subsample: bool,
    keep_duplicates: bool,
    seed: int,
) -> None:
    """Predict the column --target of new rows from the rows of TRAIN."""
    from bayesvision.io.tables import read_csv

    names = [name.strip() for name in compare.split(",") if name.strip()]
    unknown = [name for name in names if name not in ("gp", "nuts")]
    if unknown:
        raise ValueError(f"--compare takes gp and nuts, got {', '.join(unknown)}")
    if plot is not None and plot.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--plot must end in .png, .pdf or .svg, got {plot.name!r}")
    for path in filter(None, (out, plot)):
        check_output(path, train, test, model, plot if path is out else out)
    table = read_csv(train)
    _check_table(table, target, keep_duplicates)
    seen, y, unseen, truth = _split_rows(table, target, test, seed)
    posterior = open_model(model, tables=True)
    seen, y = _limit(seen, y, posterior, subsample, seed)

    results: dict[str, tuple[Continuous, float]] = {}
    with waiting("PFN"):
        results["PFN"] = timed(lambda: posterior.condition(seen.values, y).predict(unseen.values))
    for name in names:
        with waiting(name.upper()):
            results[name.upper()] = timed(lambda name=name: _baseline(name, seed, seen, y, unseen))
    _report(results, truth, mass, len(y), len(unseen.values))
    with contextlib.ExitStack() as files:  # nothing appears under its final name unless everything was written
        if out is not None:
            _write(files, out, results["PFN"][0], truth, mass)
        if plot is not None:
            _plot(files, plot, results, posterior, seen, y, unseen, truth, target)
    for path in filter(None, (out, plot)):
        click.echo(f"wrote {path}")


def _check_table(table: "Table", target: str, keep_duplicates: bool) -> None:
    import numpy as np

    _, y = table.split(target)
    if len(y) < 2:
        raise ValueError(f"{table.source}: one row; at least two are needed to learn a scale")
    if (y == y[0]).all():
        raise ValueError(f"{table.source}: column {target!r} is {y[0]:g} in every row; there is nothing to predict")
    _, first, counts = np.unique(table.values, axis=0, return_index=True, return_counts=True)
    if (counts > 1).any() and not keep_duplicates:
        row = table.values[first[counts > 1][0]]
        lines = table.lines[(table.values == row).all(1)][:2]
        raise ValueError(
            f"{table.source}: lines {lines[0]} and {lines[1]} are the same "
            f"({int((counts - 1).sum())} repeated rows in all); "
            "drop them, or pass --keep-duplicates if they are separate measurements"
        )


def _split_rows(
    table: "Table", target: str, test: Path | None, seed: int
) -> "tuple[Table, np.ndarray, Table, np.ndarray | None]":
    import numpy as np

    from bayesvision.io.tables import read_csv

    x, y = table.split(target)
    if test is None:
        if len(y) < 5:
            raise ValueError(
                f"{table.source}: {len(y)} rows are too few to hold a fifth out; give rows to predict with --test"
            )
        order = np.random.default_rng(seed).permutation(len(y))
        held, kept = order[: len(y) // 5], order[len(y) // 5 :]
        if (y[kept] == y[kept][0]).all():
            raise ValueError(
                f"{table.source}: column {target!r} is constant in the rows that are kept; give --test instead"
            )
        return x.rows(kept), y[kept], x.rows(held), y[held]
    new = read_csv(test)
    truth = new.values[:, new.columns.index(target)] if target in new.columns else None
    return x, y, new.select(x.columns), truth


def _limit(seen: "Table", y: "np.ndarray", posterior: Any, subsample: bool, seed: int) -> "tuple[Table, np.ndarray]":
    import numpy as np

    limit, most = posterior.method.context, getattr(posterior.method, "features", None)
    if most is not None and len(seen.columns) > most:
        raise ValueError(
            f"{seen.source}: {len(seen.columns)} columns to learn from, and the model was trained for at most {most}; "
            "keep the most useful ones, or pretrain a model with more features"
        )
    if len(y) > limit and not subsample:
        raise ValueError(
            f"{seen.source}: {len(y)} rows to learn from, and the model was trained for at most {limit}; "
            "pass --subsample to use a random subset, or pretrain a model with a larger context"
        )
    if len(y) > limit:
        kept = np.random.default_rng(seed).permutation(len(y))[:limit]
        return seen.rows(kept), y[kept]
    return seen, y


def _baseline(name: str, seed: int, seen: "Table", y: "np.ndarray", unseen: "Table") -> "Continuous":
    import torch

    import bayesvision as bv

    with torch.enable_grad():
        if name == "gp":
            return bv.GP(seed=seed).fit(bv.Data(seen.values, y)).predict(unseen.values)
        return _nuts(seen.values, y, unseen.values, seed)


def _nuts(x: "np.ndarray", y: "np.ndarray", new: "np.ndarray", seed: int) -> "Continuous":
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


def _report(
    results: "dict[str, tuple[Continuous, float]]", truth: "np.ndarray | None", mass: float, rows: int, new: int
) -> None:
    import torch

    from bayesvision import metrics

    columns, lines = ["model"], []
    columns += ["NLL", "CRPS", "RMSE", f"{mass:.0%} coverage"] if truth is not None else ["mean", f"{mass:.0%} width"]
    for name, (predictive, seconds) in results.items():
        if truth is not None:
            y = torch.as_tensor(truth)
            scores = [metrics.nll(predictive, y), metrics.crps(predictive, y), metrics.rmse(predictive, y)]
            cells = [f"{float(v):.4g}" for v in scores] + [f"{float(metrics.coverage(predictive, y, mass)):.1%}"]
        else:
            cells = [f"{float(predictive.mean.mean()):.4g}", f"{float(metrics.interval_width(predictive, mass)):.4g}"]
        lines.append([name, *cells, f"{seconds:.3g}"])
    show(f"{new} rows predicted from {rows}", [*columns, "seconds"], lines)


def _write(files: contextlib.ExitStack, out: Path, predictive: Any, truth: "np.ndarray | None", mass: float) -> None:
    from bayesvision.io.tables import write_csv
    from bayesvision.io.tensors import replacing

    low, high = predictive.interval(mass)
    columns = {
        "mean": predictive.mean,
        "stddev": predictive.stddev,
        "median": predictive.quantile(0.5),
        f"lower_{mass:g}": low,
        f"upper_{mass:g}": high,
    }
    values = {name: value.detach().cpu().numpy() for name, value in columns.items()}
    write_csv(files.enter_context(replacing(out)), values if truth is None else {"target": truth, **values})


def _plot(
    files: contextlib.ExitStack,
    path: Path,
    results: "dict[str, tuple[Continuous, float]]",
    posterior: Any,
    seen: "Table",
    y: "np.ndarray",
    unseen: "Table",
    truth: "np.ndarray | None",
    target: str,
) -> None:
    """One column: the band over it. More: predictions against the truth, and calibration, or sorted predictions."""
    import numpy as np
    from matplotlib.figure import Figure

    from bayesvision import plots
    from bayesvision.core.data import Data
    from bayesvision.distributions import Continuous
    from bayesvision.io.tensors import replacing

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    predictive = results["PFN"][0]
    if len(seen.columns) == 1:
        both = np.concatenate([seen.values[:, 0], unseen.values[:, 0]])
        grid = np.linspace(both.min(), both.max(), 300)
        band = posterior.condition(seen.values, y).predict(grid)
        assert isinstance(band, Continuous)  # open_model takes networks for regression only
        axes = plots.predictive_band(band, grid, Data(seen.values, y), ax=figure.subplots())
        axes.set(xlabel=seen.columns[0], ylabel=target)
    elif truth is not None:
        left, right = figure.subplots(1, 2)
        plots.predicted_against_actual(predictive, truth, ax=left).set(title=target)
        plots.calibration_curve({name: result[0] for name, result in results.items()}, truth, ax=right)
    else:
        rank = predictive.quantile(0.5).argsort().argsort()
        plots.predictive_band(predictive, rank, ax=figure.subplots()).set(
            xlabel="rows by predicted median", ylabel=target
        )
    figure.savefig(files.enter_context(replacing(path)), dpi=150)
