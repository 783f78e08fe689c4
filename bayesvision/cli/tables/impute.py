"""`bayesvision impute`: the holes of a table, filled in."""

from pathlib import Path
from typing import Any

import click

from bayesvision.cli.common import FILE, Command, check_files, check_output, show, training_log
from bayesvision.cli.tables.predict import kinds_of

__all__ = ["impute"]

SHOWN = 12  # columns in the table that is printed


@click.command(cls=Command, short_help="Fill in the missing cells of a table.")
@click.argument("table", type=FILE)
@click.option("--out", type=FILE, required=True, help="The table without holes (CSV).")
@click.option("--cells", type=FILE, help="Every filled cell with its probability; OUT.cells.csv when left out.")
@click.option("--plot", type=FILE, help="A picture of the holes and of how sure each is.")
@click.option("--model", type=FILE, help="Save what was learned, for other rows of the same table.")
@click.option("--kind", "kinds", multiple=True, metavar="COLUMN=KIND", help="number, category, date or dropped.")
@click.option("--steps", type=int, default=500, show_default=True, help="Of training.")
@click.option("--seed", type=int, default=0, show_default=True)
def impute(
    table: Path,
    out: Path,
    cells: Path | None,
    plot: Path | None,
    model: Path | None,
    kinds: tuple[str, ...],
    steps: int,
    seed: int,
) -> None:
    """Fill in the missing cells of TABLE (CSV) by a Boltzmann machine that learns from those that are there."""
    cells = out.with_name(out.stem + ".cells.csv") if cells is None else cells
    check_files(table)
    for path in (out, cells, plot, model):
        if path is not None:
            check_output(path, table)
    told = kinds_of(kinds)
    import bayesvision as bv
    from bayesvision.io.tables import read_table, write_csv

    frame = read_table(table)
    if not frame.isna().to_numpy().any():
        raise ValueError(f"{table} has no missing cell")
    method = bv.MDBM(kinds=tuple(told.items()), train=bv.Train(steps=steps, batch=128, lr=1e-2, seed=seed))
    with training_log(None, steps) as log:
        posterior = method.fit(frame, log)
    done = posterior.impute(frame)
    write_csv(out, {str(name): done.filled[name].tolist() for name in done.filled.columns})
    filled = _filled(done)
    write_csv(cells, filled)
    if model is not None:
        bv.save(posterior, model)
    if plot is not None:
        from bayesvision.plots import holes

        figure: Any = holes(done).figure
        figure.savefig(plot, bbox_inches="tight", dpi=150)
    _report(frame, done)
    click.echo(f"wrote {out} and {cells}: {len(filled['row'])} cells filled")


def _filled(done: Any) -> dict[str, list[Any]]:
    """Row (from 1), column, value and probability of every cell that was filled; bounds of nine tenths for numbers."""
    found: dict[str, list[Any]] = {key: [] for key in ("row", "column", "value", "probability", "low", "high")}
    for k, name in enumerate(done.coding.names):
        law = done.column(name)
        bounds = law.interval(0.9) if hasattr(law, "interval") else None
        for row in done.holes[:, k].nonzero().flatten().tolist():
            found["row"].append(row + 1)
            found["column"].append(name)
            found["value"].append(done.filled[name].iloc[row])
            found["probability"].append(round(float(done.chance[row, k]), 6))
            found["low"].append("" if bounds is None else float(bounds[0][row]))
            found["high"].append("" if bounds is None else float(bounds[1][row]))
    return found


def _report(frame: Any, done: Any) -> None:
    kept, rows = dict(zip(done.coding.names, range(len(done.coding.names)), strict=True)), []
    for column in done.coding.columns.columns[:SHOWN]:
        missing = int(frame[column.name].isna().sum())
        if column.name not in kept:
            rows.append([column.name, "left as it is", str(missing), "", column.why])
            continue
        k = kept[column.name]
        chance = done.chance[:, k][done.holes[:, k]]
        sure = f"{float(chance.mean()):.2f}" if len(chance) else ""
        rows.append([column.name, column.kind, str(missing), sure, column.summary])
    show("Columns", ["column", "taken for", "missing", "mean probability", ""], rows)
