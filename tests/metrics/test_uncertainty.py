"""Scores of spreads by closed forms and counting, each shown to notice a wrong spread; and the pictures of maps."""

import inspect
import math

import numpy as np
import pytest
import torch
from checks import rejected
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from bayesvision import metrics, plots
from bayesvision.distributions import Categorical, Normal


def draws(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def truth(count=60_000):
    """Targets whose standard deviations run from 0.1 to 3, and a law that knows them."""
    spread = (0.1 * 30 ** torch.rand(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).clone()
    return Normal(torch.zeros(count, dtype=torch.float64), spread), spread * draws(2, count)


def test_calibration_errors_by_hand():
    law = Normal(torch.zeros(4), torch.tensor([1.0, 1.0, 2.0, 2.0]))
    y = torch.tensor([1.0, -3.0, 0.0, 2.0])
    # bins by variance: {1, 1} with mean square 5, {4, 4} with 2
    assert metrics.uncertainty_calibration_error(law, y, 2).item() == pytest.approx((4 + 2) / 2)
    ence = (abs(1 - 5**0.5) / 1 + abs(2 - 2**0.5) / 2) / 2
    assert metrics.expected_normalized_calibration_error(law, y, 2).item() == pytest.approx(ence)


def test_calibration_errors_know_the_truth_from_a_constant_and_from_a_wrong_scale():
    """15 bins of 4,000 squared normals: each relative error is about sqrt(2 / 4000) = 0.022 in variance."""
    law, y = truth()
    constant = Normal(law.loc, y.std().expand(law.loc.shape))
    double = Normal(law.loc, 2 * law.scale)
    right, flat, wide = (metrics.uncertainty_calibration_error(d, y) for d in (law, constant, double))
    assert right < 0.03 * law.variance.mean() and wide > 2.5 * law.variance.mean()
    assert metrics.expected_normalized_calibration_error(law, y) < 0.03
    assert metrics.expected_normalized_calibration_error(double, y) == pytest.approx(0.5, abs=0.03)
    assert flat < right + 0.02  # binning by a constant variance cannot see that it is one: sparsification does
    assert metrics.ause(constant, y) > metrics.ause(law, y) + 0.2


def test_sparsification_by_hand():
    law = Normal(torch.zeros(4), torch.tensor([4.0, 3.0, 2.0, 1.0]))
    y = torch.tensor([3.0, 4.0, 0.0, 0.0])
    found = metrics.sparsification(law, y, 4)
    whole = (25 / 4) ** 0.5
    assert found.dropped.tolist() == [0, 0.25, 0.5, 0.75]
    np.testing.assert_allclose(found.by_spread, np.array([whole, (16 / 3) ** 0.5, 0, 0]) / whole)
    np.testing.assert_allclose(found.oracle, np.array([whole, 3**0.5, 0, 0]) / whole)
    assert metrics.ause(law, y, 4).item() == pytest.approx(((16 / 3) ** 0.5 - 3**0.5) / whole / 4)
    exact = Normal(torch.zeros(4), y.abs() + 0.1)
    assert metrics.ause(exact, y, 4) == 0
    none = metrics.sparsification(Normal(torch.zeros(3), torch.ones(3)), torch.zeros(3))
    assert (none.by_spread == 0).all()


def test_correlations():
    law, y = truth(2000)
    found = metrics.error_correlation(law, y)
    assert 0.4 < found.pearson < 0.9 and 0.4 < found.spearman < 0.9
    shuffled = Normal(law.loc, law.scale.flip(0))
    assert abs(metrics.error_correlation(shuffled, y).spearman) < 0.1
    assert all(math.isnan(v) for v in metrics.error_correlation(Normal(law.loc, torch.ones_like(law.loc)), y))


def test_worst_group():
    law = Normal(torch.zeros(6), torch.ones(6))
    y = torch.tensor([0.0, 9.0, 0.0, 0.0, 0.0, 0.0])
    assert metrics.worst_group_coverage(law, y, [0, 0, 0, 0, 1, 1]).item() == 0.75
    maps = Normal(torch.zeros(2, 3), torch.ones(2, 3))
    assert metrics.worst_group_coverage(maps, y.view(2, 3), [[0], [1]]).item() == pytest.approx(2 / 3)
    with rejected("groups must have"):
        metrics.worst_group_coverage(law, y, [0, 1])


def test_strangeness_scores():
    usual, strange = draws(3, 200), draws(4, 100) + 1
    labels, scores = [0] * 200 + [1] * 100, torch.cat([usual, strange])
    assert metrics.ood_auroc(usual, strange) == pytest.approx(roc_auc_score(labels, scores))
    assert metrics.ood_auroc([1, 1], [1, 1]) == 0.5
    threshold = np.sort(strange)[int(0.05 * 99)]
    assert metrics.ood_fpr95(usual, strange) == (usual >= threshold).double().mean().item()
    assert (metrics.ood_auroc([0, 1], [2, 3]), metrics.ood_fpr95([0, 1], [2, 3])) == (1, 0)
    with rejected("outside must hold"):
        metrics.ood_auroc([1.0], [])
    with rejected("inside must hold"):
        metrics.ood_fpr95([math.nan], [1.0])


@pytest.mark.parametrize("name", ["uncertainty_calibration_error", "error_correlation", "sparsification"])
def test_classes_and_wrong_shapes_are_refused(name):
    score = inspect.unwrap(getattr(metrics, name))
    with pytest.raises(TypeError, match="needs a bayesvision distribution over numbers"):
        score(Categorical(logits=torch.zeros(3, 2)), torch.zeros(3))
    with rejected("y must have one target"):
        score(Normal(torch.zeros(3), torch.ones(3)), torch.zeros(4))
    if name != "error_correlation":
        with rejected("at least 1"):
            score(Normal(torch.zeros(3), torch.ones(3)), torch.zeros(3), 0)


def test_maps_show_the_error_and_the_spread_on_one_scale():
    y, spread = torch.rand(3, 8, 6), torch.full((3, 8, 6), 0.2)
    figure = plots.uncertainty_maps(Normal(y + 0.1, spread), y, y)
    assert isinstance(figure, Figure)
    axes = {ax.get_title(): ax.images[0] for ax in figure.axes if ax.get_title()}
    assert list(axes) == ["input", "output", "absolute error", "standard deviation"]
    np.testing.assert_allclose(axes["absolute error"].get_array(), 0.1, rtol=1e-4)
    np.testing.assert_allclose(axes["standard deviation"].get_array(), 0.2, rtol=1e-4)
    assert axes["absolute error"].get_clim() == axes["standard deviation"].get_clim()
    alone = plots.uncertainty_maps(Normal(y[0], spread[0]))
    assert [ax.get_title() for ax in alone.axes if ax.get_title()] == ["output", "standard deviation"]
    with rejected("must be of one image"):
        plots.uncertainty_maps(Normal(torch.zeros(4), torch.ones(4)))
    with rejected("y must have the prediction's shape"):
        plots.uncertainty_maps(Normal(y, spread), y=y[:1])
    with pytest.raises(TypeError, match="numbers"):
        inspect.unwrap(plots.uncertainty_maps)(Categorical(logits=torch.zeros(3, 2)))


def test_the_sparsification_picture():
    law, y = truth(500)
    ax = plots.sparsification_curve({"a": metrics.sparsification(law, y)})
    assert [line.get_label() for line in ax.lines] == ["a", "by the error itself"]
    with rejected("at least one"):
        plots.sparsification_curve({})
