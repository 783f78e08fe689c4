"""JPEG CIFAR-10 (a compressed copy of 20,000 and 5,000 images): a small CNN, sparse, dense and deterministic.

Three convolutions of 32, 64 and 64 channels and a linear layer, flipped at random, one core. On an accelerator give
more --steps. Results of each model are kept under build/ssvi-cifar and not made again.
"""

import argparse
import io
import itertools
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor, nn

import bayesvision as bv
from bayesvision.distributions import Categorical
from bayesvision.training.batches import Examples, Minibatches
from benchmarks.common import DATA, data_folder, kept, write

BUILD, BATCH, LR = Path("build/ssvi-cifar"), 64, 2e-3
MODELS: dict[str, dict[str, Any] | None] = {
    "deterministic": None,
    "dense VI": {"density": 1.0},
    "SSVI 0.1, uniform": {"density": 0.1, "allocation": "uniform"},
    "SSVI 0.1, erk": {"density": 0.1},
    "SSVI 0.05, uniform": {"density": 0.05, "allocation": "uniform"},
    "SSVI 0.05, erk": {"density": 0.05},
}


def images(path: Path) -> tuple[Tensor, Tensor]:
    """Images [n, 3, 32, 32] from 0 to 1, and labels."""
    with np.load(path) as file:
        stream, offsets, y = file["jpeg"], file["offsets"], file["y"]
    found = np.stack([
        np.asarray(Image.open(io.BytesIO(stream[a:b].tobytes())).convert("RGB"))
        for a, b in itertools.pairwise(offsets)
    ])  # fmt: skip
    return torch.from_numpy(found).movedim(-1, 1).float().div(255).contiguous(), torch.from_numpy(y).long()


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 64)):
        parts += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(64 * 16, 10))


def flipped(x: Tensor, source: Generator) -> Tensor:
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=source) < 0.5, x, x.flip(-1))


def plain(x: Tensor, y: Tensor, train: bv.Train) -> nn.Module:
    net, examples = network(train.seed), Examples()
    examples.add(x, y)
    batches = Minibatches(examples, train, torch.device("cpu"), flipped)
    optimizer = torch.optim.AdamW(net.parameters(), lr=train.lr, weight_decay=0.0, fused=True)
    for step in range(train.steps):
        inputs, labels = batches(step, 0)
        optimizer.param_groups[0]["lr"] = train.learning_rate(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return net.eval()


@torch.no_grad()
def scored(name: str, data: Path, steps: int) -> dict[str, Any]:
    (x, y), (new, truth) = images(data / "train_jpeg.npz"), images(data / "test_jpeg.npz")
    loc, scale = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    x, new = (x - loc) / scale, (new - loc) / scale
    train, fields = bv.Train(steps=steps, batch=BATCH, lr=LR), MODELS[name]
    began, line = time.perf_counter(), {"model": name, "multiply-adds, times fewer": 1.0, "weights kept": 1.0}
    if fields is None:
        with torch.enable_grad():
            net = plain(x, y, train)
        law = Categorical(logits=torch.cat([net(part) for part in new.split(500)]))
    else:
        method = bv.SSVI(network(0), classes=10, train=train, draws=16, **fields)
        post = method.fit(bv.Data(x, y), augment=flipped)
        law = post.predict(new)
        line["multiply-adds, times fewer"] = round(post.cost.fewer_macs, 2)
        line["weights kept"] = round(post.density.overall, 4)
    right = (law.mode == truth).double()
    line["accuracy"] = round(100 * float(right.mean()), 2)
    line["accuracy error"] = round(100 * float(right.std() / len(right) ** 0.5), 2)
    nll = -law.log_prob(truth).double()
    line["NLL"], line["NLL error"] = round(float(nll.mean()), 4), round(float(nll.std() / len(nll) ** 0.5), 4)
    line["ECE"] = round(float(bv.metrics.expected_calibration_error(law, truth)), 4)
    line["seconds"] = round(time.perf_counter() - began, 1)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--part", default="", help="Models whose names end so; all of them make the table.")
    parser.add_argument("--data", type=Path, default=DATA)
    a = parser.parse_args()
    folder = data_folder(a.data, "cifar10")
    if folder is None:
        return
    torch.set_num_threads(1)
    lines = []
    for name in (name for name in MODELS if name.endswith(a.part)):
        lines.append(kept(BUILD / f"{name}.json", partial(scored, name, folder, a.steps)))
        print(lines[-1], flush=True)
    if len(lines) == len(MODELS):
        write("ssvi/sparse_cifar", {"data": "JPEG CIFAR-10", "steps": a.steps, "batch": BATCH, "models": lines})


if __name__ == "__main__":
    main()
