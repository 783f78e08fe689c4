"""`bayesvision pretrain`: from a recipe to a checkpoint."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from bayesvision.cli.common import FILE, Command, check_output

__all__ = ["pretrain"]


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
def _training_log(path: Path | None, steps: int) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from bayesvision.training.loggers import JsonLines

    parts = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
    ]
    with Progress(*parts, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        if path is None:
            yield _Bar(progress, steps)
            return
        with contextlib.closing(JsonLines(path)) as lines:
            yield _Both(_Bar(progress, steps), lines)


@click.command(cls=Command)
@click.argument("recipe", type=FILE)
@click.option("--out", type=FILE, required=True, help="The checkpoint to write.")
@click.option("--resume", is_flag=True, help="Go on from the state that an earlier run left, if any.")
@click.option("--log", type=FILE, help="Append metrics to this file, one JSON object a line.")
@click.option("--from", "start", type=FILE, help="Go on from the weights of this checkpoint, with a new schedule.")
@click.option("--half", is_flag=True, help="Store the weights in float16.")
def pretrain(recipe: Path, out: Path, resume: bool, log: Path | None, start: Path | None, half: bool) -> None:
    """Train a PFN, LC-PFN, TablePFN or Distribution Transformer on the prior of RECIPE (TOML); works under torchrun."""
    import os
    import shutil

    check_output(out, recipe, log)
    import priors
    from bayesvision.io.recipes import read_recipe

    plan = read_recipe(recipe, priors)
    if start is not None:
        plan.train["start"] = str(start)
    import torch

    import bayesvision as bv

    folder = out.with_name(out.name + ".training")
    if folder.exists() and not resume and "RANK" not in os.environ:  # torchrun's processes would see each other's
        raise ValueError(f"{folder} holds an unfinished run; pass --resume to go on with it, or delete it")
    method = plan.build(checkpoint_dir=str(folder))
    first = int(os.environ.get("RANK", 0)) == 0
    with _training_log(log, method.train.steps) if first else contextlib.nullcontext() as progress:
        posterior = method.fit(plan.prior, progress)
    if first:
        bv.save(posterior, out, torch.float16 if half else None)
        shutil.rmtree(folder, ignore_errors=True)
        cost = posterior.metadata
        seen = " ".join(f"{cost[k]:,} {k}" for k in ("tasks", "curves", "problems") if k in cost)
        click.echo(f"wrote {out}: {cost['parameters']:,} parameters, {seen}")
