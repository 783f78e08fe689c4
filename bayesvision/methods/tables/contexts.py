"""Tables longer or wider than those of training: several contexts of some rows each, and the columns that say most."""

import math

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from bayesvision.distributions import Categorical, Mixture, Normal

__all__ = ["mixed", "screened", "spread"]

CONTEXTS = 4  # at most; each costs the time of one
LEVELS = 256  # of a category that are told apart in the screening


def spread(rows: int, context: int) -> Int[Tensor, "contexts context"] | None:
    """Rows of each context where there are more than `context`: disjoint random subsets, up to four; else None."""
    if rows <= context:
        return None
    count = min(CONTEXTS, math.ceil(rows / context))
    size = min(context, rows // count)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(rows))
    return order[: count * size].reshape(count, size).sort(-1).values


def screened(
    x: Float[Tensor, "*batch rows columns"],
    y: Shaped[Tensor, "*batch rows"],
    categorical: Bool[Tensor, "*batch columns"],
    classes: int | None,
    columns: int,
) -> Int[Tensor, " kept"] | None:
    """The columns kept where there are more than `columns`, in their order; None keeps all.

    Those kept have the largest correlation with the target (or with one of its classes) over the rows, by rank: of the
    value, of its distance to the median, or of the mean target of its category, whichever is largest.
    """
    if x.shape[-1] <= columns:
        return None
    targets = _ranks(y.double().unsqueeze(-1)) if classes is None else torch.nn.functional.one_hot(y, classes).double()
    value = _ranks(x.double())
    means = torch.stack([_category_means(x, targets[..., k]) for k in range(targets.shape[-1])], -1)
    by_value = torch.maximum(_correlation(value, targets), _correlation(value.abs(), targets))
    by_category = torch.stack(
        [_correlation(means[..., k], targets[..., k : k + 1])[..., 0] for k in range(targets.shape[-1])], -1
    )
    score = torch.where(categorical.unsqueeze(-1), by_category, by_value).amax(-1)
    score = score.reshape(-1, x.shape[-1]).mean(0)  # the same columns in a whole batch
    return score.argsort(descending=True, stable=True)[:columns].sort().values


def _ranks(x: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch rows columns"]:
    """Ranks from -1 to 1, those of equal values alike; a missing value is in the middle."""
    ordered = x.nan_to_num(torch.inf).sort(-2).values.mT.contiguous()
    count = (~x.isnan()).sum(-2, keepdim=True).clamp(min=1)
    value = x.nan_to_num(torch.inf).mT.contiguous()
    low, high = (torch.searchsorted(ordered, value, right=right).mT for right in (False, True))
    return torch.where(x.isnan(), 0.0, (low + high).double() / count - 1)


def _category_means(x: Float[Tensor, "*batch rows columns"], y: Float[Tensor, "*batch rows"]) -> Tensor:
    """Mean target of the other rows of the same category."""
    codes = x.nan_to_num(-1.0).long().clamp(-1, LEVELS - 2) + 1
    none = torch.zeros(*x.shape[:-2], LEVELS, x.shape[-1], dtype=torch.float64, device=x.device)
    total = none.scatter_add(-2, codes, y.unsqueeze(-1).expand(x.shape).contiguous())
    count = none.scatter_add(-2, codes, torch.ones_like(x, dtype=torch.float64))
    own, size = total.gather(-2, codes), count.gather(-2, codes)
    y = y.unsqueeze(-1)
    return torch.where(size > 1, (own - y) / (size - 1).clamp(min=1), y.mean(-2, keepdim=True))


def _correlation(
    a: Float[Tensor, "*batch rows columns"], b: Float[Tensor, "*batch rows targets"]
) -> Float[Tensor, "*batch columns targets"]:
    a, b = a - a.mean(-2, keepdim=True), b - b.mean(-2, keepdim=True)
    scale = a.square().sum(-2).unsqueeze(-1) * b.square().sum(-2).unsqueeze(-2)
    return (a.mT @ b).abs() / scale.clamp(min=1e-30).sqrt()


def mixed(law: Mixture | Categorical) -> Mixture | Categorical:
    """The equal mixture of predictions [*batch, contexts, rows] over the contexts."""
    if isinstance(law, Categorical):
        return Categorical.of_members(law.logits.movedim(-3, 0))
    parts = law.component_distribution
    assert isinstance(parts, Normal)
    loc, scale, logits = (
        value.movedim(-3, -2).flatten(-2) for value in (parts.loc, parts.scale, law.mixture_distribution.logits)
    )
    return Mixture.of(Normal(loc, scale, validate_args=False), logits)
