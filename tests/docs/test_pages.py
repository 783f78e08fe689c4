"""What pages are made of: views of results, error messages, samples for the command lines, the package's files."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

import bayesvision as bv
from bayesvision.cli import main

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "docs"))

import messages  # noqa: E402 (docs/ is no package)
import results  # noqa: E402
from views import COSTS, VIEWS, View  # noqa: E402

STEMS = sorted(path.stem for path in results.FOLDER.rglob("*.json"))


@pytest.mark.parametrize("name", STEMS)
def test_every_result_is_shown_so_that_people_can_read_it(name):
    found = results.found(name)
    assert found is not None and VIEWS[name]
    for view in VIEWS[name]:
        lines = [line for line in results.viewed(view, found).splitlines() if line.startswith("|")]
        columns = lines[0].count("|") - 1
        assert len(lines) > 2 and 2 <= columns <= 7 and len(view.message) > 15, view.message
        assert all(line.count("|") - line.count("\\|") == columns + 1 for line in lines)
        if view.best or view.good:
            assert any("**" in line for line in lines[2:])
        assert not any(len(re.sub(r"<[^>]*>", "", cell)) > 60 for line in lines for cell in line.split("|"))


def test_costs_are_of_results():
    assert COSTS.keys() <= set(STEMS) | {"botorch_regret", "trust"}


def test_the_best_of_each_group_is_bold_and_errors_are_small():
    found = {"t": [{"m": "a", "v": 1.234, "e": 0.05, "g": 1}, {"m": "b", "v": 1.5, "e": 0.05, "g": 1}]}
    view = View("a message of some length", "t", {"m": "model", "v": "value"}, {"v": "e"}, {"v": min}, ("g",))
    text = results.viewed(view, found)
    assert "| a | **1.234** <small>± 0.05</small> |" in text and "| b | 1.500 <small>± 0.05</small> |" in text
    cross = View("a message of some length", "t", {"g": "group"}, pivot=("m", "v", "e"), good=max)
    assert "| 1 | 1.234 <small>± 0.05</small> | **1.500** <small>± 0.05</small> |" in results.viewed(cross, found)


@pytest.mark.parametrize(
    ("value", "text"),
    [(195.0991, "195.1"), (0.035, "0.035"), (12_345.6, "12,346"), (0.00001, "1.0e-05"), (0.0, "0"), (1.0012, "1.001")],
)
def test_numbers_have_four_digits(value, text):
    assert results.rounded(value) == text


def test_every_error_says_what_came_or_what_to_do():
    found = messages.messages()
    assert len(found) > 400
    silent = [
        m
        for m in found
        if not m.values and not re.search(r"; |must|needs|pip install|expected|got|call |so this", m.text)
    ]
    known = {"the run has no name", "text"}  # told on with the file and line, and with the value
    known |= {m.text for m in silent if m.place.startswith("integrations/sklearn")}  # scikit-learn's own words
    assert {m.text for m in silent} <= known


def test_errors_with_a_cure_make_the_page_of_questions():
    areas = messages.questions()
    assert sum(map(len, areas.values())) > 150 and all(helps for pairs in areas.values() for _, helps in pairs)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    subprocess.run([sys.executable, ROOT / "examples" / "sample_files.py", folder], check=True)
    return folder


@pytest.mark.parametrize(
    "line",
    [
        "curves runs.csv --horizon 50 --plot curves.png --out curves.csv",
        "curves runs --horizon 50",
        pytest.param(
            "replay runs.csv --policy lcpfn,thaw,patience:10,hyperband --plot regret.png --orders 2",
            marks=pytest.mark.slow,
        ),
        "predict train.csv --target y --test new.csv --out predictions.csv --plot fit.png --compare mean,linear,trees",
        pytest.param("impute holes.csv --out filled.csv --steps 20", marks=pytest.mark.slow),
        "sparse --net mynet:build --data data.npz --density 0.05 --out sparse.safetensors --steps 20",
        pytest.param(
            "cap --net mynet:smooth --degrade mynet:degrade --data images --out maps --steps 5", marks=pytest.mark.slow
        ),
    ],
)
def test_command_lines_run_on_the_samples(line, samples, monkeypatch):
    monkeypatch.chdir(samples)
    found = CliRunner().invoke(main, line.split())
    assert found.exit_code == 0, found.output
    for name in re.findall(r"--(?:out|plot) (\S+)", line):
        assert (samples / name).exists()


def test_every_shipped_network_is_in_the_table():
    page = (ROOT / "docs" / "guide" / "checkpoints.md").read_text()
    assert all(f"| `{name}` |" in page for name in bv.shipped())


def test_the_sample_recipe_is_small(samples):
    recipe = tomllib.loads((samples / "recipe.toml").read_text())
    assert recipe["train"]["steps"] * recipe["pfn"]["width"] < 100_000


def test_priors_are_also_a_name_of_the_package_and_a_foreign_one_is_told(tmp_path):
    import priors

    assert bv.priors is priors
    (tmp_path / "priors.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import bayesvision; bayesvision.priors"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "is not that of bayesvision" in ran.stderr


def test_the_sdist_holds_what_its_tests_need():
    held = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    for name in ("tests", "examples", "benchmarks", "tools", "docs", "Makefile", "constraints.txt", "CONTRIBUTING.md"):
        assert name in held and (ROOT / name).exists()


def test_pages_load_nothing_from_elsewhere():
    conf = (ROOT / "docs" / "conf.py").read_text()
    assert "sphinx-mathjax-offline" in conf and "cdn" not in conf
