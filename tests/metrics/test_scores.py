"""Scores against closed forms and other libraries; the statistical checks are shown to reject wrong answers."""

import math
import sys

import numpy as np
import pandas
import pytest
import scipy.stats
import scoringrules
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from bayesvision import metrics
from bayesvision.core.data import Data
from bayesvision.core.roles import Posterior
from bayesvision.distributions import Bar, Bernoulli, Categorical, GeneralizedNormal, Mixture, Normal
from priors import GaussianProcess

ROWS = 400


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def normal():
    return Normal(randn(ROWS, seed=1), randn(ROWS, seed=2).exp())


def bar():
    borders = torch.linspace(-3, 3, 31, dtype=torch.float64)
    return Bar(randn(ROWS, 30, seed=3), borders, randn(ROWS, seed=4), randn(ROWS, seed=5).exp())


def mixture():
    return Mixture.of(Normal(2 * randn(ROWS, 4, seed=6), randn(ROWS, 4, seed=7).exp()), randn(ROWS, 4, seed=8))


def generalized():
    return GeneralizedNormal(randn(ROWS, seed=9), randn(ROWS, seed=10).exp(), 1 + randn(ROWS, seed=11).abs())


CONTINUOUS = [normal, bar, mixture, generalized]


def draw(predictive, seed=0):
    """One seeded draw of every marginal, by its quantile function."""
    return predictive.icdf(torch.rand(predictive.batch_shape, generator=generator(seed), dtype=torch.float64))


def categorical(sharp=2.0):
    return Categorical(logits=sharp * randn(ROWS, 5, seed=12))


def classes(predictive, seed=0):
    return torch.multinomial(predictive.class_probs, 1, generator=generator(seed)).squeeze(-1)


# A standard normal predictive for standard normal targets, and the ways to get it wrong.
RIGHT = (0.0, 1.0)
WRONG = {"halved": (0.0, 0.5), "doubled": (0.0, 2.0), "shifted": (0.5, 1.0)}


def constant(loc, scale, rows=ROWS):
    return Normal(torch.full((rows,), loc, dtype=torch.float64), torch.full((rows,), scale, dtype=torch.float64))


# Closed forms


def test_nll_of_a_normal_is_scipys():
    p, y = normal(), randn(ROWS)
    expected = -scipy.stats.norm(p.loc, p.scale).logpdf(y).mean()
    assert metrics.nll(p, y).item() == pytest.approx(expected, rel=1e-12)


def test_nll_gains_the_logarithm_of_the_scale():
    p, y = normal(), randn(ROWS)
    scaled = metrics.nll(Normal(10 * p.loc, 10 * p.scale), 10 * y)
    assert (scaled - metrics.nll(p, y)).item() == pytest.approx(math.log(10), rel=1e-10)


def test_nll_of_classes_is_the_log_of_the_probability_of_the_truth():
    p = categorical()
    y = classes(p)
    expected = -p.class_probs[torch.arange(ROWS), y].log().mean().item()
    assert metrics.nll(p, y).item() == pytest.approx(expected, rel=1e-12)
    assert metrics.nll(p, y.double()).item() == pytest.approx(expected, rel=1e-12)  # labels read from a float column


def test_nll_of_a_bernoulli_takes_integers():
    p = Bernoulli(torch.tensor([0.9, 0.2]))
    assert metrics.nll(p, torch.tensor([1, 0])).item() == pytest.approx(-(math.log(0.9) + math.log(0.8)) / 2, rel=1e-6)


def test_nll_is_differentiable():
    loc = torch.zeros(3, requires_grad=True)
    metrics.nll(Normal(loc, torch.ones(3)), torch.tensor([1.0, 2.0, 3.0])).backward()
    assert torch.allclose(loc.grad, -torch.tensor([1.0, 2.0, 3.0]) / 3)


def test_rmse_by_hand():
    assert metrics.rmse(constant(1.0, 5.0, 2), [2.0, 8.0]).item() == pytest.approx(5.0)  # errors 1 and 7


def test_interval_width_and_sharpness_of_a_normal():
    p = normal()
    expected = 2 * scipy.stats.norm.ppf(0.9) * p.scale.mean().item()
    assert metrics.interval_width(p, 0.8).item() == pytest.approx(expected, rel=1e-9)
    assert metrics.sharpness(p).item() == pytest.approx(p.scale.mean().item(), rel=1e-12)


