"""`bayesvision cap`: maps of the uncertainty around a network that restores images."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from bayesvision.cli.common import Command, build_network, check_files, import_named, show, waiting

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["cap"]

KINDS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
FAMILIES = ("generalized", "gaussian", "laplace", "student")
HELD = 0.2  # fraction of the images to calibrate on
LEAST = 10  # images from which on some are held out


class Example(NamedTuple):
    """A name, what goes into the network and what should come out, [channels, height, width] in 0..1."""

    name: str
    x: "Tensor"
    y: "Tensor"


@click.command(cls=Command, short_help="Draw uncertainty maps around a frozen network.")
@click.option("--net", required=True, help="MODULE:FUNCTION that returns a torch module or a callable.")
@click.option("--weights", type=click.Path(dir_okay=False, path_type=Path), help="Weights to load, safetensors.")
@click.option("--data", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of images.")
@click.option("--degrade", help="MODULE:FUNCTION from a batch of images to what the network is given.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the maps.")
@click.option(
    "--cap", "known", type=click.Path(dir_okay=False, path_type=Path), help="A saved cap; nothing is trained then."
)
@click.option("--family", default="student", show_default=True, type=click.Choice(FAMILIES), help="Of the law.")
@click.option("--reads", default="output,input", show_default=True, help="What the cap reads, comma-separated.")
@click.option("--steps", default=1000, show_default=True, type=click.IntRange(1), help="Optimiser steps.")
@click.option("--crop", default=64, show_default=True, type=click.IntRange(2), help="Side of the training squares.")
@click.option("--seed", default=0, show_default=True, help="Of the training.")
def cap(net: str, data: Path, out: Path, degrade: str | None, known: Path | None, **options: Any) -> None:
    """Train a cap around a frozen network, and write the uncertainty of its answer to every image.

    DATA holds images, which are the targets; the network is given what --degrade makes of them, or the images
    themselves. Or it holds the folders input and target with images of the same names. Of ten images or more a fifth is
    held out to calibrate. OUT receives NAME.png (input, output, error, standard deviation), NAME.npy (the standard
    deviation, [channels, height, width]) and cap.safetensors.
    """
    check_files(data, known, options["weights"])
    import torch

    from bayesvision.io.checkpoints import load, save
    from bayesvision.methods.bayescap.bayescap import BayesCap
    from bayesvision.methods.bayescap.cap import Cap
    from bayesvision.training.train import Train

    if out.resolve() in [(data / part).resolve() for part in (".", "input", "target")]:
        raise ValueError(f"--out {out} is where the images are, and would be overwritten; name another folder")
    network = build_network(net, options["weights"])
    examples = _examples(data, degrade)
    reads = tuple(part.strip() for part in options["reads"].split(","))
    train = Train(steps=options["steps"], batch=8, lr=2e-3, seed=options["seed"])
    recipe = BayesCap(network, options["family"], reads, crop=options["crop"], train=train)
    if known is not None:
        saved = load(known)
        if not isinstance(saved, Cap):
            raise ValueError(f"{known} holds no cap but a {type(saved).__name__}")
        if saved.kind.form != "maps" or saved.method.classes:
            raise ValueError(f"{known} is a cap of other outputs than images")
        posterior = recipe.wrap(saved)
    else:
        held = examples[:: round(1 / HELD)] if len(examples) >= LEAST else []
        taken = [e for e in examples if not any(e is h for h in held)]
        with waiting(f"{len(taken)} images, {train.steps} steps"):
            posterior: Any = recipe.fit(_batches(taken), _batches(held) if held else None)
    posterior.cpu()  # where pictures and arrays are made
    out.mkdir(parents=True, exist_ok=True)
    if known is None:
        save(posterior.cap, out / "cap.safetensors")
    with waiting(f"{len(examples)} maps"), torch.no_grad():
        rows = [_write(posterior, example, out) for example in examples]
    show(f"{len(rows)} images", ["image", "rmse", "mean deviation", "coverage 90 %", "strangeness"], rows)
    click.echo(f"wrote {out}")


def _examples(folder: Path, degrade: str | None) -> list[Example]:
    inputs, targets = folder / "input", folder / "target"
    split = inputs.is_dir() and targets.is_dir()
    if split and degrade is not None:
        raise ValueError(f"--degrade makes the inputs, and {inputs} holds some; leave one out")
    paths = sorted(p for p in (targets if split else folder).iterdir() if p.suffix.lower() in KINDS)
    if not paths:
        raise ValueError(f"{targets if split else folder} holds no images ({', '.join(KINDS)})")
    twice = {p.stem for p in paths if sum(q.stem == p.stem for q in paths) > 1}
    if twice:
        raise ValueError(f"images must have different names, got several of {', '.join(sorted(twice))}")
    make, examples = None if degrade is None else import_named(degrade, "--degrade"), []
    for path in paths:
        y = _read(path)
        if split:
            partner = [p for p in inputs.iterdir() if p.stem == path.stem and p.suffix.lower() in KINDS]
            if not partner:
                raise ValueError(f"{inputs} holds no image named {path.stem}")
            x = _read(partner[0])
        else:
            x = y if make is None else make(y.unsqueeze(0))[0]
        examples.append(Example(path.stem, x, y))
    return examples


def _read(path: Path) -> "Tensor":
    """An image [channels, height, width] in 0..1, its size even."""
    import numpy as np
    import torch
    from PIL import Image

    try:
        with Image.open(path) as image:
            deep = image.mode.startswith("I")
            pixels = np.array(image if deep else image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except OSError as error:
        raise ValueError(f"{path}: {error}") from None
    value = torch.from_numpy(pixels.astype(np.float32)) / (65_535 if deep else 255)
    value = value.unsqueeze(0) if value.ndim == 2 else value.movedim(-1, 0)
    return value[:, : value.shape[1] // 2 * 2, : value.shape[2] // 2 * 2].contiguous()


def _batches(examples: list[Example]) -> "list[tuple[Tensor, Tensor]]":
    return [(e.x.unsqueeze(0), e.y.unsqueeze(0)) for e in examples]


def _write(posterior: Any, example: Example, out: Path) -> list[str]:
    """The picture and the map of one image, and its row of the table."""
    import numpy as np

    from bayesvision import metrics, plots
    from bayesvision.io.tensors import replacing

    alone = _first(posterior.predict(example.x.unsqueeze(0)))
    with replacing(out / f"{example.name}.png") as temporary:
        plots.uncertainty_maps(alone, example.x, example.y).savefig(temporary, dpi=110)
    with replacing(out / f"{example.name}.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, alone.stddev.float().numpy(), allow_pickle=False)
    scores = [metrics.rmse(alone, example.y), metrics.sharpness(alone)]
    strange = float(posterior.ood_score(example.x.unsqueeze(0))[0])
    inside = float(metrics.coverage(alone, example.y))
    return [example.name, *(f"{float(v):.4g}" for v in scores), f"{inside:.1%}", f"{strange:.2f}"]


def _first(law: Any) -> Any:
    """The distribution of the first image of a batch."""
    from bayesvision.distributions import Mixture
    from bayesvision.distributions.base import reshaped

    if isinstance(law, Mixture):
        return Mixture.of(_first(law.component_distribution))
    return reshaped(law, lambda v: v[0])
