"""`bayesvision info` and `bayesvision validate`: what a checkpoint is, and how far it is from the exact answer."""

import json
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from bayesvision.cli.common import Command, show, timed, waiting

if TYPE_CHECKING:
    from bayesvision.methods.dt.dt import DTPosterior
    from bayesvision.methods.pfn.pfn import PFNPosterior
    from bayesvision.methods.tables.tables import TablePFNPosterior

__all__ = ["exact_gap", "info", "latent_given", "validate"]

QUERIES = 20  # of each data set that validate draws


@click.command(cls=Command, short_help="List the shipped networks, or show what one is.")
@click.argument("checkpoint", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the header as JSON.")
def info(checkpoint: str | None, as_json: bool) -> None:
    """Show the recipe, prior, training cost and measured gaps of CHECKPOINT (a shipped name or a file).

    Without CHECKPOINT, list the networks that come with the package.
    """
    from bayesvision.io.checkpoints import describe, shipped

    if checkpoint is None:
        show("Shipped networks", ["name", "what it does"], [[name, entry.summary] for name, entry in shipped().items()])
        return
    header = describe(checkpoint)
    if as_json:
        click.echo(json.dumps(header, indent=2))
        return
    metadata = header.get("metadata", {})
    rows = [["method", header["method"]], ["written by", f"bayesvision {header['version']}, format {header['format']}"]]
    for part, values in (
        ("recipe", header.get("recipe", {})),
        ("prior", metadata.get("prior", {})),
        ("metadata", metadata),
    ):
        for name, value in values.items():
            if not isinstance(value, dict | list) or (part != "metadata" and not isinstance(value, dict)):
                rows.append([f"{part}: {name}", str(value)])
    rows += [[f"train: {name}", str(value)] for name, value in header.get("recipe", {}).get("train", {}).items()]
    show(checkpoint, ["", "value"], rows)
    for title, measured in metadata.get("measured", {}).items():
        show(title, list(measured[0]), [[str(v) for v in row.values()] for row in measured])


@click.command(cls=Command, short_help="Compare a network with the exact answer.")
@click.argument("checkpoint")
@click.option(
    "--tasks", default=10, show_default=True, type=click.IntRange(1), help="Fresh data sets per row of the table."
)
@click.option("--features", default=1, show_default=True, type=click.IntRange(1), help="Columns of the data sets.")
@click.option("--rows", help="Context sizes, comma-separated; 10,30 or what the network was trained on by default.")
@click.option("--nuts/--no-nuts", default=True, show_default=True, help="Run NUTS too.")
@click.option("--seed", default=0, show_default=True)
def validate(checkpoint: str, tasks: int, features: int, rows: str | None, nuts: bool, seed: int) -> None:
    """Compare CHECKPOINT with the exact GP and NUTS on fresh data sets of its own prior."""
    import priors
    from bayesvision.io.checkpoints import describe, find
    from bayesvision.io.recipes import build_prior
    from bayesvision.methods.dt.dt import DTPosterior
    from bayesvision.methods.pfn.pfn import PFNPosterior
    from bayesvision.methods.tables.tables import TablePFNPosterior

    posterior = find(checkpoint)
    if isinstance(posterior, DTPosterior):
        most = posterior.method.observations
        sizes = sorted({1, (most + 1) // 2, most}) if rows is None else _sizes(rows, 1)
        show(*_latent_validation(posterior, tasks, sizes, seed))
        return
    if not isinstance(posterior, PFNPosterior | TablePFNPosterior) or posterior.method.classes is not None:
        raise ValueError(f"{checkpoint!r} is not a PFN for regression or a Distribution Transformer")
    sizes = _sizes(rows or "10,30", 2)
    prior = describe(checkpoint).get("metadata", {}).get("prior")
    if not isinstance(prior, dict):
        raise ValueError(f"{checkpoint} does not say which of the package's priors it was trained on")
    prior = build_prior(_comparable(prior, features), priors)
    show(*_validation(posterior, prior, tasks, sizes, nuts, seed))


def _sizes(rows: str, least: int) -> list[int]:
    try:
        sizes = [int(part) for part in rows.split(",")]
    except ValueError:
        raise ValueError(f"--rows takes numbers separated by commas, got {rows!r}") from None
    if min(sizes) < least:
        raise ValueError(f"--rows takes numbers from {least} up, got {rows!r}")
    return sizes


def _latent_validation(
    posterior: "DTPosterior", tasks: int, sizes: list[int], seed: int
) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and rows of the table: log density of theta under the network's posterior and the exact one."""
    from bayesvision.training.seeds import generator

    family: Any = posterior.family
    lines = []
    for rows in sizes:
        problem = family.sample(tasks, rows, generator=generator("cpu", seed, rows))
        told = posterior.with_prior(family.prior_of(problem))
        law, seconds = timed(partial(latent_given, told, problem))
        gap, inside = exact_gap(family, problem, law)
        error = float(gap.std()) / tasks**0.5 if tasks > 1 else 0.0
        lines.append(
            [str(rows), f"{gap.mean():+.4f} ± {error:.4f}", f"{inside.mean():.1%}", f"{1e3 * seconds / tasks:.2g}"]
        )
    columns = ["observations", "exact log density minus the network's", "coverage 90 %", "ms / problem"]
    return f"{tasks} fresh problems of {type(family).__name__} per row", columns, lines


def latent_given(posterior: "DTPosterior", problem: Any) -> Any:
    """The posterior's mixture given the observations of `problem`."""
    x = problem.x.double() if posterior.family.features else None
    return posterior.condition(x, problem.y.double()).latent


def exact_gap(family: Any, problem: Any, law: Any) -> tuple[Any, Any]:
    """Log density of theta under the exact posterior less that under `law`, and whether 90 % intervals hold theta."""
    theta = problem.theta.double()
    low, high = law.interval(0.9)
    return family.log_posterior(problem) - law.log_prob(theta), ((low < theta) & (theta < high)).double()


def _comparable(prior: Any, features: int) -> Any:
    """A prior's description with `features` columns where it draws their number, all of them numbers without holes."""
    if isinstance(prior, list):
        return [_comparable(part, features) for part in prior]
    if not isinstance(prior, dict):
        return prior
    new = {name: _comparable(value, features) for name, value in prior.items()}
    whole = {"holes": 0.0, "categories": 0.0} if "holes" in new else {}  # which no baseline here takes
    return new | whole | ({"features": features} if isinstance(prior.get("features"), list) else {})


def _validation(
    posterior: "PFNPosterior | TablePFNPosterior", prior: Any, tasks: int, sizes: list[int], nuts: bool, seed: int
) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and rows of the table: mean NLL of each model on the same tasks, its gap and its speed ratio."""
    from bayesvision.training.seeds import generator

    lines = []
    for rows in sizes:
        task = prior.sample(tasks, rows + QUERIES, generator=generator("cpu", seed, rows))
        losses, seconds = _batched_losses(posterior, prior, task, rows)
        for name, fit in _fits(prior, nuts, seed).items():
            with waiting(f"{name}, {tasks} data sets of {rows} rows"):
                losses[name], seconds[name] = _single_losses(fit, task, rows)
        for name, loss in losses.items():
            gap = losses["PFN"] - loss
            error = float(gap.std()) / tasks**0.5 if tasks > 1 else 0.0
            shown = "" if name == "PFN" else f"{gap.mean():+.3f} ± {error:.3f}"
            ratio = f"{seconds[name] / seconds['PFN']:,.0f}"
            lines.append([str(rows), name, f"{loss.mean():.3f}", shown, f"{seconds[name] / tasks:.2g}", ratio])
    columns = ["context rows", "model", "NLL", "PFN minus model", "s / data set", "times slower"]
    return f"{tasks} fresh data sets of {type(prior).__name__} per row, {QUERIES} queries each", columns, lines


def _batched_losses(
    posterior: "PFNPosterior | TablePFNPosterior", prior: Any, task: Any, rows: int
) -> tuple[dict[str, Any], dict[str, float]]:
    """Loss of each task, and seconds for all, of the models that answer a whole batch: the PFN, and the exact GP."""
    x, y, new, truth = task.x[:, :rows], task.y[:, :rows], task.x[:, rows:], task.y[:, rows:]
    models = {"PFN": lambda: posterior.condition(x, y).predict(new)}
    if _is_exact(prior):
        models["exact GP"] = lambda: prior.posterior(x, y).predict(new)
    losses, seconds = {}, {}
    for name, work in models.items():
        predictive, seconds[name] = timed(work)
        losses[name] = -predictive.log_prob(truth.to(predictive.mean)).double().mean(-1)
    return losses, seconds


def _is_exact(prior: Any) -> bool:
    return "posterior" in dir(type(prior))


def _fits(prior: Any, nuts: bool, seed: int) -> dict[str, Callable[[Any], Any]]:
    """The models that are fitted to one data set at a time."""
    import bayesvision as bv

    fits: dict[str, Callable[[Any], Any]] = {}
    if not _is_exact(prior):
        fits["GP, MLE-II"] = bv.GP(kernel="matern52", seed=seed).fit
    if nuts:
        from priors.programs.models import PROGRAMS, model

        if type(prior) in PROGRAMS:
            fits["NUTS"] = bv.MCMC(model(prior), warmup=100, draws=100, chains=1, seed=seed).fit
    return fits


def _single_losses(fit: Callable[[Any], Any], task: Any, rows: int) -> tuple[Any, float]:
    """Loss of each task, and seconds for all."""
    import torch

    from bayesvision.core.data import Data

    found, start = [], time.perf_counter()
    for x, y in zip(task.x, task.y, strict=True):
        predictive = fit(Data(x[:rows], y[:rows])).predict(x[rows:])
        found.append(-predictive.log_prob(y[rows:].to(predictive.mean)).double().mean().detach())
    return torch.stack(found), time.perf_counter() - start