def test_pit_of_a_normal_is_scipys():
    p, y = normal(), randn(ROWS)
    assert np.allclose(metrics.pit(p, y), scipy.stats.norm(p.loc, p.scale).cdf(y), atol=1e-12)


@pytest.mark.parametrize("family", CONTINUOUS)
@settings(max_examples=10, deadline=None)
@given(mass=st.floats(0.05, 0.95))
def test_coverage_counts_targets_between_the_ends_of_the_interval(family, mass):
    p = family()
    y = 1.5 * draw(p)
    lower, upper = p.interval(mass)
    expected = ((lower <= y) & (y <= upper)).double().mean().item()
    assert metrics.coverage(p, y, mass).item() == pytest.approx(expected, abs=1e-12)


def test_coverage_by_hand():
    y = torch.tensor([0.0, 1.6, -1.7, 5.0])  # the central 90 % of a standard normal end at 1.645
    assert metrics.coverage(constant(*RIGHT, 4), y).item() == 0.5


# CRPS against scoringrules


def test_crps_of_a_normal_is_scoringrules():
    p, y = normal(), randn(ROWS)
    expected = scoringrules.crps_normal(y.numpy(), p.loc.numpy(), p.scale.numpy()).mean()
    assert metrics.crps(p, y).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("family", CONTINUOUS)
def test_crps_is_that_of_an_ensemble_of_draws(family):
    p = family()
    y = randn(ROWS)
    levels = torch.rand(500, ROWS, generator=generator(20), dtype=torch.float64)
    ensemble = p.icdf(levels).movedim(0, -1).numpy()
    expected = scoringrules.crps_ensemble(y.numpy(), ensemble, estimator="pwm", backend="numpy")
    # this estimator is unbiased; with its spread over rows below twice the stddev / sqrt 500 each, five standard
    # errors of the mean fail with probability below 1e-6
    error = 2 * (p.variance.mean() / 500 / ROWS).sqrt().item()
    assert metrics.crps(p, y).item() == pytest.approx(expected.mean(), abs=5 * error)


def test_crps_of_a_sharp_prediction_is_the_absolute_error():
    y = randn(ROWS)
    assert metrics.crps(constant(0.0, 1e-9), y).item() == pytest.approx(y.abs().mean().item(), rel=1e-6)


# Calibration of numbers


@pytest.mark.parametrize("family", CONTINUOUS)
@pytest.mark.parametrize("levels", [1, 9, 99])
def test_quantile_calibration_error_by_its_formula(family, levels):
    p = family()
    y = 0.3 + 1.5 * draw(p)
    nominal = torch.arange(1, levels + 1, dtype=torch.float64) / (levels + 1)
    empirical = (y <= p.quantile(nominal)).double().mean(-1)
    expected = (nominal - empirical).abs().mean().item()
    assert metrics.quantile_calibration_error(p, y, levels).item() == pytest.approx(expected, abs=1e-12)


def test_quantile_calibration_error_is_a_half_at_worst():
    assert metrics.quantile_calibration_error(constant(*RIGHT), torch.full((ROWS,), -30.0)).item() == pytest.approx(0.5)
    assert metrics.quantile_calibration_error(constant(*RIGHT), torch.full((ROWS,), 30.0)).item() == pytest.approx(0.5)


def test_chance_level_of_the_quantile_calibration_error():
    # 400 independent values with mean sqrt(pi / 32 / n) and a coefficient of variation near 1/2: the mean of them is
    # known to 2.5 %, so 15 % fails with probability below 1e-6
    values = [metrics.quantile_calibration_error(constant(*RIGHT), randn(ROWS, seed=k)).item() for k in range(400)]
    assert np.mean(values) == pytest.approx(math.sqrt(math.pi / 32 / ROWS), rel=0.15)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_quantile_calibration_error_finds_what_is_wrong(wrong):
    # chance gives 0.016, and more than 0.05 with probability below 1e-4; the wrong ones are near 0.1
    y = randn(ROWS)
    assert metrics.quantile_calibration_error(constant(*RIGHT), y) < 0.05
    assert metrics.quantile_calibration_error(constant(*wrong), y) > 0.07


