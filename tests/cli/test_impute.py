"""`bayesvision impute`."""

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import bayesvision as bv
from bayesvision.cli import main


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    kind = rng.integers(3, size=80)
    frame = pd.DataFrame(
        {
            "kind": np.array(["red", "green", "blue"])[kind],
            "size": (10 * kind + rng.normal(size=80)).round(3),
            "when": (pd.Timestamp("2024-01-01") + pd.to_timedelta(30 * kind, unit="D")).strftime("%Y-%m-%d"),
            "note": [f"text {k}" for k in range(80)],
        }
    )
    gaps = frame.mask(rng.random(frame.shape) < 0.15)
    gaps.to_csv(tmp_path / "t.csv", index=False)
    return gaps, tmp_path


def run(*arguments):
    return CliRunner().invoke(main, ["impute", *map(str, arguments)])


def test_a_table_is_filled_and_every_cell_told(table):
    gaps, folder = table
    names = ("--plot", folder / "h.png", "--model", folder / "m.safetensors", "--steps", 20)
    result = run(folder / "t.csv", "--out", folder / "f.csv", *names)
    assert result.exit_code == 0, result.output
    filled, cells = pd.read_csv(folder / "f.csv"), pd.read_csv(folder / "f.cells.csv")
    kept = ["kind", "size", "when"]
    assert not filled[kept].isna().any().any() and list(filled.columns) == list(gaps.columns)
    assert (filled["note"].isna() == gaps["note"].isna()).all()  # free text is left as it is
    there = gaps[kept].notna()
    assert (filled[kept].astype(str)[there].fillna("") == gaps[kept].astype(str)[there].fillna("")).all().all()
    assert len(cells) == int(gaps[kept].isna().to_numpy().sum()) and cells["probability"].between(0, 1).all()
    numbers = cells[cells["column"] == "size"]
    assert (numbers["low"] <= numbers["value"].astype(float)).all() and numbers["high"].notna().all()
    first = cells[cells["column"] == "kind"].iloc[0]
    assert pd.isna(gaps["kind"].iloc[first["row"] - 1]) and filled["kind"].iloc[first["row"] - 1] == first["value"]
    assert filled["when"].str.fullmatch(r"\d{4}-\d\d-\d\d").all()
    assert (folder / "h.png").stat().st_size > 1_000
    assert bv.load(folder / "m.safetensors").impute(gaps).filled["kind"].tolist() == filled["kind"].tolist()
    assert "free text" in " ".join(result.output.split()) and not list(folder.glob("*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("none.csv", "--out", "f.csv"), "none.csv"),
        (("t.csv", "--out", "t.csv"), "overwritten"),
        (("t.csv", "--out", "nowhere/f.csv"), "does not exist"),
        (("t.csv", "--out", "f.csv", "--kind", "kind"), "COLUMN=KIND"),
        (("t.csv", "--out", "f.csv", "--kind", "colour=number"), "colour"),
        (("t.csv", "--out", "f.csv", "--steps", "0"), "steps"),
        (("whole.csv", "--out", "f.csv"), "no missing cell"),
    ],
)
def test_what_cannot_be_done_is_one_line(table, arguments, words, monkeypatch):
    monkeypatch.chdir(table[1])
    pd.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "z"]}).to_csv("whole.csv", index=False)
    result = run(*arguments)
    assert result.exit_code == 2 and words in result.output and "Traceback" not in result.output
    assert not (table[1] / "f.csv").exists()
