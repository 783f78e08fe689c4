"""What a newcomer meets: help, names, missing files, the doctor, an interrupted training."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

import bayesvision as bv
from bayesvision.cli import main
from bayesvision.cli.doctor import recorded_answers

ENVIRONMENT = {**os.environ, "COLUMNS": "200"}
RECIPE = """
[prior]
name = "BayesianLinear"

[pfn]
features = 1
context = 8
width = 8
layers = 1
heads = 1
bars = 8

[train]
steps = 200000
batch = 2
"""


def ran(*arguments):
    return CliRunner().invoke(main, list(arguments))


def test_help_says_every_command_whole():
    lines = ran("--help").output.split("Commands:")[1].strip().splitlines()
    assert len(lines) == len(main.commands) and not any("..." in line for line in lines)
    assert all(line.endswith(".") for line in lines)


def test_info_lists_what_there_is():
    names = list(bv.shipped())
    assert all(name in ran("info").output for name in names)
    failed = ran("info", "pfn")
    assert failed.exit_code == 2 and all(name in failed.output for name in names)


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "none.csv", "--target", "y"),
        ("impute", "none.csv", "--out", "x.csv"),
        ("pretrain", "none.toml", "--out", "x.safetensors"),
        ("sparse", "--net", "a:b", "--data", "none.npz", "--out", "x.safetensors"),
        ("cap", "--net", "a:b", "--data", "none", "--out", "x"),
        ("curves", "none.csv"),
        ("replay", "none.csv"),
        ("watch", "none"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_missing_file_is_told_before_torch_is_loaded(arguments):
    code = f"import sys; from bayesvision.cli import main; sys.argv[1:] = {list(arguments)!r}; main()"
    probe = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "none" in done.stderr and done.stdout.strip() == "False"


def test_doctor_knows_a_network_that_answers_otherwise(monkeypatch, tmp_path):
    whole = ran("doctor")
    assert whole.exit_code == 0 and whole.output.count("as recorded") == len(bv.shipped())
    assert bv.__version__ in whole.output and "cpu" in whole.output
    answers = json.loads(recorded_answers().read_text())
    assert answers.keys() == bv.shipped().keys()
    answers["lcpfn"][0] += 0.1
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    monkeypatch.setattr(sys.modules["bayesvision.cli.doctor"], "recorded_answers", lambda: tmp_path / "answers.json")
    wrong = ran("doctor")
    assert wrong.exit_code == 1 and "lcpfn gave another answer" in wrong.output
    assert wrong.output.count("as recorded") == len(bv.shipped()) - 1
    del answers["pfn-gp"]
    answers["lcpfn"] = answers["lcpfn"][:1]
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    lacking = ran("doctor")
    assert lacking.exit_code == 1 and "pfn-gp, lcpfn gave another answer" in lacking.output


def test_ctrl_c_keeps_a_training_and_names_resume(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    command = [sys.executable, "-m", "bayesvision", "pretrain", "recipe.toml", "--out", "x.safetensors", "--log", "log"]
    run = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    for _ in range(600):
        if (tmp_path / "log").exists() and (tmp_path / "log").stat().st_size:
            break
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130 and "--resume" in said and re.search(r"stopped after [\d,]+ of 200,000 steps", said)
    assert any((tmp_path / "x.safetensors.training").iterdir()) and not (tmp_path / "x.safetensors").exists()
