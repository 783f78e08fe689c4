"""Write the tables of README.md from the JSON results: `python -m benchmarks.render`; `--check` only compares."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"


def read(name: str) -> dict[str, Any]:
    """The results of a script, whatever its folder."""
    found: dict[str, Any] = json.loads(next(RESULTS.rglob(f"{name}.json")).read_text())
    return found


def grid(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def where(results: dict[str, Any]) -> str:
    machine = results["machine"]
    return f"{machine['date']}, {machine['processor']}, {machine['threads']} thread, torch {machine['torch']}."


def pfn_vs_gp(results: dict[str, Any]) -> str:
    networks = results["networks"]
    contexts = [str(line["context"]) for line in next(iter(networks.values()))["gaps"]]
    rows = [
        [features, f"{n['card']['steps']:,}", f"{n['card']['tasks']:,}"]
        + [f"{line['gap']:.4f} ± {line['error']:.4f}" for line in n["gaps"]]
        for features, n in networks.items()
    ]
    return grid(["features", "steps", "tasks", *(f"{c} rows" for c in contexts)], rows)


def pfn_vs_nuts(results: dict[str, Any]) -> str:
    header = ["features", "rows", "model", "NLL", "PFN minus model", "s / data set", "times slower", "worst R-hat"]
    rows = [
        [
            str(line["features"]),
            str(line["rows"]),
            line["model"],
            f"{line['nll']:.3f} ± {line['error']:.3f}",
            "" if line["model"] == "PFN" else f"{line['PFN minus model']:+.3f} ± {line['gap error']:.3f}",
            f"{line['seconds']:.3g}",
            f"{line['times slower than PFN']:,.0f}",
            str(line["median worst R-hat"]),
        ]
        for line in results["comparison"]
    ]
    return grid(header, rows) + f"\n\nNUTS: {results['nuts']}; {results['comparison'][0]['data sets']} data sets each."


def tables_uci(results: dict[str, Any]) -> str:
    rows = [
        [
            line["set"],
            line["model"],
            f"{line['nll']:.3f} ± {line['nll error']:.3f}",
            f"{line['crps']:.3f} ± {line['crps error']:.3f}",
            f"{line['coverage 90 %']:.1%}",
            f"{line['seconds']:.2g}",
        ]
        for line in results["uci"]
        if line["rows"] == 200
    ]
    return grid(["set", "model", "NLL", "CRPS", "90 % coverage", "seconds"], rows)


def tables_open(results: dict[str, Any]) -> str:
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for line in results["summary"]:
        found.setdefault((line["target"], line["model"]), {})[line["rows"]] = line
    sizes = sorted({line["rows"] for line in results["summary"]})
    rows = [
        [
            target,
            model,
            *(f"{lines[n]['mean rank']:.1f} ± {lines[n]['rank error']:.1f}" for n in sizes),
            f"{lines[sizes[0]]['seconds']:.2g} to {lines[sizes[-1]]['seconds']:.2g}",
        ]
        for (target, model), lines in found.items()
    ]
    return grid(["target", "model", *(f"rank at {n} rows" for n in sizes), "seconds"], rows)


def throughput(results: dict[str, Any]) -> str:
    speed: dict[str, list[float]] = {}
    share: dict[str, list[float]] = {}
    for line in results["training"]:
        speed.setdefault(line["package"], []).append(line["steps a second"])
        share.setdefault(line["package"], []).append(line["share in the prior"])

    def median(values: list[float]) -> float:
        return sorted(values)[len(values) // 2]

    rows = [[name, f"{median(speed[name]):.2f}", f"{median(share[name]):.1%}"] for name in speed]
    parts = [grid(["training, same size", "steps a second", "time in the prior"], rows)]
    priors: dict[str, dict[int, int]] = {}
    for line in results["priors"]:
        priors.setdefault(line["prior"], {})[line["rows"]] = line["data sets a second"]
    sizes = sorted({line["rows"] for line in results["priors"]})
    rows = [[name, *(f"{found[n]:,}" for n in sizes)] for name, found in priors.items()]
    parts.append(grid(["prior (features), data sets a second", *(f"{n} rows" for n in sizes)], rows))
    memory = read("prediction_memory")
    found = memory["memory"][0]
    parts.append(grid(["10,000 queries, 1,000 context rows", "value"], [[k, str(v)] for k, v in found.items()]))
    return "\n\n".join(parts)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "pfn_vs_gp": pfn_vs_gp,
    "pfn_vs_nuts": pfn_vs_nuts,
    "tables_uci": tables_uci,
    "tables_open": tables_open,
    "throughput": throughput,
}


def rendered(text: str) -> str:
    """The README with every table made anew; a table whose JSON is missing stays as it is."""
    for name, table in TABLES.items():
        if any(RESULTS.rglob(f"{name}.json")):
            results = read(name)
            block = f"<!-- table: {name} -->\n{table(results)}\n\n{where(results)}\n<!-- end -->"
            text = re.sub(rf"<!-- table: {name} -->.*?<!-- end -->", lambda _, block=block: block, text, flags=re.S)
    return text


def main() -> int:
    text = README.read_text(encoding="utf-8")
    fresh = rendered(text)
    if "--check" in sys.argv:
        return int(fresh != text)
    README.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
