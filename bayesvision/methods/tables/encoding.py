"""Cells and targets of a table as numbers for the network, by statistics of the context rows alone."""

from typing import NamedTuple, Self

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn.functional import one_hot

from bayesvision.methods.tables.gp_features import FittedProcess, GPFeatures

__all__ = ["CELL_FEATURES", "LEVELS", "Encoding", "target_features"]

LEVELS = 12  # of a category that are told apart; codes from the last of them on count as one
CELL_FEATURES = 5
SOFT = 3.0  # deviations from which on values enter by their logarithm
FAR = 1e12  # deviations at most: squares of more overflow float32, and nothing there was trained


class Encoding(NamedTuple):
    """What the context says about each column, and about the target.

    Attributes:
        categorical: whether a column holds codes 0, 1, ... of a category.
        x_loc, x_scale: mean and standard deviation of the values that are there.
        frequency: of each level of a category in the context.
        missing: fraction of the context rows without a value.
        y_loc, y_scale: mean and standard deviation of the target; of classes their frequencies, and 1.
        process: the Gaussian process given the context; None without context rows.
    """

    categorical: Bool[Tensor, "*batch 1 columns"]
    x_loc: Float[Tensor, "*batch 1 columns"]
    x_scale: Float[Tensor, "*batch 1 columns"]
    frequency: Float[Tensor, "*batch columns levels"]
    missing: Float[Tensor, "*batch 1 columns"]
    y_loc: Float[Tensor, "*batch outputs"]
    y_scale: Float[Tensor, "*batch 1"]
    process: FittedProcess | None

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "*batch n columns"],
        y: Shaped[Tensor, "*batch n"],
        categorical: Bool[Tensor, "*batch columns"],
        classes: int | None,
        process: bool,
    ) -> Self:
        """Statistics of the context rows (x, y), NaN where a value is missing."""
        there = ~x.isnan()
        count = there.sum(-2, keepdim=True).clamp(min=1)
        values = x.nan_to_num(0.0)
        loc = values.sum(-2, keepdim=True) / count
        square = ((values - loc) * there).square().sum(-2, keepdim=True) / (count - 1).clamp(min=1)
        floor = 1e-12 * values.abs().amax(-2, keepdim=True) if x.shape[-2] else torch.zeros_like(loc)
        scale = torch.where(square.sqrt() > floor, square.sqrt(), torch.ones_like(square))
        frequency = (_levels(x) * there.unsqueeze(-1)).sum(-3) / max(1, x.shape[-2])
        missing = 1 - there.to(x).sum(-2, keepdim=True) / max(1, x.shape[-2])
        y_loc, y_scale = y.new_zeros(*y.shape[:-1], 1).to(x), y.new_ones(*y.shape[:-1], 1).to(x)
        if classes is not None:
            y_loc = one_hot(y, classes).to(x).sum(-2) / max(1, x.shape[-2])
        elif x.shape[-2] > 1:
            y_loc, spread = y.mean(-1, keepdim=True), y.std(-1, keepdim=True)
            y_scale = torch.where(spread > 1e-12 * y.abs().amax(-1, keepdim=True), spread, y_scale)
        new = cls(categorical.unsqueeze(-2), loc, scale, frequency, missing, y_loc, y_scale, None)
        if not process or not x.shape[-2]:
            return new
        return new._replace(process=FittedProcess.of(new.design(x), new.outputs(y, classes)))

    def standardized(self, x: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch rows columns"]:
        """Values in deviations, far ones drawn in, 0 where one is missing."""
        z = ((x - self.x_loc) / self.x_scale).nan_to_num(0.0, 0.0, 0.0).clamp(-FAR, FAR)
        far = (z.abs() - SOFT).clamp(min=0)
        return torch.where(far > 0, z.sign() * (SOFT + torch.log1p(far)), z)

    def design(self, x: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch rows columns dims"]:
        """Columns as the process sees them: value, whether it is missing, and the levels of categories."""
        z, hole = self.standardized(x), x.isnan().to(x.dtype)
        parts = [torch.where(self.categorical, torch.zeros_like(z), z)]
        if self.missing.any():
            parts.append(hole)
        if self.categorical.any():
            levels = _levels(x) * self.categorical.unsqueeze(-1) * (1 - hole.unsqueeze(-1))
            used = self.frequency.flatten(0, -2).amax(0) > 0
            return torch.cat([torch.stack(parts, -1), levels[..., used]], -1)
        return torch.stack(parts, -1)

    def outputs(self, y: Shaped[Tensor, "*batch n"], classes: int | None) -> Float[Tensor, "*batch n outputs"]:
        """Targets as the process sees them: standardised, or class indicators minus the classes' frequencies."""
        if classes is None:
            return ((y - self.y_loc) / self.y_scale).unsqueeze(-1)
        return one_hot(y, classes).to(self.y_loc) - self.y_loc.unsqueeze(-2)

    def cells(self, x: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch rows columns features"]:
        """What a cell says: value, whether it is missing, whether it is a category, its frequency, its relevance."""
        hole, category = x.isnan(), self.categorical.expand(x.shape)
        code = x.nan_to_num(0.0).long().clamp(0, LEVELS - 1)
        table = self.frequency.unsqueeze(-3).expand(*x.shape, LEVELS)
        frequency = table.gather(-1, code.unsqueeze(-1)).squeeze(-1) * (category & ~hole)
        relevance = torch.zeros_like(x)
        if self.process is not None:
            relevance = -self.process.hyper.lengthscale.unsqueeze(-2).expand(x.shape)
        z = self.standardized(x)
        return torch.stack([z, hole.to(z), category.to(z), frequency, relevance], -1)

    def predicted(self, query: Float[Tensor, "*batch m columns"], classes: int | None) -> GPFeatures:
        """What the process predicts for the queries; mean 0 and standard deviation 1 where nothing was seen."""
        if self.process is not None:
            return self.process.at(self.design(query))
        return GPFeatures(query.new_zeros(*query.shape[:-1], classes or 1), query.new_ones(query.shape[:-1]))

    def seen(self, x: Float[Tensor, "*batch n columns"], classes: int | None) -> GPFeatures:
        """What the process predicts for each context row from the others."""
        return self.predicted(x, classes) if self.process is None else self.process.seen


def _levels(x: Tensor) -> Float[Tensor, "*batch rows columns levels"]:
    code = x.nan_to_num(0.0).clamp(0, LEVELS - 1).long()
    return one_hot(code, LEVELS).to(x.dtype)


def target_features(
    y: Float[Tensor, "*batch rows outputs"] | None, process: GPFeatures
) -> Float[Tensor, "*batch rows features"]:
    """What a target says: its value, unknown for a query, and what the process predicts for it from other rows."""
    mean, log_stddev = process.mean, process.stddev.log().unsqueeze(-1)
    known = torch.zeros_like(mean) if y is None else y
    unknown = torch.full_like(log_stddev, float(y is None))
    residual = torch.zeros_like(mean) if y is None else (y - mean) / process.stddev.unsqueeze(-1)
    return torch.cat([known, mean, residual, log_stddev / 3, unknown], -1)
