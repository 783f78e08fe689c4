"""`bayesvision pretrain`: from a recipe to a checkpoint."""

import contextlib
from pathlib import Path

import click

from bayesvision.cli.common import FILE, Command, check_files, check_output, training_folder, training_log

__all__ = ["pretrain"]


@click.command(cls=Command, short_help="Train a network on the prior of a recipe.")
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

    check_files(recipe, start)
    check_output(out, recipe, log)
    import priors
    from bayesvision.io.recipes import read_recipe

    plan = read_recipe(recipe, priors)
    if start is not None:
        plan.train["start"] = str(start)
    import torch

    import bayesvision as bv

    folder = training_folder(out, resume or "RANK" in os.environ)  # torchrun's processes would see each other's
    method = plan.build(checkpoint_dir=str(folder))
    first = int(os.environ.get("RANK", 0)) == 0
    with training_log(log, method.train.steps) if first else contextlib.nullcontext() as progress:
        posterior = method.fit(plan.prior, progress)
    if first:
        bv.save(posterior, out, torch.float16 if half else None)
        shutil.rmtree(folder, ignore_errors=True)
        cost = posterior.metadata
        seen = " ".join(f"{cost[k]:,} {k}" for k in ("tasks", "curves", "problems") if k in cost)
        click.echo(f"wrote {out}: {cost['parameters']:,} parameters, {seen}")
