"""`StoppingRule`: the criterion against the posterior it asks, bad reports, audits, the learned level and its state."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from checks import rejected
from trend import Forecasting, Trend

import bayesvision as bv
from bayesvision import MetricScale, StoppingRule
from bayesvision.distributions import Normal
from bayesvision.early_stopping.threshold import LEVELS, RECENT, TOP


def rule(**options):
    return StoppingRule(**{"horizon": 20, "posterior": Trend(), "audit": 0.0, **options})


def report(rule, run, values, first=1):
    """Report values until the rule stops the run; the last decision."""
    for step, value in enumerate(values, first):
        decision = rule.update(run, step, value)
        if decision.stop:
            break
    return decision


GOOD = (0.5 + 0.1 * np.log(np.arange(1, 21))).tolist()
FLAT = [0.4] * 20


def test_a_hopeless_run_is_stopped_and_a_good_one_is_not():
    r = rule()
    assert not report(r, "good", GOOD).stop
    bad = report(r, "bad", FLAT)
    assert bad.stop and bad.step == 2 and "unlikely" in bad.reason
    assert bad.p_improve < 0.05 and bad.predicted_final == pytest.approx(0.4)
    assert not report(r, "better", [v + 0.05 for v in GOOD]).stop


@pytest.mark.parametrize("minimize", [False, True])
def test_the_criterion_is_the_posteriors_probability(minimize):
    """P(y_t > best) <= delta at every step to come, by the formula of the fake posterior."""
    scale = MetricScale(0, 1, minimize=True) if minimize else None
    turn = (lambda v: 1 - v) if minimize else (lambda v: v)
    r = rule(scale=scale)
    report(r, "first", [turn(v) for v in GOOD])
    best = max(GOOD)
    for last in np.linspace(0.5, 0.8, 13):
        r.update(f"{last}", 1, turn(0.5))
        found = r.update(f"{last}", 4, turn(float(last)))
        t = np.arange(8.0, 21.0, 4.0)  # steps as far apart as those seen, 4 / 2, and the horizon
        t = np.unique([*np.arange(6.0, 20.0, 2.0), 20.0])
        mean = last + (last - 0.5) / math.log(4) * np.log(t / 4)
        better = 1 - Normal(torch.tensor(mean), torch.full((len(t),), 0.02)).cdf(torch.tensor(best))
        assert found.p_improve == pytest.approx(float(better.max()), abs=1e-6)
        assert found.stop == (float(better.max()) <= 0.05)


def test_a_first_run_that_has_converged_is_stopped_too():
    decision = report(rule(delta=0.6), "only", FLAT)
    assert decision.stop and decision.p_improve == pytest.approx(0.5)


def test_values_that_are_not_numbers_stop_the_run_and_nothing_else():
    r = rule()
    r.update("a", 1, 0.5)
    for value in (math.nan, math.inf, -math.inf):
        decision = r.update("b", 1, value)
        assert decision.stop and "diverged" in decision.reason
    assert r.best == 0.5


def test_reports_that_make_no_sense_are_refused():
    r = rule()
    for step, value, message in [
        (0, 0.5, "count steps from 1"),
        (21, 0.5, "at most the horizon 20"),
        (math.nan, 0.5, "step must lie"),
        (1, 71.0, r"value must lie in \[0, 1\]"),
        (1, -0.2, "declare the metric's range"),
    ]:
        with rejected(message):
            r.update("a", step, value)
    assert math.isnan(r.best)


def test_repeated_late_and_missing_steps():
    r = rule()
    report(r, "good", GOOD)
    r.update("a", 3, 0.5)
    again = r.update("a", 3, 0.45)  # replaces
    assert not again.stop and r._runs["a"].values == [0.45]
    r.update("a", 1, 0.3)  # late
    assert r._runs["a"].steps == [1.0, 3.0] and r._runs["a"].values == [0.3, 0.45]
    assert r.update("a", 9, 0.4).stop  # a gap
    assert r.update("good", 20, max(GOOD)).reason == "the run reached the horizon"


def test_order_does_not_matter_to_the_network():
    straight, mixed = (StoppingRule(20, audit=0.0) for _ in range(2))
    values = [0.3, 0.42, 0.47, 0.5, 0.52]
    for step, value in enumerate(values, 1):
        one = straight.update("a", step, value)
    for step in (1, 2, 4, 3, 5):
        two = mixed.update("a", step, values[step - 1])
    assert two.p_improve == pytest.approx(one.p_improve, abs=1e-5)


def test_decisions_at_fractions_of_the_horizon():
    r = rule(at=(0.25, 0.5))
    report(r, "good", GOOD)
    reasons = [r.update("bad", step, 0.4).reason for step in range(1, 11)]
    asked = [step for step, reason in enumerate(reasons, 1) if "not a step" not in reason and "fewer" not in reason]
    assert asked == [5, 10]


def test_a_long_run_is_read_at_a_hundred_steps():
    r = StoppingRule(1000, audit=0.0)
    for step in range(1, 301):
        r.update("a", step, 0.2 + 0.1 * math.log10(step))
    assert r._runs["a"].posterior.rows <= 32


def test_audits_are_seeded_and_tell_the_regret():
    r = rule(audit=1.0)
    report(r, "good", GOOD)
    late = [*[0.4] * 15, *np.linspace(0.7, 0.9, 5)]  # would be stopped, and wins
    assert not report(r, "late", late).stop
    assert not report(r, "bad", FLAT).stop
    found = r.report()
    assert (found.audited, found.stopped, found.wrong) == (2, 0, 1)
    assert found.regret == pytest.approx((0.9 - max(GOOD)) / 2)
    some = [rule(audit=0.3)._is_audited(f"run {k}") for k in range(400)]
    assert 80 < sum(some) < 160 and some == [rule(audit=0.3)._is_audited(f"run {k}") for k in range(400)]
    assert some != [rule(audit=0.3, seed=1)._is_audited(f"run {k}") for k in range(400)]


def learner(**options):
    return rule(posterior=Forecasting(), **options)


def test_the_first_runs_are_not_stopped_and_then_the_level_is_learned():
    """Runs that go on as they began: their order is known at once, so that any level serves."""
    r = learner()
    assert r.level == 0.05
    report(r, "good", GOOD)
    for step, value in enumerate(FLAT[:-1], 1):
        decision = r.update("flat", step, value)
        assert not decision.stop and (step < 2 or "one of the first 2" in decision.reason)
    assert r.level == 0.05  # the second has not gone its whole way yet
    r.update("flat", 20, 0.4)
    assert r.report().audited == 1 and r.level == 0.5  # any level would do, up to a chance of 1 over 1.5
    assert report(r, "near", [max(GOOD) - 0.001] * 20).stop  # a chance of 0.48
    assert learner(learn=0).level == rule().level == 0.05


def test_where_forecasts_are_too_low_nothing_is_stopped():
    """Runs that speed up beat every forecast of the fake posterior."""
    r = learner()
    for k in range(4):
        for step in range(1, 21):
            r.update(f"late {k}", step, 0.1 + (0.5 + 0.1 * k) * (step / 20) ** 3)
    assert r.level == 0
    decision = report(r, "bad", [0.1, 0.05])
    assert not decision.stop and "cost too much" in decision.reason


@pytest.mark.parametrize("minimize", [False, True])
def test_the_level_has_the_most_improvements_a_step(minimize):
    """The same by hand, reading by reading, with the forecasts that `condition` and `predict` give."""
    source, turn = np.random.default_rng(3), (lambda v: 1 - v) if minimize else (lambda v: v)
    r = learner(scale=MetricScale(0, 1, minimize=True) if minimize else None)
    curves = {}
    for k in range(30):
        slope, bend = source.uniform(0, 0.12), source.uniform(0, 0.02)
        curve = [0.2 + slope * math.log(t) + bend * (t / 20) ** 2 + 0.003 * source.normal() for t in range(1, 21)]
        end = report(r, k, [turn(v) for v in curve])
        curves[k] = np.array(curve[: int(end.step)])
    tops = {k: np.maximum.accumulate(v) for k, v in curves.items()}
    at = 20 * torch.arange(1, 13, dtype=torch.float64) / 12

    def chance(k, done, best):
        if done < 2 or done == 20:
            return math.inf
        law = Trend().condition(range(1, done + 1), curves[k][:done].tolist()).predict(at[at > done])
        return float(law.probability_above(max(best, tops[k][done - 1])).max())

    best, ranked = max(t[-1] for t in tops.values()), sorted(tops, key=lambda k: -tops[k][-1])
    lowest = []
    for one, other in itertools.pairwise(ranked):
        if len(curves[one]) == 20:
            value = tops[other][-1]
            lowest.append(min([chance(one, t, value) for t in range(1, 21) if tops[one][t - 1] < value], default=1.0))
    rates = []
    for level in LEVELS:
        steps = []
        for k in list(curves)[-RECENT:]:
            stops = [t for t in range(1, len(curves[k]) + 1) if level > 0 and chance(k, t, best) <= level]
            steps.append(min(stops, default=len(curves[k])))
        kept = sum(p > 1.5 * level for p in lowest[:TOP]) / (len(lowest[:TOP]) + 1) if level else 1.0
        rates.append(kept / np.mean(steps))
    assert 10 > len(lowest) > 3 and len(set(rates)) > 4
    assert r.level == LEVELS[int(np.argmax(rates))] > 0


def test_state_survives_json():
    r = learner(audit=0.3)
    report(r, "good", GOOD)
    for k in range(6):
        report(r, f"bad {k}", FLAT)
    assert r.level > 0.05
    r.update("bad 1", 2, 0.7), r.update("good", 20, 0.9)  # corrections, after which the level is another
    r.update("running", 1, 0.5), r.update("running", 2, 0.52)
    other = learner(audit=0.3)
    other.load_state_dict(json.loads(json.dumps(r.state_dict())))
    assert other.report() == r.report() and other.best == r.best
    for step, value in [(3, 0.55), (4, 0.2), (5, 0.2)]:
        assert other.update("running", step, value) == r.update("running", step, value)
    with rejected("must come from state_dict"):
        other.load_state_dict({"runs": []})


def test_a_picture_of_a_decision():
    r = StoppingRule(50, audit=0.0)
    report(r, "a", [0.3, 0.4, 0.45])
    axes = r.explain("a")
    assert axes.get_title() == "a, step 3" and len(axes.lines) >= 3
    with rejected("run must be one that has reported"):
        r.explain("b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": 0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"audit": 2}, "audit"),
        ({"least": 0}, "least"),
        ({"at": (0.5, 1.5)}, "fractions"),
        ({"horizon": 0}, "horizon"),
        ({"learn": -1}, "learn"),
        ({"learn": True}, "learn"),
        ({"posterior": "pfn-gp"}, "learning curves"),
        ({"posterior": "nobody"}, "neither a file nor"),
    ],
)
def test_bad_options_are_refused(options, message):
    with rejected(message):
        rule(**options)


def test_the_shipped_network_saves_epochs_on_easy_curves():
    """Power laws with their final values in random order: most are stopped, and the best one is found."""
    source = np.random.default_rng(0)
    finals = source.uniform(0.4, 0.95, 25)
    r = bv.StoppingRule(horizon=100, audit=0.0)
    for k, final in enumerate(finals):
        report(r, k, (final - 0.3 * np.arange(1, 101) ** -0.8 + 0.003 * source.normal(size=100)).clip(0, 1))
    found = r.report()
    assert r.best > max(finals) - 0.03
    assert found.steps_spent < 0.7 * 25 * 100
