import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import bayesvision as bv
from bayesvision.cli import main


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], env={"COLUMNS": "200"})


def fails(result: Result, *words: str) -> None:
    """Exit code 2, one line that holds the words, no traceback."""
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


def rows(path: Path) -> dict[str, dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def rising(top: float, steps: int, speed: float = 1.0) -> np.ndarray:
    return top - 0.4 * np.arange(1, steps + 1) ** -speed


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a network that knows nothing."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    bv.save(bv.LCPFN(width=8, layers=1, heads=2, readers=1, components=2).untrained(), path)
    return str(path)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A finished run, a promising one, a hopeless one, one that diverged, and one of a single reading."""
    runs = {
        "best [b]$x$": rising(0.9, 50), "promising": rising(0.97, 25), "hopeless": 0.2 + 0.001 * np.arange(25),
        "diverged": np.array([0.5, 0.6, np.nan]), "young": np.array([0.1]),
    }  # fmt: skip
    path = tmp_path / "runs.csv"
    lines = [f"{name},{k + 1},{v:.5f}" for name, values in runs.items() for k, v in enumerate(values)]
    path.write_text("run,epoch,accuracy\n" + "\n".join(lines))
    return path


def test_curves_says_where_runs_are_heading(log: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "out.csv", tmp_path / "curves.png"
    result = run("curves", log, "--out", out, "--plot", plot)
    assert result.exit_code == 0, result.output
    assert "horizon 50, best accuracy so far 0.954" in result.output and "best [b]$x$" in result.output
    table = rows(out)
    assert {name: row["call"] for name, row in table.items()} == {
        "promising": "go", "best [b]$x$": "done", "young": "go", "hopeless": "stop", "diverged": "stop (diverged)",
    }  # fmt: skip
    assert list(table)[-1] == "diverged" and float(table["best [b]$x$"]["predicted_final"]) == 0.892
    promising = [float(table["promising"][k]) for k in ("lower_0.9", "predicted_final", "upper_0.9", "p_beats_best")]
    assert 0.7 < promising[0] < 0.9 < promising[1] < promising[2] < 1.1 and promising[3] > 0.3
    assert float(table["hopeless"]["p_beats_best"]) < 0.05
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_curves_agrees_with_the_library(tiny: str, log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    told = ("--minimize", "--lower", "0", "--upper", "1")
    result = run("curves", log, "--model", tiny, "--horizon", "80", "--mass", "0.5", "--out", out, *told)
    assert result.exit_code == 0, result.output
    posterior = bv.load(tiny).with_metric(80.0, bv.MetricScale(0.0, 1.0, minimize=True))
    law = posterior.condition(np.arange(1.0, 26), np.round(rising(0.97, 25), 5)).predict([80.0])
    expected = [float(law.quantile(0.5)), *(float(v) for v in law.interval(0.5))]
    row = rows(out)["promising"]
    found = [float(row[k]) for k in ("predicted_final", "lower_0.5", "upper_0.5")]
    assert found == pytest.approx(expected, abs=1e-4)


def test_curves_reads_folders_and_wide_tables(tiny: str, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "log.jsonl").write_text("\n".join(json.dumps({"step": k, "loss": 3 / k}) for k in range(1, 6)))
    (folder / "b.csv").write_text("step,loss\n1,3.0\n2,2.5\n")
    options = ("--model", tiny, "--minimize", "--lower", "0", "--soft-upper", "4", "--horizon", "10")
    result = run("curves", folder, *options)
    assert result.exit_code == 0 and "a/log" in result.output and "best loss so far 0.6 (a/log)" in result.output
    wide, plot = tmp_path / "wide.csv", tmp_path / "fit.svg"
    wide.write_text("epoch,one,two\n0,0.1,0.2\n1,0.3,\n")
    fails(run("curves", wide, "--model", tiny), "not known by its name", "--minimize or --maximize")
    result = run("curves", wide, "--model", tiny, "--plot", plot, "--maximize")
    assert result.exit_code == 0 and "horizon 2" in result.output and "<svg" in plot.read_text()


def test_a_loss_is_minimised_and_it_is_said(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("run,step,val_loss\na,1,0.5\na,2,0.2\nb,1,0.6\nb,2,0.7\n")
    result = run("curves", path, "--horizon", "10", "--model", tiny)
    assert "best val_loss so far 0.2 (a); smaller is better, as its name says" in " ".join(result.output.split())
    assert "values are expected from 0 to 0.55, by the first readings" in " ".join(result.output.split())
    result = run("curves", path, "--horizon", "10", "--model", tiny, "--maximize")
    assert "best val_loss so far 0.7 (b); larger is better, as told" in " ".join(result.output.split())


def test_a_run_from_a_late_step_is_read_from_there(tmp_path: Path) -> None:
    """Steps 100,010 to 100,150 of 100,300: the forecast is near the curve, and is what the library says."""
    steps, values = np.arange(100_010, 100_160, 10), 0.8 - 0.2 * np.arange(1, 16) ** -1.5
    path, out = tmp_path / "a.csv", tmp_path / "out.csv"
    path.write_text("step,val_acc\n" + "".join(f"{s},{v:.6f}\n" for s, v in zip(steps, values, strict=True)))
    result = run("curves", path, "--horizon", "100300", "--out", out)
    assert result.exit_code == 0, result.output
    row = {name: float(rows(out)["a"][name]) for name in ("predicted_final", "lower_0.9", "upper_0.9")}
    law = bv.pretrained("lcpfn").with_metric(300.0).condition(steps - 100_000, values.round(6)).predict([300.0])
    assert list(row.values()) == pytest.approx([float(law.quantile(0.5)), *map(float, law.interval(0.9))], abs=1e-4)
    assert 0.78 < row["predicted_final"] < 0.84 < row["upper_0.9"] + 0.03


def test_every_reading_of_a_long_horizon_is_read(tmp_path: Path) -> None:
    """Every 10 of 5,000: fifty readings are fifty rows, as in `condition`."""
    steps = np.arange(10, 510, 10)
    values = (0.6 - 0.4 * (steps / 10) ** -0.7 + 0.01 * np.sin(steps)).round(6)
    path, out = tmp_path / "a.csv", tmp_path / "out.csv"
    path.write_text("step,val_acc\n" + "".join(f"{s},{v:.6f}\n" for s, v in zip(steps, values, strict=True)))
    assert run("curves", path, "--horizon", "5000", "--out", out).exit_code == 0
    law = bv.pretrained("lcpfn").with_metric(5000.0).condition(steps, values).predict([5000.0])
    assert float(rows(out)["a"]["predicted_final"]) == pytest.approx(float(law.quantile(0.5)), abs=1e-4)


def test_what_was_guessed_and_passed_over_is_said(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("epoch,loss,val_loss\n1,3.0,3.5\n2,2.0,3.0\n1,2.9,3.6\n")
    (tmp_path / "data.csv").write_text("name,age\nAnn,3\n")
    (tmp_path / "b.csv").write_text("epoch,loss,val_loss\n1,3.0,3.5\n2,2.0,47\n")
    result = run("curves", tmp_path, "--model", tiny, "--horizon", "10")
    assert result.exit_code == 0
    for words in (
        "passed over data.csv",
        "read val_loss, and not loss; --metric NAME takes another one",
        "steps go back in a",
        "beyond the range 0 to 3.55 where values are expected, forecasts are coarse: b (47)",
    ):
        assert words in result.stderr, words


def test_bad_input_to_curves(tiny: str, log: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("step,acc\n1,0.5\n2,0.6\n")
    fails(run("curves", path, "--model", tiny), "a.csv", "--horizon")
    fails(run("curves", path, "--model", tiny, "--horizon", "1"), "'a'", "step 2", "--horizon")
    fails(run("curves", path, "--horizon", "9", "--model", "pfn-gp"), "pfn-gp", "LCPFN")
    fails(run("curves", path, "--horizon", "9", "--model", "none"), "none")
    fails(run("curves", path, "--horizon", "9", "--plot", tmp_path / "a.exe"), ".png")
    fails(run("curves", path, "--horizon", "9", "--out", path), "overwritten")
    fails(run("curves", path, "--lower", "1", "--upper", "0", "--horizon", "9", "--model", tiny), "--lower", "lower <=")
    fails(run("curves", path, "--lower", "1", "--horizon", "9", "--model", tiny), "finite")
    fails(run("curves", tmp_path / "none.csv"), "none.csv", "no such file")
    path.write_text("step,loss\n1,2.5\n2,x\n")
    fails(run("curves", path, "--horizon", "9", "--model", tiny), "line 3", "loss")
    path.write_text("step,acc\n1,2.5\n2,1.5\n")
    fails(run("curves", path, "--horizon", "9", "--model", tiny), "2.5", "--lower 0 --soft-upper 2.5", "--minimize")
    path.write_text("step,loss,acc\n1,2.5,0.5\n2,1.5,0.5\n")
    fails(run("curves", path, "--horizon", "9", "--model", tiny), "may be any of loss, acc", "--metric")
    path.write_text("step,loss\n1,nan\n2,nan\n")
    fails(run("curves", path, "--horizon", "9", "--model", tiny), "NaN")
    assert run("curves", log, "--delta", "1").exit_code == 2


@pytest.fixture
def past(tmp_path: Path) -> Path:
    """Thirty finished runs, the best of which is the eighth, and one that crashed."""
    source = np.random.default_rng(0)
    tops = source.uniform(0.5, 0.85, 30)
    tops[7] = 0.95
    curves = {f"r{k}": rising(top, 40, 0.8) + 0.002 * source.normal(size=40) for k, top in enumerate(tops)}
    curves["r3"] = curves["r3"][:10]
    path = tmp_path / "past.csv"
    lines = [f"{name},{100 * (k + 1)},{v:.5f}" for name, values in curves.items() for k, v in enumerate(values)]
    path.write_text("trial,step,accuracy\n" + "\n".join(lines))
    return path


def cells(output: str, table: int) -> dict[str, list[str]]:
    """Rows of the first or second table that was printed."""
    part = output.split("┏")[table + 1]
    lines = [
        [cell.strip() for cell in line.strip("│ ").split("│")] for line in part.splitlines() if line.startswith("│")
    ]
    return {line[0]: line[1:] for line in lines}


def test_replay_tells_what_stopping_saves(past: Path, tmp_path: Path) -> None:
    plot = tmp_path / "regret.png"
    policies = "lcpfn,lcpfn:0.2,lcpfn:0.05,thaw,patience:3,halving,hyperband"
    result = run("replay", past, "--policy", policies, "--orders", "5", "--plot", plot)
    assert result.exit_code == 0, result.output
    once, often = cells(result.output, 0), cells(result.output, 1)
    assert list(once) == list(often) == ["none", *policies.split(",")]
    assert once["none"][:2] == ["117,000", "0.0%"] and once["none"][-1] == "kept" and once["none"][3:5] == ["0", "0"]
    assert once["thaw"][3] == "0" and float(often["thaw"][1].rstrip("%")) > 50
    assert float(once["lcpfn"][1].rstrip("%")) > 20 and once["lcpfn"][3] == "0"  # curves without surprises
    spent = [int(once[name][0].replace(",", "")) for name in ("lcpfn:0.2", "lcpfn:0.05", "none")]
    assert spent == sorted(spent) and spent[1] < spent[2]
    assert "every 100 steps" in result.output and plot.read_bytes().startswith(b"\x89PNG")
    assert (
        run("replay", past, "--policy", "halving", "--orders", "5").output
        == run("replay", past, "--policy", "halving", "--orders", "5").output
    )


def test_replay_says_when_the_best_run_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "past.csv"
    path.write_text(
        "step,good,late\n" + "".join(f"{k},{0.5 + 0.001 * k},{0.1 if k < 9 else 0.9}\n" for k in range(1, 13))
    )
    result = run("replay", path, "--policy", "halving,patience:2", "--orders", "0", "--minimize", "--upper", "5",
                 "--lower", "-5")  # fmt: skip
    assert result.exit_code == 0 and "kept" in result.output
    result = run("replay", path, "--policy", "halving,patience:2", "--orders", "0", "--maximize")
    table = cells(result.output, 0)
    assert "best run (late)" in result.output and result.output.count("┏") == 1
    assert table["halving"] == ["13", "45.8%", "0.512", "0.388", "1", "lost at step 1"]
    assert table["patience:2"] == ["15", "37.5%", "0.512", "0.388", "1", "lost at step 3"]


def test_bad_input_to_replay(past: Path, tmp_path: Path) -> None:
    fails(run("replay", past, "--policy", "magic"), "magic", "hyperband")
    fails(run("replay", past, "--policy", "patience:x"), "patience:x")
    fails(run("replay", past, "--policy", "patience:0.5"), "whole number")
    fails(run("replay", past, "--policy", "patience:0"), "at least 1")
    fails(run("replay", past, "--policy", "thaw:1"), "eta")
    fails(run("replay", past, "--policy", "lcpfn:2"), "delta")
    fails(run("replay", past, "--plot", tmp_path / "a.txt"), ".png")
    fails(run("replay", past, "--upper", "0.2", "--lower", "0"), "r0", "range")
    fails(run("replay", tmp_path / "none.csv"), "no such file")
