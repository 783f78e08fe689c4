"""What `predict` is asked: rows to learn from, rows to predict, and whether the target is a number or a class."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import numpy as np
    import pandas

__all__ = ["Question", "read_question"]

FEW = 10  # different whole numbers of a target that are taken for classes


@dataclass(frozen=True)
class Question:
    """What is to be predicted from what.

    Attributes:
        target: its column.
        seen, y: rows to learn from and their targets: numbers, or codes of `labels`.
        new: rows to predict.
        truth: their targets where they are known, NaN or -1 elsewhere; None if none is.
        labels: names of the classes; none for a numeric target.
        held_out: whether the rows to predict are from the same table.
    """

    target: str
    seen: "pandas.DataFrame"
    y: "np.ndarray"
    new: "pandas.DataFrame"
    truth: "np.ndarray | None"
    labels: tuple[str, ...]
    held_out: bool


def read_question(train: Path, target: str, test: Path | None, kind: str | None, posterior: Any, seed: int) -> Question:
    """The rows to learn from and those to predict.

    Args:
        kind: what the user says that the target is.
        posterior: the network asked for; None leaves the choice to the target.

    Raises:
        ValueError: a table that cannot be read or no such target, too few rows, or a target that no network predicts.
    """
    import numpy as np

    table, new = _tables(train, test)
    if target not in table.columns:
        raise ValueError(f"{train}: no column {target!r} to predict, only {', '.join(map(str, table.columns[:20]))}")
    if len(table.columns) == 1:
        raise ValueError(f"{train}: {target!r} is the only column; a prediction needs at least one more")
    there = table[target].notna()
    if not there.all():
        table = table[there]
        click.echo(f"{train}: {int((~there).sum())} rows without a value of {target!r} are left out")
    y, labels = _target(train, table, target, kind, posterior)
    x = table.drop(columns=target)
    if test is not None:
        truth = _truth(test, new, target, labels) if target in new.columns else None
        return Question(target, x, y, new, truth, labels, held_out=False)
    if len(y) < 5:
        raise ValueError(f"{train}: {len(y)} rows are too few to hold a fifth out; give rows to predict with --test")
    order = np.random.default_rng(seed).permutation(len(y))
    held, kept = np.sort(order[: len(y) // 5]), np.sort(order[len(y) // 5 :])
    lost = sorted(set(y[held]) - set(y[kept])) if labels else []
    if lost or len(set(y[kept])) == 1:
        what = f"the class {labels[int(lost[0])]!r}" if lost else "one value of the target"
        raise ValueError(f"{train}: holding a fifth out leaves {what}; give rows to predict with --test")
    return Question(target, x.iloc[kept], y[kept], x.iloc[held], y[held].astype(float), labels, held_out=True)


def _tables(train: Path, test: Path | None) -> tuple[Any, Any]:
    """Both tables; what is wrong with either is said at once."""
    from bayesvision.io.tables import read_table

    found, faults = [], []
    for path in (train, test):
        try:
            found.append(None if path is None else read_table(path))
        except (ValueError, FileNotFoundError) as error:
            faults.append(str(error))
    if faults:
        raise ValueError("; ".join(faults))
    return found[0], found[1]


def _target(
    train: Path, table: Any, target: str, kind: str | None, posterior: Any
) -> "tuple[np.ndarray, tuple[str, ...]]":
    """Targets as numbers, or as codes of the classes named; says which of both."""
    import numpy as np
    import pandas

    column = table[target]
    values = sorted(set(column)) if column.dtype != object else sorted(set(map(str, column)))
    if len(values) < 2:
        what = f"is {values[0]} in every row" if values else "has no values"
        raise ValueError(f"{train}: column {target!r} {what}; there is nothing to predict")
    if kind not in (None, "number", "category"):
        raise ValueError(f"--kind {target}={kind}: the target is a number or a category")
    numeric = pandas.api.types.is_numeric_dtype(column) and column.dtype != bool
    if kind == "number" and not numeric:
        raise ValueError(f"{train}: column {target!r} holds {values[0]!r}, which is no number")
    few = numeric and len(values) <= FEW and bool((column == column.round()).all())
    as_classes = kind == "category" or not numeric or (few and kind is None)
    if posterior is not None:  # the network asked for decides where both would do
        as_classes = posterior.method.classes is not None
        if not as_classes and not numeric:
            raise ValueError(
                f"{train}: column {target!r} holds {values[0]!r}, and the model predicts numbers; leave --model out, "
                "or take a network for classes"
            )
    if not as_classes:
        return column.to_numpy(dtype=np.float64, copy=True), ()
    codes, labels = _codes(train, table, target, values, 10 if posterior is None else posterior.method.classes)
    hint = f"; pass --kind {target}=number for numbers" if numeric and kind is None and posterior is None else ""
    click.echo(f"{target} is taken for {len(labels)} classes: {', '.join(labels)}{hint}")
    return codes, labels


def _codes(train: Path, table: Any, target: str, values: list[Any], most: int) -> "tuple[np.ndarray, tuple[str, ...]]":
    """Codes of the classes, and their names."""
    import numpy as np

    labels = tuple(_label(v) for v in values)
    if len(labels) > most:
        raise ValueError(
            f"{train}: column {target!r} has {len(labels)} different values, and the network takes {most} classes; "
            f"merge the rare ones, or pass --kind {target}=number if they are numbers"
        )
    codes = np.array([labels.index(_label(v)) for v in table[target]])
    alone = [k for k in range(len(labels)) if (codes == k).sum() == 1]
    if alone:
        lines = [f"{table.index.name} {table.index[int(codes.tolist().index(k))]}" for k in alone]
        said = "; ".join(
            f"{line}: the class {labels[k]!r} has this row alone" for line, k in zip(lines, alone, strict=True)
        )
        raise ValueError(f"{train}: {said}; two are needed")
    return codes, labels


def _label(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _truth(test: Path, new: Any, target: str, labels: tuple[str, ...]) -> "np.ndarray | None":
    """Known targets of new rows, NaN where they are blank; None if all are."""
    import numpy as np
    import pandas

    column = new[target]
    if column.isna().all():
        return None
    if labels:
        codes = {label: float(k) for k, label in enumerate(labels)}
        unknown = dict.fromkeys(_label(v) for v in column.dropna() if _label(v) not in codes)
        if unknown:
            shown = ", ".join(map(repr, list(unknown)[:5]))
            raise ValueError(f"{test}: column {target!r} holds {shown}, which the rows seen do not")
        return np.array([codes[_label(v)] if pandas.notna(v) else np.nan for v in column])
    if not pandas.api.types.is_numeric_dtype(column):
        raise ValueError(f"{test}: column {target!r} must hold numbers, got {column.dropna().iloc[0]!r}")
    return column.to_numpy(dtype=np.float64, copy=True)
