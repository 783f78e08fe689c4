"""`bayesvision replay`: what early stopping would have saved on past runs, and what it would have cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from bayesvision.cli.common import FILE, Command, check_files, check_output, show, waiting
from bayesvision.cli.curves.options import LOGS, build_units, check_runs, log_options, named, notice, open_fleet

if TYPE_CHECKING:
    import numpy as np

    from bayesvision.early_stopping.forecasts import RunForecaster
    from bayesvision.early_stopping.replay import Interleaving, Policy, Replay
    from bayesvision.io.log_files import Curve

__all__ = ["replay"]

COLUMNS = 100  # readings of a run, at most
DEFAULTS = {"none": 0.0, "lcpfn": 0.0, "thaw": 3.0, "patience": 5.0, "halving": 3.0, "hyperband": 3.0}
FORECAST = ("lcpfn", "thaw")  # policies that ask a network


class Grid(NamedTuple):
    """Runs as a matrix: values [runs, columns], larger is better, NaN after the end; names; steps a column."""

    values: "np.ndarray"
    names: list[str]
    stride: float


@click.command(cls=Command, short_help="Say what early stopping would have saved.")
@click.argument("runs", type=LOGS)
@click.option("--policy", default="lcpfn,patience,hyperband", show_default=True, help="Policies, comma-separated.")
@click.option(
    "--horizon", type=click.FloatRange(0, min_open=True), help="Last step of a run; the greatest one in RUNS."
)
@log_options
@click.option("--orders", default=40, show_default=True, type=click.IntRange(0), help="Random orders to average over.")
@click.option("--seed", default=0, show_default=True, help="Of the orders.")
@click.option("--plot", type=FILE, help="Draw the regret over the steps spent into this picture (png, pdf or svg).")
def replay(
    runs: Path, policy: str, horizon: float | None, orders: int, seed: int, plot: Path | None, **options: Any
) -> None:
    """Replay the finished runs in RUNS under early stopping: steps spent, share saved, best found, regret.

    The policies are none, lcpfn (stop when the chance to beat the best so far is at most a level learned from the runs
    before), lcpfn:DELTA (at most DELTA), patience:K (stop after K readings without progress, 5), halving:ETA and
    hyperband:ETA (asynchronous, 3), and thaw:ETA (freeze runs at 1/27, 1/9 and 1/3 of the horizon, and go on with
    one of the best third there before a new run begins, 3).
    """
    check_files(runs)
    import numpy as np

    from bayesvision.early_stopping.replay import random_orders
    from bayesvision.io.logs import read_logs
    from bayesvision.io.tensors import replacing
    from bayesvision.plots.curves import regret_lines

    if plot is not None:
        if plot.suffix.lower() not in (".png", ".pdf", ".svg"):
            raise ValueError(f"--plot must end in .png, .pdf or .svg, got {plot.name!r}")
        check_output(plot, runs, options["model"])
    wanted = _parse(policy)
    found, metric, notes = read_logs(runs, named(options), horizon)
    units = build_units(options, metric)
    scale = units.scale(found.values())
    said = units.describe(scale)
    notice(notes)
    horizon = horizon or max(curve.steps[-1] for curve in found.values())
    minimize = scale is not None and scale.minimize
    fleet = (
        open_fleet(options["model"], horizon, scale) if any(kind in FORECAST for kind, _ in wanted.values()) else None
    )
    if fleet is not None:
        check_runs(runs, fleet, found)
    grid = _grid(found, horizon, minimize)
    with waiting(f"{len(grid.names)} runs"):
        policies = {name: _policy(kind, number, fleet, grid) for name, (kind, number) in wanted.items()}
        listed = np.arange(len(grid.names))[None]
        shuffled = random_orders(len(grid.names), orders, seed) if orders else listed
        once, often = (_replay_all(grid, policies, order) for order in (listed, shuffled))
    title = f"{len(grid.names)} runs of {int(_spent(once['none']))} readings, one every {grid.stride:g} steps; {said}"
    _show_once(f"{title}; in the order of the file", metric, grid, once, minimize)
    if orders:
        _show_often(f"mean of {orders} random orders", grid, often)
    if plot is not None:
        regrets = {name: result.regret(_optimum(grid)) for name, result in often.items()}
        with replacing(plot) as temporary:
            regret_lines(regrets, grid.stride, len(shuffled)).savefig(temporary, dpi=150)
        click.echo(f"wrote {plot}")


def _parse(text: str) -> dict[str, tuple[str, float]]:
    """Kind and number of each policy under the name that was given; no stopping comes first, to compare with."""
    wanted = {"none": ("none", 0.0)}
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, _, number = part.partition(":")
        if kind not in DEFAULTS:
            raise ValueError(f"--policy takes {', '.join(DEFAULTS)}, got {part!r}")
        try:
            wanted[part] = kind, float(number) if number else DEFAULTS[kind]
        except ValueError:
            raise ValueError(f"--policy takes a number after the colon, got {part!r}") from None
        if kind != "lcpfn" and not wanted[part][1].is_integer():
            raise ValueError(f"--policy {kind} takes a whole number, got {part!r}")
    return wanted


def _grid(found: "dict[str, Curve]", horizon: float, minimize: bool) -> Grid:
    """The runs on a regular grid of steps: as far apart as most readings, and no more than a hundred."""
    import numpy as np

    found = {name: _by_its_clock(curve, horizon) for name, curve in found.items()}
    gaps = np.concatenate([np.diff([0.0, *curve.steps]) for curve in found.values()])
    kinds, counts = np.unique(gaps.round(9), return_counts=True)
    stride = max(float(kinds[counts.argmax()]), horizon / COLUMNS)
    values = np.full((len(found), int(np.ceil(horizon / stride - 1e-9))), np.nan)
    for row, curve in zip(values, found.values(), strict=True):
        for step, value in zip(*curve.finite, strict=True):
            if step <= horizon:
                row[int(np.ceil(step / stride - 1e-9)) - 1] = -value if minimize else value
    kept = [k for k, row in enumerate(values) if not np.isnan(row).all()]
    names = list(found)
    return Grid(values[kept], [names[k] for k in kept], stride)


def _by_its_clock(curve: "Curve", horizon: float) -> "Curve":
    """The curve of a run counted from where it started."""
    from bayesvision.early_stopping.readings import clocked, origin

    return curve._replace(steps=clocked(curve.steps, origin(curve.steps, horizon), horizon))


def _policy(kind: str, number: float, fleet: "RunForecaster | None", grid: Grid) -> "Policy | Interleaving":
    import numpy as np

    from bayesvision.early_stopping.policies import (
        Chances,
        Forecast,
        Hyperband,
        NoStopping,
        Patience,
        SuccessiveHalving,
    )
    from bayesvision.early_stopping.thawing import Thawing

    if kind in FORECAST:
        assert fleet is not None
        steps = np.minimum(grid.stride * np.arange(1, grid.values.shape[1] + 1), fleet.horizon)
        chances = Chances(fleet.posterior, grid.values, steps)
        if kind == "thaw":
            return Thawing(chances, int(number))
        return Forecast(chances, number, learn=0) if number else Forecast(chances)
    kinds = {"patience": Patience, "halving": SuccessiveHalving, "hyperband": Hyperband}
    return kinds[kind](int(number)) if kind in kinds else NoStopping()


def _replay_all(grid: Grid, policies: "dict[str, Policy | Interleaving]", orders: "np.ndarray") -> "dict[str, Replay]":
    from bayesvision.early_stopping.replay import replay

    return {name: replay(grid.values, policy, orders) for name, policy in policies.items()}


def _optimum(grid: Grid) -> float:
    import numpy as np

    return float(np.nanmax(grid.values))


def _spent(result: "Replay") -> float:
    return float(result.spent.mean())


def _show_once(title: str, metric: str, grid: Grid, results: "dict[str, Replay]", minimize: bool) -> None:
    import numpy as np

    optimum, whole, rows = _optimum(grid), _spent(results["none"]), []
    winner = int(np.nanmax(grid.values, 1).argmax())
    for name, result in results.items():
        found, spent = float(result.found[0]), _spent(result)
        lost = found < optimum
        fate = f"lost at step {result.taken[0, winner] * grid.stride:g}" if lost else "kept"
        stopped = int(result.stopped[0].sum())
        shown = f"{-found if minimize else found:.6g}"
        steps = f"{spent * grid.stride:,.0f}"
        rows.append([name, steps, f"{1 - spent / whole:.1%}", shown, f"{optimum - found:.3g}", str(stopped), fate])
    columns = ["policy", "steps spent", "saved", f"best {metric}", "regret", "runs stopped"]
    show(title, [*columns, f"best run ({grid.names[winner]})"], rows)


def _show_often(title: str, grid: Grid, results: "dict[str, Replay]") -> None:
    optimum, whole, rows = _optimum(grid), _spent(results["none"]), []
    for name, result in results.items():
        spent, regret = _spent(result), optimum - result.found
        lost, stopped = (regret > 0).mean(), result.stopped.sum(1).mean()
        saved = f"{1 - spent / whole:.1%}"
        steps = f"{spent * grid.stride:,.0f}"
        rows.append(
            [name, steps, saved, f"{regret.mean():.3g}", f"{regret.max():.3g}", f"{stopped:.1f}", f"{lost:.0%}"]
        )
    columns = ["policy", "steps spent", "saved", "mean regret", "worst regret", "runs stopped", "best run lost"]
    show(title, columns, rows)