# Each p-value below is uniform when all is well: "> 0.001" fails for one seed in a thousand, and the seeds are fixed.


@pytest.mark.parametrize("family", CONTINUOUS)
def test_pit_of_draws_from_the_prediction_is_uniform(family):
    p = family()
    with torch.random.fork_rng():
        torch.manual_seed(21)
        y = p.sample()
    assert metrics.ks_pvalue(metrics.pit(p, y)) > 0.001


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_uniformity_rejects_what_is_wrong(wrong):
    y = randn(ROWS)
    assert metrics.ks_pvalue(metrics.pit(constant(*RIGHT), y)) > 0.001
    assert metrics.ks_pvalue(metrics.pit(constant(*wrong), y)) < 1e-6


def test_uniformity_of_a_regular_grid_and_of_a_point():
    assert metrics.ks_pvalue((torch.arange(100) + 0.5) / 100) == pytest.approx(1.0)
    assert metrics.ks_pvalue(np.full(100, 0.5)) < 1e-20


def test_uniformity_keeps_its_level():
    # P(p < 0.1) = 0.1 over 500 samples of 50 values: Binomial(500, 0.1) leaves [18, 86] with probability below 1e-6
    u = torch.rand(500, 50, generator=generator(22), dtype=torch.float64)
    assert 18 <= sum(metrics.ks_pvalue(row) < 0.1 for row in u) <= 86


def test_pit_of_a_mixture_in_float32_stays_a_probability():
    logits = torch.randn(500, 50, generator=generator(25))
    p = Mixture.of(Normal(torch.zeros(500, 50), torch.ones(500, 50)), logits)
    y = torch.full((500,), 50.0)
    assert p.cdf(y).max() > 1  # what the clamp is for
    assert metrics.pit(p, y).max() == 1


@pytest.mark.parametrize("values", [[], [0.2, 1.1], [-0.1], [math.nan]])
def test_uniformity_takes_probabilities_only(values):
    with pytest.raises(ValueError, match="values must hold"):
        metrics.ks_pvalue(torch.tensor(values))


# Classes


@pytest.mark.parametrize("bins", [1, 5, 15, 40])
@pytest.mark.parametrize("sharp", [0.3, 2.0, 8.0])
def test_expected_calibration_error_is_that_of_torchmetrics(bins, sharp):
    p = categorical(sharp)
    y = classes(categorical(1.0))
    expected = multiclass_calibration_error(p.class_probs, y, num_classes=5, n_bins=bins, norm="l1")
    assert metrics.expected_calibration_error(p, y, bins).item() == pytest.approx(expected.item(), abs=1e-6)


def test_expected_calibration_error_by_hand():
    # confidences 0.6, 0.6, 0.9, 1.0 in the bins (0.5, 0.75] and (0.75, 1]: accuracies 1/2 and 1/2
    p = Categorical(probs=torch.tensor([[0.6, 0.4], [0.4, 0.6], [0.9, 0.1], [0.0, 1.0]], dtype=torch.float64))
    value = metrics.expected_calibration_error(p, [0, 0, 0, 0], bins=4)
    assert value.item() == pytest.approx(0.5 * 0.1 + 0.5 * (0.95 - 0.5))


def test_a_confidence_on_the_edge_of_a_bin_belongs_to_the_bin_below():
    # 0.5 (right) alone in (0, 0.5], 0.75 (wrong) in (0.5, 1]; sharing one bin would leave |1 - 1.25| / 2
    p = Categorical(probs=torch.tensor([[0.5, 0.3, 0.2], [0.75, 0.25, 0.0]], dtype=torch.float64))
    assert metrics.expected_calibration_error(p, [0, 1], bins=2).item() == pytest.approx((0.5 + 0.75) / 2)


def test_a_bernoulli_scores_like_its_two_classes():
    one = torch.rand(ROWS, generator=generator(23), dtype=torch.float64)
    coin, pair = Bernoulli(one), Categorical(probs=torch.stack([1 - one, one], -1))
    y = classes(pair)
    for score in (metrics.nll, metrics.brier, metrics.accuracy, metrics.expected_calibration_error):
        assert score(coin, y).item() == pytest.approx(score(pair, y).item(), rel=1e-9), score


