"""The learning-curve priors: known facts of the published one, and what the wide one is there for."""

import math

import pytest
import torch
from checks import rejected
from scipy.stats import binom

from priors import LearningCurves, RealisticLearningCurves
from priors.curves import PARAMETER_PRIORS


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def sites(values):
    return dict(zip(PARAMETER_PRIORS, values.unbind(-1), strict=True))


def reference(theta, t):
    """The curve written down once more, from the formulas of the paper."""
    s = {k: float(v) for k, v in theta.items()}
    pow3 = s["pow3_c"] - s["pow3_a"] * t ** -s["pow3_alpha"]
    ilog2 = s["ilog2_c"] - s["ilog2_a"] / math.log(t + 1)
    janoschek = s["janoschek_alpha"] - (s["janoschek_alpha"] - s["janoschek_beta"]) * math.exp(
        -s["janoschek_kappa"] * t ** s["janoschek_delta"]
    )
    return s["w1"] * pow3 + s["w2"] * ilog2 + s["w3"] * janoschek


def test_the_curve_is_the_formula():
    prior = LearningCurves()
    theta, curves = prior.accepted(20, source())
    for k in range(20):
        one = {name: value[k].double() for name, value in theta.items()}
        expected = torch.tensor([reference(one, t) for t in range(1, 101)])
        torch.testing.assert_close(curves[k], expected.float(), rtol=1e-4, atol=1e-5)


def test_a_fifth_of_the_proposals_is_accepted():
    # 40,000 proposals: the standard error of the share is 0.002, so a true 0.205 to 0.209 fails with p < 1e-6
    prior = LearningCurves()
    share = prior.fits(sites(prior.propose(40_000, source(1)))).float().mean()
    assert 0.195 < share < 0.219


def test_facts_of_accepted_curves():
    # 40,000 curves: standard errors are below 0.003 for shares, 0.004 for quantiles and 0.0001 for the median of sigma
    theta, curves = LearningCurves().accepted(40_000, source(2))
    assert (curves[:, -1] > curves[:, 0]).all()
    assert (curves >= 0).all() and (curves <= 1).all()
    assert abs(float((curves.diff(dim=-1) >= 0).all(-1).float().mean()) - 0.51) < 0.015
    quantiles = curves[:, -1].quantile(torch.tensor([0.05, 0.5, 0.95]))
    torch.testing.assert_close(quantiles, torch.tensor([0.22, 0.63, 0.95]), rtol=0, atol=0.02)
    assert abs(float(theta["sigma"].median()) - 0.0183) < 0.0005


def test_the_noise_is_added_after_the_curve_was_accepted():
    prior = LearningCurves()
    task = prior.sample(4000, 100, generator=source(3))
    f = prior.curve(task.theta, task.x[0, :, 0])
    z = (task.y - f) / task.theta["sigma"].unsqueeze(-1)
    # 400,000 standard normals: mean and mean square within 6 standard errors; half the sigma would be off by 0.75
    assert abs(float(z.mean())) < 6 / 400_000**0.5
    assert abs(float(z.square().mean()) - 1) < 6 * (2 / 400_000) ** 0.5
    assert (task.y < 0).any() or (task.y > 1).any()


def test_predicting_the_marginal_of_the_prior():
    """Log-likelihood of a histogram of each epoch's values: the figure known for this prior is 0.105."""
    task = LearningCurves().sample(40_000, 100, generator=source(4))
    total = 0.0
    for epoch in range(9, 100, 10):
        seen, new = task.y[:20_000, epoch].sort().values, task.y[20_000:, epoch]
        edges = seen[:: 20_000 // 200].clone()
        heights = (1 / (len(edges) - 1)) / edges.diff()
        place = torch.bucketize(new, edges) - 1
        inside = (place >= 0) & (place < len(heights))
        total += float(heights[place[inside]].log().sum()) / len(new)  # the few outside are left out
    assert 0.05 < total / 10 < 0.16


@pytest.mark.parametrize("prior", [LearningCurves(), RealisticLearningCurves()], ids=["published", "plus"])
def test_a_batch_is_a_function_of_its_generator(prior):
    a, b, c = (prior.sample(9, 50, generator=source(k)) for k in (5, 5, 6))
    assert torch.equal(a.y, b.y) and torch.equal(a.x, b.x)
    assert not torch.equal(a.y, c.y)


def test_rows_are_the_first_epochs():
    task = LearningCurves(50).sample(3, 20, generator=source())
    assert torch.equal(task.x[1, :, 0], torch.arange(1.0, 21.0))
    with rejected("rows must be at most the 50 epochs"):
        LearningCurves(50).sample(3, 51, generator=source())
    with rejected("epochs must be at least 2"):
        LearningCurves(1)


# The wide prior


def test_epochs_increase_up_to_the_horizon():
    for rows in (1, 2, 7, 100):
        x = RealisticLearningCurves().sample(500, rows, generator=source(7)).x[..., 0]
        assert (x > 0).all() and (x[:, -1] == 100).all()
        assert (x.diff(dim=-1) > 0).all()


def test_all_kinds_of_curves_occur():
    task = RealisticLearningCurves(exact=0.0).sample(4000, 100, generator=source(8))
    y = task.y
    assert torch.isfinite(y).all()
    late, spread = y[:, -10:].mean(-1), y.std(-1)
    rough = y.diff(dim=-1).abs().median(-1).values
    share = {
        "constant": spread < 0.005,
        "declines": y[:, 20:60].amax(-1) > late + 0.1,
        "diverges": (y.diff(dim=-1) < -0.15).any(-1) & (late < 0.3),
        "rises": late > y[:, :3].mean(-1) + 0.1,
        "flat, then rises": (y[:, :20].std(-1) < 0.01) & (late > y[:, :20].mean(-1) + 0.1),
        "noisy": rough > 0.03,
        "quiet": rough < 0.002,
    }
    for name, members in share.items():
        assert members.float().mean() > 0.005, name


def test_the_share_of_published_curves():
    both = RealisticLearningCurves(exact=1.0).sample(300, 100, generator=source(9))
    regular = (both.x[..., 0] - torch.arange(1.0, 101.0)).abs().amax(-1) < 1e-3
    assert binom.sf(int(regular.sum()), 300, 0.6) > 1e-6 and binom.cdf(int(regular.sum()), 300, 0.6) > 1e-6
    final = both.y[regular][:, -1]
    assert 0.5 < final.median() < 0.75
    with rejected("exact must lie in"):
        RealisticLearningCurves(exact=1.5)
