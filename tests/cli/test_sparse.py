"""`bayesvision sparse`: from a function and arrays to a file and a table, and bad input."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

import bayesvision as bv
from bayesvision.cli import main

NETWORK = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))

def number():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))

def function():
    return lambda x: x
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module, and arrays with labels and with numbers."""
    source = np.random.default_rng(0)
    (tmp_path / "sparsenet.py").write_text(NETWORK)
    x = source.normal(size=(80, 3)).astype(np.float32)
    np.savez(tmp_path / "labels.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    np.savez(tmp_path / "numbers.npz", x=x, y=x[:, 0] + 0.1 * source.normal(size=80))
    np.savez(tmp_path / "other.npz", inputs=x)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "sparsenet", raising=False)
    return tmp_path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["sparse", "--out", "s.safetensors", "--steps", "40", *map(str, arguments)])


def fails(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    for word in words:
        assert word in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_labels(folder):
    network = ("--net", "sparsenet:build", "--data", "labels.npz", "--density", "0.5")
    result = run(*network, "--classes", "2", "--test", "labels.npz", "--log", "log.jsonl")
    assert result.exit_code == 0, result.output
    assert "Dense against sparse" in result.output and "accuracy" in result.output
    assert len((folder / "log.jsonl").read_text().splitlines()) == 40
    assert not (folder / "s.safetensors.training").exists()
    import sparsenet  # pyright: ignore[reportMissingImports]

    post = bv.load("s.safetensors", net=sparsenet.build())
    with np.load("labels.npz") as file:
        assert float(bv.metrics.accuracy(post.predict(file["x"]), file["y"])) > 0.8
    assert post.density.overall == pytest.approx(0.5, abs=0.02)
    told = CliRunner().invoke(main, ["info", "s.safetensors"])
    assert told.exit_code == 0 and "SSVI" in told.output


def test_numbers_and_trained_weights(folder):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    save_file(net.state_dict(), folder / "w.safetensors")
    network = ("--net", "sparsenet:number", "--weights", "w.safetensors", "--trained", "--data", "numbers.npz")
    result = run(*network, "--test", "numbers.npz")
    assert result.exit_code == 0, result.output
    assert "RMSE" in result.output


def test_an_unfinished_run_goes_on_when_told(folder):
    network = ("--net", "sparsenet:number", "--data", "numbers.npz")
    (folder / "s.safetensors.training").mkdir()
    fails(run(*network), "--resume")
    assert run(*network, "--resume").exit_code == 0


def test_bad_input(folder):
    net = ("--net", "sparsenet:build", "--data")
    fails(run(*net, "labels.npz"), "--classes K", "--numbers")
    fails(run(*net, "labels.npz", "--classes", "5"), "net must give one logit for each of 5 classes")
    fails(run(*net, "numbers.npz"), "net must give 1 numbers")
    fails(run(*net, "other.npz"), "must hold the arrays x and y, and holds inputs")
    fails(run(*net, "none.npz"), "no such file none.npz")
    Path("half.npz").write_bytes(Path("labels.npz").read_bytes()[:300])
    fails(run(*net, "half.npz"), "no whole npz file")
    fails(run(*net, "sparsenet.py"), "no whole npz file", "it holds objects")
    fails(run(*net, "numbers.npz", "--density", "0"), "density must lie in (0, 1]")
    fails(run("--net", "sparsenet:function", "--data", "numbers.npz"), "--net", "returns a function", "torch module")
    fails(run("--net", "sparsenet:nothing", "--data", "numbers.npz"), "has no nothing")
    fails(run("--net", "sparsenet:number", "--data", "numbers.npz", "--test", "labels.npz"), "--numbers")
    np.savez("objects.npz", x=np.zeros((3, 3)), y=np.array([1, "a", None], dtype=object))
    fails(run("--net", "sparsenet:number", "--data", "objects.npz"), "it holds objects")
