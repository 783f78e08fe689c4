"""`bayesvision pretrain`: from a recipe to a checkpoint."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from bayesvision.cli.common import FILE, Command, build_prior, check_output, construct

__all__ = ["pretrain", "read_recipe"]


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


METHODS = {"pfn": "PFN", "lcpfn": "LCPFN"}  # the section of a recipe -> the method whose fields it holds


def read_recipe(path: Path) -> tuple[Any, str, dict[str, Any], dict[str, Any]]:
    """The prior, the section of the method, and the fields of the method and of its training."""
    import tomllib

    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    sections = {"prior", "train", *METHODS}
    chosen = [name for name in METHODS if name in recipe]
    if "prior" not in recipe or set(recipe) - sections or len(chosen) > 1:
        raise ValueError(
            f"{path}: a recipe has the sections [prior], [pfn] or [lcpfn], and [train], "
            f"got {', '.join(recipe) or 'none'}"
        )
    for name in sections & set(recipe):
        if not isinstance(recipe[name], dict):
            raise ValueError(f"{path}: {name} must be a section [{name}], got {recipe[name]!r}")
    method = chosen[0] if chosen else "pfn"
    return build_prior(recipe["prior"]), method, recipe.get(method, {}), recipe.get("train", {})


@click.command(cls=Command)
@click.argument("recipe", type=FILE)
@click.option("--out", type=FILE, required=True, help="The checkpoint to write.")
@click.option("--resume", is_flag=True, help="Go on from the state that an earlier run left, if any.")
@click.option("--log", type=FILE, help="Append metrics to this file, one JSON object a line.")
@click.option("--half", is_flag=True, help="Store the weights in float16.")
def pretrain(recipe: Path, out: Path, resume: bool, log: Path | None, half: bool) -> None:
    """Train a PFN or an LC-PFN on the prior of RECIPE (TOML); works under torchrun as well."""
    import os
    import shutil

    check_output(out, recipe, log)
    prior, section, fields, training = read_recipe(recipe)
    if "folder" in training:
        raise ValueError(f"{recipe}: [train] must not name a folder; the training state is kept beside --out")
    import torch

    import bayesvision as bv

    folder = out.with_name(out.name + ".training")
    if folder.exists() and not resume and "RANK" not in os.environ:  # torchrun's processes would see each other's
        raise ValueError(f"{folder} holds an unfinished run; pass --resume to go on with it, or delete it")
    train = construct(bv.Train, {"folder": str(folder), **training}, "[train]")
    method = construct(getattr(bv, METHODS[section]), {**fields, "train": train}, f"[{section}]")
    first = int(os.environ.get("RANK", 0)) == 0
    with _training_log(log, train.steps) if first else contextlib.nullcontext() as progress:
        posterior = method.fit(prior, progress)
    if first:
        bv.save(posterior, out, torch.float16 if half else None)
        shutil.rmtree(folder, ignore_errors=True)
        seen = " ".join(f"{posterior.metadata[k]:,} {k}" for k in ("tasks", "curves") if k in posterior.metadata)
        click.echo(f"wrote {out}: {posterior.metadata['parameters']:,} parameters, {seen}")
