"""The Python blocks of the README and of the documentation run; its recipes, tables and names are those of the code."""

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

import priors
from bayesvision.io.recipes import read_recipe

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))
import results  # noqa: E402 (docs/ is no package)

PAGES = sorted(
    [
        *ROOT.glob("README.md"),
        *(p for p in (ROOT / "docs").rglob("*.md") if not {"_build", "gallery", "api"} & {*p.parts}),
    ]
)
BLOCK = re.compile(r"(?P<mark><!-- not run -->\s*\n)?^```(?P<kind>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, kind: str) -> list[tuple[int, str]]:
    """First line and text of every plain block of `kind` that is not marked as not run."""
    text = page.read_text(encoding="utf-8")
    found = [m for m in BLOCK.finditer(text) if m["kind"] == kind and not m["mark"]]
    return [(text.count("\n", 0, m.start("code")), m["code"]) for m in found]


def run(page: Path) -> None:
    namespace = {"__name__": "__main__"}
    for line, code in blocks(page, "python"):
        exec(
            compile("\n" * line + code, str(page), "exec"), namespace
        )  # the blank lines make tracebacks point into the page


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page)


def test_the_runner_runs_what_is_not_marked_and_shares_a_page_s_names(tmp_path):
    page = tmp_path / "page.md"
    fence = "```"
    page.write_text(
        f"{fence}python\na = 1\n{fence}\n<!-- not run -->\n{fence}python\nraise OSError\n{fence}\n"
        f"{fence}bash\nfalse\n{fence}\n"
        f"{fence}{{code-cell}} python3\nraise OSError\n{fence}\n{fence}python\nraise KeyError(a)\n{fence}\n"
    )
    with pytest.raises(KeyError, match="1") as error:
        run(page)
    assert error.traceback[-1].lineno + 1 == 15


RECIPES = [(p.name, code) for p in PAGES for _, code in blocks(p, "toml")]


@pytest.mark.parametrize(
    "code", [code for _, code in RECIPES], ids=[f"{name}-{k}" for k, (name, _) in enumerate(RECIPES)]
)
def test_recipes_name_real_fields(code, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(code, encoding="utf-8")
    recipe = read_recipe(path, priors)
    assert recipe.build().width >= 1 and callable(recipe.prior.sample)


def test_the_whole_recipe_is_whole():
    """Every field is shown but those without a default that TOML can say, and the folder, which the command sets."""
    import dataclasses

    import bayesvision as bv
    from priors import GaussianProcessMixture

    shown = max((tomllib.loads(code) for name, code in RECIPES if name == "command.md"), key=lambda r: len(str(r)))

    def names(kind, *without):
        return {f.name for f in dataclasses.fields(kind)} - set(without)

    assert set(shown["prior"]) - {"name"} == names(GaussianProcessMixture)
    assert set(shown["pfn"]) == names(bv.PFN, "train", "classes")
    assert set(shown["train"]) == names(bv.Train, "execution", "start")
    assert set(shown["execution"]) == names(bv.Execution, "checkpoint_dir")


def test_every_result_is_shown():
    page = (ROOT / "docs" / "reference" / "benchmarks.md").read_text(encoding="utf-8")
    missing = [
        p.stem for p in (ROOT / "benchmarks" / "results").rglob("*.json") if f"{{results}} {p.stem}\n" not in page
    ]
    assert not missing, f"docs/benchmarks.md does not show {missing}"


def test_a_missing_result_is_said_to_be_missing(tmp_path):
    assert "there is no `benchmarks/results/nothing.json`" in results.page("nothing", tmp_path)


def test_results_become_tables(tmp_path):
    measured = {
        "machine": {"date": "2026-01-02", "cores": 2},
        "tasks": 20_000,
        "sizes": [1, 2],
        "models": [
            {"model": "A|B", "nll": -0.123456, "rows": 10},
            {"model": "C", "nll": None, "rows": 20, "extra": True},
        ],
        "networks": {"5": {"gaps": [{"gap": 0.5}]}},
    }
    (tmp_path / "some.json").write_text(json.dumps(measured))
    lines = results.page("some", tmp_path).splitlines()
    for line in (
        "- tasks: 20,000",
        "- sizes: 1, 2",
        "**models**",
        "| model | nll | rows | extra |",
        "| --- | ---: | ---: | ---: |",
        "| A\\|B | -0.1235 | 10 |  |",
        "| C |  | 20 | yes |",
        "**networks, 5, gaps**",
        "| 0.5 |",
    ):
        assert line in lines, line
    assert lines[-1] == "*Machine: date 2026-01-02; cores 2*"
