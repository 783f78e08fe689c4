"""The directive `results`: benchmarks/results/NAME.json as tables, read while the documentation is built."""

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

FOLDER = Path(__file__).parents[1] / "benchmarks" / "results"


def smoke(gallery_conf: Any, script_vars: Any) -> list[str]:
    """Command line of an example in the gallery."""
    return ["--smoke"]


def is_table(value: Any) -> bool:
    """Whether `value` is a list of flat dicts."""
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) and is_flat(row) for row in value)


def is_flat(row: dict[str, Any]) -> bool:
    """Whether no value of `row` is a dict or a list of other things than scalars."""
    return not any(
        isinstance(v, dict) or (isinstance(v, list) and any(isinstance(p, dict | list) for p in v))
        for v in row.values()
    )


def cell(value: Any) -> str:
    """A scalar, or a short list of them, as text of a MyST table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, list):
        return ", ".join(cell(v) for v in value)
    text = " ".join(str(value).split())
    for mark in "\\|*_`$<[":
        text = text.replace(mark, "\\" + mark)
    return text


def table(rows: list[dict[str, Any]]) -> str:
    """MyST table of flat dicts: a column for every key that some row has, numbers to the right."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numeric = [all(isinstance(row.get(c), int | float | None) for row in rows) for c in columns]
    lines = [columns_line(map(cell, columns)), columns_line("---:" if n else "---" for n in numeric)]
    return "\n".join([*lines, *(columns_line(cell(row.get(c)) for c in columns) for row in rows)])


def columns_line(cells: Any) -> str:
    """One line of a MyST table."""
    return f"| {' | '.join(cells)} |"


def render(results: dict[str, Any], title: str = "") -> str:
    """MyST of a JSON object: lists of flat dicts as tables, dicts in turn, the rest as a list, the machine last."""
    tables, facts, machine = [], [], ""
    for key, value in results.items():
        name = f"{title}, {key}" if title else key
        if key == "machine" and isinstance(value, dict):
            machine = "*Machine: " + "; ".join(f"{cell(k)} {cell(v)}" for k, v in value.items()) + "*"
        elif is_table(value):
            tables += [f"**{cell(name)}**", table(value)]
        elif isinstance(value, dict):
            tables.append(render(value, name))
        elif isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
            tables += [f"**{cell(name)}**", f"```json\n{json.dumps(value, indent=1)}\n```"]
        else:
            facts.append(f"- {cell(key)}: {cell(value)}")
    heading = [f"**{cell(title)}**"] if title and facts else []
    return "\n\n".join(part for part in [*heading, "\n".join(facts), *tables, machine] if part)


def page(name: str, folder: Path = FOLDER) -> str:
    """MyST of the results NAME, or a sentence that says they are missing."""
    path = next(folder.rglob(f"{name}.json"), None)
    if path is None:
        return f"*Not measured in this build: there is no `benchmarks/results/{name}.json`.*"
    return render(json.loads(path.read_text(encoding="utf-8")))


class Results(SphinxDirective):
    """Tables of one benchmark."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        for path in FOLDER.rglob(f"{name}.json"):
            self.env.note_dependency(str(path))
        return self.parse_text_to_nodes(page(name))


def setup(app: Any) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("results", Results)
    return {"parallel_read_safe": True}
