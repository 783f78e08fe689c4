"""MNIST, pooled to 14 x 14: classification and completion with holes, beside machines and networks without guarantees.

Every model sees the same training images, and is asked the same masks of test images that it never saw. Pixel scores
are over hidden pixels. `--part` runs one model after the other on one core; results are joined by `--part table`.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bayesvision as bv
from bayesvision.methods.mdbm.tasks import MaskedRows
from benchmarks.common import DATA, mean_and_error, write

GREY, SIDE = 4, 14
LEVELS = torch.linspace(0, 1, GREY, dtype=torch.float64)
MACHINES = {  # name -> recipe without its training
    "MDBM": {"classes": 10, "hidden": (), "margin": 0.05},
    "MDBM without class": {"classes": None, "hidden": (), "margin": 0.05},
    "MDBM, m = 0.5": {"classes": 10, "hidden": (), "margin": 0.5},
    "MDBM, convolutional": {"classes": 10, "hidden": (8,), "margin": 0.05},
}


def images(data: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images [n, 14, 14] in four levels from 0 to 1 and labels, of training and of test."""
    stored = np.load(data / "mnist" / "mnist.npz")
    names = list(stored.keys())
    found = [torch.as_tensor(stored[name]) for name in names]
    train_x, train_y, test_x, test_y = sorted(found[:], key=lambda v: (-len(v), -v.ndim))

    def small(x: Tensor) -> Tensor:
        pooled = nn.functional.avg_pool2d(x.float().unsqueeze(1) / 255, 28 // SIDE)[:, 0]
        return (pooled * (GREY - 1)).round() / (GREY - 1)

    return small(train_x), train_y.long(), small(test_x), test_y.long()


def masks(count: int) -> dict[str, Tensor]:
    """Pixels that are seen [count, 14, 14]."""
    rng = torch.Generator().manual_seed(11)
    found = {f"{share:.0%}": torch.rand(count, SIDE, SIDE, generator=rng) < share for share in (1.0, 0.6, 0.4, 0.2)}
    for name in ("centre", "half", "quadrant"):
        seen = torch.ones(count, SIDE, SIDE, dtype=torch.bool)
        if name == "centre":
            seen[:, 4:10, 4:10] = False
        elif name == "half":
            seen[:, :, 7:] = False
        else:
            seen[:, :7, :7] = False
        found[name] = seen
    return found


def scores(pixels: Tensor, label: Tensor | None, x: Tensor, y: Tensor, seen: Tensor) -> dict[str, Any]:
    """Of probabilities [n, 14, 14, grey] and [n, 10]; means and standard errors over images."""
    hidden, level = ~seen, (x * (GREY - 1)).round().long()
    line: dict[str, Any] = {}
    if label is not None:
        chance = label.gather(-1, y.unsqueeze(-1)).squeeze(-1).clamp(min=1e-12)
        confidence, guess = label.max(-1)
        right = (guess == y).double()
        line["accuracy"], line["accuracy error"] = mean_and_error(right)
        line["label NLL"], line["label NLL error"] = mean_and_error(-chance.log())
        line["label ECE"] = round(_ece(confidence, right), 4)
    if hidden.any():
        some = hidden.flatten(1).any(1)
        nll = -pixels.gather(-1, level.unsqueeze(-1)).squeeze(-1).clamp(min=1e-12).log()
        mean = pixels @ LEVELS
        count = hidden.flatten(1).sum(1).clamp(min=1)
        line["pixel NLL"], line["pixel NLL error"] = mean_and_error(((nll * hidden).flatten(1).sum(1) / count)[some])
        squares = (mean - x).square() * hidden
        line["pixel MSE"], line["pixel MSE error"] = mean_and_error((squares.flatten(1).sum(1) / count)[some])
        sure, best = pixels.max(-1)
        line["pixel ECE"] = round(_ece(sure[hidden], (best == level).double()[hidden]), 4)
    return line


def _ece(confidence: Tensor, right: Tensor) -> float:
    """Expected calibration error over ten equally large groups."""
    order = confidence.argsort()
    groups = zip(confidence[order].tensor_split(10), right[order].tensor_split(10), strict=True)
    return float(torch.stack([(c.mean() - r.mean()).abs() for c, r in groups]).mean())


class Masked(nn.Module):
    """A network from seen pixels, one-hot and zero where hidden, to levels of all pixels and the label."""

    def __init__(self, convolutional: bool, width: int) -> None:
        super().__init__()
        inputs, outputs = SIDE**2 * (GREY + 1), SIDE**2 * GREY + 10
        self.convolutional = convolutional
        if convolutional:
            layers: list[nn.Module] = [nn.Conv2d(GREY + 1, width, 3, padding=1), nn.ReLU()]
            for _ in range(3):
                layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
            self.body, self.pixel = nn.Sequential(*layers), nn.Conv2d(width, GREY, 3, padding=1)
            self.label = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(width * 49, 10))
        else:
            self.body = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
            self.last = nn.Linear(width, outputs)

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Log probabilities [n, pixels, grey] and [n, 10] given levels, NaN where hidden."""
        seen = ~codes[:, : SIDE**2].isnan()
        one_hot = nn.functional.one_hot(torch.where(seen, codes[:, : SIDE**2], 0.0).long(), GREY) * seen.unsqueeze(-1)
        x = torch.cat([one_hot, seen.unsqueeze(-1)], -1).float()
        if self.convolutional:
            body = self.body(x.unflatten(1, (SIDE, SIDE)).permute(0, 3, 1, 2))
            pixel, label = self.pixel(body).flatten(2).mT, self.label(body)
        else:
            found = self.last(self.body(x.flatten(1)))
            pixel, label = found[:, :-10].unflatten(1, (-1, GREY)), found[:, -10:]
        return pixel.log_softmax(-1), label.log_softmax(-1)


def network(convolutional: bool, parameters: int, x: Tensor, y: Tensor, steps: int) -> Masked:
    """Trained on the same masks as the machines; its width is the largest with no more parameters."""
    torch.manual_seed(0)
    width = 8
    while sum(p.numel() for p in Masked(convolutional, width + 4).parameters()) <= parameters:
        width += 4
    model = Masked(convolutional, width)
    train = bv.Train(steps=steps, batch=64)
    method = bv.MDBM.images((1, SIDE, SIDE), 10, grey=GREY, hidden=(), train=train)
    codes = torch.cat([(x * (GREY - 1)).round().flatten(1), y.float().unsqueeze(1)], 1)
    rows = MaskedRows(codes, method, SIDE**2, (SIDE, SIDE))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        batch = rows.batch(step, 0)
        pixel, label = model(batch.seen)
        asked = batch.asked[:, :-1]
        nll = -pixel.gather(-1, batch.codes[:, :-1].long().unsqueeze(-1)).squeeze(-1)
        loss = (nll * asked).sum() / asked.sum() - label.gather(-1, batch.codes[:, -1:].long()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def rbm(x: Tensor, y: Tensor, tests: dict[str, Tensor], test_x: Tensor, epochs: int) -> tuple[dict[str, Any], int]:
    """scikit-learn's BernoulliRBM of one-hot levels and label, 256 hidden units; holes by 100 sweeps of Gibbs sampling.

    Probabilities are the average of those of the visible units, normalised over levels, over the last 80 sweeps.
    """
    from sklearn.neural_network import BernoulliRBM

    def one_hot(x: Tensor) -> np.ndarray:
        return nn.functional.one_hot((x * (GREY - 1)).round().long(), GREY).flatten(1).double().numpy()

    data = np.concatenate([one_hot(x), nn.functional.one_hot(y, 10).double().numpy()], 1)
    model = BernoulliRBM(256, learning_rate=0.02, batch_size=64, n_iter=epochs, random_state=0).fit(data)
    w, b, c = model.components_, model.intercept_hidden_, model.intercept_visible_
    rng, found = np.random.default_rng(0), {}
    for name, seen in tests.items():
        known = np.concatenate([np.repeat(seen.flatten(1).numpy(), GREY, 1), np.zeros((len(seen), 10), bool)], 1)
        truth = np.concatenate([one_hot(test_x), np.zeros((len(seen), 10))], 1)
        v, total = np.where(known, truth, 1 / (1 + np.exp(-c))), np.zeros(truth.shape)
        for sweep in range(100):
            h = rng.random((len(v), len(b))) < 1 / (1 + np.exp(-(v @ w.T + b)))
            chance = 1 / (1 + np.exp(-(h @ w + c)))
            pixels = chance[:, :-10].reshape(len(v), -1, GREY)
            label = np.exp(np.log(chance[:, -10:]) - np.log1p(-chance[:, -10:]))
            chance = np.concatenate(
                [(pixels / pixels.sum(-1, keepdims=True)).reshape(len(v), -1), label / label.sum(-1, keepdims=True)], 1
            )
            total += chance if sweep >= 20 else 0
            v = np.where(known, truth, _sampled(chance, rng))
        mean = torch.as_tensor(total / 80)
        found[name] = (mean[:, :-10].unflatten(1, (SIDE, SIDE, GREY)), mean[:, -10:])
    return found, w.size + b.size + c.size


def _sampled(chance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    drawn = np.zeros_like(chance)
    for first, last, width in ((0, chance.shape[1] - 10, GREY), (chance.shape[1] - 10, chance.shape[1], 10)):
        mass = chance[:, first:last].reshape(len(chance), -1, width).cumsum(-1)
        level = (rng.random((*mass.shape[:2], 1)) * mass[..., -1:] >= mass).sum(-1).clip(max=width - 1)
        drawn[:, first:last] = np.eye(width)[level].reshape(len(chance), -1)
    return drawn


def asked(name: str, steps: int, data: Path, folder: Path, epochs: int) -> dict[str, Any]:
    """Train one model and ask it everything."""
    x, y, test_x, test_y = images(data)
    test_x, test_y = test_x[:1_000].double(), test_y[:1_000]
    tests, start, more = masks(len(test_x)), time.perf_counter(), {}
    found: Any = {}
    if name in MACHINES:
        execution = bv.Execution(device="cpu", checkpoint_dir=str(folder / name.replace(" ", "-")), save_every=200)
        train = bv.Train(steps=steps, batch=64, lr=1e-2, execution=execution)
        post = bv.MDBM.images((1, SIDE, SIDE), grey=GREY, train=train, **MACHINES[name]).fit(bv.Data(x, y))
        bv.save(post, folder / f"{name.replace(' ', '-')}.safetensors")
        size, trained = post.metadata["parameters"], time.perf_counter() - start
        start, bounds, counts = time.perf_counter(), [], []
        for mask, seen in tests.items():
            done = post.complete(test_x, seen)
            found[mask] = (done.pixels.probs[:, 0], None if done.label is None else done.label.probs)
            bounds.append(done.certificate.bound)
            counts.append(done.certificate.iterations.double())
        more = {
            "certified at 1e-4": float((torch.cat(bounds) <= 1e-4).double().mean()),
            "iterations": round(float(torch.cat(counts).mean()), 1),
        }
    elif name == "BernoulliRBM":
        found, size = rbm(x[:20_000], y[:20_000], tests, test_x, epochs)
        trained = time.perf_counter() - start
    else:
        model = network(name == "CNN", 628_000, x, y, steps)
        size, trained = sum(p.numel() for p in model.parameters()), time.perf_counter() - start
        start = time.perf_counter()
        for mask, seen in tests.items():
            codes = torch.where(seen, (test_x * (GREY - 1)).round(), torch.nan).flatten(1)
            with torch.no_grad():
                pixel, label = model(codes)
            found[mask] = (pixel.exp().double().unflatten(1, (SIDE, SIDE)), label.exp().double())
    lines = []
    for mask, seen in tests.items():
        pixels, label = found[mask]
        lines.append({"model": name, "seen": mask, **scores(pixels, label, test_x, test_y, seen)})
    cost = {
        "model": name,
        "steps": steps if name != "BernoulliRBM" else None,
        "parameters": size,
        "seconds of training": round(trained),
        **more,
    }
    if name != "BernoulliRBM":
        cost["seconds of 7,000 answers"] = round(time.perf_counter() - start, 1)
    for line in [*lines, cost]:
        print(line, flush=True)
    return {"lines": lines, "cost": cost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="The folder that holds mnist/.")
    parser.add_argument("--part", default="all", help="One model, all, or table: join what was found.")
    parser.add_argument("--steps", type=int, default=4_000)
    parser.add_argument("--epochs", type=int, default=5, help="Of the RBM, over 20,000 images.")
    parser.add_argument("--folder", type=Path, default=Path("build/mdbm"), help="Where models and parts are kept.")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if not (a.data / "mnist").exists():
        print(f"no MNIST in {a.data}; give its folder with --data")
        return
    a.folder.mkdir(parents=True, exist_ok=True)
    names = [*MACHINES, "BernoulliRBM", "masked autoencoder", "CNN"]
    for name in names if a.part == "all" else [a.part] if a.part != "table" else []:
        part = asked(name, a.steps, a.data, a.folder, a.epochs)
        (a.folder / f"{name.replace(' ', '-')}.json").write_text(json.dumps(part))
    parts = [a.folder / f"{name.replace(' ', '-')}.json" for name in names]
    found = [json.loads(path.read_text()) for path in parts if path.exists()]
    scores = [line for part in found for line in part["lines"]]
    write("mdbm/completion", {"scores": scores, "costs": [part["cost"] for part in found]})


if __name__ == "__main__":
    main()
