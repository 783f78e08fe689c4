import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

import bayesvision as bv
from bayesvision.cli import main
from priors import GaussianProcess, GaussianProcessMixture, RandomNetwork

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
    written = pd.read_csv(out)
    assert list(written.columns) == ["line", "target", "mean", "stddev", "median", "lower_0.9", "upper_0.9"]
    assert len(written) == 6 and (written["lower_0.9"] < written["median"]).all()
    assert (written["median"] < written["upper_0.9"]).all()
    lines = table.read_text().splitlines()
    for line, target in zip(written["line"], written["target"], strict=True):
        assert float(lines[line - 1].split(",")[-1]) == pytest.approx(target, rel=1e-8)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_predict_agrees_with_the_library(model: str, table: Path, tmp_path: Path) -> None:
    test, out = tmp_path / "test.csv", tmp_path / "out.csv"
    test.write_text("b,a\n0.2,0.1\n0.4,0.3\n")  # columns are matched by name
    assert run("predict", table, "--target", "y", "--test", test, "--out", out, "--model", model).exit_code == 0
    frame, new = pd.read_csv(table), pd.DataFrame({"a": [0.1, 0.3], "b": [0.2, 0.4]})
    expected = bv.load(model).condition(frame[["a", "b"]], frame["y"]).predict(new)
    np.testing.assert_allclose(pd.read_csv(out)["mean"], expected.mean.numpy(), rtol=1e-7)
    result = run("predict", table, "--target", "y", "--test", test, "--out", out)
    assert result.exit_code == 0, result.output
    expected = bv.pretrained("pfn-table").condition(frame[["a", "b"]], frame["y"]).predict(new)
    np.testing.assert_allclose(pd.read_csv(out)["mean"], expected.mean.numpy(), rtol=1e-6)


def test_predict_of_one_column_draws_a_band(model: str, tmp_path: Path) -> None:
    train, plot = tmp_path / "train.csv", tmp_path / "fit.svg"
    train.write_text("a;y\n" + "\n".join(f"{i};{i * i / 2}" for i in range(12)))
    result = run("predict", train, "--target", "y", "--plot", plot, "--model", model, "--compare", "gp")
    assert result.exit_code == 0, result.output
    assert "GP" in result.output and "<svg" in plot.read_text()


def test_predict_without_a_known_target_draws_sorted_predictions(model: str, table: Path, tmp_path: Path) -> None:
    test, plot = tmp_path / "test.csv", tmp_path / "fit.png"
    test.write_text("a,b\n0.1,0.2\n0.5,0.6\n0.3,0.9\n")
    result = run("predict", table, "--target", "y", "--test", test, "--plot", plot, "--model", model)
    assert result.exit_code == 0, result.output
    assert "width" in result.output and plot.exists()


# Tables as they come


@pytest.fixture
def people(tmp_path: Path) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = 120
    frame = pd.DataFrame(
        {
            "age": rng.integers(18, 80, n).astype(float),
            "city": rng.choice(["Rome", "Oslo", "Lima"], n),
            "since": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, n), "D"),
            "vip": rng.random(n) < 0.4,
            "note": [f"free text {i}" for i in range(n)],
            "one": 1,
        }
    )
    frame["income"] = (frame.age / 10 + 3 * (frame.city == "Oslo") + 2 * frame.vip + 0.3 * rng.normal(size=n)).round(3)
    frame["churned"] = np.where(frame.age + 8 * rng.normal(size=n) > 50, "yes", "no")
    frame.loc[rng.random(n) < 0.1, "age"] = np.nan
    frame.loc[[3, 8], "income"] = np.nan
    frame.to_csv(tmp_path / "people.csv")
    return frame


def test_numbers_text_dates_and_holes_are_read_and_said(people: pd.DataFrame, tmp_path: Path) -> None:
    out, plot = tmp_path / "o.csv", tmp_path / "o.png"
    result = run(
        "predict", tmp_path / "people.csv", "--target", "income", "--out", out, "--plot", plot,
        "--compare", "gp,linear,trees",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    for word in ("2 rows without a value of 'income'", "it numbers the rows", "free text", "one value", "as days"):
        assert word in said, word
    for name in ("PFN", "GP", "linear", "trees", "held out"):
        assert name in said
    written = pd.read_csv(out)
    assert np.sqrt(np.mean((written["mean"] - written["target"]) ** 2)) < 1.2 < written["target"].std()
    known = people.loc[written["line"] - 2, "income"]
    np.testing.assert_allclose(known, written["target"], rtol=1e-8)


@pytest.mark.parametrize("target", ["churned", "vip", "grade"])
def test_text_truth_and_few_whole_numbers_are_classes(people: pd.DataFrame, tmp_path: Path, target: str) -> None:
    people["grade"] = (people.income.fillna(5).rank(pct=True) * 3).astype(int).clip(0, 2) + 1
    people.to_csv(tmp_path / "people.csv", index=False)
    out, plot = tmp_path / "p.csv", tmp_path / "p.png"
    result = run(
        "predict",
        tmp_path / "people.csv",
        "--target",
        target,
        "--out",
        out,
        "--plot",
        plot,
        "--compare",
        "linear,trees",
    )
    assert result.exit_code == 0, result.output
    classes = {"churned": ["no", "yes"], "vip": ["False", "True"], "grade": ["1", "2", "3"]}[target]
    assert f"taken for {len(classes)} classes: {', '.join(classes)}" in result.output
    assert ("--kind grade=number" in result.output) == (target == "grade")
    written = pd.read_csv(out, dtype={"predicted": str, "target": str})
    probs = written[[f"p_{c}" for c in classes]].to_numpy()
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-6)
    assert [classes[k] for k in probs.argmax(1)] == list(written["predicted"])
    assert (written["predicted"] == written["target"]).mean() > 0.55 and plot.exists()


