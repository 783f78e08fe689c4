"""The README's tables are those of the committed results, and the shipped recipe is that of the shipped network."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import bayesvision as bv
from bayesvision.checkpoints import describe
from bayesvision.cli.common import construct
from bayesvision.cli.pretrain import read_recipe

ROOT = Path(__file__).parents[1]


def test_tables_are_those_of_the_results():
    assert subprocess.run([sys.executable, ROOT / "benchmarks" / "render.py", "--check"]).returncode == 0
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- table:") == 4 and "<!-- end -->\n<!--" not in text
    for block in text.split("<!-- table:")[1:]:
        assert "| ---" in block or "|---" in block


def test_shipped_recipe_is_the_networks_own():
    prior, fields, training = read_recipe(ROOT / "bayesvision" / "pretrained" / "pfn-gp.toml")
    header = describe("pfn-gp")
    method = construct(bv.PFN, {**fields, "train": bv.Train(**training)}, "[pfn]")
    assert asdict(method) == header["recipe"]
    assert bv.core.describe(prior) == header["card"]["prior"]
