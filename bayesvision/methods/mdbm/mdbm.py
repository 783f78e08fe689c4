"""`MDBM`: a Boltzmann machine of discrete variables in which any of them may be asked given any others."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bayesvision.core.checks import check_count, check_inputs, columns_of
from bayesvision.core.data import Data
from bayesvision.core.modules import outside_inference_mode
from bayesvision.core.roles import Exported, Following
from bayesvision.distributions import Bar, Categorical
from bayesvision.methods.mdbm.coding import Coding
from bayesvision.methods.mdbm.images import ImageMDBM
from bayesvision.methods.mdbm.inference import Certificate
from bayesvision.methods.mdbm.machine import dense
from bayesvision.methods.mdbm.posterior import TIGHT, MDBMPosterior
from bayesvision.methods.mdbm.tasks import Learning, MaskedRows
from bayesvision.training.seeds import seeded

__all__ = ["MDBM", "Imputation", "TableMDBMPosterior"]

MOST_LEVELS = 256  # of a variable


@dataclass(frozen=True)
class MDBM(Learning):
    """A monotone deep Boltzmann machine of categorical variables (arXiv 2307.04990).

    p(x) is proportional to exp(x^T Phi x / 2 + b^T x) of one-hot visible and hidden variables. Phi is bounded such that
    mean field has exactly one solution, whatever is observed, and every answer has a bound of its distance to it.
    Layers are coupled within themselves and with their neighbours. Training observes a random part of each row and
    maximises the log-likelihood of the rest under the mean field (section 4.3).

    Example:
        >>> table = bv.MDBM(hidden=(64, 32)).fit(frame)  # a pandas frame with holes
        >>> table.impute(frame).filled
        >>> table.condition(["colour"], ["red"]).predict(["size"]).probs

    Args:
        bins: into how many levels a column of numbers is cut, by its quantiles; one with at most 8 different
            numbers keeps them. Tables of more than 32 such columns get fewer, 1,024 in all but at least 8 each.
        levels: number of levels of all variables, or of each, for data that are levels already; 1 + the largest number
            in the data when left out.
        label: a column, by name or number, whose log-likelihood counts as much as that of all others together.
        kinds: columns whose kind is told, as ("name", "category"), "number" or "date", or "dropped".

    The others are those of `Learning`.

    Raises:
        ValueError: a field is out of range.
    """

    bins: int = 32
    levels: int | tuple[int, ...] | None = None
    label: str | int | None = None
    kinds: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("bins", self.bins, 2)
        for count in (self.levels,) if isinstance(self.levels, int) else self.levels or ():
            check_count("levels", count)

    @staticmethod
    def images(shape: tuple[int, int, int], classes: int | None = None, **fields: Any) -> ImageMDBM:
        """The recipe for images [channels, height, width], `ImageMDBM(shape=shape, classes=classes, **fields)`."""
        return ImageMDBM(shape=shape, classes=classes, **fields)

    @outside_inference_mode
    def fit(self, source: Any, log: Following = None) -> "TableMDBMPosterior":
        """Learn from a frame with holes, or from levels 0, 1, ... [rows, variables], NaN where unknown.

        Raises:
            ValueError: numbers that are no levels, more levels than were told, or a label that is no column.
        """
        if isinstance(source, Data):
            if source.y is not None:
                raise ValueError("source must be one table; make the targets y of Data(x, y) one more column of it")
            source = source.x
        coding = None
        if columns_of(source) is not None:
            coding = Coding.of(source, self.bins, dict(self.kinds))
            codes, levels = coding.encode(source), coding.levels
        else:
            codes = _checked_codes(source, None)
            if codes.isnan().all():
                raise ValueError("rows must hold at least one level; all are missing")
            levels = self._levels(codes)
        posterior = self.untrained(levels, coding)
        rows = MaskedRows(codes.float(), self, self._label(levels, coding))
        posterior.learn(codes, rows, {"levels": list(levels), "rows": len(codes)}, log)
        posterior.metadata["rows of data"] = len(codes)
        return posterior

    def _label(self, levels: tuple[int, ...], coding: Coding | None) -> int | None:
        names = list(coding.names) if coding else []
        if self.label is None or self.label in names:
            return None if self.label is None else names.index(str(self.label))
        if isinstance(self.label, str) or not 0 <= self.label < len(levels):
            known = names or f"0 to {len(levels) - 1}"
            raise ValueError(f"label must be a column, {known}, got {self.label!r}")
        return self.label

    def _levels(self, codes: Tensor) -> tuple[int, ...]:
        """Number of levels of each variable."""
        most = torch.where(codes.isnan(), -1.0, codes).amax(0).long() + 1
        if self.levels is None:
            return tuple(most.clamp(min=1).tolist())
        told = (self.levels,) * len(most) if isinstance(self.levels, int) else self.levels
        if len(told) != len(most):
            raise ValueError(f"levels must be one number, or one for each of {len(most)} variables, got {len(told)}")
        for variable, (count, seen) in enumerate(zip(told, most.tolist(), strict=True)):
            if seen > count:
                raise ValueError(f"levels gives variable {variable} {count}, and the data has the level {seen - 1}")
        return tuple(told)

    def untrained(self, levels: tuple[int, ...], coding: Coding | None = None) -> "TableMDBMPosterior":
        """A posterior with weak random interactions."""
        with seeded(self.train.seed):
            ordered = coding.ordered if coding else (False,) * len(levels)
            machine = dense(levels, ordered, self.hidden, self.states, self.margin)
        return TableMDBMPosterior(self, machine, coding)


class Imputation(NamedTuple):
    """A table without holes, and how sure every cell is.

    Attributes:
        filled: the rows given, binned numbers filled in by their median and other cells by their most probable value.
        holes: which cells were filled.
        probs: probabilities of the levels of every cell; one that was there is certain.
        chance: of the level that was filled in, 1 where a value was there.
        certificate: how near these marginals are to the only fixed point, for each row.
        coding: what the levels mean; None for rows that were levels.
    """

    filled: Any
    holes: Bool[Tensor, "rows variables"]
    probs: Float[Tensor, "rows variables most"]
    chance: Float[Tensor, "rows variables"]
    certificate: Certificate
    coding: Coding | None

    def column(self, name: str | int) -> Categorical | Bar:
        """Distribution of every cell of a column: over numbers if it was binned, else over its levels.

        Raises:
            ValueError: no such column.
        """
        names: list[Any] = list(self.coding.names) if self.coding else list(range(self.probs.shape[1]))
        if name not in names:
            raise ValueError(f"name must be one of {names}, got {name!r}")
        place = names.index(name)
        if self.coding is not None:
            return self.coding.law(place, self.probs[:, place])
        return Categorical(probs=self.probs[:, place], validate_args=False)


class TableMDBMPosterior(MDBMPosterior):
    """What a trained `MDBM` knows of a table, and the cells of one row that it has seen.

    Attributes:
        coding: the columns of the frame; None if it learned from levels.
    """

    method: MDBM

    def __init__(self, method: MDBM, machine: Any, coding: Coding | None) -> None:
        super().__init__(method, machine)
        self.coding = coding

    def places(self, x: Any) -> Int[Tensor, "*batch n"]:
        """Numbers of variables from their names, or as they are."""
        if isinstance(x, str) or (isinstance(x, list | tuple) and any(isinstance(name, str) for name in x)):
            names = self.coding.names if self.coding else ()
            unknown = [name for name in x if name not in names]
            if isinstance(x, str) or unknown:
                raise ValueError(f"x must be a list of columns among {list(names)}, got {x!r}")
            x = [names.index(name) for name in x]
        return super().places(x)

    def values(self, place: Tensor, y: Any) -> Float[Tensor, "*batch n"]:
        """Levels of values as they stand in the frame; of levels, if it learned from such."""
        if self.coding is None:
            return super().values(place, y)
        if not isinstance(y, list | tuple) or place.shape != (len(y),):
            raise ValueError(f"y must be a list with one value for each of x, {place.numel()}, got {y!r}")
        codes = [self.coding.value(int(k), v) for k, v in zip(place, y, strict=True)]
        return torch.tensor(codes, dtype=torch.float64, device=place.device)

    @torch.no_grad()
    def impute(self, rows: Any) -> Imputation:
        """Distribution of every cell of `rows` given the others that are there, and the rows without holes.

        Args:
            rows: a frame with the columns of training, in any order; levels [rows, variables], NaN where unknown, if
                it learned from levels. What the posterior was conditioned on plays no part.

        Raises:
            ValueError: other columns than in training, levels that it did not have, or mean field did not settle.
        """
        if self.coding is not None and columns_of(rows) is None:
            raise ValueError(f"rows must be a frame with the columns {list(self.coding.names)}")
        if not len(rows):
            raise ValueError("rows must hold at least one row, got none")
        codes = self.coding.encode(rows) if self.coding else _checked_codes(rows, self.levels)
        machine = self.exact()
        q, certificate = machine.settled(codes.to(self.seen.device), TIGHT)
        if not certificate.converged.all():
            raise ValueError("mean field did not settle; train with a larger margin")
        probs, codes = machine.marginals(q).cpu(), codes.cpu()
        holes = codes.isnan()
        if self.coding is None:
            chance, best = probs.max(-1)
            return Imputation(torch.where(holes, best.double(), codes), holes, probs, chance, certificate, None)
        found, chances = {}, []
        for k, name in enumerate(self.coding.names):
            found[name], chance = self.coding.likely(k, probs[:, k])
            chances.append(torch.where(holes[:, k], chance, 1.0))
        gone = [series.isna().to_numpy() for series in self.coding.series(rows)]
        holes = holes & torch.as_tensor(np.array(gone)).mT  # a value unknown in training is no hole
        filled = self.coding.fill(rows, found, holes.numpy())
        return Imputation(filled, holes, probs, torch.stack(chances, -1), certificate, self.coding)

    def export(self) -> Exported:
        """Weights, what was seen, and what the levels mean."""
        weights, exact, header = super().export()
        coding = self.coding.to_json() if self.coding else None
        return Exported(weights, exact, header | {"levels": list(self.levels), "coding": coding})

    @classmethod
    def restore(cls, method: MDBM, tensors: dict[str, Tensor], header: dict[str, Any]) -> Self:
        """The posterior that `export` described."""
        coding = Coding.from_json(header["coding"]) if header["coding"] else None
        posterior: Any = method.untrained(tuple(header["levels"]), coding)
        return posterior.restored(tensors, header)


def _checked_codes(rows: Any, levels: tuple[int, ...] | None) -> Tensor:
    """Whole numbers [rows, variables] in float64, NaN where unknown."""
    codes = check_inputs(rows, None if levels is None else len(levels), name="rows", missing=True).double()
    there = torch.where(codes.isnan(), 0.0, codes)
    top = torch.tensor([MOST_LEVELS] * codes.shape[-1] if levels is None else levels, device=codes.device)
    wrong = (there != there.round()) | (there < 0) | (there >= top)
    if wrong.any():
        row, column = (int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"rows must hold levels 0 to {int(top[column]) - 1} of variable {column} as whole numbers, "
            f"got {float(codes[row, column]):g} in row {row}; give a frame for other values"
        )
    return codes
