"""Directives that write parts of pages from what is there: `faq`, `cards`, and `scripts`."""

import ast
import json
from typing import Any

from docutils import nodes
from messages import questions
from results import FOLDER, cell, columns_line
from sphinx.util.docutils import SphinxDirective
from views import COSTS

BENCHMARKS = FOLDER.parent
AREAS = {
    "methods": "Methods",
    "baselines": "Baselines",
    "core": "Rows, columns and settings",
    "io": "Files, tables and logs",
    "cli": "The command line",
    "distributions": "Distributions",
    "early_stopping": "Early stopping",
    "integrations": "Integrations",
    "training": "Training",
}


class Questions(SphinxDirective):
    """Messages and what helps."""

    def run(self) -> list[nodes.Node]:
        areas: dict[str, list[tuple[str, str]]] = {}
        for part, pairs in questions().items():
            areas.setdefault(AREAS.get(part.split("/")[0], "Everything else"), []).extend(pairs)
        parts = []
        for name, pairs in sorted(areas.items(), key=lambda item: item[0] == "Everything else"):
            parts.append(f"**{name}**")
            parts += [f"- *{cell(wrong)}* → {cell(helps[0].upper() + helps[1:])}." for wrong, helps in pairs]
        return self.parse_text_to_nodes("\n\n".join(parts))


class Cards(SphinxDirective):
    """What the headers of the shipped networks say."""

    def run(self) -> list[nodes.Node]:
        from bayesvision.io.checkpoints import describe, shipped

        parts = []
        for name, entry in shipped().items():
            header = describe(name)
            told = header.get("metadata", {})
            parts += [f"**{name}**: {cell(entry.summary)}", "\n".join(self.facts(name, header, told))]
            for title, rows in told.get("measured", {}).items():
                columns = list(rows[0])
                body = [columns_line(columns), columns_line(["---:"] * len(columns))]
                parts += [cell(title), "\n".join(body + [columns_line(map(cell, row.values())) for row in rows])]
        return self.parse_text_to_nodes("\n\n".join(parts))

    def facts(self, name: str, header: dict[str, Any], told: dict[str, Any]) -> list[str]:
        size = (BENCHMARKS.parent / "bayesvision" / "pretrained" / f"{name}.safetensors").stat().st_size
        prior = told.get("prior", {})
        facts = [f"- method {header['method']}, {told.get('parameters', 0):,} parameters, {size / 2**20:.1f} MiB"]
        if prior:
            fields = ", ".join(f"{k} {v}" for k, v in prior.items() if k != "name" and not isinstance(v, dict | list))
            facts.append(f"- trained on `{prior['name']}`{': ' + cell(fields) if fields else ''}")
        cost = [f"{told[k]:,} {k}" for k in ("steps", "tasks", "curves", "problems", "images") if k in told]
        if "seconds" in told:
            cost.append(f"{told['seconds'] / 3600:.1f} hours")
        return [*facts, f"- it took {', '.join(cost)}"] if cost else facts


class Scripts(SphinxDirective):
    """Scripts, what they measure, what they take, and when they were last run."""

    def run(self) -> list[nodes.Node]:
        lines = [columns_line(["command", "what it measures", "cost, one core", "last run"])]
        lines.append(columns_line(["---"] * 4))
        for path in sorted(FOLDER.rglob("*.json")):
            script = BENCHMARKS / path.parent.name / f"{path.stem}.py"
            text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) if script.exists() else ""
            date = json.loads(path.read_text(encoding="utf-8")).get("machine", {}).get("date", "")
            command = f"`python -m benchmarks.{path.parent.name}.{path.stem}`"
            what = cell((text or "").split("\n\n")[0])
            lines.append(columns_line([command, what, COSTS.get(path.stem, "minutes"), date]))
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Any) -> dict[str, Any]:
    """Register the directives."""
    for name, kind in (("faq", Questions), ("cards", Cards), ("scripts", Scripts)):
        app.add_directive(name, kind)
    return {"parallel_read_safe": True}