def test_expected_calibration_error_finds_sharpened_and_flattened_probabilities():
    # 4000 targets: chance gives about 0.02, and less than 0.04 with probability above 0.9999
    logits = 2 * randn(4000, 5, seed=24)
    y = classes(Categorical(logits=logits))
    errors = {s: metrics.expected_calibration_error(Categorical(logits=s * logits), y).item() for s in (0.5, 1.0, 2.0)}
    assert errors[1.0] < 0.04 < 0.08 < min(errors[0.5], errors[2.0])


def test_brier_and_accuracy_by_hand():
    p = Categorical(probs=torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.5, 0.4]], dtype=torch.float64))
    assert metrics.brier(p, [0, 2]).item() == pytest.approx(((0.09 + 0.04 + 0.01) + (0.01 + 0.25 + 0.36)) / 2)
    assert metrics.accuracy(p, [0, 2]).item() == 0.5


# What may be handed in

NUMBERS = [
    metrics.nll,
    metrics.crps,
    metrics.rmse,
    metrics.coverage,
    metrics.pit,
    metrics.quantile_calibration_error,
]
CLASSES = [metrics.brier, metrics.accuracy, metrics.expected_calibration_error]


@pytest.mark.parametrize("score", [s for s in NUMBERS if s is not metrics.pit] + CLASSES)
def test_scores_have_no_axes(score):
    p = normal() if score in NUMBERS else categorical()
    y = randn(ROWS) if score in NUMBERS else classes(p)
    assert score(p, y).shape == ()


@pytest.mark.parametrize("score", NUMBERS + CLASSES)
def test_targets_may_be_arrays_columns_lists_and_other_precisions(score):
    p = normal() if score in NUMBERS else categorical()
    y = randn(ROWS).float() if score in NUMBERS else classes(p)
    expected = score(p, y)
    for other in (
        y.numpy(),
        pandas.Series(y.numpy()),
        pandas.DataFrame({"y": y.numpy()}),
        y.tolist(),
        y.double(),
        y[:, None],
    ):
        assert torch.equal(score(p, other), expected)


def test_targets_may_have_several_axes():
    p = Normal(torch.zeros(3, 4), torch.ones(3, 4))
    y = randn(3, 4)
    assert metrics.pit(p, y).shape == (3, 4)
    assert metrics.rmse(p, y).item() == pytest.approx(y.square().mean().sqrt().item(), rel=1e-6)
    assert 0 <= metrics.quantile_calibration_error(p, y) <= 0.5


@pytest.mark.parametrize("score", NUMBERS[1:])
def test_scores_of_numbers_refuse_classes(score):
    with pytest.raises(TypeError, match=score.__name__):
        score(categorical(), torch.zeros(ROWS))


@pytest.mark.parametrize("score", [metrics.interval_width, metrics.sharpness])
def test_widths_refuse_classes(score):
    with pytest.raises(TypeError, match=score.__name__):
        score(categorical())


@pytest.mark.parametrize("score", CLASSES)
def test_scores_of_classes_refuse_numbers(score):
    with pytest.raises(TypeError, match=score.__name__):
        score(normal(), torch.zeros(ROWS))


def test_nll_refuses_what_is_no_prediction():
    with pytest.raises(TypeError, match="nll"):
        metrics.nll(torch.distributions.Normal(0.0, 1.0), 0.0)
    with pytest.raises(TypeError, match="nll"):
        metrics.nll(Constant(), torch.zeros(3))


@pytest.mark.parametrize(
    "y, message",
    [
        (torch.zeros(ROWS + 1), "one target for each predicted row"),
        (torch.zeros(()), "one target for each predicted row"),  # would broadcast
        (torch.zeros(1, ROWS), "one target for each predicted row"),
        (torch.full((ROWS,), math.nan), "finite"),
        (torch.full((ROWS,), math.inf), "finite"),
        (["a"] * ROWS, "numbers"),
        (None, "one target|finite|numbers"),
    ],
)
@pytest.mark.parametrize("score", NUMBERS + CLASSES)
def test_targets_that_do_not_fit_are_refused(score, y, message):
    with pytest.raises(ValueError, match=message):
        score(normal() if score in NUMBERS else categorical(), y)


