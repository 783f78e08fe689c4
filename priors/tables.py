"""`StructuralTables`: tables read off random structural causal models, with all that real columns have."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from priors.checks import check_counts, feature_range
from priors.draws import Draws
from priors.task import Task

__all__ = ["StructuralTables"]

WIDTH, LAYERS = 10, 3  # of the causal model
WAVES = 12  # cosines of a smooth function of one variable
RANDOM_FEATURES = 96  # of a Gaussian process over the columns
DEPTH = 3  # of a tree
LEVELS = 12  # of a category, at most


@dataclass(frozen=True)
class StructuralTables:
    """Tables whose columns and target are nodes of a random causal model (Hollmann et al. 2023, arXiv 2207.01848).

    Root variables are normal, uniform, clustered or heavy-tailed, and in half of the tables correlated, some of them
    nearly collinear. In three layers of ten nodes each node is a function of a sparse combination of earlier ones: the
    combination itself, tanh, a rectifier, a square, a product of two, a smooth random wave, or a tree; half of the
    nodes have noise. A column is a root or any other node, so that the target may be an effect of columns or a cause.
    In a third of the tables the target is a function of all columns directly: a linear model plus a Gaussian process
    with a lengthscale for each column.

    Columns are then warped monotonically, rounded, cut into categories with codes in arbitrary order, replaced by pure
    noise, given outliers and holes, at random or by their own value. A numeric target gets noise of a variance between
    1e-6 and 2 times its own, normal, Student-t or growing with a column, and may be warped or rounded. Classes are cut
    from a target at random quantiles, in random order, or are the largest of several nodes; in a third of the tables
    they are the cause of all columns, which differ in mean and spread from class to class. Labels may be wrong.

    Args:
        features: number of columns, or a range `(minimum, maximum)` drawn log-uniformly for each batch.
        classes: None for a numeric target, otherwise the maximum number of classes.
        holes: probability that a table has missing values.
        categories: probability that a table has categories.

    Raises:
        ValueError: an argument is out of range.
    """

    features: int | tuple[int, int] = (1, 16)
    classes: int | None = None
    holes: float = 0.35
    categories: float = 0.5

    def __post_init__(self) -> None:
        feature_range(self.features)
        if self.classes is not None:
            check_counts(classes=self.classes)
            if self.classes < 2:
                raise ValueError(f"classes must be None or at least 2, got {self.classes}")
        for name in ("holes", "categories"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)!r}")

    def sample(self, batch: int, rows: int, *, generator: Generator) -> Task:
        """Draw `batch` tables of `rows` rows; NaN is a missing value, `task.categorical` tells the categories."""
        check_counts(batch=batch, rows=rows)
        draws = Draws(batch, generator)
        low, high = feature_range(self.features)
        u = float(torch.rand((), generator=generator, device=generator.device, dtype=torch.float32))
        columns = min(high, int(math.exp(math.log(low) + u * math.log((high + 1) / low))))
        roots = _roots(draws, rows, columns + 3)
        nodes = _nodes(draws, roots)
        x, target, others = _read_off(draws, nodes, columns, roots.shape[-1])
        direct = draws.happens(1, p=0.35)
        target = torch.where(direct, _process(draws, x), target)
        if self.classes is None:
            columns_seen, categorical = self._columns(draws, x)
            return Task(columns_seen, _numeric_target(draws, target, x), None, self, categorical)
        clustered, (clusters, members) = draws.happens(1, p=0.35), _clusters(draws, rows, columns, self.classes)
        columns_seen, categorical = self._columns(draws, torch.where(clustered.unsqueeze(-1), clusters, x))
        labels = torch.where(clustered, members, _labels(draws, target, others, self.classes))
        return Task(columns_seen, _relabelled(draws, labels, self.classes), None, self, categorical)

    def _columns(self, draws: Draws, x: Float[Tensor, "batch rows columns"]) -> tuple[Tensor, Bool[Tensor, "..."]]:
        """The columns as somebody recorded them, and which are categories."""
        rows, columns = x.shape[1:]
        irrelevant = draws.happens(1, columns, p=draws.uniform(1, 1, high=0.4) * draws.happens(1, 1, p=0.4))
        x = torch.where(irrelevant, draws.normal(rows, columns), x)
        x = _warped(draws, x)
        wild = draws.happens(rows, columns, p=0.01) & draws.happens(1, columns, p=0.15)
        x = torch.where(wild, x * draws.log_uniform(rows, columns, low=2, high=30), x)
        steps = draws.log_uniform(1, columns, low=2, high=40).round()
        rounded = draws.happens(1, columns, p=0.2)
        x = torch.where(rounded, (x * steps / 4).round() / steps * 4, x)
        some = draws.happens(1, 1, p=self.categories)
        categorical = some & draws.happens(1, columns, p=draws.uniform(1, 1, low=0.1, high=1.0))
        x = torch.where(categorical, _codes(draws, x), x)
        gaps = draws.happens(1, 1, p=self.holes) & draws.happens(1, columns, p=0.5)
        rate = draws.uniform(1, columns).square() * 0.5
        rank = x.argsort(1).argsort(1) / rows
        own = draws.happens(1, columns, p=0.3)  # missing because of its own value
        lost = torch.where(
            own, (rank < rate) & draws.happens(rows, columns, p=0.8), draws.happens(rows, columns, p=rate)
        )
        return torch.where(gaps & lost, torch.nan, x), categorical[:, 0]


def _standard(x: Float[Tensor, "batch rows ..."]) -> Float[Tensor, "batch rows ..."]:
    """Mean 0 and standard deviation 1 over the rows; a constant becomes 0."""
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True).sqrt() + 1e-6)


def _roots(draws: Draws, rows: int, count: int) -> Float[Tensor, "batch rows count"]:
    """Independent causes, or correlated ones."""
    z = draws.normal(rows, count)
    flat = draws.uniform(rows, count, low=-1.7, high=1.7)
    centres = 2 * draws.normal(5, count)
    member = draws.integers(rows, high=draws.integers(1, high=4) + 2)
    clustered = (
        centres.gather(1, member.unsqueeze(-1).expand(-1, -1, count))
        + draws.log_uniform(1, count, low=0.05, high=1) * z
    )
    heavy = draws.student(rows, count, df=3.0)
    kind = draws.uniform(1, count)
    x = torch.where(kind < 0.45, z, torch.where(kind < 0.7, flat, torch.where(kind < 0.9, clustered, heavy)))
    x = _standard(x)
    rank = draws.integers(1, 1, high=count) + 1
    used = torch.arange(count, device=x.device) < rank
    own = draws.log_uniform(1, count, low=1e-3, high=1)
    mixed = _standard(
        _standard(x @ (draws.normal(count, count) * used.transpose(1, 2))) + own * draws.normal(rows, count)
    )
    return torch.where(draws.happens(1, 1, p=0.5), mixed, x)


def _nodes(draws: Draws, roots: Float[Tensor, "batch rows count"]) -> Float[Tensor, "batch rows nodes"]:
    """The roots, and three layers of functions of what comes before."""
    h = roots
    sparse = draws.uniform(1, 1, low=0.1, high=0.8)
    for _ in range(LAYERS):
        before = h.shape[-1]
        weights = draws.normal(before, WIDTH) * draws.happens(before, WIDTH, p=sparse)
        chosen = torch.nn.functional.one_hot(draws.integers(WIDTH, high=before), before).mT  # one parent at least
        weights = weights + draws.normal(before, WIDTH) * chosen
        pre = _standard(h @ weights)
        bent = draws.log_uniform(1, WIDTH, low=0.3, high=4) * (pre + draws.normal(1, WIDTH))
        other = h.gather(2, draws.integers(1, WIDTH, high=before).expand(-1, h.shape[1], -1))
        kinds = [
            pre,
            torch.tanh(bent),
            torch.relu(bent),
            bent.square(),
            pre * other,
            _wave(draws, pre),
            _tree(draws, h),
        ]
        probabilities = torch.tensor(
            [0.22, 0.13, 0.13, 0.08, 0.1, 0.17, 0.17], device=h.device, dtype=torch.float32
        ).cumsum(0)
        kind = torch.bucketize(draws.uniform(1, WIDTH), probabilities).clamp(max=len(kinds) - 1)
        value = torch.stack(kinds, -1).gather(-1, kind.expand(-1, h.shape[1], -1).unsqueeze(-1)).squeeze(-1)
        noise = draws.log_uniform(1, WIDTH, low=1e-3, high=0.7) * draws.happens(1, WIDTH, p=0.5)
        h = torch.cat([h, _standard(_standard(value) + noise * draws.normal(h.shape[1], WIDTH))], -1)
    return h


def _wave(draws: Draws, z: Float[Tensor, "batch rows nodes"]) -> Float[Tensor, "batch rows nodes"]:
    """A draw of a smooth random function of each variable: a Gaussian process by random cosines."""
    nodes = z.shape[-1]
    frequency = draws.normal(1, nodes, WAVES) * draws.log_uniform(1, nodes, 1, low=0.5, high=3)
    phase, weight = draws.uniform(1, nodes, WAVES, high=2 * math.pi), draws.normal(1, nodes, WAVES)
    return (weight * torch.cos(frequency * z.unsqueeze(-1) + phase)).sum(-1)


def _tree(draws: Draws, h: Float[Tensor, "batch rows before"]) -> Float[Tensor, "batch rows nodes"]:
    """An oblivious tree for each node: three thresholds on three variables tell the leaf, whose value is normal."""
    parents = draws.integers(1, WIDTH * DEPTH, high=h.shape[-1]).expand(-1, h.shape[1], -1)
    bits = (h.gather(2, parents) > draws.normal(1, WIDTH * DEPTH)).unflatten(-1, (WIDTH, DEPTH))
    leaf = (bits * 2 ** torch.arange(DEPTH, device=h.device)).sum(-1)
    return draws.normal(2**DEPTH, WIDTH).gather(1, leaf)


def _read_off(
    draws: Draws, nodes: Float[Tensor, "batch rows nodes"], columns: int, roots: int
) -> tuple[Tensor, Float[Tensor, "batch rows"], Float[Tensor, "batch rows others"]]:
    """Columns, a target that is none of them, and other nodes."""
    total = nodes.shape[-1]
    score = draws.uniform(total)
    early = draws.happens(1, p=0.5)  # columns are causes alone
    is_root = torch.arange(total, device=nodes.device) < roots
    target = roots + draws.integers(1, high=total - roots)
    score = score + torch.where(early, is_root.float(), torch.zeros_like(score))
    score = score.scatter(1, target, -1.0)
    order = score.argsort(1, descending=True)
    picked = nodes.gather(2, order.unsqueeze(1).expand(-1, nodes.shape[1], -1))
    y = nodes.gather(2, target.unsqueeze(1).expand(-1, nodes.shape[1], -1)).squeeze(-1)
    return picked[..., :columns], y, nodes[..., roots:]


def _process(draws: Draws, x: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch rows"]:
    """A linear model plus a Gaussian process of the columns, by random Fourier features."""
    columns = x.shape[-1]
    length = draws.log_normal(1, columns, mean=0.9 + math.log(columns) / 2, stddev=1.0)
    frequency = draws.normal(columns, RANDOM_FEATURES)
    tail = torch._standard_gamma(torch.full_like(frequency[:, :1], 2.5), generator=draws.generator) / 2.5
    frequency = torch.where(draws.happens(1, 1, p=0.5), frequency * tail.rsqrt(), frequency)  # Matern 5/2
    phase, weight = draws.uniform(1, RANDOM_FEATURES, high=2 * math.pi), draws.normal(RANDOM_FEATURES)
    waves = torch.cos((x / length) @ frequency + phase) @ weight.unsqueeze(-1)
    slopes = draws.normal(columns, 1) * draws.happens(columns, 1, p=draws.uniform(1, 1, low=0.2))
    share = draws.uniform(1, 1)
    share = torch.where(draws.happens(1, 1, p=0.25), share.round(), share)
    mixed = (1 - share) * _standard(waves) + share * _standard(x @ slopes)
    return _standard(mixed).squeeze(-1)


def _warped(draws: Draws, x: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch rows columns"]:
    """Increasing maps of each column: none, exponential, signed power, or sigmoid."""
    shape = (1, x.shape[-1])
    strength = draws.uniform(*shape, low=0.3, high=1.5)
    power = draws.log_uniform(*shape, low=0.4, high=3)
    kind = draws.uniform(*shape)
    z = x.clamp(-8, 8)
    bent = torch.where(kind < 0.15, torch.exp(strength * z), z.sign() * (z.abs() + 1e-6) ** power)
    bent = torch.where(kind < 0.3, bent, torch.tanh(strength * z))
    return torch.where(kind < 0.4, _standard(bent), x)


def _codes(draws: Draws, x: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch rows columns"]:
    """Categories: the column cut at random quantiles into 2 to 12 levels, whose codes are in random order."""
    columns = x.shape[-1]
    count = draws.log_uniform(1, columns, low=2, high=LEVELS + 0.99).floor()
    cuts = draws.normal(LEVELS - 1, columns) * 1.2
    there = torch.arange(LEVELS - 1, device=x.device).view(1, -1, 1) < count - 1
    level = ((_standard(x).unsqueeze(1) > cuts.unsqueeze(2)) & there.unsqueeze(2)).sum(1)
    rank = torch.where(
        torch.arange(LEVELS, device=x.device).view(1, -1, 1) < count, draws.uniform(LEVELS, columns), 2.0
    )
    code = rank.argsort(1).argsort(1)
    return code.gather(1, level).to(x.dtype)


def _numeric_target(
    draws: Draws, f: Float[Tensor, "batch rows"], x: Float[Tensor, "batch rows columns"]
) -> Float[Tensor, "batch rows"]:
    """The target with noise, warped or rounded in some tables."""
    rows = f.shape[1]
    f = _standard(f)
    kind = draws.uniform(1)
    z = torch.where(kind < 0.75, draws.normal(rows), draws.student(rows, df=3.0) / 3**0.5)
    growth = torch.exp(draws.uniform(1, low=0.3, high=1.2) * x[..., 0].clamp(-3, 3))
    z = torch.where(kind > 0.9, draws.normal(rows) * growth, z)
    variance = torch.where(
        draws.happens(1, p=0.35), draws.log_uniform(1, low=1e-6, high=1e-2), draws.log_uniform(1, low=1e-2, high=2.0)
    )
    y = _standard(f + variance.sqrt() * z)
    shape, bend = draws.uniform(1), draws.uniform(1, low=0.2, high=1.0)
    y = torch.where(
        shape < 0.1, torch.exp(bend * y.clamp(-6, 6)), torch.where(shape < 0.15, torch.sinh(bend * y.clamp(-6, 6)), y)
    )
    steps = draws.log_uniform(1, low=1, high=10)
    y = torch.where(shape > 0.93, (y * steps).round() / steps, y)
    return _standard(y)


def _class_sizes(draws: Draws, most: int) -> tuple[Int[Tensor, "batch 1"], Float[Tensor, "batch most"]]:
    """Number of classes K, from 2 to `most` and more often few, and the expected share of each; 0 from class K on."""
    count = torch.where(draws.happens(1, p=0.45), 2, draws.integers(1, high=most - 1) + 2)
    there = torch.arange(most, device=draws.generator.device) < count
    sizes = (-draws.uniform(most).clamp(min=1e-6).log()) ** draws.uniform(1, low=0.5, high=1.5) * there
    return count, sizes / sizes.sum(-1, keepdim=True)


def _labels(
    draws: Draws, f: Float[Tensor, "batch rows"], others: Float[Tensor, "batch rows nodes"], most: int
) -> Int[Tensor, "batch rows"]:
    """Classes cut from the target `f`, or the largest of several nodes."""
    rows = f.shape[1]
    count, sizes = _class_sizes(draws, most)
    there = torch.arange(most, device=f.device) < count
    cuts = sizes.cumsum(-1)[:, :-1]
    noisy = _standard(f) + draws.log_uniform(1, low=1e-3, high=1.0) * draws.happens(1, p=0.6) * draws.normal(rows)
    rank = (noisy.argsort(1).argsort(1) + 0.5) / rows
    cut = torch.searchsorted(cuts.clamp(max=1.0).contiguous(), rank.contiguous())
    pick = draws.integers(1, most, high=others.shape[-1]).expand(-1, rows, -1)
    scores = others.gather(2, pick) * draws.log_uniform(1, 1, low=1, high=10) + 0.7 * draws.normal(1, most)
    gumbel = -(-draws.uniform(rows, most).clamp(1e-9, 1 - 1e-7).log()).log()
    raced = (scores + gumbel).masked_fill(~there.unsqueeze(1), -torch.inf).argmax(-1)
    return torch.where(draws.happens(1, p=0.6), cut, raced).clamp(max=most - 1)


def _clusters(
    draws: Draws, rows: int, columns: int, most: int
) -> tuple[Float[Tensor, "batch rows columns"], Int[Tensor, "batch rows"]]:
    """Columns that the class causes: normal around a mean of the class, with factors that the columns share."""
    _, sizes = _class_sizes(draws, most)
    cuts = sizes.cumsum(-1)[:, :-1].clamp(max=1.0).contiguous()
    label = torch.searchsorted(cuts, draws.uniform(rows).contiguous())

    def of_the_class(values: Float[Tensor, "batch most columns"]) -> Float[Tensor, "batch rows columns"]:
        return values.gather(1, label.unsqueeze(-1).expand(-1, -1, columns))

    distance = draws.log_uniform(1, 1, low=0.3, high=5) * draws.log_uniform(1, columns, low=0.3, high=3)
    telling = draws.happens(1, columns, p=draws.uniform(1, 1, low=0.3, high=1.2))
    mean = of_the_class(distance * telling * draws.normal(most, columns))
    spread = draws.uniform(1, 1) * draws.happens(1, 1, p=0.5)
    stddev = of_the_class(torch.exp(spread * draws.normal(most, columns)))
    factors = draws.normal(rows, 3) @ (draws.normal(3, columns) * draws.log_uniform(1, 1, low=0.05, high=1.0))
    return _standard(mean + stddev * (draws.normal(rows, columns) + factors)), label


def _relabelled(draws: Draws, label: Int[Tensor, "batch rows"], most: int) -> Int[Tensor, "batch rows"]:
    """The classes in random order, some labels wrong."""
    rows, count = label.shape[1], label.amax(1, keepdim=True) + 1
    there = torch.arange(most, device=label.device) < count
    order = torch.where(there, draws.uniform(most), 2.0).argsort(1).argsort(1)
    label = order.gather(1, label)
    wrong = draws.happens(rows, p=draws.uniform(1, high=0.2) * draws.happens(1, p=0.4))
    other = (draws.uniform(rows) * count).long().clamp(max=most - 1)
    return torch.where(wrong, other, label)
