"""The README's tables are those of the committed results, and the shipped recipe is that of the shipped network."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

import bayesvision as bv
from bayesvision.cli.common import construct
from bayesvision.cli.pretrain import METHODS, read_recipe
from bayesvision.io.checkpoints import describe

ROOT = Path(__file__).parents[2]


def test_tables_are_those_of_the_results():
    assert subprocess.run([sys.executable, ROOT / "benchmarks" / "render.py", "--check"]).returncode == 0
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- table:") == 4 and "<!-- end -->\n<!--" not in text
    for block in text.split("<!-- table:")[1:]:
        assert "| ---" in block or "|---" in block


@pytest.mark.parametrize("name", ["pfn-gp", "lcpfn", "lcpfn-prior"])
def test_shipped_recipe_is_the_networks_own(name):
    prior, section, fields, training = read_recipe(ROOT / "bayesvision" / "pretrained" / f"{name}.toml")
    header = describe(name)
    method = construct(getattr(bv, METHODS[section]), {**fields, "train": bv.Train(**training)}, f"[{section}]")
    assert json.loads(json.dumps(asdict(method))) == header["recipe"]
    assert bv.core.describe(prior) == header["metadata"]["prior"]