def test_a_kind_may_be_said(people: pd.DataFrame, tmp_path: Path) -> None:
    people["grade"] = (people.income.fillna(5).rank(pct=True) * 3).astype(int).clip(0, 2)
    people.to_parquet(tmp_path / "people.parquet")
    train = tmp_path / "people.parquet"
    result = run("predict", train, "--target", "grade", "--kind", "grade=number", "--kind", "age=dropped")
    assert result.exit_code == 0, result.output
    assert "RMSE" in result.output and "you said so" in result.output
    fails(run("predict", train, "--target", "grade", "--kind", "age"), "COLUMN=KIND")
    fails(run("predict", train, "--target", "grade", "--kind", "age=colour"), "colour", "number, category")
    fails(run("predict", train, "--target", "grade", "--kind", "none=number"), "none")
    fails(run("predict", train, "--target", "churned", "--kind", "churned=number"), "'no'", "no number")


def test_a_blank_or_half_blank_target_of_the_test_file_is_unknown(people: pd.DataFrame, tmp_path: Path) -> None:
    test, out = tmp_path / "new.csv", tmp_path / "o.csv"
    new = people.head(20).assign(extra="unused text", city="Paris")  # a city never seen
    for column in (np.nan, [np.nan] * 10 + list(people.income[10:20])):
        new.assign(income=column).to_csv(test, index=False)
        result = run("predict", tmp_path / "people.csv", "--target", "income", "--test", test, "--out", out)
        assert result.exit_code == 0, result.output
        assert ("RMSE" in result.output) == isinstance(column, list)
        assert len(pd.read_csv(out)) == 20
    new.assign(churned="").to_csv(test, index=False)
    result = run("predict", tmp_path / "people.csv", "--target", "churned", "--test", test, "--out", out)
    assert result.exit_code == 0 and "confidence" in result.output, result.output
    new.assign(churned="maybe").to_csv(test, index=False)
    fails(run("predict", tmp_path / "people.csv", "--target", "churned", "--test", test), "new.csv", "maybe")


def test_tables_beyond_the_network_are_used_and_said_or_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(700, 36))
    frame = pd.DataFrame(x, columns=[f"c{k}" for k in range(36)]).assign(y=x[:, 0] - 2 * x[:, 35])
    frame.to_csv(tmp_path / "t.csv", index=False)
    result = run("predict", tmp_path / "t.csv", "--target", "y", "--out", tmp_path / "p.csv")
    assert result.exit_code == 0, result.output
    assert "2 contexts of 280 of the 560 rows, 32 of the 36 columns" in result.output
    found = pd.read_csv(tmp_path / "p.csv")
    assert np.sqrt(np.mean((found["mean"] - found["target"]) ** 2)) < 0.3
    fails(run("predict", tmp_path / "t.csv", "--target", "y", "--strict"), "560 rows", "at most 512")


# What is refused, in one line and without a file


