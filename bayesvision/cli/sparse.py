"""`bayesvision sparse`: a sparse Bayesian network from a function that builds a dense one, and arrays."""

import shutil
from pathlib import Path
from typing import Any

import click

from bayesvision.cli.common import (
    FILE,
    Command,
    build_network,
    check_files,
    check_output,
    show,
    training_folder,
    training_log,
)

__all__ = ["sparse"]

MEGA = 2**20


@click.command(cls=Command, short_help="Train a sparse Bayesian copy of a network.")
@click.option("--net", required=True, help="MODULE:FUNCTION that returns a torch module.")
@click.option("--weights", type=FILE, help="Weights to load into it, safetensors.")
@click.option("--trained", is_flag=True, help="Start from the largest of its weights, in place of random places.")
@click.option("--data", type=FILE, required=True, help="Arrays x and y, npz.")
@click.option("--test", type=FILE, help="The same of examples to score.")
@click.option("--out", type=FILE, required=True, help="What was learned, safetensors; without the network.")
@click.option("--density", type=float, default=0.1, show_default=True, help="Share of the weights that are kept.")
@click.option("--classes", type=click.IntRange(2), help="Number of classes, if y holds labels 0, 1, ...")
@click.option("--numbers", is_flag=True, help="Take whole numbers in y for numbers, not labels.")
@click.option("--noise", type=click.Choice(["learned", "output"]), default="learned", show_default=True)
@click.option("--draws", type=click.IntRange(1), default=32, show_default=True, help="Of the weights, to predict.")
@click.option("--steps", type=click.IntRange(1), default=5_000, show_default=True, help="Of training.")
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True, help="Examples of a step.")
@click.option("--lr", type=float, default=2e-3, show_default=True, help="Learning rate.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the state that an earlier run left, if any.")
@click.option("--log", type=FILE, help="Append metrics to this file, one JSON object a line.")
def sparse(net: str, data: Path, out: Path, test: Path | None, log: Path | None, **options: Any) -> None:
    """Train a sparse Bayesian copy of a network, and say what it costs beside the dense one."""
    check_files(data, test, options["weights"])
    check_output(out, data, test, options["weights"], log)
    folder = training_folder(out, options["resume"])
    import bayesvision as bv

    examples = _arrays(data, options["classes"], options["numbers"])
    held = None if test is None else _arrays(test, options["classes"], options["numbers"])
    method = _method(net, folder, options)
    with training_log(log, options["steps"]) as progress:
        posterior = method.fit(examples, progress)
    bv.save(posterior, out)
    shutil.rmtree(folder, ignore_errors=True)
    _report(posterior)
    if held is not None:
        _score(posterior, held)
    click.echo(
        f"wrote {out}: {posterior.density.overall:.1%} of the weights; load it with bayesvision.load(path, net=net)"
    )


def _method(net: str, folder: Path, options: dict[str, Any]) -> Any:
    """The recipe that the options tell."""
    import torch

    import bayesvision as bv

    network = build_network(net, options["weights"])
    if not isinstance(network, torch.nn.Module):
        raise ValueError(f"--net {net} returns a {type(network).__name__}; it must return a torch module")
    settings = {name: options[name] for name in ("steps", "batch", "lr", "seed")}
    return bv.SSVI(
        network,
        density=options["density"],
        draws=options["draws"],
        classes=options["classes"],
        noise=options["noise"],
        initial="trained" if options["trained"] else "random",
        train=bv.Train(**settings, execution=bv.Execution(checkpoint_dir=str(folder))),
    )


def _arrays(path: Path, classes: int | None, numbers: bool) -> Any:
    """The arrays x and y of a file."""
    import zipfile

    import numpy as np

    from bayesvision.core.data import Data

    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in ("x", "y") if name in file.files}
            held = ", ".join(file.files)
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, AttributeError) as error:
        words = "it holds objects" if "bject" in str(error) else str(error)  # numpy would advise to unpickle them
        raise ValueError(f"{path} is no whole npz file of numbers ({words}); np.savez(path, x=x, y=y)") from None
    if len(found) < 2:
        raise ValueError(f"{path} must hold the arrays x and y, and holds {held}; np.savez(path, x=x, y=y)")
    x, y = found["x"], found["y"]
    if classes is None and not numbers and y.dtype.kind in "iub":
        raise ValueError(
            f"{path} holds whole numbers in y; say --classes K if they are labels 0 to K - 1, or --numbers if not"
        )
    return Data(x, y.astype(float) if numbers else y)


def _report(posterior: Any) -> None:
    """What each layer keeps, and its cost beside the dense one."""
    cost = posterior.cost
    rows = [
        [
            part.name,
            f"{part.dense_weights:,}",
            f"{part.kept:,}",
            f"{part.dense_macs:,}",
            f"{part.done_macs:,}",
            f"{part.dense_training_bytes / MEGA:.2f}",
            f"{part.training_bytes / MEGA:.2f}",
        ]
        for part in (*cost.layers, cost.total)
    ]
    heads = ["layer", "weights", "kept", "dense MACs", "sparse", "dense MB", "sparse"]
    show("Dense against sparse: multiply-adds of an input, memory of training", heads, rows)
    share, asked = posterior.density.overall, posterior.method.density
    if share > 1.1 * asked:
        click.echo(f"every output keeps at least one weight, so {share:.1%} are kept and not {asked:.1%}")


def _score(posterior: Any, held: Any) -> None:
    import torch

    from bayesvision import metrics

    with torch.no_grad():
        law = posterior.predict(held.x)
        y = held.y.squeeze(-1) if held.y.shape == (*law.batch_shape, 1) else held.y
        if posterior.method.classes:
            first, name = f"{float(metrics.accuracy(law, y)):.2%}", "accuracy"
        else:
            first, name = f"{float(metrics.rmse(law, y)):.4g}", "RMSE"
    click.echo(f"of {len(held.y):,} test examples: {name} {first}, NLL {float(metrics.nll(law, y)):.4f}")
