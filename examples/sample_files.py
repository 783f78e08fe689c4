"""Write samples for every command line of the documentation: `python examples/sample_files.py samples`.

runs.csv and runs/ (training logs), train.csv and new.csv (a table with text and holes), holes.csv, data.npz (a small
regression), images/, mynet.py (the networks that --net and --degrade name), recipe.toml (trains in a minute).
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_diabetes, load_sample_image

RECIPE = """# A recipe that trains in about a minute on one core; that of pfn-gp took hours.

[prior]
name = "GaussianProcess"
lengthscale = 0.3

[pfn]
features = 1
context = 20
width = 32
layers = 2
heads = 2
bars = 100

[train]
steps = 1500
batch = 16
lr = 3e-3
"""
NETWORK = '''"""Networks that the commands are shown with."""

import torch


def build():
    """A network of three columns: bayesvision sparse --net mynet:build."""
    return torch.nn.Sequential(torch.nn.Linear(3, 100), torch.nn.ReLU(), torch.nn.Linear(100, 1))


def smooth():
    """A network of images that blurs: bayesvision cap --net mynet:smooth."""
    return torch.nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


def degrade(images):
    """What the network is given: the image with noise, always the same."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + 0.05 * noise).clamp(0, 1)
'''


def curves(rng: np.random.Generator) -> pd.DataFrame:
    """Ten runs of up to 50 epochs, some of them broken off."""
    rows = []
    for run in range(10):
        top, rate, last = rng.uniform(0.6, 0.95), rng.uniform(0.3, 1.0), 50 if run < 3 else int(rng.integers(8, 30))
        for epoch in range(1, last + 1):
            value = top - (top - 0.1) * epoch**-rate + 0.01 * rng.normal()
            rows.append({"run": f"run {run}", "epoch": epoch, "val_acc": round(float(np.clip(value, 0, 1)), 4)})
    return pd.DataFrame(rows)


def tables(folder: Path, rng: np.random.Generator) -> None:
    table = load_diabetes(as_frame=True).frame.rename(columns={"target": "y"}).round(4)
    table["sex"] = np.where(table["sex"] > 0, "female", "male")
    holes = table.drop(columns="y").mask(rng.random((len(table), 10)) < 0.1)
    table[holes.columns] = holes
    table[:300].to_csv(folder / "train.csv", index=False)
    table[300:].to_csv(folder / "new.csv", index=False)
    holes.to_csv(folder / "holes.csv", index=False)


def main(place: str) -> None:
    folder, rng = Path(place), np.random.default_rng(0)
    for part in (folder, folder / "runs", folder / "images"):
        part.mkdir(parents=True, exist_ok=True)
    runs = curves(rng)
    runs.to_csv(folder / "runs.csv", index=False)
    for name, group in runs.groupby("run"):
        group.drop(columns="run").to_csv(folder / "runs" / f"{str(name).replace(' ', '-')}.csv", index=False)
    tables(folder, rng)
    x = rng.random((500, 3)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=(np.sin(6 * x[:, :1]) + 0.1 * rng.normal(size=(500, 1))).astype(np.float32))
    photo = load_sample_image("flower.jpg")
    for k in range(12):
        row, column = divmod(k, 4)
        part = photo[100 * row : 100 * row + 96, 150 * column : 150 * column + 96]
        Image.fromarray(part).save(folder / "images" / f"part-{k:02d}.png")
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "mynet.py").write_text(NETWORK)
    print(f"wrote {', '.join(sorted(p.name for p in folder.iterdir()))} to {folder}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "samples")