BAD_TABLES = {
    "no target column": ("a,b\n1,2\n2,3\n", ("'y'", "a, b")),
    "only the target": ("y\n1\n2\n", ("'y'", "only column")),
    "one row": ("a,y\n1,2\n", ("'y'", "in every row")),
    "no rows": ("a,y\n", ("no rows",)),
    "no target value": ("a,y\n1,\n2,\n", ("'y'", "no values")),
    "empty file": ("", ("empty",)),
    "blank file": ("\n \n", ("empty",)),
    "a hundred thousand columns": (",".join(f"c{i}" for i in range(100_000)) + ",y\n", ("100001 columns",)),
    "constant target": ("a,y\n1,2\n2,2\n3,2\n4,2\n5,2\n", ("'y'", "every row")),
    "infinity": ("a,y\n1,2\n2,inf\n3,4\n", ("line 3", "'y'", "finite")),
    "huge target": ("a,y\n1,2\n2,1e31\n3,4\n", ("line 3", "'y'", "1e+30")),
    "two faults": ("a,y\n1e40,2\n2,1e31\n3,4\n", ("line 2, column 'a'", "line 3, column 'y'")),
    "ragged": ("a,y\n1,2\n2,3,4\n", ("line 3", "3 fields")),
    "cut short": ("a,b,y\n1,2,3\n4,5\n", ("line 3", "2 fields")),
    "no header": ("1,2\n3,4\n", ("line 1", "name the columns")),
    "repeated name": ("a,a,y\n1,2,3\n", ("'a'", "rename")),
    "no column left": ("a,y\n1,2.5\n1,3.5\n1,4.5\n", ("no column is left", "one value")),
    "a class with one row": ("a,y\n1,u\n2,u\n3,v\n4,v\n5,w\n", ("line 6", "'w'", "alone")),
    "too many classes": ("a,y\n" + "\n".join(f"{i},k{i % 12}" for i in range(40)), ("12 different", "10 classes")),
    "text after a quoted line break": ('"a\nb",y\n1,2\n3,4,5\n', ("line 4", "3 fields")),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_table_is_one_line_and_leaves_no_file(tmp_path: Path, name: str) -> None:
    text, words = BAD_TABLES[name]
    train, out, plot = tmp_path / "train.csv", tmp_path / "out.csv", tmp_path / "fit.png"
    train.write_text(text)
    test = tmp_path / "test.csv"
    test.write_text("a,b,c,d\n1,2,3,4\n")
    result = run("predict", train, "--target", "y", "--test", test, "--out", out, "--plot", plot)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output and str(train) in result.stderr
    for word in words:
        assert word in result.stderr.strip().splitlines()[-1], result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["test.csv", "train.csv"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,y\n1,2.5\nParis,3\n2,4\n", ("'a'", "text", "--model")),
        ("a,y\n1,2.5\n,3\n4,5\n", ("line 3", "'a'", "missing value")),
        (
            "a,b,c,d,y\n" + "\n".join(f"{i},{i * i},{i**3},{i % 3},{i / 2}" for i in range(9)),
            ("4 columns", "at most 3"),
        ),
    ],
)
def test_a_plain_pfn_says_what_it_cannot_read(model: str, tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text(text)
    test.write_text("a,b,c,d\n1,2,3,4\n")
    result = run("predict", train, "--target", "y", "--test", test, "--model", model)
    assert result.exit_code == 2
    for word in words:
        assert word in result.stderr.strip().splitlines()[-1], result.stderr


def test_dialects_and_encodings(tmp_path: Path) -> None:
    train = tmp_path / "train.csv"
    rows = [(k, k % 5, f"{k / 4:.2f}") for k in range(12)]
    for text in (
        'größe;"b,c";y\n' + "\n".join(f"{a};{b};{c}".replace(".", ",") for a, b, c in rows),
        "größe|b,c|y\n" + "\n".join(f"{a}|{b}|{c}" for a, b, c in rows),
        "größe  b,c y\n" + "\n".join(f"{a}  {b} {c}" for a, b, c in rows),
    ):
        for encoding in ("utf-8", "utf-8-sig", "utf-16", "latin-1"):
            train.write_bytes(text.encode(encoding))
            result = run("predict", train, "--target", "y", "--out", tmp_path / "o.csv")
            assert result.exit_code == 0, (text[:20], encoding, result.output, result.stderr)
            assert ("Windows-1252" in result.stderr) == (encoding == "latin-1")
            assert set(pd.read_csv(tmp_path / "o.csv")["target"]) <= {k / 4 for k in range(12)}
    train.write_bytes(gzip.compress(b"a,y\n" + b"\n".join(b"%d,%d.5" % (k, k) for k in range(12))))
    assert run("predict", train, "--target", "y").exit_code == 0


def test_binary_and_absent_files(tmp_path: Path) -> None:
    train = tmp_path / "train.csv"
    train.write_bytes(b"a,y\n1,\x00\n")
    fails(run("predict", train, "--target", "y"), "NUL")
    fails(run("predict", tmp_path / "none.csv", "--target", "y"), "none.csv")
    train.write_bytes(b"\x1f\x8bbroken")
    fails(run("predict", train, "--target", "y"), "gzip")
    (tmp_path / "t.parquet").write_bytes(b"broken")
    fails(run("predict", tmp_path / "t.parquet", "--target", "y"), "t.parquet", "Parquet")
    pd.DataFrame({"a": [[1], [2], [3]], "b": [1, 2, 3], "y": [0.1, 0.2, 0.4]}).to_parquet(tmp_path / "t.parquet")
    fails(run("predict", tmp_path / "t.parquet", "--target", "y", "--test", tmp_path / "t.parquet"), "'a'", "single")


def test_bad_options(model: str, table: Path, tmp_path: Path) -> None:
    fails(run("predict", table, "--target", "y", "--model", "nothing"), "nothing", "shipped")
    fails(run("predict", table, "--target", "y", "--model", "lcpfn"), "lcpfn", "not a network for tables")
    fails(run("predict", table, "--target", "y", "--model", model, "--compare", "magic"), "magic")
    fails(run("predict", table, "--target", "y", "--model", model, "--plot", tmp_path / "fit.exe"), ".png")
    fails(run("predict", table, "--target", "y", "--model", model, "--out", tmp_path / "no" / "o.csv"), "folder")
    test = tmp_path / "test.csv"
    test.write_text("a\n1\n")
    fails(run("predict", table, "--target", "y", "--model", model, "--test", test), "lacks the columns b")
    fails(run("predict", table, "--target", "y", "--model", table), "train.csv", "safetensors")
    for option in ("--out", "--plot"):
        picture = table.rename(table.with_suffix(".png")) if option == "--plot" else table
        fails(run("predict", picture, "--target", "y", "--model", model, option, picture), "overwritten")
    assert picture.read_text().startswith("a,b,y")


def test_a_plain_pfn_for_more_classes_than_the_table_has(tmp_path: Path) -> None:
    train = bv.Train(steps=5, batch=2)
    network = bv.PFN(features=2, classes=4, context=40, width=16, layers=1, heads=2, train=train)
    bv.save(network.fit(RandomNetwork(2, classes=4)), tmp_path / "classes.safetensors")
    table = "a,b,y\n" + "\n".join(f"{i},{i % 5},{'no' if i < 15 else 'yes'}" for i in range(30))
    (tmp_path / "t.csv").write_text(table)
    result = run(
        "predict", tmp_path / "t.csv", "--target", "y", "--model", tmp_path / "classes.safetensors",
        "--out", tmp_path / "o.csv",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    written = pd.read_csv(tmp_path / "o.csv")
    np.testing.assert_allclose(written["p_no"] + written["p_yes"], 1, atol=1e-6)


def test_a_plain_pfn_takes_a_random_subset_of_a_long_table(model: str, tmp_path: Path) -> None:
    train = tmp_path / "train.csv"
    train.write_text("a,y\n" + "\n".join(f"{i % 30},{(i % 30) ** 2}" for i in range(60)))  # rows may repeat
    result = run("predict", train, "--target", "y", "--model", model)
    assert result.exit_code == 0, result.output
    assert "a random 40 of the 48 rows" in result.output
    fails(run("predict", train, "--target", "y", "--model", model, "--strict"), "48 rows", "at most 40")


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
    command = [sys.executable, "-m", "bayesvision", *map(str, arguments)]
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


def test_a_distribution_transformer_is_trained_and_validated(tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "my.safetensors"
    recipe.write_text("""
[prior]
name = "NormalVariance"
[dt]
components = 2
width = 16
layers = 1
heads = 2
[train]
steps = 5
batch = 8
""")
    result = run("pretrain", recipe, "--out", out)
    assert result.exit_code == 0 and "40 problems" in result.output, result.output
    result = run("validate", out, "--tasks", "20", "--rows", "1,3")
    assert result.exit_code == 0 and "NormalVariance" in result.output, result.output
    fails(run("validate", out, "--rows", "0"), "from 1 up")


def test_all_that_is_wrong_with_both_files_is_said_at_once(tmp_path: Path) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("a,b,y\n1,2,3\n1,2\n4,5,6,7\n2,2,2\n")
    test.write_text("a,b\n1\n")
    fails(
        run("predict", train, "--target", "y", "--test", test),
        "line 3 has 2, line 4 has 4 fields where the header has 3",
        "test.csv: line 2 has 1 fields where the header has 2",
    )
    train.write_text("a,y\n" + "1,one\n2,two\n" * 6 + "3,three\n4,four\n")
    fails(run("predict", train, "--target", "y"), "line 14: the class 'three'", "line 15: the class 'four'", "alone")
    train.write_text("a,y\n" + "1,one\n2,two\n" * 6)
    test.write_text("a,y\n1,three\n2,four\n2,four\n")
    fails(run("predict", train, "--target", "y", "--test", test), "'three', 'four', which the rows seen do not")


def test_validate_takes_networks_for_tables(tmp_path: Path) -> None:
    result = run("validate", "pfn-table", "--tasks", "2", "--rows", "6", "--features", "2")
    assert result.exit_code == 0 and "MLE-II" in result.output, result.output
    fails(run("validate", "pfn-classes"), "not a PFN for regression")


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
