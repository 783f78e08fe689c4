"""`PriorMixture`: a prior that draws every data set from one of several priors."""

import math
from dataclasses import dataclass
from functools import reduce
from numbers import Real
from typing import Any

import torch
from torch import Generator

from priors.checks import check_counts
from priors.task import Task

__all__ = ["PriorMixture"]


@dataclass(frozen=True)
class PriorMixture:
    """Draws each data set from `priors[k]` with probability proportional to `weights[k]`.

    All data sets of a batch have one number of features, so narrower draws are padded with zero columns; inputs and
    targets take the widest dtype of the members drawn, so integer targets stay integers among themselves.

    Args:
        priors: the members.
        weights: one for each member; equal when left out.

    Raises:
        ValueError: no priors, or weights that are negative, all zero, or not one for each prior.
    """

    priors: tuple[Any, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.priors:
            raise ValueError("priors must hold at least one prior")
        for prior in self.priors:
            if not callable(getattr(prior, "sample", None)):
                raise ValueError(f"priors must hold priors with a method sample, got {prior!r}")
        if self.weights is None:
            return
        if len(self.weights) != len(self.priors):
            raise ValueError(f"weights must be one for each of the {len(self.priors)} priors, got {len(self.weights)}")
        if (
            any(not isinstance(w, Real) or not math.isfinite(w) or w < 0 for w in self.weights)
            or not sum(self.weights) > 0
        ):
            raise ValueError(f"weights must be finite, not negative, and not all zero, got {self.weights}")

    def sample(self, batch: int, rows: int, *, generator: Generator) -> Task:
        """Draw `batch` data sets of `rows` rows; `theta["member"]` tells the prior of each."""
        check_counts(batch=batch, rows=rows)
        device = generator.device
        given = self.weights or (1.0,) * len(self.priors)
        weights = torch.tensor([w / max(given) for w in given], device=device, dtype=torch.float32)
        member = torch.multinomial(weights, batch, replacement=True, generator=generator)
        drawn = []
        for k, prior in enumerate(self.priors):
            count = int((member == k).sum())
            if count:
                task = prior.sample(count, rows, generator=generator)
                categorical = getattr(task, "categorical", None)
                drawn.append((member == k, *((task.x, task.y) if hasattr(task, "x") else task), categorical))
        features = max(inputs.shape[-1] for _, inputs, _, _ in drawn)
        kinds = (reduce(torch.promote_types, (part[i].dtype for part in drawn)) for i in (1, 2))
        x = torch.zeros(batch, rows, features, device=device, dtype=next(kinds))
        y = torch.zeros(batch, rows, device=device, dtype=next(kinds))
        categories = torch.zeros(batch, features, device=device, dtype=torch.bool)
        for place, inputs, targets, categorical in drawn:
            x[place, :, : inputs.shape[-1]] = inputs.to(x.dtype)
            y[place] = targets.to(y.dtype)
            if categorical is not None:
                categories[place, : inputs.shape[-1]] = categorical
        return Task(x, y, {"member": member}, self, categories)
