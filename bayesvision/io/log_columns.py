"""Which columns, keys or tags of a log are the run, the step and the metric; and what a cell says."""

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bayesvision.core.metric_words import LARGER, SMALLER, words
from bayesvision.io.tables import is_number

__all__ = [
    "NOT_FINITE",
    "Apart",
    "Choice",
    "Names",
    "Row",
    "StepColumn",
    "candidates",
    "choose_metric",
    "find",
    "held_out_of",
    "listed",
    "number",
    "row",
]


# Names that are understood without being told, the most telling first; case does not matter.
RUNS = ("run", "run_id", "run_name", "trial", "trial_id", "trial_name", "config", "config_id", "experiment")
STEPS = ("epoch", "step", "iteration", "iter", "global_step", "training_iteration", "_step", "epochs", "steps", "t")
METRICS = ("value", "metric", "score", "objective")
OTHER = words(
    "time timestamp wall_time walltime date datetime elapsed seconds duration eta _runtime _timestamp runtime lr "
    "learning_rate momentum weight_decay grad_norm gradnorm num_samples samples tokens total_flos flops memory seed "
    "index id pid hour minute batch batch_size num_updates"
)
ENDINGS = ("_time", "_seconds", "_per_second", "_runtime", "/lr", "_lr", "learning_rate", "grad_norm", "_samples")
STARTS = ("lr-", "lr_", "lr/", "time_", "timers/", "perf/", "system/")
WORDS = LARGER | SMALLER | set(METRICS)  # a column with one of these is a metric
HELD_OUT = (words("val valid validation"), words("eval evaluation"), words("dev"), words("test"))
IDENTITIES = words("seed id fold split model worker rank replica")  # numbers that may tell runs apart
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


def _may_name(name: str, value: Any) -> bool:
    """Whether a column may tell runs apart: text, or a number called so."""
    if name.lower().rsplit("/", 1)[-1] in IDENTITIES:
        return True
    return isinstance(value, str) and bool(value.strip()) and not is_number(value.strip())


class StepColumn:
    """The column of steps, and a finer one to turn to if it stands still between two readings of a run."""

    def __init__(self, wanted: str | None) -> None:
        self.name, self.finer = wanted, None
        self.switched = wanted is not None
        self.last: dict[str, tuple[float, float]] = {}
        self.still = 0  # how often it stood still; once it may be a last evaluation

    def learn(self, names: Iterable[str]) -> bool:
        """Find both among names; whether the column of steps became another one."""
        if self.switched:
            return False
        before, names = self.name, list(names)
        self.name = find(names, STEPS)
        self.finer = None if self.name is None else finer_step(names, self.name)
        return before is not None and before != self.name

    def stands_still(self, run: str, step: float, finer: float | None) -> bool:
        """Whether the finer column went on where this one did not; then that one is the step from now on."""
        before = self.last.get(run)
        if finer is None:
            return False
        self.last[run] = step, finer
        if before is None or step != before[0] or not finer > before[1]:
            return False
        self.still += 1
        if self.still < 2:
            return False
        self.name, self.finer, self.last, self.switched = self.finer, None, {}, True
        return True


class Apart:
    """Columns that change where the steps of a run go back or repeat, and nowhere else: they tell runs apart."""

    def __init__(self) -> None:
        self.step, self.before = -math.inf, dict[str, Any]()
        self.there, self.elsewhere = dict[str, None](), set[str]()

    def look(self, step: float, beside: Mapping[str, Any]) -> None:
        """Take in what stands beside the metric of a row."""
        beside = {name: value for name, value in beside.items() if _may_name(name, value)}
        changed = [name for name, value in beside.items() if name in self.before and self.before[name] != value]
        if step > self.step:
            self.elsewhere.update(changed)
        else:
            self.there |= dict.fromkeys(changed)
        self.step, self.before = step, beside

    @property
    def names(self) -> list[str]:
        """The columns."""
        return [name for name in self.there if name not in self.elsewhere]


def candidates(names: Iterable[str], taken: Iterable[str | None] = ()) -> list[str]:
    """Those among the names of numbers that may be metrics: no steps, times, learning rates or nameless columns."""
    used = set(taken)
    return [name for name in names if name not in used and not _is_other(name)]


@functools.lru_cache(4096)
def _is_other(name: str) -> bool:
    text = re.sub(r"\s+", "_", name.lower().strip())
    if not text or text.startswith("unnamed:") or text in STEPS or text in OTHER or text in RUNS:
        return True
    return text.endswith(ENDINGS) or text.startswith(STARTS) or text.rsplit("/", 1)[-1] in {*STEPS, *OTHER}


def is_metric(name: str) -> bool:
    """Whether a column is called after a metric."""
    return bool(WORDS & (_parts(name) | frozenset(re.findall("[a-z]+", name.lower()))))


@functools.lru_cache(4096)
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
    held_out = held_out_of(names) or list(names)
    if called is None and len(held_out) > 1:
        return Choice(None, f"the metric may be any of {listed(names)}; name one with --metric", tuple(names))
    chosen = called or held_out[0]
    return Choice(chosen, "", tuple(name for name in names if name != chosen))


def held_out_of(names: Sequence[str]) -> list[str]:
    """Those among metrics that are held out from training, by their names."""
    return next((found for kind in HELD_OUT if (found := [n for n in names if kind & _parts(n)])), [])


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
