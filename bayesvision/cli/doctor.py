"""`bayesvision doctor`: versions, extras, devices, and whether the shipped networks answer as they were recorded."""

import importlib.metadata
import json
import math
import platform
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import click

from bayesvision.cli.common import Command, show

__all__ = ["doctor", "given_answer", "recorded_answers"]

TOLERANCE = 1e-3  # of an answer, which processors round differently


def recorded_answers() -> Path:
    """The file that holds what each network said when it was shipped."""
    return Path(str(resources.files("bayesvision"))) / "pretrained" / "answers.json"


@click.command(cls=Command, short_help="Say what is installed, and whether it answers right.")
def doctor() -> None:
    """Print versions, extras found and missing, devices, and whether the shipped networks give their recorded answers.

    Exits with 1 if a network answers otherwise. Nothing is sent anywhere.
    """
    import torch

    import bayesvision

    show(
        "Versions",
        ["", "version"],
        [
            ["bayesvision", f"{bayesvision.__version__} in {Path(bayesvision.__file__).parent}"],
            ["python", f"{platform.python_version()}, {platform.platform()}"],
            *([name, _version(name) or "missing"] for name in _needed(None)),
        ],
    )
    show("Extras", ["extra", "state"], [[name, _state(name)] for name in _extras()])
    devices = [["cpu", f"{torch.get_num_threads()} threads"]]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        devices.append([str(kind), f"{torch.accelerator.device_count()} found"])
    show("Devices", ["device", ""], devices)
    wrong = _networks()
    if wrong:
        click.echo(f"bayesvision doctor: {', '.join(wrong)} gave another answer than recorded; install again", err=True)
        raise SystemExit(1)


def _extras() -> list[str]:
    return importlib.metadata.metadata("bayesvision").get_all("Provides-Extra") or []


def _needed(extra: str | None) -> list[str]:
    """Packages of the core, or of an extra."""
    found = []
    for line in importlib.metadata.requires("bayesvision") or []:
        match = re.search(r"extra == ['\"]([^'\"]+)['\"]", line)
        name = re.match(r"[A-Za-z0-9_.-]+", line)
        if name and (match.group(1) if match else None) == extra:
            found.append(name.group())
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _state(extra: str) -> str:
    missing = [name for name in _needed(extra) if name != "bayesvision" and _version(name) is None]
    return f'lacks {", ".join(missing)}: pip install "bayesvision[{extra}]"' if missing else "there"


def _networks() -> list[str]:
    """Print what every shipped network answers; the names of those that answer otherwise than recorded."""
    from bayesvision.io.checkpoints import shipped

    recorded, rows, wrong = json.loads(recorded_answers().read_text(encoding="utf-8")), [], []
    for name in shipped():
        known = recorded.get(name, [])
        try:
            found = given_answer(name)
        except Exception as error:  # whatever ails a network, the others are asked
            said = str(error)
        else:
            alike = (
                math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for a, b in zip(found, known, strict=False)
            )
            same = len(found) == len(known) and all(alike)
            said = "as recorded" if same else f"{found}, recorded {known or 'nothing'}"
        if said != "as recorded":
            wrong.append(name)
        rows.append([name, said])
    show("Shipped networks", ["network", "answer"], rows)
    return wrong


def given_answer(name: str) -> list[float]:
    """What the shipped network `name` says of a small question of its kind, always the same."""
    import torch

    import bayesvision as bv

    posterior: Any = bv.pretrained(name)
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2)
    questions: dict[str, Callable[[], Any]] = {
        "TablePFN": lambda: posterior.condition(x[:5], _targets(posterior, x[:5])).predict(x[5:]),
        "LCPFN": lambda: posterior.condition([1, 2, 3], [0.4, 0.5, 0.55]).predict([100]),
        "DistributionTransformer": lambda: posterior.condition(y=_observed(posterior)).latent,
        "ImageMDBM": lambda: posterior.complete(torch.eye(8).unsqueeze(0), torch.eye(8) > 0).label,
    }
    law = questions[type(posterior.method).__name__]()
    values = law.probs if hasattr(law, "probs") else torch.cat([law.mean.flatten(), law.stddev.flatten()])
    return [round(float(value), 6) for value in values.flatten()]


def _targets(posterior: Any, x: Any) -> Any:
    return (x[:, 0] > 0).long() if posterior.method.classes else 3 + x[:, 0] ** 2


def _observed(posterior: Any) -> list[float]:
    return [2.1, -3.0] if posterior.family.features == 0 else [6.1, 0.93]