@pytest.mark.parametrize("y", [[0, 5], [-1, 0], [0.5, 1.0]])
@pytest.mark.parametrize("score", [metrics.nll, *CLASSES])
def test_labels_that_are_no_classes_are_refused(score, y):
    with pytest.raises(ValueError, match="classes 0 to 4"):
        score(Categorical(logits=torch.zeros(2, 5)), y)


def test_an_empty_prediction_has_no_score():
    with pytest.raises(ValueError, match="at least one row"):
        metrics.rmse(Normal(torch.zeros(0), torch.ones(0)), [])


@pytest.mark.parametrize("mass", [0.0, 1.0, -0.5, 90.0])
def test_masses_are_probabilities(mass):
    with pytest.raises(ValueError, match="mass"):
        metrics.coverage(normal(), randn(ROWS), mass)
    with pytest.raises(ValueError, match="mass"):
        metrics.interval_width(normal(), mass)


def test_there_is_at_least_one_bin():
    with pytest.raises(ValueError, match="levels"):
        metrics.quantile_calibration_error(normal(), randn(ROWS), 0)
    with pytest.raises(ValueError, match="bins"):
        metrics.expected_calibration_error(categorical(), classes(categorical()), 0)


# Simulation-based calibration


class Constant(Posterior):
    """Predicts N(loc, scale) in every row."""

    def __init__(self, loc=0.0, scale=1.0):
        super().__init__()
        self.loc, self.scale = (torch.nn.Parameter(torch.tensor(v)) for v in (loc, scale))

    def predict(self, x):
        return Normal(self.loc.expand(len(x)), self.scale.expand(len(x)))


class Coin(Posterior):
    """Predicts the same probability in every row."""

    def predict(self, x):
        return Bernoulli(torch.full((len(x),), 0.7))


class Exact(Posterior):
    """The Gaussian process that drew the data, its mean moved by `shift` stddevs and its stddev times `stretch`."""

    def __init__(self, prior, x, y, shift=0.0, stretch=1.0):
        super().__init__()
        self.law, self.shift, self.stretch = prior.posterior(x, y), shift, stretch

    def predict(self, x):
        law = self.law.predict(x)
        return Normal(law.mean + self.shift * law.stddev, self.stretch * law.stddev)


PRIOR = GaussianProcess(lengthscale=0.3, noise=0.05)


def sbc(shift=0.0, stretch=1.0, **options):
    options = {"tasks": 300, "rows": 6, "seed": 1} | options
    return metrics.simulation_based_calibration(lambda x, y: Exact(PRIOR, x, y, shift, stretch), PRIOR, **options)


def test_the_exact_posterior_passes():
    assert metrics.ks_pvalue(sbc()) > 0.001  # fails for one seed in a thousand; the seed is fixed


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_wrong_posteriors_fail(wrong):
    assert metrics.ks_pvalue(sbc(*wrong)) < 1e-4


def test_ignoring_the_context_with_the_prior_predictive_passes_too():
    # what the docstring warns of: uniform, and yet a worse prediction
    values = metrics.simulation_based_calibration(
        lambda x, y: Exact(PRIOR, x[:0], y[:0]), PRIOR, tasks=300, rows=6, seed=1
    )
    assert metrics.ks_pvalue(values) > 0.001
    assert (values - sbc()).abs().max() > 0.1


def test_calibration_holds_out_the_last_row_of_every_task():
    seen = []

    def posterior_of(x, y):
        seen.append((x, y))
        return Constant()

    values = metrics.simulation_based_calibration(posterior_of, PRIOR, tasks=3, rows=5, seed=7)
    source = generator(7)
    for k, (x, y) in enumerate(seen):
        task = PRIOR.sample(1, 5, generator=source)
        assert torch.equal(x, task.x[0, :4]) and torch.equal(y, task.y[0, :4])
        assert values[k].item() == pytest.approx(scipy.stats.norm.cdf(task.y[0, 4].item()), abs=1e-6)
    assert values.shape == (3,) and values.dtype == torch.float64 and not values.requires_grad


def test_calibration_is_a_function_of_the_seed():
    before = torch.get_rng_state()
    assert torch.equal(sbc(tasks=4), sbc(tasks=4))
    assert not torch.equal(sbc(tasks=4), sbc(tasks=4, seed=2))
    assert torch.equal(before, torch.get_rng_state())


