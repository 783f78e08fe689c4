"""The directive `results`: benchmarks/results/NAME.json as people read it (views.py), and all of it on a page apart."""

import json
import math
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective
from views import VIEWS, View

FOLDER = Path(__file__).parents[1] / "benchmarks" / "results"
PAGES = Path(__file__).parent / "reference" / "results"
WORDS = {"seen": "seen", "rows": "rows", "features": "inputs"}  # after the numbers that head columns
PICTURES = Path(__file__).parent / "reference" / "pictures"


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


def rows_at(results: dict[str, Any], place: str) -> list[dict[str, Any]]:
    """The rows of a table inside a JSON object; a star stands for every key."""
    found: list[Any] = [results]
    for part in place.split("/"):
        found = [value for each in found for value in (each.values() if part == "*" else [each.get(part)])]
    return [row for rows in found if rows for row in rows]


def rows_of(view: View, results: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that a view shows."""
    return [r for r in rows_at(results, view.table) if all(r.get(k) in v for k, v in view.keep.items())]


def value_with_error(value: Any, error: Any, bold: bool) -> str:
    """A number in four digits, its standard error small beside it, bold if it is the best; a text's interval small."""
    if value is None or value == "":
        return ""
    if isinstance(value, str) and "(" in value:
        head, _, rest = value.partition("(")
        text = f"**{cell(head.strip())}**" if bold else cell(head.strip())
        return f"{text} <small>({cell(rest)}</small>"
    small = isinstance(error, int | float) and bool(error)
    text = number(value, error) if isinstance(value, float) and small else rounded(value)
    text = f"**{text}**" if bold else text
    return f"{text} <small>± {rounded(float(error), 2)}</small>" if small else text


def number(value: float, error: float) -> str:
    """A number to the digits that its standard error leaves."""
    digits = min(4, max(0, 1 - math.floor(math.log10(error))))
    return f"{value:,.{digits}f}"


def rounded(value: Any, digits: int = 4) -> str:
    """A number in so many significant digits, without an exponent where it is of ordinary size."""
    if not isinstance(value, float) or not math.isfinite(value) or value == 0:
        return cell(value)
    places = digits - 1 - math.floor(math.log10(abs(value)))
    if abs(value) < 1e-4:
        return f"{value:.1e}"
    text = f"{value:,.{max(0, places)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def figure_of(value: Any) -> float | None:
    """The number of a cell, which may be a text with its interval in brackets."""
    if isinstance(value, str) and "(" in value:
        value = float(value.partition("(")[0])
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def viewed(view: View, results: dict[str, Any]) -> str:
    """A view's message and its table."""
    rows = rows_of(view, results)
    header, lines = crossed(view, rows) if view.pivot else chosen(view, rows)
    words = [k for k, key in enumerate(view.columns) if any(isinstance(row.get(key), str) for row in rows)]
    sides = ["---" if k == 0 or k in words else "---:" for k in range(len(header))]
    body = [columns_line(header), columns_line(sides), *map(columns_line, lines)]
    return f"**{view.message}**\n\n" + "\n".join(body)


def chosen(view: View, rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Some columns of a table, the best of each group bold."""
    best: dict[tuple[Any, ...], float] = {}
    for key, pick in view.best.items():
        for row in rows:
            place = (key, *(row.get(k) for k in view.within))
            if (own := figure_of(row.get(key))) is not None:
                best[place] = pick(best.get(place, own), own)
    lines = [
        [
            value_with_error(
                row.get(key),
                row.get(view.errors.get(key, "")),
                key in view.best and best.get((key, *(row.get(k) for k in view.within))) == figure_of(row.get(key)),
            )
            for key in view.columns
        ]
        for row in rows
    ]
    return list(view.columns.values()), lines


def crossed(view: View, rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """One column for each value of the pivot's key, the best of each row (of a column, if models are rows) bold."""
    assert view.pivot is not None
    across, key, error = view.pivot
    names = list(dict.fromkeys(row[across] for row in rows))
    groups: dict[tuple[Any, ...], dict[Any, dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in view.columns), {})[row[across]] = row
    down = "model" in view.columns or "policy" in view.columns
    lines = []
    for own, found in groups.items():
        line = [cell(v) for v in own]
        for name in names:
            row = found.get(name, {})
            rivals = [g[name] for g in groups.values() if name in g] if down else list(found.values())
            numbers = [r[key] for r in rivals if isinstance(r.get(key), int | float)]
            bold = view.good is not None and bool(numbers) and row.get(key) == view.good(numbers)
            line.append(value_with_error(row.get(key), row.get(error) if error else None, bold))
        lines.append(line)
    heads = [f"{cell(n)} {WORDS[across]}" if across in WORDS and not isinstance(n, str) else cell(n) for n in names]
    return [*view.columns.values(), *heads], lines


def picture(view: View, results: dict[str, Any], path: Path) -> None:
    """The table across models as dots with their errors, one row for each of its lines."""
    from matplotlib.figure import Figure

    from bayesvision.plots.style import MARKERS, PALETTE, legend, new_axes

    assert view.pivot is not None
    across, key, error = view.pivot
    rows = rows_of(view, results)
    (first,) = view.columns
    lines, names = list(dict.fromkeys(r[first] for r in rows)), list(dict.fromkeys(r[across] for r in rows))
    figure = Figure(figsize=(6.4, 0.9 + 0.34 * len(lines)), layout="constrained", facecolor="white")
    ax = new_axes(figure.add_subplot())
    for k, name in enumerate(names):
        own = [r for r in rows if r[across] == name]
        ax.errorbar(
            [r[key] for r in own],
            [lines.index(r[first]) + 0.12 * (k - (len(names) - 1) / 2) for r in own],
            xerr=[r.get(error, 0.0) or 0.0 for r in own] if error else None,
            fmt=MARKERS[k % len(MARKERS)],
            color=PALETTE[k % len(PALETTE)],
            markersize=5,
            linewidth=1,
            label=name if isinstance(name, str) else f"{name} {WORDS.get(across, across)}",
        )
    ax.set_yticks(range(len(lines)), [str(line) for line in lines])
    ax.invert_yaxis()
    ax.set(xlabel=view.dots)
    legend(ax)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def found(name: str, folder: Path = FOLDER) -> dict[str, Any] | None:
    """The results NAME, or None."""
    path = next(folder.rglob(f"{name}.json"), None)
    return None if path is None else json.loads(path.read_text(encoding="utf-8"))


def page(name: str, folder: Path = FOLDER) -> str:
    """MyST of all numbers of the results NAME, or a sentence that says they are missing."""
    results = found(name, folder)
    if results is None:
        return f"*Not measured in this build: there is no `benchmarks/results/{name}.json`.*"
    return render(results)


def summary(name: str, folder: Path = FOLDER) -> str:
    """MyST of what people see of the results NAME: its views, the machine folded, and a link to all numbers."""
    results, views = found(name, folder), VIEWS.get(name)
    if results is None or views is None:
        return page(name, folder)
    parts = []
    for number, view in enumerate(views):
        parts.append(viewed(view, results))
        if view.dots:
            path = PICTURES / f"{name}_{number}.png"
            picture(view, results, path)
            parts.append(f"```{{image}} /reference/pictures/{path.name}\n:alt: {view.message}\n:width: 560px\n```")
    machine = results.get("machine", {})
    facts = "; ".join(f"{cell(k)} {cell(v)}" for k, v in machine.items())
    date = machine.get("date", "")
    script = next(folder.rglob(f"{name}.json")).parent.name
    parts.append(
        f"<details><summary>Measured {date}; the machine, and how to repeat it</summary>\n\n{facts}. "
        f"`python -m benchmarks.{script}.{name}`\n\n</details>\n\n{{doc}}`All numbers </reference/results/{name}>`"
    )
    return "\n\n".join(parts)


class Results(SphinxDirective):
    """What people see of one benchmark; with the option `all`, every number."""

    required_arguments = 1
    option_spec = {"all": directives.flag}  # noqa: RUF012 (docutils declares it so)

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        for path in FOLDER.rglob(f"{name}.json"):
            self.env.note_dependency(str(path))
        return self.parse_text_to_nodes(page(name) if "all" in self.options else summary(name))


def write_pages(app: Any) -> None:
    """A page with all numbers of every benchmark, which the tables link to."""
    PAGES.mkdir(parents=True, exist_ok=True)
    for path in sorted(FOLDER.rglob("*.json")):
        text = f"---\norphan: true\n---\n\n# {path.stem}, all numbers\n\n```{{results}} {path.stem}\n:all:\n```\n"
        target = PAGES / f"{path.stem}.md"
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("results", Results)
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True}


if __name__ == "__main__":  # python docs/results.py: the picture that README shows
    measured = found("early_stopping")
    assert measured is not None
    picture(VIEWS["early_stopping"][0], measured, Path(__file__).parent / "stopping_speedups.png")
