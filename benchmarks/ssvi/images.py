"""MNIST and digits with sparse Bayesian networks, beside dense, deterministic, dropout and ensemble ones.

An MLP 784-512-512-10, the same number of steps, batches and learning rate for all. `--part NAME` trains the rows whose
names begin so and keeps each under build/ssvi; rows that are there are not trained again; `--part table` joins them.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import bayesvision as bv
from bayesvision.distributions import Categorical
from bayesvision.training.seeds import generator
from benchmarks.common import DATA, data_folder, kept, mean_and_error, write

BUILD, BATCH, LR = Path("build/ssvi"), 128, 2e-3
CRITERIA = ("magnitude", "ratio", "expected_magnitude", "exponential", "exponential_snr")
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02)
NO_NOISE = {"beta": 0.0, "initial_std": 1e-6, "criterion": "magnitude"}  # a standard deviation of about zero
MEMBERS = 5


class Images:
    """Images [n, pixels] of training and test, test images that are noisy and blurred, and those of other things."""

    def __init__(self, name: str, data: Path) -> None:
        if name == "digits":
            found: Any = load_digits()
            x, y = torch.as_tensor(found.images).float() / 16, torch.as_tensor(found.target)
            order = torch.randperm(len(x), generator=generator("cpu", 1))
            self.train, self.test, other = order[:1297], order[1297:], None
            train, test = (x[self.train], y[self.train]), (x[self.test], y[self.test])
        else:
            with np.load(data / "mnist" / "mnist.npz") as file:
                arrays = {key: torch.as_tensor(file[key]) for key in file}
            train, test = ((arrays[f"x_{k}"].float() / 255, arrays[f"y_{k}"].long()) for k in ("train", "test"))
            with np.load(data / "notmnist" / "test.npz") as file:
                other = torch.as_tensor(next(file[key] for key in file if file[key].ndim > 1)).float() / 255
        loc, scale = train[0].mean(), train[0].std()

        def units(x: Tensor) -> Tensor:
            return ((x.reshape(len(x), -1) - loc) / scale).contiguous()

        noise = torch.randn(test[0].shape, generator=generator("cpu", 2))
        kernel = torch.ones(1, 1, 3, 3) / 9
        blurred = nn.functional.conv2d(nn.functional.conv2d(test[0].unsqueeze(1), kernel, padding=1), kernel, padding=1)
        self.x, self.y = units(train[0]), train[1]
        self.sets = {"test": units(test[0]), "noise": units(test[0] + 0.3 * noise), "blur": units(blurred[:, 0])}
        self.truth, self.other = test[1], None if other is None else units(other.reshape(len(other), -1))


def mlp(inputs: int, width: int, seed: int, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    drop = [nn.Dropout(dropout)] if dropout else []
    hidden = [nn.Linear(inputs, width), nn.ReLU(), *drop, nn.Linear(width, width), nn.ReLU(), *drop]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


def plain(net: nn.Module, images: Images, steps: int, seed: int) -> nn.Module:
    """Train deterministically, by the same batches and schedule."""
    recipe = bv.Train(steps=steps, batch=BATCH, lr=LR, seed=seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.0, fused=True)
    from bayesvision.training.batches import places

    torch.manual_seed(seed)
    for step in range(steps):
        chosen = places(seed, step, BATCH, len(images.x))
        loss = nn.functional.cross_entropy(net.train()(images.x[chosen]), images.y[chosen])
        optimizer.param_groups[0]["lr"] = recipe.learning_rate(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return net.eval()


def passes(net: nn.Module, count: int) -> Any:
    """A prediction by passes with dropout."""

    def predict(x: Tensor) -> Categorical:
        torch.manual_seed(0)
        return Categorical.of_members(torch.stack([net.train()(x) for _ in range(count)]))

    return predict


def models(name: str) -> dict[str, dict[str, Any]]:
    """Rows of the table: what tells each."""
    rows: dict[str, dict[str, Any]] = {"dense VI": {"density": 1.0}}
    rows |= {f"SSVI {density:g}": {"density": density} for density in DENSITIES}
    rows |= {"fixed places 0.05": {"density": 0.05, "exchange": 0.0}}
    if name == "mnist":
        rows |= {f"criterion {c}": {"density": 0.05, "criterion": c} for c in CRITERIA}
    rows |= {"sparse, no noise 0.05": {"density": 0.05, **NO_NOISE}}
    return rows | {"deterministic": {}, "dropout": {}, "ensemble": {}}


def trained(row: str, fields: dict[str, Any], images: Images, width: int, steps: int, seed: int) -> tuple[Any, Any]:
    """What predicts, and how many weights it keeps of each dense one."""
    inputs = images.x.shape[1]
    if row == "deterministic":
        net = plain(mlp(inputs, width, seed), images, steps, seed)
        return lambda x: Categorical(logits=net(x)), 1.0
    if row == "dropout":
        return passes(plain(mlp(inputs, width, seed, 0.2), images, steps, seed), 32), 1.0
    if row == "ensemble":
        nets = [plain(mlp(inputs, width, 100 * seed + k), images, steps, 100 * seed + k) for k in range(MEMBERS)]
        return lambda x: Categorical.of_members(torch.stack([net(x) for net in nets])), float(MEMBERS)
    train = bv.Train(steps=steps, batch=BATCH, lr=LR, seed=seed)
    method = bv.SSVI(mlp(inputs, width, seed), classes=10, standardize=False, train=train, **fields)
    post = method.fit(bv.Data(images.x, images.y))
    return post.predict, post.density.overall


@torch.no_grad()
def scores(predict: Any, images: Images) -> dict[str, float]:
    """Of test images, of noisy and blurred ones, and how well entropy tells letters from digits."""
    found = {}
    for name, x in images.sets.items():
        law = predict(x)
        key = "" if name == "test" else f"{name} "
        found[f"{key}accuracy"] = 100 * float(bv.metrics.accuracy(law, images.truth))
        found[f"{key}NLL"] = float(bv.metrics.nll(law, images.truth))
        if name == "test":
            found["Brier"] = float(bv.metrics.brier(law, images.truth))
            found["ECE"] = float(bv.metrics.expected_calibration_error(law, images.truth))
            usual = law
    if images.other is not None:
        strange = predict(images.other)
        found["AUROC"] = bv.metrics.ood_auroc(usual.entropy(), strange.entropy())
    return found


def measured(row: str, fields: dict[str, Any], images: Images, width: int, steps: int, seed: int) -> dict[str, Any]:
    began = time.perf_counter()
    predict, share = trained(row, fields, images, width, steps, seed)
    seconds = time.perf_counter() - began
    return {"row": row, "seed": seed, "kept": share, "seconds": seconds, **scores(predict, images)}


def run(name: str, part: str, data: Path, steps: int, seeds: int) -> None:
    images, width = Images(name, data), 512 if name == "mnist" else 256
    for row, fields in models(name).items():
        for seed in range(seeds) if row.startswith(part) else ():
            make = partial(measured, row, fields, images, width, steps, seed)
            line = kept(BUILD / f"{name}-{row}-{seed}.json", make)
            print(name, {k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}, flush=True)


def table(name: str) -> list[dict[str, Any]]:
    """Means and standard errors over the seeds."""
    lines = []
    for row in models(name):
        found = [json.loads(path.read_text()) for path in sorted(BUILD.glob(f"{name}-{row}-*.json"))]
        if len(found) < 2:
            continue
        line: dict[str, Any] = {"model": row, "seeds": len(found), "kept": round(found[0]["kept"], 4)}
        for key in [k for k in found[0] if k not in ("row", "seed", "kept", "seconds")]:
            mean, error = mean_and_error([f[key] for f in found])
            line[key], line[f"{key} error"] = mean, error
        line["seconds"] = round(float(np.mean([f["seconds"] for f in found])), 1)
        lines.append(line)
    return lines


def goals(lines: list[dict[str, Any]]) -> list[str]:
    """What was to be reached, and whether it was."""
    at = {line["model"]: line for line in lines}
    dense, thin, tenth, plain_net = (at[k] for k in ("dense VI", "SSVI 0.05", "SSVI 0.1", "deterministic"))
    said = []

    def say(words: str, gap: float, error: float) -> None:
        verdict = "level" if abs(gap) <= error else "met" if gap > 0 else "MISSED"
        said.append(f"{verdict}: {words} (by {gap:.4f} +- {error:.4f})")
        print(said[-1])

    def error(key: str, a: dict[str, Any], b: dict[str, Any]) -> float:
        return float(np.hypot(a[f"{key} error"], b[f"{key} error"]))

    accuracy = thin["accuracy"] - dense["accuracy"] + 0.5
    say("accuracy at 0.05 within 0.5 points of dense VI", accuracy, error("accuracy", thin, dense))
    say("NLL at 0.05 no worse than dense VI", dense["NLL"] - thin["NLL"], error("NLL", thin, dense))
    say("NLL at 0.1 better than dense VI", dense["NLL"] - tenth["NLL"], error("NLL", tenth, dense))
    if "AUROC" in thin:
        gap = thin["AUROC"] - plain_net["AUROC"]
        say("AUROC at 0.05 above the deterministic network's", gap, error("AUROC", thin, plain_net))
    return said


def picture(lines: list[dict[str, Any]], path: Path) -> None:
    """Accuracy and NLL against density, with the dense networks as lines across."""
    import matplotlib.pyplot as plt

    from bayesvision.plots import INK, MUTED, PALETTE

    at = {line["model"]: line for line in lines}
    densities = [d for d in DENSITIES if f"SSVI {d:g}" in at]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for ax, key, name in zip(axes, ("accuracy", "NLL"), ("accuracy, %", "NLL, nats"), strict=True):
        found = [at[f"SSVI {d:g}"] for d in densities]
        mean, error = (np.array([line[k] for line in found]) for k in (key, f"{key} error"))
        ax.errorbar(densities, mean, error, color=PALETTE[0], marker="o", capsize=3, label="SSVI")
        for other, color, style in (
            ("dense VI", PALETTE[1], "--"),
            ("deterministic", INK, ":"),
            ("ensemble", MUTED, "-."),
        ):
            if other in at:
                ax.axhline(at[other][key], color=color, linestyle=style, label=other, linewidth=1.2)
        ax.set(xscale="log", xlabel="share of the weights that are kept", ylabel=name)
        ax.set_xticks(densities, [f"{d:.0%}" for d in densities])
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", choices=["mnist", "digits"], default="mnist")
    parser.add_argument("--part", default="", help="Rows whose names begin so, or 'table'.")
    parser.add_argument("--steps", type=int, default=4_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="Draw accuracy and NLL of MNIST against density.")
    parser.add_argument("--data", type=Path, default=DATA)
    a = parser.parse_args()
    if data_folder(a.data, "mnist") is None:
        return
    torch.set_num_threads(1)
    if a.part != "table":
        run(a.set, a.part, a.data, a.steps, a.seeds)
    sets = {name: table(name) for name in ("mnist", "digits")}
    said = {
        name: goals(lines)
        for name, lines in sets.items()
        if {"SSVI 0.1", "deterministic"} <= {v["model"] for v in lines}
    }
    if a.plot is not None:
        picture(sets["mnist"], a.plot)
    if said:
        write("ssvi/images", {"steps": a.steps, "goals": said, **{k: v for k, v in sets.items() if v}})


if __name__ == "__main__":
    main()
