"""The library's error messages, read from its source: for the page of questions, and for the test of their style."""

import ast
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "bayesvision"
KINDS = ("ValueError", "TypeError", "ImportError", "FileNotFoundError", "FloatingPointError")


class Message(NamedTuple):
    """What is raised, with an ellipsis for every value in it.

    Attributes:
        kind: the exception.
        text: the message.
        place: file and line.
        values: how many values it tells.
    """

    kind: str
    text: str
    place: str
    values: int


def messages(package: Path = PACKAGE) -> list[Message]:
    """Every message that is written where it is raised; those put together elsewhere are left out."""
    found = []
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call) or not node.exc.args:
                continue
            kind, words = getattr(node.exc.func, "id", ""), node.exc.args[0]
            if kind in KINDS and (told := text_of(words)) is not None:
                place = f"{path.relative_to(package).as_posix()}:{node.lineno}"
                found.append(Message(kind, told[0], place, told[1]))
    return found


def text_of(node: ast.expr) -> tuple[str, int] | None:
    """The text of a string or f-string, and how many values are put into it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value, 0
    if not isinstance(node, ast.JoinedStr):
        return None
    parts, values = [], 0
    for part in node.values:
        if isinstance(part, ast.Constant):
            parts.append(str(part.value))
        else:
            parts.append("…")
            values += 1
    return "".join(parts), values


def questions() -> dict[str, list[tuple[str, str]]]:
    """Messages that say what to do, by the part of the library: what was wrong, and what helps."""
    found: dict[str, list[tuple[str, str]]] = {}
    for message in messages():
        wrong, stop, helps = message.text.partition("; ")
        if stop:
            part = "/".join(message.place.split("/")[:2]).split(".py")[0].split(":")[0]
            pairs = found.setdefault(part, [])
            if (wrong, helps) not in pairs:
                pairs.append((wrong, helps))
    return found
