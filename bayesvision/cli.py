"""The command `bayesvision`; torch is imported only by the commands that need it."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import numpy as np

    from bayesvision.core import Posterior
    from bayesvision.distributions import Predictive
    from bayesvision.tables import Table

__all__ = ["main"]

FILE = click.Path(dir_okay=False, path_type=Path)


class _Command(click.Command):
    """A command whose bad input ends in one line on standard error and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError, ImportError) as error:
            click.echo(f"bayesvision {ctx.info_name}: {' '.join(str(error).split())}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo(f"bayesvision {ctx.info_name}: interrupted", err=True)
            ctx.exit(130)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bayesvision")
def main() -> None:
    """Bayesian prediction: calibrated answers from tables, priors and checkpoints."""


@contextlib.contextmanager
def _waiting(text: str) -> Iterator[None]:
    """A moving bar and a clock for work whose length nobody knows, gone when it is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn(text), BarColumn(pulse_style="cyan"), TimeElapsedColumn(), console=console, transient=True
    ) as progress:
        progress.add_task(text, total=None)
        yield


def _show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table as Grid

    grid = Grid(title=title, title_justify="left", header_style="bold")
    for k, name in enumerate(columns):
        grid.add_column(name, justify="left" if k == 0 else "right")
    for row in rows:
        grid.add_row(*row)
    Console().print(grid)


# ------------------------------------------------------------------------------------------------ predict


@main.command(cls=_Command)
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
    from bayesvision.tables import read_csv

    names = [name.strip() for name in compare.split(",") if name.strip()]
    unknown = [name for name in names if name not in ("gp", "nuts")]
    if unknown:
        raise ValueError(f"--compare takes gp and nuts, got {', '.join(unknown)}")
    if plot is not None and plot.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--plot must end in .png, .pdf or .svg, got {plot.name!r}")
    for path in filter(None, (out, plot)):
        if not path.absolute().parent.is_dir():
            raise ValueError(f"the folder {path.parent} does not exist; make it first")
    table = read_csv(train)
    _check_table(table, target, keep_duplicates)
    seen, y, unseen, truth = _split_rows(table, target, test, seed)
    posterior = _open(model)
    seen, y = _limit(seen, y, posterior, subsample, seed)

    results: dict[str, tuple[Predictive, float]] = {}
    with _waiting("PFN"):
        results["PFN"] = _timed(lambda: posterior.condition(seen.values, y).predict(unseen.values))
    for name in names:
        with _waiting(name.upper()):
            results[name.upper()] = _timed(lambda name=name: _baseline(name, seed, seen, y, unseen))
    _report(results, truth, mass, len(y), len(unseen.values))
    with contextlib.ExitStack() as files:  # nothing appears under its final name unless everything was written
        if out is not None:
            _write(files, out, results["PFN"][0], truth, mass)
        if plot is not None:
            _plot(files, plot, results, posterior.condition(seen.values, y), seen, y, unseen, truth, target)
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
        lines = (np.flatnonzero((table.values == row).all(1)) + 2)[:2]
        raise ValueError(
            f"{table.source}: lines {lines[0]} and {lines[1]} are the same "
            f"({int((counts - 1).sum())} repeated rows in all); "
            "drop them, or pass --keep-duplicates if they are separate measurements"
        )


def _split_rows(
    table: "Table", target: str, test: Path | None, seed: int
) -> "tuple[Table, np.ndarray, Table, np.ndarray | None]":
    import numpy as np

    from bayesvision.tables import read_csv

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


def _open(model: str) -> Any:
    """A shipped posterior by name, or one in a file."""
    from bayesvision.checkpoints import load, pretrained, shipped

    if model in shipped():
        return pretrained(model)
    if not Path(model).is_file():
        raise ValueError(f"{model!r} is neither a file nor one of the shipped models ({', '.join(shipped())})")
    return load(model)


def _limit(seen: "Table", y: "np.ndarray", posterior: Any, subsample: bool, seed: int) -> "tuple[Table, np.ndarray]":
    import numpy as np

    from bayesvision.methods.pfn import PFNPosterior

    if not isinstance(posterior, PFNPosterior) or posterior.method.classes is not None:
        raise ValueError("--model must be a PFN for regression")
    limit, most = posterior.method.context, posterior.method.features
    if len(seen.columns) > most:
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


def _timed(work: Any) -> "tuple[Predictive, float]":
    import torch

    start = time.perf_counter()
    with torch.no_grad():
        predictive = work()
    return predictive, time.perf_counter() - start


def _baseline(name: str, seed: int, seen: "Table", y: "np.ndarray", unseen: "Table") -> "Predictive":
    import torch

    import bayesvision as bv

    with torch.enable_grad():
        if name == "gp":
            return bv.GP(seed=seed).fit(bv.Data(seen.values, y)).predict(unseen.values)
        return _nuts(seen.values, y, unseen.values, seed)


def _nuts(x: "np.ndarray", y: "np.ndarray", new: "np.ndarray", seed: int) -> "Predictive":
    """NUTS over the hyper-parameters of a Gaussian process, on the unit cube and a standardised target."""
    import torch

    import bayesvision as bv
    from bayesvision.distributions import Mixture, Normal
    from priors import GaussianProcessMixture

    low, span = x.min(0), x.max(0) - x.min(0)
    span[span == 0] = 1
    loc, scale = y.mean(), y.std()
    program = GaussianProcessMixture(features=x.shape[1], kernels=("rbf",)).program()
    data = bv.Data((x - low) / span, (y - loc) / scale)
    mixture = bv.MCMC(program, warmup=100, draws=100, chains=1, seed=seed).fit(data).predict((new - low) / span)
    parts = mixture.component_distribution
    weights = torch.as_tensor(mixture.mixture_distribution.logits)
    return Mixture.of(Normal(loc + scale * parts.mean, scale * parts.stddev), weights)


def _report(
    results: "dict[str, tuple[Predictive, float]]", truth: "np.ndarray | None", mass: float, rows: int, new: int
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
    _show(f"{new} rows predicted from {rows}", [*columns, "seconds"], lines)


def _write(files: contextlib.ExitStack, out: Path, predictive: Any, truth: "np.ndarray | None", mass: float) -> None:
    from bayesvision.files import replacing
    from bayesvision.tables import write_csv

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
    results: "dict[str, tuple[Predictive, float]]",
    posterior: "Posterior",
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
    from bayesvision.core import Data
    from bayesvision.files import replacing

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    predictive = results["PFN"][0]
    if len(seen.columns) == 1:
        both = np.concatenate([seen.values[:, 0], unseen.values[:, 0]])
        grid = np.linspace(both.min(), both.max(), 300)
        axes = plots.predictive_band(posterior.predict(grid), grid, Data(seen.values, y), ax=figure.subplots())
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


# ----------------------------------------------------------------------------------------------- pretrain


class _Bar:
    """A progress bar that takes a training log."""

    def __init__(self, progress: Any, steps: int) -> None:
        self.progress, self.task = progress, progress.add_task("training", total=steps, loss=float("nan"))

    def log(self, metrics: dict[str, float], step: int, /) -> None:
        self.progress.update(self.task, completed=step, loss=metrics["loss"])


class _Both:
    """Hands a training log on to several."""

    def __init__(self, *logs: Any) -> None:
        self.logs = logs

    def log(self, metrics: dict[str, float], step: int, /) -> None:
        for log in self.logs:
            log.log(metrics, step)


@contextlib.contextmanager
def _training_log(path: Path | None, steps: int) -> "Iterator[_Both]":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from bayesvision.training import JsonLines

    parts = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
    ]
    with Progress(*parts, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        lines = JsonLines(path) if path is not None else None
        yield _Both(_Bar(progress, steps), *([lines] if lines else []))
        if lines is not None:
            lines.close()


def _build_prior(fields: dict[str, Any]) -> Any:
    """A prior of the package `priors` from its description: {"name": its class, its fields}."""
    import priors

    fields = dict(fields)
    name = fields.pop("name", None)
    known = [n for n in vars(priors) if isinstance(vars(priors)[n], type) and "sample" in vars(vars(priors)[n])]
    if name not in known:
        raise ValueError(f"[prior] needs a name, one of {', '.join(sorted(known))}; got {name!r}")

    def build(value: Any) -> Any:
        if isinstance(value, dict):
            return _build_prior(value)
        return tuple(build(v) for v in value) if isinstance(value, list) else value

    return _construct(getattr(priors, name), {k: build(v) for k, v in fields.items()}, f"[prior] {name}")


def _construct(kind: type, fields: dict[str, Any], where: str) -> Any:
    """A dataclass from named fields, with a complaint that names the unknown ones."""
    import dataclasses

    known = [f.name for f in dataclasses.fields(kind)]
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise ValueError(f"{where} has no field {', '.join(unknown)}; its fields are {', '.join(known)}")
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None


def _read_recipe(path: Path) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The prior, and the fields of the method and of its training."""
    import tomllib

    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    sections = {"prior", "pfn", "train"}
    if "prior" not in recipe or set(recipe) - sections:
        raise ValueError(
            f"{path}: a recipe has the sections [prior], [pfn] and [train], got {', '.join(recipe) or 'none'}"
        )
    return _build_prior(recipe["prior"]), recipe.get("pfn", {}), recipe.get("train", {})


@main.command(cls=_Command)
@click.argument("recipe", type=FILE)
@click.option("--out", type=FILE, required=True, help="The checkpoint to write.")
@click.option("--resume", is_flag=True, help="Go on from the training state that an earlier run left.")
@click.option("--log", type=FILE, help="Append metrics to this file, one JSON object a line.")
@click.option("--half", is_flag=True, help="Store the weights in float16.")
def pretrain(recipe: Path, out: Path, resume: bool, log: Path | None, half: bool) -> None:
    """Train a PFN on the prior of RECIPE (TOML); works under torchrun as well."""
    import os
    import shutil

    prior, fields, training = _read_recipe(recipe)
    import torch

    import bayesvision as bv

    folder = out.with_name(out.name + ".training")
    if (
        folder.exists()
        and not resume
        and int(os.environ.get("RANK", 0)) == 0
        and "TORCHELASTIC_RUN_ID" not in os.environ
    ):
        raise ValueError(f"{folder} holds an unfinished run; pass --resume to go on with it, or delete it")
    train = _construct(bv.Train, {"folder": str(folder), **training}, "[train]")
    method = _construct(bv.PFN, {**fields, "train": train}, "[pfn]")
    with _training_log(log, train.steps) as progress:
        posterior = method.fit(prior, progress)
    if int(os.environ.get("RANK", 0)) == 0:
        bv.save(posterior, out, torch.float16 if half else None)
        shutil.rmtree(folder, ignore_errors=True)
        click.echo(f"wrote {out}: {posterior.card['parameters']:,} parameters, {posterior.card['tasks']:,} tasks")


# --------------------------------------------------------------------------------------- info and validate


@main.command(cls=_Command)
@click.argument("checkpoint")
@click.option("--json", "as_json", is_flag=True, help="Print the header as JSON.")
def info(checkpoint: str, as_json: bool) -> None:
    """Show the recipe, prior, training cost and measured gaps of CHECKPOINT (a shipped name or a file)."""
    from bayesvision.checkpoints import describe

    header = describe(checkpoint)
    if as_json:
        click.echo(json.dumps(header, indent=2))
        return
    card = header.get("card", {})
    rows = [["method", header["method"]], ["written by", f"bayesvision {header['version']}, format {header['format']}"]]
    for part, values in (("recipe", header.get("recipe", {})), ("prior", card.get("prior", {})), ("card", card)):
        for name, value in values.items():
            if not isinstance(value, dict | list) or (part != "card" and not isinstance(value, dict)):
                rows.append([f"{part}: {name}", str(value)])
    rows += [[f"train: {name}", str(value)] for name, value in header.get("recipe", {}).get("train", {}).items()]
    _show(checkpoint, ["", "value"], rows)
    for title, measured in card.get("measured", {}).items():
        _show(title, list(measured[0]), [[str(v) for v in row.values()] for row in measured])


@main.command(cls=_Command)
@click.argument("checkpoint")
@click.option(
    "--tasks", default=20, show_default=True, type=click.IntRange(1), help="Fresh data sets per row of the table."
)
@click.option("--features", default=1, show_default=True, type=click.IntRange(1), help="Columns of the data sets.")
@click.option("--rows", default="10,30", show_default=True, help="Context sizes, comma-separated.")
@click.option("--nuts/--no-nuts", default=True, show_default=True, help="Run NUTS too.")
@click.option("--seed", default=0, show_default=True)
def validate(checkpoint: str, tasks: int, features: int, rows: str, nuts: bool, seed: int) -> None:
    """Compare CHECKPOINT with the exact GP and NUTS on fresh data sets of its own prior."""
    import torch

    from bayesvision.checkpoints import describe

    posterior = _open(checkpoint)
    torch.manual_seed(seed)
    try:
        sizes = [int(part) for part in rows.split(",")]
    except ValueError:
        raise ValueError(f"--rows takes numbers separated by commas, got {rows!r}") from None
    prior = dict(describe(checkpoint)["card"]["prior"])
    if isinstance(prior.get("features"), list):
        prior["features"] = features
    _show(*_validation(posterior, _build_prior(prior), tasks, sizes, nuts, seed))


def _validation(
    posterior: Any, prior: Any, tasks: int, sizes: list[int], nuts: bool, seed: int
) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and rows of the table: mean NLL of each model on the same tasks, its gap and its speed ratio."""
    import torch

    import bayesvision as bv
    from bayesvision.training import generator

    queries, lines = 20, []
    exact = "posterior" in dir(type(prior))
    for rows in sizes:
        task = prior.sample(tasks, rows + queries, generator=generator("cpu", seed, rows))
        x, y, new, truth = task.x[:, :rows], task.y[:, :rows], task.x[:, rows:], task.y[:, rows:]
        models = {"PFN": lambda x=x, y=y, new=new: posterior.condition(x, y).predict(new)}
        if exact:
            models["exact GP"] = lambda x=x, y=y, new=new: prior.posterior(x, y).predict(new)
        scores = {name: _timed(work) for name, work in models.items()}
        losses = {name: -p.log_prob(truth.to(p.mean)).mean(-1) for name, (p, _) in scores.items()}
        seconds = {name: spent / tasks for name, (_, spent) in scores.items()}
        fits = {} if exact else {"GP, MLE-II": lambda a, b: bv.GP(seed=seed).fit(bv.Data(a, b))}
        if nuts:
            program = prior.program()
            fits["NUTS"] = lambda a, b, program=program: bv.MCMC(
                program, warmup=100, draws=100, chains=1, seed=seed
            ).fit(bv.Data(a, b))
        for name, fit in fits.items():
            with _waiting(f"{name}, {tasks} data sets of {rows} rows"):
                start = time.perf_counter()
                found = [
                    -fit(a, b).predict(c).log_prob(d.to(c)).mean() for a, b, c, d in zip(x, y, new, truth, strict=True)
                ]
                seconds[name] = (time.perf_counter() - start) / tasks
            losses[name] = torch.stack(found).detach()
        for name, loss in losses.items():
            gap = losses["PFN"].double() - loss.double()
            error = gap.std() / tasks**0.5 if tasks > 1 else gap.new_zeros(())
            cells = (
                ["", "1"]
                if name == "PFN"
                else [f"{gap.mean():+.3f} ± {error:.3f}", f"{seconds[name] / seconds['PFN']:,.0f}"]
            )
            lines.append([str(rows), name, f"{loss.mean():.3f}", cells[0], f"{seconds[name]:.2g}", cells[1]])
    columns = ["context rows", "model", "NLL", "PFN minus model", "s / data set", "times slower"]
    return f"{tasks} fresh data sets of {type(prior).__name__} per row, {queries} queries each", columns, lines


if __name__ == "__main__":
    sys.exit(main())
