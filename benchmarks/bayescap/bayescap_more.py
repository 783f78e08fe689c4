"""Caps around two more frozen networks: a denoiser that is trained here, and scikit-learn's MLP on UCI regression.

The denoiser (eight thousand weights, input noise 0.1) is trained on twenty images, its cap on twenty others; scores are
means over test images. The MLP is asked as a callable that returns NumPy: of the training rows of a standard split 60 %
train it, 25 % its cap and 15 % calibrate; scores are means over splits, in units of the target's standard deviation.
"""

import argparse
import itertools
from typing import Any

import numpy as np
import torch
from sklearn.neural_network import MLPRegressor
from torch import Tensor, nn

import bayesvision as bv
from bayesvision import metrics
from bayesvision.distributions import Normal
from bayesvision.training.loop import minimize
from bayesvision.training.seeds import generator
from benchmarks.bayescap.bayescap import Images, at, constants, edges, load, stretched
from benchmarks.common import DATA, mean_and_error, write

SETS, NOISE, PIXELS = ("concrete", "energy", "kin8nm", "power", "wine", "yacht"), 0.1, 3000
BOTH = ("output", "input")


def scores(law: Any, y: Tensor) -> dict[str, float]:
    return {
        "nll": float(metrics.nll(law, y)),
        "crps": float(metrics.crps(law, y)),
        "ause": float(metrics.ause(law, y)),
        "coverage": float(metrics.coverage(law, y)),
    }


def means(name: str, found: list[dict[str, float]]) -> dict[str, Any]:
    line: dict[str, Any] = {"row": name}
    for key in found[0]:
        line[key], line[f"{key} error"] = mean_and_error([f[key] for f in found])
    print(line, flush=True)
    return line


# The denoiser


class Denoiser(nn.Module):
    def __init__(self, width: int = 24) -> None:
        super().__init__()
        sizes = [3, width, width, width, 3]
        layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(sizes)]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self.layers[:-1]:
            h = torch.relu(layer(h))
        return x - self.layers[-1](h)


def trained(images: list[Tensor], steps: int) -> Denoiser:
    net = Denoiser()

    def batch(step: int, part: int) -> tuple[Tensor, Tensor]:
        source, cut = generator("cpu", 0, step, part), []
        for k in torch.randint(len(images), (8,), generator=source):
            y = images[k]
            top, left = (int(torch.randint(n - 47, (1,), generator=source)) for n in y.shape[-2:])
            cut.append(y[:, top : top + 48, left : left + 48])
        y = torch.stack(cut)
        return y + NOISE * torch.randn(y.shape, generator=source), y

    def loss(net: Any, pair: tuple[Tensor, Tensor]) -> Tensor:
        return (net(pair[0]) - pair[1]).square().mean()

    minimize(net, loss, batch, bv.Train(steps=steps, lr=2e-3), {"net": "denoiser"}, None)
    return net.eval()


@torch.no_grad()
def noisy(net: nn.Module, images: list[Tensor], seed: int) -> Images:
    found, source = Images(), torch.Generator().manual_seed(seed)
    for y in images:
        x = y + NOISE * torch.randn(y.shape, generator=source)
        found.x.append(x)
        found.y.append(y)
        found.answers.append(net(x.unsqueeze(0))[0])
    return found


def denoising(steps: int) -> list[dict[str, Any]]:
    images = [y for y in load(1).values() if min(y.shape[-2:]) >= 48]
    net = trained(images[:20], steps)
    train, held, test = (noisy(net, part, k) for k, part in enumerate((images[20:40], images[40:52], images[52:])))
    laws = {row.name: row.law for row in constants(train)}
    laws["gradient energy of the answer"] = stretched(edges, train)
    for family in ("generalized", "student"):
        recipe = bv.BayesCap(net, family, BOTH, width=24, crop=48, train=bv.Train(400, 8, 2e-3))
        posterior = recipe.fit(train.batches(), calibrate=held.batches())
        laws[f"cap, {family}, input too, calibrated"] = lambda x, answer, p=posterior: p.predict(x.unsqueeze(0))
    lines = []
    with torch.no_grad():
        for name, law in laws.items():
            found = []
            for k, (x, y, answer) in enumerate(zip(test.x, test.y, test.answers, strict=True)):
                place = torch.randperm(y.numel(), generator=torch.Generator().manual_seed(k))[:PIXELS]
                found.append(scores(at(law(x, answer), place), y.flatten()[place]))
            lines.append(means(name, found))
    return lines


# Tables


def split(x: np.ndarray, y: np.ndarray, test: np.ndarray, seed: int) -> dict[str, dict[str, float]]:
    rows = np.random.default_rng(seed).permutation(np.setdiff1d(np.arange(len(y)), test))
    a, b = int(0.6 * len(rows)), int(0.85 * len(rows))
    loc, scale = x[rows].mean(0), x[rows].std(0).clip(1e-9)
    x, y = ((x - loc) / scale).astype(np.float32), (y - y[rows].mean()) / y[rows].std()
    mlp = MLPRegressor(hidden_layer_sizes=(50, 50), max_iter=300, early_stopping=True, random_state=seed)
    mlp.fit(x[rows[:a]], y[rows[:a]])
    parts = [bv.Data(x[r], y[r].astype(np.float32)) for r in (rows[a:b], rows[b:], test)]
    fit, held, new = parts
    truth = torch.as_tensor(new.y)
    answer = torch.as_tensor(mlp.predict(new.x)).float()
    errors = torch.as_tensor(fit.y - mlp.predict(fit.x)).float()
    found = {"constant normal": scores(Normal(answer, errors.std().expand_as(answer)), truth)}
    for family in ("gaussian", "student"):
        for reads in (BOTH[:1], BOTH):
            train = bv.Train(400, 64, 3e-3)
            recipe = bv.BayesCap(lambda x: mlp.predict(np.asarray(x)), family, reads, train=train, width=24, depth=1)
            posterior = recipe.fit(fit, calibrate=held)
            line = scores(posterior.predict(new.x), truth)
            low, high = posterior.interval(new.x)
            line["conformal coverage"] = float(((truth >= low) & (truth <= high)).float().mean())
            name = f"cap, {family}, {'input too, ' if len(reads) > 1 else ''}calibrated"
            found[name] = line
    found["constant normal"]["conformal coverage"] = float("nan")
    return found


def tables(splits: int) -> list[dict[str, Any]]:
    lines = []
    for name in SETS:
        with np.load(DATA / "uci" / f"{name}.npz") as file:
            x, y, tests = file["X"].astype(float), file["y"].astype(float), file["test_index"]
        found = [split(x, y, test, k) for k, test in enumerate(tests[:splits])]
        for row in found[0]:
            line = means(row, [f[row] for f in found])
            lines.append({"set": name} | {k: v if v == v else None for k, v in line.items()})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--steps", type=int, default=800, help="of the denoiser")
    a = parser.parse_args()
    if not (DATA / "uci").is_dir() or not (DATA / "sr_images").is_dir():
        print(f"no uci or sr_images in {DATA}; set BAYESVISION_DATA to the folder that holds them")
        return
    torch.set_num_threads(1)
    write("bayescap/bayescap_more", {"denoising": denoising(a.steps), "tables": tables(a.splits)})


if __name__ == "__main__":
    main()
