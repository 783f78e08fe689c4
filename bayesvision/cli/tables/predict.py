"""`bayesvision predict`: from a table to predictions, a picture and a comparison."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bayesvision.cli.common import FILE, Command, check_files, check_output, show, timed, waiting
from bayesvision.cli.tables.answers import Results, draw, report, write
from bayesvision.cli.tables.question import Question, read_question

if TYPE_CHECKING:
    from bayesvision.core.columns import Columns

__all__ = ["kinds_of", "predict"]

AUTO = "pfn-table or pfn-classes"
SHOWN = 25  # columns of the table that says what each was taken for


@click.command(cls=Command, short_help="Predict a column of a table, with intervals.")
@click.argument("train", type=FILE)
@click.option("--target", required=True, help="Column of TRAIN to predict.")
@click.option("--test", type=FILE, help="Rows to predict; without it a fifth of TRAIN is held out.")
@click.option("--out", type=FILE, help="Write the prediction of every row as CSV.")
@click.option("--plot", type=FILE, help="Draw the predictions into this picture (png, pdf or svg).")
@click.option("--model", help=f"A shipped name or a checkpoint file.  [default: {AUTO}, by the target]")
@click.option("--compare", default="", metavar="NAMES", help="Also fit these: mean, gp, nuts, linear, trees.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    metavar="COLUMN=KIND",
    help="Take a column for a number, category or date, or leave it out (dropped).",
)
@click.option(
    "--mass", type=click.FloatRange(0, 1, True, True), default=0.9, show_default=True, help="Of the interval."
)
@click.option("--strict", is_flag=True, help="Refuse a table larger than those the model was trained for.")
@click.option("--seed", default=0, show_default=True, help="Of the hold-out and the baselines.")
@click.option("--subsample", is_flag=True, hidden=True)
@click.option("--keep-duplicates", is_flag=True, hidden=True)
def predict(
    train: Path,
    target: str,
    test: Path | None,
    out: Path | None,
    plot: Path | None,
    model: str | None,
    compare: str,
    kinds: tuple[str, ...],
    mass: float,
    strict: bool,
    seed: int,
    subsample: bool,
    keep_duplicates: bool,
) -> None:
    """Predict the column --target of new rows from the rows of TRAIN (CSV, TSV or Parquet).

    Columns may hold numbers, text, dates and holes. A target of text, of truth values or of at most ten different whole
    numbers is predicted as classes, any other as a number.
    """
    from bayesvision.cli.tables.compare import BASELINES, baseline

    names = _baselines(compare)
    if plot is not None and plot.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--plot must end in .png, .pdf or .svg, got {plot.name!r}")
    check_files(train, test)
    for path in filter(None, (out, plot)):
        check_output(path, train, test, model, plot if path is out else out)
    wanted = kinds_of(kinds)
    posterior = None if model is None else _open(model)
    question = read_question(train, target, test, wanted.pop(target, None), posterior, seed)
    posterior = posterior or _open("pfn-classes" if question.labels else "pfn-table")
    columns = _columns(train, question, wanted, posterior)
    if strict:
        _refuse_large(train, posterior, len(question.y), len(columns.kept))

    results: Results = {}
    with waiting("PFN"):
        results["PFN"] = timed(lambda: _ask(posterior, columns, question, seed))
    asked = question.seen, question.y, question.new, len(question.labels)
    for name in names:
        with waiting(BASELINES[name]):
            results[BASELINES[name]] = timed(lambda name=name: baseline(name, columns, *asked, seed))
    report(results, question, mass)
    with contextlib.ExitStack() as files:  # nothing appears under its final name unless everything was written
        if out is not None:
            write(files, out, results["PFN"][0], question, mass)
        if plot is not None:
            draw(files, plot, results, posterior, columns, question, train.name)
    for path in filter(None, (out, plot)):
        click.echo(f"wrote {path}")


def _baselines(compare: str) -> list[str]:
    from bayesvision.cli.tables.compare import BASELINES

    names = [name.strip() for name in compare.split(",") if name.strip()]
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        raise ValueError(f"--compare takes {', '.join(BASELINES)}, got {', '.join(unknown)}")
    return names


def kinds_of(given: tuple[str, ...]) -> dict[str, str]:
    """Kinds of columns, each given as COLUMN=KIND."""
    for entry in given:
        if "=" not in entry:
            raise ValueError(f"--kind takes COLUMN=KIND, such as zip=category, got {entry!r}")
    return dict(entry.rsplit("=", 1) for entry in given)


def _open(model: str) -> Any:
    """A PFN or a network for tables, shipped under a name or kept in a file; rows in the file are left out."""
    from bayesvision.io.checkpoints import find
    from bayesvision.methods.pfn.pfn import PFNPosterior
    from bayesvision.methods.tables.tables import TablePFNPosterior

    posterior = find(model)
    if not isinstance(posterior, PFNPosterior | TablePFNPosterior):
        raise ValueError(f"{model!r} is not a network for tables: a PFN or a TablePFN")
    return posterior


def _columns(train: Path, question: Question, kinds: dict[str, str], posterior: Any) -> "Columns":
    """What every column was taken for, printed; refused where the network takes numbers alone."""
    from bayesvision.core.columns import Columns
    from bayesvision.methods.tables.tables import TablePFNPosterior

    try:
        columns = Columns.of(question.seen, kinds)
        columns.encode(question.new)
    except ValueError as error:
        raise ValueError(f"{train}: {error}") from None
    rows = [[c.name, c.kind, c.summary] for c in columns.columns]
    if len(rows) > SHOWN:
        rows = [*rows[:SHOWN], ["...", f"{len(rows) - SHOWN} more", ""]]
    if any(c.kind != "number" or c.why for c in columns.columns) or kinds:
        show("columns", ["column", "taken for", ""], rows)
    if not isinstance(posterior, TablePFNPosterior):
        _check_numbers(train, question, columns)
    return columns


def _check_numbers(train: Path, question: Question, columns: "Columns") -> None:
    """Refuse what a plain PFN cannot read: text and holes."""
    import numpy as np

    for frame in (question.seen, question.new):
        x = columns.encode(frame)
        for k, column in enumerate(columns.kept):
            holes = np.flatnonzero(np.isnan(x[:, k]))
            if column.kind == "category" or len(holes):
                what = "text" if column.kind == "category" else "a missing value"
                line = f"{frame.index.name} {frame.index[holes[0]]}, " if len(holes) else ""
                raise ValueError(
                    f"{train}: {line}column {column.name!r} holds {what}, and the model takes numbers without holes; "
                    "leave --model out for a network that takes them"
                )


def _refuse_large(train: Path, posterior: Any, rows: int, columns: int) -> None:
    most = getattr(posterior.method, "features", None) or posterior.method.columns
    for count, limit, what in ((rows, posterior.method.context, "rows"), (columns, most, "columns")):
        if count > limit:
            raise ValueError(
                f"{train}: {count} {what} to learn from, and the model was trained for at most {limit}; leave --strict "
                "out to use what it can, or pretrain a larger one"
            )


def _ask(posterior: Any, columns: "Columns", question: Question, seed: int) -> Any:
    """The network's prediction, and one line on what it rests on."""
    import numpy as np

    from bayesvision.distributions import Categorical
    from bayesvision.methods.tables.tables import TablePFNPosterior

    if isinstance(posterior, TablePFNPosterior):
        seen = posterior.with_columns(columns).condition(question.seen, question.y)
        if seen.contexts is not None or seen.kept is not None:
            click.echo(f"PFN: {seen.summary}")
        return seen.predict(question.new)
    x, y, limit = columns.encode(question.seen), question.y, posterior.method.context
    if len(y) > limit:
        kept = np.random.default_rng(seed).permutation(len(y))[:limit]
        x, y = x[kept], y[kept]
        click.echo(f"PFN: a random {limit} of the {len(question.y)} rows, as the model was trained for")
    law = posterior.condition(x, y).predict(columns.encode(question.new))
    if question.labels:  # of the classes that the network knows, those of this table
        law = Categorical(logits=law.logits[..., : len(question.labels)])
    return law