def test_a_posterior_may_be_fitted_with_gradients():
    grad = []

    def posterior_of(x, y):
        grad.append(torch.is_grad_enabled())
        return Constant()

    metrics.simulation_based_calibration(posterior_of, PRIOR, tasks=1, rows=3)
    assert grad == [True]


@pytest.mark.parametrize("options", [{"tasks": 0}, {"rows": 1}])
def test_calibration_needs_tasks_and_rows(options):
    with pytest.raises(ValueError, match="at least"):
        sbc(**options)


def test_calibration_is_of_numbers():
    with pytest.raises(TypeError, match="pit"):
        metrics.simulation_based_calibration(lambda x, y: Coin(), PRIOR, tasks=1)


# The table


def test_compare_numbers():
    y = randn(50)
    posteriors = {"right": Constant(), "wide": Constant(scale=2.0)}
    frame = metrics.compare(posteriors, Data(torch.zeros(50, 1), y))
    assert list(frame.index) == ["right", "wide"] and frame.index.name == "posterior"
    columns = ["nll", "crps", "rmse", "coverage_90", "width_90", "calibration_error", "seconds"]
    assert list(frame.columns) == columns and all(kind == np.float64 for kind in frame.dtypes)
    p = posteriors["wide"].predict(torch.zeros(50, 1))
    expected = [
        metrics.nll(p, y),
        metrics.crps(p, y),
        metrics.rmse(p, y),
        metrics.coverage(p, y, 0.9),
        metrics.interval_width(p, 0.9),
        metrics.quantile_calibration_error(p, y),
    ]
    assert frame.loc["wide", columns[:-1]].tolist() == pytest.approx([v.item() for v in expected])
    assert frame.loc["right", "nll"] < frame.loc["wide", "nll"]
    assert (frame["seconds"] > 0).all()


def test_compare_classes():
    y = np.array([1, 1, 0, 1])
    frame = metrics.compare({"coin": Coin()}, Data(np.zeros((4, 1)), y))
    assert list(frame.columns) == ["nll", "brier", "accuracy", "ece", "seconds"]
    expected = [-(3 * math.log(0.7) + math.log(0.3)) / 4, (3 * 0.18 + 0.98) / 4, 0.75, 0.05]
    assert frame.loc["coin"].tolist()[:-1] == pytest.approx(expected, rel=1e-5)


def test_compare_refuses_to_mix_kinds():
    with pytest.raises(TypeError, match="compare them apart"):
        metrics.compare({"numbers": Constant(), "coin": Coin()}, Data(torch.zeros(3, 1), torch.ones(3)))


@pytest.mark.parametrize(
    "posteriors, data", [({}, Data(torch.zeros(3, 1), torch.ones(3))), ({"a": Constant()}, Data(torch.zeros(3, 1)))]
)
def test_compare_needs_posteriors_and_targets(posteriors, data):
    with pytest.raises(ValueError, match="at least one posterior and data with targets"):
        metrics.compare(posteriors, data)


def test_compare_without_pandas_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'pip install "bayesvision\[frame\]"'):
        metrics.compare({"a": Constant()}, Data(torch.zeros(3, 1), torch.ones(3)))


def test_compare_counts_fitting_and_refuses_what_was_seen():
    import bayesvision as bv
    from bayesvision.metrics import compare

    x = torch.rand(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = x.sum(-1) + 0.1 * torch.randn(30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    train, test = bv.Data(x[:20], y[:20]), bv.Data(x[20:], y[20:])
    network, recipe = bv.pretrained("pfn-gp"), bv.GP(restarts=0, steps=10)
    table = compare({"network": network, "gp": recipe}, test, train)
    apart = compare({"network": network.condition(*train), "gp": recipe.fit(train)}, test)
    scores = [name for name in table.columns if name != "seconds"]
    assert table[scores].equals(apart[scores]) and (table["seconds"] > 0).all()
    with pytest.raises(ValueError, match="has seen 20 rows already"):
        compare({"network": network.condition(*train)}, test, train)
    with pytest.raises(TypeError, match="must be a recipe"):
        compare({"gp": recipe.fit(train)}, test, train)
