"""`bayesvision curves`: where the runs of a log are heading, and which of them to stop."""

import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from bayesvision.cli.common import FILE, Command, check_files, check_output, show, waiting
from bayesvision.cli.curves.options import (
    LOGS,
    build_units,
    check_runs,
    far_note,
    log_options,
    named,
    notice,
    open_fleet,
    oriented_best,
)

if TYPE_CHECKING:
    from bayesvision.early_stopping.forecasts import Final, RunForecaster
    from bayesvision.io.log_files import Curve
    from bayesvision.plots.curves import Panel

__all__ = ["curves"]

LEAST = 2  # readings before a run is stopped
PICTURES = 12


class Outcome(NamedTuple):
    """What is said of a run; `chance` is None where it is settled, `final` where there is nothing to predict from."""

    call: str
    chance: float | None
    final: "Final | None"


@click.command(cls=Command, short_help="Say where training runs are heading.")
@click.argument("runs", type=LOGS)
@click.option(
    "--horizon", type=click.FloatRange(0, min_open=True), help="Last step of a run; the greatest one in RUNS."
)
@log_options
@click.option(
    "--delta", type=click.FloatRange(0, 1, True, True), default=0.05, show_default=True, help="Stop at this chance."
)
@click.option(
    "--mass", type=click.FloatRange(0, 1, True, True), default=0.9, show_default=True, help="Of the interval."
)
@click.option("--out", type=FILE, help="Write the table as CSV.")
@click.option("--plot", type=FILE, help="Draw the twelve most promising runs into this picture (png, pdf or svg).")
def curves(
    runs: Path,
    horizon: float | None,
    delta: float,
    mass: float,
    out: Path | None,
    plot: Path | None,
    **options: Any,
) -> None:
    """Predict where the runs in RUNS are heading: final value, interval, chance to beat the best, stop or go.

    RUNS is a CSV or JSON-lines file, a TensorBoard file, or a folder of them. A CSV file has columns for run, step and
    value, or a column of steps and one column a run.
    """
    check_files(runs)
    from bayesvision.io.logs import read_logs
    from bayesvision.io.tensors import replacing
    from bayesvision.plots.curves import curve_grid

    if plot is not None and plot.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--plot must end in .png, .pdf or .svg, got {plot.name!r}")
    for path in filter(None, (out, plot)):
        check_output(path, runs, options["model"], plot if path is out else out)
    found, metric, notes = read_logs(runs, named(options), horizon)
    units = build_units(options, metric)
    scale = units.scale(found.values())
    horizon = horizon or _greatest_step(runs, found)
    fleet = open_fleet(options["model"], horizon, scale)
    check_runs(runs, fleet, found)
    best, holder = oriented_best(found, fleet.minimize)
    with waiting(f"{len(found)} runs"):
        outcomes = _judge(fleet, found, best, delta, mass)
    ranked = _ranked(outcomes, fleet.minimize)
    notice([*notes, far_note(found, scale)])
    said = units.describe(scale)
    title = f"{len(found)} runs, horizon {horizon:g}, best {metric} so far {best:.6g} ({holder}); {said}"
    _show(title, ranked, found, outcomes, mass)
    with contextlib.ExitStack() as files:
        if out is not None:
            _write(files, out, ranked, found, outcomes, mass)
        if plot is not None:
            picture = curve_grid(fleet, _panels(ranked[:PICTURES], found, outcomes), best, metric)
            picture.savefig(files.enter_context(replacing(plot)), dpi=150)
    for path in filter(None, (out, plot)):
        click.echo(f"wrote {path}")


def _greatest_step(runs: Path, found: "dict[str, Curve]") -> float:
    last = [curve.steps[-1] for curve in found.values()]
    if min(last) == max(last):
        raise ValueError(f"{runs}: every run ends at step {max(last):g}; say where they are heading with --horizon")
    return max(last)


def _judge(
    fleet: "RunForecaster", found: "dict[str, Curve]", best: float, delta: float, mass: float
) -> dict[str, Outcome]:
    """What is said of every run."""
    from bayesvision.early_stopping.forecasts import Final

    finite = {name: curve.finite for name, curve in found.items()}
    settled, open_runs = {}, []
    for name, curve in found.items():
        if curve.diverged:
            settled[name] = Outcome("stop (diverged)", None, None)
        elif curve.steps[-1] >= fleet.horizon:
            value = curve.values[-1]
            settled[name] = Outcome("done", None, Final(value, value, value))
        else:
            open_runs.append(name)
    fleet.read({name: finite[name] for name in open_runs})
    chances, finals = fleet.chances(open_runs, best), fleet.finals(open_runs, mass)
    for name in open_runs:
        stop = chances[name] <= delta and len(finite[name].steps) >= LEAST
        settled[name] = Outcome("stop" if stop else "go", chances[name], finals[name])
    return {name: settled[name] for name in found}


def _ranked(outcomes: dict[str, Outcome], minimize: bool) -> list[str]:
    """Names of the runs, the best prediction first and the diverged ones last."""

    def key(name: str) -> float:
        final = outcomes[name].final
        return math.inf if final is None else final.median if minimize else -final.median

    return sorted(outcomes, key=key)


def _show(title: str, ranked: list[str], found: "dict[str, Curve]", outcomes: dict[str, Outcome], mass: float) -> None:
    lines = []
    for name in ranked:
        (call, chance, final), curve = outcomes[name], found[name]
        predicted = ["", ""] if final is None else [f"{final.median:.4g}", f"{final.lower:.4g} to {final.upper:.4g}"]
        if call == "done":
            predicted[1] = ""
        shown = "" if chance is None else f"{chance:.3f}"
        lines.append([name, f"{curve.steps[-1]:g}", f"{curve.values[-1]:.4g}", *predicted, shown, call])
    columns = ["run", "step", "last", "predicted final", f"{mass:.0%} interval", "P(beats best)", "call"]
    show(title, columns, lines)


def _write(
    files: contextlib.ExitStack,
    out: Path,
    ranked: list[str],
    found: "dict[str, Curve]",
    outcomes: dict[str, Outcome],
    mass: float,
) -> None:
    import numpy as np

    from bayesvision.early_stopping.forecasts import Final
    from bayesvision.io.tables import write_csv
    from bayesvision.io.tensors import replacing

    finals = np.array([outcomes[name].final or Final(math.nan, math.nan, math.nan) for name in ranked])
    chances = [outcomes[name].chance for name in ranked]
    columns = {
        "run": np.array(ranked),
        "step": np.array([found[name].steps[-1] for name in ranked]),
        "last": np.array([found[name].values[-1] for name in ranked]),
        "predicted_final": finals[:, 0],
        f"lower_{mass:g}": finals[:, 1],
        f"upper_{mass:g}": finals[:, 2],
        "p_beats_best": np.array([math.nan if chance is None else chance for chance in chances]),
        "call": np.array([outcomes[name].call for name in ranked]),
    }
    write_csv(files.enter_context(replacing(out)), columns)


def _panels(names: list[str], found: "dict[str, Curve]", outcomes: dict[str, Outcome]) -> "list[Panel]":
    from bayesvision.plots.curves import Panel

    panels = []
    for name in names:
        call, chance, _ = outcomes[name]
        said = call if chance is None else f"{call}, P(beats best) = {chance:.2f}"
        panels.append(Panel(name, found[name].finite, said, chance is not None))
    return panels
