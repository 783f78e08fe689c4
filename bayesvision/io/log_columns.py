"""Which columns, keys or tags of a log are the run, the step and the metric; and what a cell says."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bayesvision.io.tables import is_number

__all__ = ["Choice", "Names", "Row", "candidates", "choose_metric", "find", "finer_step", "listed", "number", "row"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Names that are understood without being told, the most telling first; case does not matter.
RUNS = ("run", "run_id", "run_name", "trial", "trial_id", "trial_name", "config", "config_id", "experiment")
STEPS = ("epoch", "step", "iteration", "iter", "global_step", "training_iteration", "_step", "epochs", "steps", "t")
METRICS = ("value", "metric", "score", "objective")
OTHER = _words(
    "time timestamp wall_time walltime date datetime elapsed seconds duration eta _runtime _timestamp runtime lr "
    "learning_rate momentum weight_decay grad_norm gradnorm num_samples samples tokens total_flos flops memory seed "
    "index id pid hour minute batch batch_size num_updates"
)
ENDINGS = ("_time", "_seconds", "_per_second", "_runtime", "/lr", "_lr", "learning_rate", "grad_norm", "_samples")
STARTS = ("lr-", "lr_", "lr/", "time_", "timers/", "perf/", "system/")
WORDS = _words("loss acc accuracy error err auc f1 map bleu rmse mse mae nll perplexity ppl precision recall wer ssim")
WORDS |= set(METRICS)  # a column with one of these is a metric
HELD_OUT = (_words("val valid validation"), _words("eval evaluation"), _words("dev"), _words("test"))
ABSENT = ("", "na", "n/a", "null", "none", "-")  # no reading; nan and inf are readings
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "infinity": math.inf, "-inf": -math.inf, "-infinity": -math.inf}
COMMA = re.compile(r"[-+]?\d+,\d+([eE][-+]?\d+)?")
LONGEST_NAME = 200


class Names(NamedTuple):
    """Names of the columns (keys, tags) to read; those that are None are found out."""

    run: str | None = None
    step: str | None = None
    metric: str | None = None


class Row(NamedTuple):
    """One reading; `run` is empty where the file is one run, and `doubtful` a NaN beside metrics that are numbers."""

    run: str
    step: float
    value: float
    doubtful: bool = False


class Choice(NamedTuple):
    """The metric that is read, or why there is none; `others` are the other ones that may be read."""

    metric: str | None
    problem: str = ""
    others: tuple[str, ...] = ()


def find(names: Sequence[str], known: tuple[str, ...]) -> str | None:
    """The most telling of the known names among `names`, whatever its case."""
    lower = [name.lower() for name in names]
    return next((names[lower.index(one)] for one in known if one in lower), None)


def finer_step(names: Sequence[str], step: str) -> str | None:
    """A column that counts steps where `step` may stand still, as an epoch does."""
    left = [name for name in names if name.lower() != step.lower()]
    return find(left, tuple(one for one in STEPS if not one.startswith("epoch")))


def candidates(names: Iterable[str], taken: Iterable[str | None] = ()) -> list[str]:
    """Those among the names of numbers that may be metrics: no steps, times, learning rates or nameless columns."""
    used = set(taken)
    return [name for name in names if name not in used and not _is_other(name)]


def _is_other(name: str) -> bool:
    text = re.sub(r"\s+", "_", name.lower().strip())
    if not text or text.startswith("unnamed:") or text in STEPS or text in OTHER or text in RUNS:
        return True
    return text.endswith(ENDINGS) or text.startswith(STARTS) or text.rsplit("/", 1)[-1] in {*STEPS, *OTHER}


def is_metric(name: str) -> bool:
    """Whether a column is called after a metric."""
    return bool(WORDS & _parts(name))


def _parts(name: str) -> frozenset[str]:
    return frozenset(re.split(r"[^a-z0-9]+", name.lower()))


def choose_metric(names: Sequence[str], wanted: str | None, what: str = "column") -> Choice:
    """The metric among candidates: the one that is asked for, called so, held out from training, or alone.

    Where several are as good as each other nothing is chosen, and `problem` lists them.
    """
    if wanted is not None:
        problem = f"no {what} {wanted!r} for --metric, only {listed(names) or 'none'}"
        others = tuple(name for name in names if name != wanted)
        return Choice(wanted, "", others) if wanted in names else Choice(None, problem, others)
    if not names:
        return Choice(None, f"no {what} of values")
    called = find(names, METRICS)
    held_out = next((found for words in HELD_OUT if (found := [n for n in names if words & _parts(n)])), list(names))
    if called is None and len(held_out) > 1:
        return Choice(None, f"the metric may be any of {listed(names)}; name one with --metric", tuple(names))
    chosen = called or held_out[0]
    return Choice(chosen, "", tuple(name for name in names if name != chosen))


def listed(names: Iterable[str]) -> str:
    """Names as a list that stays short enough to be read."""
    names = list(names)
    return ", ".join(n[:40] for n in names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "")


def number(cell: Any, name: str, commas: bool = False, text: bool = True) -> float | None:
    """What a cell or a JSON value says; None where it holds no reading.

    Args:
        commas: whether a comma may stand for the decimal point.
        text: whether a number may be written as text, as in CSV; infinities and NaN always may.
    """
    if cell is None:
        return None
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        try:
            return float(cell)
        except OverflowError:
            raise ValueError(f"{name!r} is a number of too many digits") from None
    said = str(cell).strip()
    if isinstance(cell, str) and said.lower() in ABSENT:
        return None
    if isinstance(cell, str) and said.lower() in NOT_FINITE:
        return NOT_FINITE[said.lower()]
    if commas and COMMA.fullmatch(said):
        said = said.replace(",", ".")
    if not text or not isinstance(cell, str) or not is_number(said):
        raise ValueError(f"{name!r} is {said[:40]!r} where a number was expected")
    return float(said)


def row(run: str, step: float | None, value: float, named: bool, doubtful: bool = False) -> Row:
    """A reading whose step is a number of at least 0 and whose run has a name, without what a terminal would obey."""
    if step is None or not math.isfinite(step) or step < 0:
        raise ValueError(f"the step is {'missing' if step is None else f'{step:g}'}; it must be a number of at least 0")
    name = "".join(c if c.isprintable() else "\ufffd" for c in run.strip())[:LONGEST_NAME]
    if named and not name:
        raise ValueError("the run has no name")
    return Row(name, step, value, doubtful)
