"""What the commands on training logs share: their options, the metric's units, and how they call a run."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from bayesvision.distributions.metric import MetricScale
    from bayesvision.early_stopping.directions import Mode
    from bayesvision.early_stopping.forecasts import RunForecaster
    from bayesvision.io.log_columns import Names
    from bayesvision.io.log_files import Curve

__all__ = [
    "LOGS",
    "Units",
    "build_units",
    "check_runs",
    "far_note",
    "log_options",
    "named",
    "notice",
    "open_fleet",
    "oriented_best",
]

LOGS = click.Path(path_type=Path)


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say which columns to read, the metric's units, and the network; the command takes them as a dict."""
    for option in reversed(
        [
            click.option(
                "--run", metavar="NAME", help="Column (or JSON key) that names the run; found out if left out."
            ),
            click.option("--step", metavar="NAME", help="Column (or JSON key) of steps; found out if left out."),
            click.option("--metric", metavar="NAME", help="Column, JSON key or TensorBoard tag of the values."),
            click.option(
                "--minimize/--maximize",
                default=None,
                help="Whether smaller or larger values are better; a well-known name of a metric tells it, too.",
            ),
            click.option("--lower", type=float, help="Least value that the metric can take."),
            click.option("--upper", type=float, help="Greatest value that the metric can take."),
            click.option("--soft-lower", type=float, help="Least value to expect, if it has no least value."),
            click.option("--soft-upper", type=float, help="Greatest value to expect, if it has no greatest value."),
            click.option("--model", default="lcpfn", show_default=True, help="A shipped name or a checkpoint file."),
        ]
    ):
        command = option(command)
    return command


def named(options: dict[str, Any]) -> "Names":
    """The columns to read."""
    from bayesvision.io.log_columns import Names

    return Names(options["run"], options["step"], options["metric"])


class Units(NamedTuple):
    """The direction of a metric, and its bounds as far as they are told.

    Attributes:
        mode: which way it gets better.
        said: the same in words, and how it is known.
        bounds: lower, upper, soft_lower and soft_upper.
    """

    mode: "Mode"
    said: str
    bounds: tuple[float | None, float | None, float | None, float | None]

    def scale(self, curves: "Iterable[Curve]") -> "MetricScale | None":
        """The units: None for a metric in [0, 1]; of a loss what is not told is learned from the first readings.

        Raises:
            ValueError: bounds that make no scale.
        """
        from bayesvision.distributions.metric import MetricScale
        from bayesvision.early_stopping.units import FIRST, learned_scale, start_of

        lower, upper, soft_lower, soft_upper = self.bounds
        if self.mode == "max" and all(bound is None for bound in self.bounds):
            return None
        runs = [values for curve in curves if (values := curve.finite.values)]
        try:
            if self.learns:
                firsts = [start_of(v) for v in runs[:FIRST]] or [1.0]
                return learned_scale(firsts, min(map(min, runs), default=0.0), *self.bounds)
            least, most = -math.inf if lower is None else lower, math.inf if upper is None else upper
            return MetricScale(least, most, soft_lower, soft_upper, self.mode == "min")
        except ValueError as error:
            raise ValueError(f"--lower, --upper, --soft-lower, --soft-upper: {error}") from None

    @property
    def learns(self) -> bool:
        """Whether the runs have to tell where values are expected."""
        lower, upper, soft_lower, soft_upper = self.bounds
        closed = (lower, soft_lower) != (None, None) and (upper, soft_upper) != (None, None)
        return self.mode == "min" and not closed

    def describe(self, scale: "MetricScale | None") -> str:
        """Direction and units in words."""
        if scale is None or not self.learns:
            return self.said
        low, high = scale.soft
        return f"{self.said}; values are expected from {low:.6g} to {high:.6g}, by the first readings"


def build_units(options: dict[str, Any], metric: str) -> Units:
    """The metric's direction and bounds.

    Raises:
        ValueError: neither --minimize nor --maximize, and a metric whose name does not tell.
    """
    from bayesvision.early_stopping.directions import ARTICLES, Mode, direction

    minimize = options["minimize"]
    told: Mode | None = None if minimize is None else "min" if minimize else "max"
    mode, how = direction(metric, told, None, "--minimize or --maximize")
    bounds = tuple(options[name] for name in ("lower", "upper", "soft_lower", "soft_upper"))
    return Units(mode, f"{ARTICLES[mode]} is better, {how}", bounds)


def far_note(curves: "dict[str, Curve]", scale: "MetricScale | None") -> str | None:
    """A word on runs whose latest value lies outside the soft range, or None."""
    from bayesvision.early_stopping.units import beyond

    latest = {name: values[-1:] for name, curve in curves.items() if (values := curve.finite.values)}
    names = [name for name, last in latest.items() if beyond(last, scale)]
    if not names or scale is None:
        return None
    low, high = scale.soft
    some = ", ".join(f"{name} ({latest[name][0]:.6g})" for name in names[:3]) + (", ..." if len(names) > 3 else "")
    return (
        f"beyond the range {low:.6g} to {high:.6g} where values are expected, forecasts are coarse: {some}; "
        "--soft-lower and --soft-upper set it"
    )


def open_fleet(model: str, horizon: float, scale: "MetricScale | None") -> "RunForecaster":
    """Runs under one network, shipped under a name or kept in a file."""
    from bayesvision.early_stopping.forecasts import RunForecaster
    from bayesvision.io.checkpoints import find

    try:
        return RunForecaster(find(model), horizon, scale)
    except ValueError as error:
        raise ValueError(f"--model {model}: {error}") from None


def check_runs(source: Path, fleet: "RunForecaster", curves: "dict[str, Curve]") -> None:
    """Raise a `ValueError` that names the run and the option to set, if one cannot be read."""
    for name, curve in curves.items():
        problem = fleet.problem(curve.finite)
        if problem is not None:
            low = min(v for c in curves.values() for v in c.finite.values)
            high = max(v for c in curves.values() for v in c.finite.values)
            advice = "set a longer --horizon"
            if not problem.startswith("step"):
                least = "--lower 0 " if low >= 0 else f"--soft-lower {low:.4g} "
                advice = (
                    f"all values go from {low:.6g} to {high:.6g}; declare the range, say with {least}--soft-upper "
                    f"{high:.4g}, and with --minimize if smaller is better"
                )
            raise ValueError(f"{source}: run {name!r}: {problem}; {advice}")


def oriented_best(curves: "dict[str, Curve]", minimize: bool) -> tuple[float, str]:
    """The best value of all, and the run that has it."""
    pick = min if minimize else max
    found = {name: pick(curve.finite.values) for name, curve in curves.items() if curve.finite.values}
    if not found:
        raise ValueError("every value is NaN or infinite; there is nothing to predict from")
    name = pick(found, key=lambda run: found[run])
    return found[name], name


def notice(notes: "Iterable[str | None]") -> None:
    """Print what the reader should know beside the answer."""
    for note in filter(None, notes):
        click.echo(f"note: {note}", err=True)
