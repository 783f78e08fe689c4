"""`StructuralTables`: what its tables look like, and that they are functions of the generator alone."""

import pytest
import torch

from bayesvision.training.seeds import generator
from priors import BayesianLinear, PriorMixture, StructuralTables
from priors.draws import Draws
from priors.tables import _clusters


def tables(prior, count, rows=64, seed=0):
    return [prior.sample(8, rows, generator=generator("cpu", seed, k)) for k in range(count)]


def test_the_same_seed_gives_the_same_tables():
    a, b = (StructuralTables((2, 5)).sample(4, 20, generator=generator("cpu", 3)) for _ in range(2))
    assert torch.equal(a.x.nan_to_num(-1), b.x.nan_to_num(-1)) and torch.equal(a.y, b.y)


def test_shapes_and_ranges():
    for task in tables(StructuralTables((2, 6)), 20):
        assert task.x.shape[:2] == (8, 64) and 2 <= task.x.shape[-1] <= 6
        assert torch.isfinite(task.y).all() and not task.x.isinf().any()
        assert task.categorical.shape == (8, task.x.shape[-1])
        codes = task.x.mT[task.categorical]
        codes = codes[~codes.isnan()]
        assert (codes == codes.round()).all() and (codes >= 0).all()


def test_holes_and_categories_come_as_often_as_asked():
    def fractions(prior):
        found = tables(prior, 40)
        holes = torch.cat([t.x.isnan().flatten(1).any(1) for t in found]).float().mean()
        return float(holes), float(torch.cat([t.categorical.any(1) for t in found]).float().mean())

    assert fractions(StructuralTables((3, 6), holes=0.0, categories=0.0)) == (0.0, 0.0)
    holes, categories = fractions(StructuralTables((3, 6), holes=0.5, categories=0.5))
    assert 0.3 < holes < 0.6 and 0.25 < categories < 0.6  # 320 tables: an error of 0.03


def test_classes_are_codes_and_differ():
    for task in tables(StructuralTables((2, 4), classes=5), 20):
        assert task.y.dtype == torch.int64 and task.y.min() >= 0 and task.y.max() < 5
    sizes = torch.cat([t.y.amax(1) + 1 for t in tables(StructuralTables(3, classes=5), 20)])
    assert len(sizes.unique()) >= 3


def test_targets_can_be_learned():
    """A nearest neighbour beats the mean on most tables, as it would not on noise."""
    better = []
    for task in tables(StructuralTables((2, 3), holes=0.0, categories=0.0), 25, rows=200):
        x, y = task.x.double(), task.y.double()
        x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True).clamp(min=1e-9)
        nearest = torch.cdist(x[:, 100:], x[:, :100]).topk(5, largest=False).indices
        guess = y[:, :100].unsqueeze(1).expand(-1, 100, -1).gather(2, nearest).mean(-1)
        spread = (y[:, 100:] - y[:, :100].mean(1, keepdim=True)).square().mean(1)
        better.append((guess - y[:, 100:]).square().mean(1) < spread)
    assert torch.cat(better).float().mean() > 0.55


def test_classes_can_be_learned():
    """Five nearest neighbours beat the commonest class on most tables, as they would not on noise."""
    better = []
    for task in tables(StructuralTables((4, 8), classes=4, holes=0.0, categories=0.0), 25, rows=200):
        x = task.x.double()
        x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True).clamp(min=1e-9)
        nearest = torch.cdist(x[:, 100:], x[:, :100]).topk(5, largest=False).indices
        votes = task.y[:, :100].unsqueeze(1).expand(-1, 100, -1).gather(2, nearest)
        right = (votes.mode(-1).values == task.y[:, 100:]).double().mean(1)
        common = (task.y[:, :100].mode(1, keepdim=True).values == task.y[:, 100:]).double().mean(1)
        better.append(right > common)
    assert torch.cat(better).double().mean() > 0.55


def test_a_class_may_be_the_cause_of_its_columns():
    """The classes explain much of the variance of some columns of `_clusters`, and none of others."""
    columns, label = _clusters(Draws(64, generator("cpu", 1)), 400, 3, 3)
    means = torch.stack([columns.where((label == k).unsqueeze(-1), 0).sum(1) for k in range(3)], 1)
    counts = torch.stack([(label == k).sum(1) for k in range(3)], 1).clamp(min=1).unsqueeze(-1)
    explained = (means.square() / counts).sum(1) / 400
    assert explained.quantile(0.75) > 0.1 and explained.amax() > 0.7 and explained.amin() < 0.02


@pytest.mark.parametrize("fields", [{"features": 0}, {"classes": 1}, {"holes": 1.5}, {"categories": -0.1}])
def test_a_field_out_of_range_is_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        StructuralTables(**fields)


def test_a_mixture_keeps_which_columns_are_categories():
    tables_alone = StructuralTables(3, categories=1.0, holes=0.0)
    task = PriorMixture((BayesianLinear(4), tables_alone)).sample(40, 20, generator=generator("cpu", 2))
    member = task.theta["member"]
    assert not task.categorical[member == 0].any() and not task.categorical[:, 3].any()
    assert task.categorical[member == 1].any(1).double().mean() > 0.5
