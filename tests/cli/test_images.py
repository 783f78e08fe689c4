"""`bayesvision cap`: maps of a folder of images, a saved cap, and bad input."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

import bayesvision as bv
from bayesvision.cli import main

NETWORK = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 1))

def shift():
    return lambda x: x + 0.1

def dark(images):
    return 0.5 * images

thing = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module, and twelve images with noise."""
    source = np.random.default_rng(0)
    (tmp_path / "mynet.py").write_text(NETWORK)
    (tmp_path / "images").mkdir()
    for k in range(12):
        pixels = source.integers(0, 256, (21, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"photo{k}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "mynet", raising=False)
    return tmp_path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["cap", *map(str, arguments)])


def fails(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    for word in words:
        assert word in result.output
    assert "Traceback" not in result.output


QUICK = ("--steps", "5", "--crop", "8")


def test_maps_and_a_cap_are_written(folder: Path) -> None:
    state = {"0.weight": torch.zeros(16, 3, 3, 3), "0.bias": torch.zeros(16)}
    state |= {"2.weight": torch.zeros(3, 16, 1, 1), "2.bias": torch.full((3,), 0.5)}
    save_file(state, folder / "w.safetensors")
    result = run("--net", "mynet:build", "--weights", "w.safetensors", "--data", "images", "--out", "maps", *QUICK)
    assert result.exit_code == 0, result.output
    assert "12 images" in result.output and "photo3" in result.output and "wrote maps" in result.output
    for k in range(12):
        assert (folder / "maps" / f"photo{k}.png").read_bytes().startswith(b"\x89PNG")
        spread = np.load(folder / "maps" / f"photo{k}.npy", allow_pickle=False)
        assert spread.shape == (3, 20, 16) and 0.2 < spread.mean() < 0.4  # uniform pixels around one half: 0.289
    saved = bv.load(folder / "maps" / "cap.safetensors")
    assert len(saved.conformal.scores)  # three of twelve were held out
    again = run("--net", "mynet:build", "--weights", "w.safetensors", "--data", "images", "--out", "more",
                "--cap", "maps/cap.safetensors")  # fmt: skip
    assert again.exit_code == 0, again.output
    assert np.array_equal(np.load(folder / "more/photo4.npy"), np.load(folder / "maps/photo4.npy"))
    assert not (folder / "more/cap.safetensors").exists()
    assert not list(folder.rglob(".*"))  # no temporary file is left


def test_callables_and_other_inputs(folder: Path) -> None:
    result = run("--net", "mynet:shift", "--degrade", "mynet:dark", "--data", "images", "--out", "maps", *QUICK)
    assert result.exit_code == 0, result.output
    (folder / "pairs").mkdir()
    (folder / "images").rename(folder / "pairs" / "target")
    (folder / "pairs" / "input").mkdir()
    arguments = ("--net", "mynet:shift", "--data", "pairs", "--out", "maps", *QUICK)
    fails(run(*arguments), "no image named photo0")
    for path in (folder / "pairs" / "target").iterdir():
        (folder / "pairs" / "input" / path.name).write_bytes(path.read_bytes())
    assert run(*arguments, "--family", "laplace", "--reads", "output").exit_code == 0
    fails(run(*arguments, "--degrade", "mynet:dark"), "leave one out")


def test_bad_input(folder: Path) -> None:
    def attempt(**changes: str) -> Result:
        options = {"net": "mynet:build", "data": "images", "out": "maps", "steps": "2", "crop": "8", **changes}
        return run(*(part for name, value in options.items() for part in (f"--{name}", value)))

    fails(attempt(net="mynet"), "MODULE:FUNCTION")
    fails(attempt(net="other:build"), "other")
    fails(attempt(net="mynet:missing"), "mynet has no missing")
    fails(attempt(net="mynet:thing"), "cannot be called")
    fails(attempt(family="cauchy"), "cauchy", "student")
    fails(attempt(reads="input"), "reads must start")
    fails(attempt(weights="none.safetensors"), "none.safetensors")
    (folder / "bad.safetensors").write_bytes(b"pickle")
    fails(attempt(weights="bad.safetensors"), "not a whole safetensors")
    save_file({"x": torch.zeros(1)}, folder / "x.safetensors")
    fails(attempt(weights="x.safetensors"), "does not fit")
    fails(attempt(weights="x.safetensors", net="mynet:shift"), "needs a torch module")
    fails(attempt(out="images"), "would be overwritten")
    (folder / "images" / "photo0.jpg").write_bytes((folder / "images" / "photo0.png").read_bytes())
    fails(attempt(), "several of photo0")
    (folder / "images" / "photo0.jpg").unlink()
    (folder / "empty").mkdir()
    fails(attempt(data="empty"), "holds no images")
    (folder / "images" / "broken.png").write_bytes(b"no image")
    fails(attempt(), "broken.png")
