"""What the commands on training logs share: their options, the metric's units, and how they call a run."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from bayesvision.distributions.metric import MetricScale
    from bayesvision.early_stopping.forecasts import RunForecaster
    from bayesvision.io.log_formats import Names
    from bayesvision.io.logs import Curve

__all__ = ["LOGS", "build_scale", "check_runs", "log_options", "named", "open_fleet", "oriented_best"]

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
    from bayesvision.io.log_formats import Names

    return Names(options["run"], options["step"], options["metric"])


def build_scale(options: dict[str, Any], metric: str) -> "tuple[MetricScale | None, str]":
    """The metric's units, None for one in [0, 1] where larger is better; and which way it gets better, in words.

    Raises:
        ValueError: neither --minimize nor --maximize, and a metric whose name does not tell.
    """
    from bayesvision.distributions.metric import MetricScale
    from bayesvision.early_stopping.directions import ARTICLES, directed, direction

    minimize = options["minimize"]
    told = None if minimize is None else "min" if minimize else "max"
    mode, how = direction(metric, told, None, "--minimize or --maximize")
    said = f"{ARTICLES[mode]} is better, {how}"
    bounds = [options[name] for name in ("lower", "upper", "soft_lower", "soft_upper")]
    if all(bound is None for bound in bounds):
        return directed(None, mode), said
    lower, upper, soft_lower, soft_upper = bounds
    try:
        scale = MetricScale(
            -math.inf if lower is None else lower,
            math.inf if upper is None else upper,
            soft_lower,
            soft_upper,
            mode == "min",
        )
    except ValueError as error:
        raise ValueError(f"--lower, --upper, --soft-lower, --soft-upper: {error}") from None
    return scale, said


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
