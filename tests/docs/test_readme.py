"""The README's tables are those of the committed results, and the shipped recipe is that of the shipped network."""

import subprocess
import sys
from pathlib import Path

import pytest

import bayesvision as bv
import priors
from bayesvision.core.recipes import build
from bayesvision.io import checkpoints
from bayesvision.io.recipes import build_prior, read_recipe

ROOT = Path(__file__).parents[2]


def test_tables_are_those_of_the_results():
    assert subprocess.run([sys.executable, ROOT / "benchmarks" / "render.py", "--check"]).returncode == 0
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- table:") == 5 and "<!-- end -->\n<!--" not in text
    for block in text.split("<!-- table:")[1:]:
        assert "| ---" in block or "|---" in block


FROM_PRIORS = [name for name in sorted(checkpoints.shipped()) if "prior" in checkpoints.describe(name)["metadata"]]


@pytest.mark.parametrize("name", FROM_PRIORS)
def test_shipped_recipe_is_the_networks_own(name):
    path, header = ROOT / "bayesvision" / "pretrained" / f"{name}.toml", checkpoints.describe(name)
    recipe = read_recipe(path, priors)
    assert recipe.build() == build(getattr(bv, header["method"]), header["recipe"])
    assert recipe.prior == build_prior(header["metadata"]["prior"], priors)  # written under the names of that time
