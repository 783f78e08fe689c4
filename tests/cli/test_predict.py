import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import bayesvision as bv
from bayesvision.cli import main
from bayesvision.io.tables import read_csv
from priors import GaussianProcess, GaussianProcessMixture

RECIPE = """
[prior]
name = "GaussianProcess"
lengthscale = 0.3

[pfn]
width = 16
layers = 1
heads = 2
bars = 20
context = 10

[train]
steps = {steps}
batch = 2
interval = 5
"""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny checkpoint of three columns and forty context rows."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    train = bv.Train(steps=20, batch=2)
    pfn = bv.PFN(features=3, context=40, width=16, layers=1, heads=2, bars=30, standardize=True, train=train)
    bv.save(pfn.fit(GaussianProcessMixture(features=(1, 3))), path)
    return str(path)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(30, 2))
    path = tmp_path / "train.csv"
    np.savetxt(path, np.column_stack([x, x.sum(1)]), delimiter=",", header="a,b,y", comments="")
    return path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def fails(result: Result, *words: str) -> None:
    """Exit code 2, one line that holds the words, no traceback."""
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr, result.stderr


def test_predict_writes_predictions_and_a_picture(model: str, table: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "out.csv", tmp_path / "fit.png"
    result = run("predict", table, "--target", "y", "--out", out, "--plot", plot, "--model", model)
    assert result.exit_code == 0, result.output
    assert "NLL" in result.output and "coverage" in result.output
    written = read_csv(out)
    assert written.columns == ("target", "mean", "stddev", "median", "lower_0.9", "upper_0.9")
    lower, median, upper = written.select(("lower_0.9", "median", "upper_0.9")).values.T
    assert len(lower) == 6 and (lower < median).all() and (median < upper).all()
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_predict_agrees_with_the_library(model: str, table: Path, tmp_path: Path) -> None:
    test, out = tmp_path / "test.csv", tmp_path / "out.csv"
    test.write_text("b,a\n0.2,0.1\n0.4,0.3\n")  # columns are matched by name
    assert run("predict", table, "--target", "y", "--test", test, "--out", out, "--model", model).exit_code == 0
    values = read_csv(table).values
    expected = bv.load(model).condition(values[:, :2], values[:, 2]).predict(np.array([[0.1, 0.2], [0.3, 0.4]]))
    np.testing.assert_allclose(read_csv(out).select(("mean",)).values[:, 0], expected.mean.numpy(), rtol=1e-7)


def test_predict_of_one_column_draws_a_band(model: str, tmp_path: Path) -> None:
    train, plot = tmp_path / "train.csv", tmp_path / "fit.svg"
    train.write_text("a;y\n" + "\n".join(f"{i};{i * i}" for i in range(12)))  # semicolons are read too
    result = run("predict", train, "--target", "y", "--plot", plot, "--model", model, "--compare", "gp")
    assert result.exit_code == 0, result.output
    assert "GP" in result.output and "<svg" in plot.read_text()


def test_predict_without_a_known_target_draws_sorted_predictions(model: str, table: Path, tmp_path: Path) -> None:
    test, plot = tmp_path / "test.csv", tmp_path / "fit.png"
    test.write_text("a,b\n0.1,0.2\n0.5,0.6\n0.3,0.9\n")
    result = run("predict", table, "--target", "y", "--test", test, "--plot", plot, "--model", model)
    assert result.exit_code == 0, result.output
    assert "width" in result.output and plot.exists()


BAD_TABLES = {
    "text column": ("a,y\n1,2\nParis,3\n", ("line 3", "'a'", "Paris")),
    "missing value": ("a,y\n1,2\n,3\n4,5\n", ("line 3", "'a'", "missing")),
    "missing target": ("a,y\n1,2\n2,\n4,5\n", ("line 3", "'y'", "missing")),
    "no target column": ("a,b\n1,2\n2,3\n", ("'y'", "a, b")),
    "only the target": ("y\n1\n2\n", ("'y'", "only column")),
    "one row": ("a,y\n1,2\n", ("one row",)),
    "no rows": ("a,y\n", ("no rows",)),
    "empty file": ("", ("empty",)),
    "blank file": ("\n \n", ("empty",)),
    "ten thousand columns": (",".join(f"c{i}" for i in range(10_000)) + ",y\n", ("10001 columns",)),
    "too many columns": (
        "a,b,c,d,y\n" + "\n".join(f"{i},{i * i},1,{i % 3},{i}" for i in range(9)),
        ("4 columns", "at most 3"),
    ),
    "too many rows": ("a,y\n" + "\n".join(f"{i},{i % 7}" for i in range(99)), ("99 rows", "at most 40", "--subsample")),
    "constant target": ("a,y\n1,2\n2,2\n3,2\n4,2\n5,2\n", ("'y'", "every row")),
    "duplicated rows": ("a,y\n1,2\n2,3\n1,2\n4,5\n", ("lines 2 and 4", "--keep-duplicates")),
    "infinity": ("a,y\n1,2\n2,inf\n3,4\n", ("line 3", "'y'", "finite")),
    "huge target": ("a,y\n1,2\n2,1e31\n3,4\n", ("line 3", "'y'", "1e+30")),
    "ragged": ("a,y\n1,2\n2,3,4\n", ("line 3", "3 fields")),
    "no header": ("1,2\n3,4\n", ("line 1", "name the columns")),
    "repeated name": ("a,a,y\n1,2,3\n", ("'a'", "rename")),
    "nameless column": ("a,,y\n1,2,3\n", ("column 2",)),
    "duplicates after a blank line": ("a,y\n\n1,2\n1,2\n4,5\n", ("lines 3 and 4",)),
    "text after a quoted line break": ('"a\nb",y\n1,2\nx,3\n', ("line 4", "text")),
    "digits with underscores": ("a,y\n1_000,2\n2,3\n", ("line 2", "1_000")),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_table_is_one_line_and_leaves_no_file(model: str, tmp_path: Path, name: str) -> None:
    text, words = BAD_TABLES[name]
    train, out, plot = tmp_path / "train.csv", tmp_path / "out.csv", tmp_path / "fit.png"
    train.write_text(text)
    test = tmp_path / "test.csv"
    test.write_text("a,b,c,d\n1,2,3,4\n")
    result = run("predict", train, "--target", "y", "--test", test, "--out", out, "--plot", plot, "--model", model)
    fails(result, str(train), *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["test.csv", "train.csv"]


def test_wrong_encoding_and_binary(model: str, tmp_path: Path) -> None:
    train = tmp_path / "train.csv"
    train.write_bytes("größe,y\n1,2\n".encode("latin-1"))
    fails(run("predict", train, "--target", "y", "--model", model), "UTF-8")
    train.write_bytes(b"a,y\n1,\x00\n")
    fails(run("predict", train, "--target", "y", "--model", model), "NUL")
    fails(run("predict", tmp_path / "none.csv", "--target", "y", "--model", model), "none.csv")


def test_bad_options(model: str, table: Path, tmp_path: Path) -> None:
    fails(run("predict", table, "--target", "y", "--model", "nothing"), "nothing", "shipped")
    fails(run("predict", table, "--target", "y", "--model", model, "--compare", "magic"), "magic")
    fails(run("predict", table, "--target", "y", "--model", model, "--plot", tmp_path / "fit.exe"), ".png")
    fails(run("predict", table, "--target", "y", "--model", model, "--out", tmp_path / "no" / "o.csv"), "folder")
    test = tmp_path / "test.csv"
    test.write_text("a\n1\n")
    fails(run("predict", table, "--target", "y", "--model", model, "--test", test), "test.csv", "b", "missing")
    fails(run("predict", table, "--target", "y", "--model", table), "train.csv", "safetensors")
    for option in ("--out", "--plot"):
        picture = table.rename(table.with_suffix(".png")) if option == "--plot" else table
        fails(run("predict", picture, "--target", "y", "--model", model, option, picture), "overwritten")
    assert picture.read_text().startswith("a,b,y")


def test_keep_duplicates_and_subsample(model: str, tmp_path: Path) -> None:
    train = tmp_path / "train.csv"
    train.write_text("a,y\n" + "\n".join(f"{i % 30},{(i % 30) ** 2}" for i in range(60)))
    result = run("predict", train, "--target", "y", "--model", model, "--keep-duplicates", "--subsample")
    assert result.exit_code == 0, result.output
    assert "12 rows predicted from 40" in result.output


def test_pretrain_then_info_and_validate(tmp_path: Path) -> None:
    recipe, out, log = tmp_path / "recipe.toml", tmp_path / "my.safetensors", tmp_path / "log.jsonl"
    recipe.write_text(RECIPE.format(steps=12))
    result = run("pretrain", recipe, "--out", out, "--log", log)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "my.safetensors", "recipe.toml"]
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(1, 13))

    result = run("info", out)
    assert result.exit_code == 0 and "GaussianProcess" in result.output and "parameters" in result.output
    header = json.loads(run("info", out, "--json").output)
    assert header["metadata"]["prior"]["lengthscale"] == 0.3 and header["recipe"]["train"]["steps"] == 12

    result = run("validate", out, "--tasks", "3", "--rows", "2,5", "--no-nuts")
    assert result.exit_code == 0, result.output
    assert "exact GP" in result.output and "PFN" in result.output
    fails(run("validate", out, "--rows", "many"), "many")
    fails(run("validate", out, "--rows=-5"), "-5")
    fails(run("info", tmp_path / "none.safetensors"), "none.safetensors")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[prior", ("recipe.toml",)),
        ("[pfn]\nwidth = 8\n", ("[prior]",)),
        ('[prior]\nname = "Magic"\n', ("Magic", "GaussianProcess")),
        ('[prior]\nname = "GaussianProcess"\nscale = 1\n', ("scale", "lengthscale")),
        ('[prior]\nname = "GaussianProcess"\nnoise = -1\n', ("noise",)),
        ('[prior]\nname = "GaussianProcess"\n[pfn]\ndepth = 1\n', ("depth", "layers")),
        ('[prior]\nname = "GaussianProcess"\n[train]\nsteps = 0\n', ("steps",)),
        ('[prior]\nname = "GaussianProcess"\n[train]\nsteps = "many"\n', ("steps", "many")),
        ('[prior]\nname = "GaussianProcess"\n[train]\nfolder = "x"\n', ("folder", "--out")),
        ('[prior]\nname = "GaussianProcess"\n[pfn]\nwidth = 8.5\n', ("width", "8.5")),
        ("prior = 3\n", ("prior", "section")),
        ('pfn = 3\n[prior]\nname = "GaussianProcess"\n', ("pfn", "section")),
        ('[prior]\nname = "PriorMixture"\npriors = ["a"]\n', ("prior",)),
        ('[prior]\nname = "GaussianProcess"\n[train]\ndevice = "foo"\n', ("device", "foo")),
        ('[prior]\nname = "GaussianProcess"\n[other]\nsteps = 0\n', ("other",)),
    ],
)
def test_bad_recipe(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    fails(run("pretrain", recipe, "--out", tmp_path / "out.safetensors"), *words)
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.toml"]


def _start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bayesvision.cli", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def test_pretrain_survives_a_kill_and_an_interrupt(tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "my.safetensors"
    recipe.write_text(RECIPE.format(steps=100_000))
    state = tmp_path / "my.safetensors.training" / "training.safetensors"

    def until_saved(process: subprocess.Popen[bytes], older_than: float) -> None:
        for _ in range(600):
            if state.exists() and state.stat().st_mtime > older_than:
                return
            assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
            time.sleep(0.1)
        raise AssertionError("no training state within a minute")

    process = _start("pretrain", recipe, "--out", out)
    until_saved(process, 0.0)
    process.kill()
    process.wait()
    assert not out.exists()
    fails(run("pretrain", recipe, "--out", out), "--resume")

    fails(run("info", state), "unfinished")

    before = state.stat().st_mtime
    process = _start("pretrain", recipe, "--out", out, "--resume")
    until_saved(process, before)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert process.stderr is not None and b"Traceback" not in process.stderr.read()
    assert not out.exists() and sorted(p.name for p in tmp_path.iterdir()) == ["my.safetensors.training", "recipe.toml"]


def test_recipe_of_a_mixture(tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out.safetensors"
    text = RECIPE.format(steps=2).split("[pfn]")
    text[0] = """[prior]
name = "PriorMixture"
weights = [1.0, 2.0]
[[prior.priors]]
name = "GaussianProcess"
lengthscale = 0.5
[[prior.priors]]
name = "BayesianLinear"
"""
    recipe.write_text("[pfn]".join(text))
    assert run("pretrain", recipe, "--out", out).exit_code == 0
    parts = json.loads(run("info", out, "--json").output)["metadata"]["prior"]["priors"]
    assert [part["name"] for part in parts] == ["GaussianProcess", "BayesianLinear"]
    result = run("validate", out, "--tasks", "2", "--rows", "4")  # a mixture has no program for NUTS
    assert result.exit_code == 0 and "MLE-II" in result.output and "NUTS" not in result.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_prediction_leaves_nothing(model: str, table: Path, tmp_path: Path, number: int) -> None:
    code = f"""
import os, sys
from bayesvision.io import tables
from bayesvision.cli import main
def interrupted(path, columns):
    open(path, "w").write("half")
    os.kill(os.getpid(), {int(number)})
tables.write_csv = interrupted
main(["predict", {str(table)!r}, "--target", "y", "--model", {model!r}, "--out", {str(tmp_path / "out.csv")!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[number], done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["train.csv"]


def test_torch_is_not_imported_for_help() -> None:
    code = "import sys; from bayesvision.cli import main; main(['--help'], standalone_mode=False)"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_the_card_holds_the_prior(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(steps=2))
    out = tmp_path / "out.safetensors"
    assert run("pretrain", recipe, "--out", out).exit_code == 0
    assert bv.load(out).metadata["prior"] == {"name": "GaussianProcess", **vars(GaussianProcess(lengthscale=0.3))}


def test_a_network_for_tables_takes_more_columns(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 12))
    header = ",".join([*(f"c{k}" for k in range(12)), "y"])
    np.savetxt(tmp_path / "t.csv", np.column_stack([x, x[:, 0] - x[:, 1]]), delimiter=",", header=header, comments="")
    result = run("predict", tmp_path / "t.csv", "--target", "y", "--model", "pfn-table", "--out", tmp_path / "p.csv")
    assert result.exit_code == 0, result.output
    found = read_csv(tmp_path / "p.csv")
    error = found.values[:, found.columns.index("mean")] - found.values[:, found.columns.index("target")]
    assert np.sqrt(np.mean(error**2)) < 0.3
