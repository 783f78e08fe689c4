"""What the commands share: how they fail, wait, log a training, and show tables."""

import contextlib
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

__all__ = [
    "FILE",
    "Command",
    "build_network",
    "check_files",
    "check_output",
    "import_named",
    "show",
    "timed",
    "training_folder",
    "training_log",
    "waiting",
]

FILE = click.Path(dir_okay=False, path_type=Path)


class Command(click.Command):
    """A command whose bad input ends in one line on standard error and exit code 2; a warning is a line there too."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _terminable(), _one_line_warnings(ctx):
                return super().invoke(ctx)
        except (ValueError, FloatingPointError, OSError, ImportError) as error:
            click.echo(f"bayesvision {ctx.info_name}: {' '.join(str(error).split())}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt as stop:
            kept = f"; {stop}; pass --resume to go on" if str(stop) else ""
            click.echo(f"bayesvision {ctx.info_name}: interrupted{kept}", err=True)
            ctx.exit(130)


@contextlib.contextmanager
def _one_line_warnings(ctx: click.Context) -> Iterator[None]:
    def show(message: Warning | str, *_: Any) -> None:
        click.echo(f"bayesvision {ctx.info_name}: {' '.join(str(message).split())}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Leave through the ordinary clean-up on SIGTERM, so that no temporary file stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: object) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """A moving bar and a clock for work whose length nobody knows, gone when it is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn(text), BarColumn(pulse_style="cyan"), TimeElapsedColumn(), console=console, transient=True
    ) as progress:
        progress.add_task(text, total=None)
        yield


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table, its first column to the left and the others to the right."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Grid

    grid = Grid(title=escape(title), title_justify="left", header_style="bold")
    for k, name in enumerate(columns):
        grid.add_column(escape(name), justify="left" if k == 0 else "right")
    for row in rows:
        grid.add_row(*map(escape, row))
    Console().print(grid)


def check_files(*paths: Path | str | None) -> None:
    """Raise a `FileNotFoundError` for the first path that is none, before anything heavy is loaded."""
    for path in paths:
        if path is not None and not Path(path).exists():
            raise FileNotFoundError(f"no such file {path}; the working folder is {Path.cwd()}")


def check_output(path: Path, *inputs: Path | str | None) -> None:
    """Raise a `ValueError` if `path` cannot be written to, or is one of the command's `inputs`."""
    if not path.absolute().parent.is_dir():
        raise ValueError(f"the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file")
    if any(other is not None and path.resolve() == Path(other).resolve() for other in inputs):
        raise ValueError(f"{path} is read and would be overwritten; write to another file")


def training_folder(out: Path, resume: bool) -> Path:
    """Where the state of a run that will write `out` is kept; a `ValueError` if there is one and it is not resumed."""
    folder = out.with_name(out.name + ".training")
    if folder.exists() and not resume:
        raise ValueError(f"{folder} holds an unfinished run; pass --resume to go on with it, or delete it")
    return folder


def import_named(name: str, option: str) -> Any:
    """What MODULE:FUNCTION names, looked for in the working folder too.

    Raises:
        ValueError: no such module or function.
    """
    import importlib

    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"{option} must be MODULE:FUNCTION, got {name!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        raise ValueError(f"{option}: {error}; run in the folder that holds {module}.py") from None
    except AttributeError:
        raise ValueError(f"{option}: {module} has no {function}") from None
    if not callable(found):
        raise ValueError(f"{option}: {name} is a {type(found).__name__} and cannot be called")
    return found


def build_network(name: str, weights: Path | None) -> Any:
    """What the function MODULE:FUNCTION returns, with the weights of a safetensors file in it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such function, or weights that do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torch import nn

    network = import_named(name, "--net")()
    if weights is None:
        return network
    if not isinstance(network, nn.Module):
        raise ValueError(f"--weights needs a torch module, and {name} returns a {type(network).__name__}")
    if not weights.is_file():
        raise FileNotFoundError(f"no file {weights}")
    try:
        network.load_state_dict(load_file(weights))
    except SafetensorError as error:
        raise ValueError(f"{weights} is not a whole safetensors file ({error})") from None
    except RuntimeError as error:
        raise ValueError(f"{weights} does not fit {name}: {error}") from None
    return network


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` predicts, without gradients, and the seconds it took."""
    import torch

    start = time.perf_counter()
    with torch.no_grad():
        predictive = work()
    return predictive, time.perf_counter() - start


class _Both:
    """Hands a training log on to several."""

    def __init__(self, *logs: Any) -> None:
        self.logs = logs

    def log(self, metrics: dict[str, float], step: int, /) -> None:
        for log in self.logs:
            log.log(metrics, step)


@contextlib.contextmanager
def training_log(path: Path | None, steps: int) -> Iterator[Any]:
    """A progress bar for `steps` of training that takes its log, which is also appended to `path`."""
    from bayesvision.training.loggers import JsonLines, Progress

    with Progress(steps) as bar:
        if path is None:
            yield bar
            return
        with contextlib.closing(JsonLines(path)) as lines:
            yield _Both(bar, lines)
