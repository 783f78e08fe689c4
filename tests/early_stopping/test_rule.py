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
from bayesvision.early_stopping.runs import is_chosen
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


def test_repeated_and_missing_steps():
    r = rule()
    report(r, "good", GOOD)
    r.update("a", 3, 0.5)
    again = r.update("a", 3, 0.45)  # replaces
    assert not again.stop and r.runs["a"].values == [0.45]
    assert r.update("a", 9, 0.4).stop  # a gap
    assert r.update("good", 20, max(GOOD)).reason == "the run reached the horizon"


def test_a_run_that_goes_back_replaces_what_came_after():
    """As after a resume from a checkpoint at step 4: both runs say the same, and the first one's end is forgotten."""
    values = [0.3, 0.42, 0.47, 0.5, 0.52, 0.53]
    straight, back = (StoppingRule(20, audit=0.0) for _ in range(2))
    for step, value in enumerate([*values[:4], 0.2, 0.1, 0.9], 1):
        back.update("a", step, value)
    assert back.best == 0.9
    for step, value in enumerate(values, 1):
        one = straight.update("a", step, value)
    for step, value in enumerate(values[4:], 5):
        two = back.update("a", step, value)
    assert back.best == 0.53 and two.p_improve == pytest.approx(one.p_improve, abs=1e-5)
    whole = rule()
    report(whole, "a", GOOD)
    assert whole.runs["a"].whole
    whole.update("a", 5, 0.5)
    assert not whole.runs["a"].whole and whole.runs["a"].steps == [1, 2, 3, 4, 5]
    stopped = rule()
    report(stopped, "good", GOOD), report(stopped, "a", FLAT)
    assert stopped.runs["a"].stopped == 2
    stopped.update("a", 1, 0.9)
    assert stopped.report().stopped == 0


def test_a_run_that_fails_keeps_its_curve_and_sets_no_best():
    r = rule()
    report(r, "a", [0.5, 0.6]), report(r, "b", [0.4, 0.45])
    r.fail("a")
    assert r.best == 0.45
    r.resume("a")
    assert r.best == 0.6
    r.fail("a")
    r.update("a", 2, 0.62)
    assert r.best == 0.62 and r.runs["a"].values == [0.5, 0.62]
    r.fail("nobody")


def test_runs_that_diverge_at_once_are_counted():
    r = rule()
    for k in range(3):
        r.update(k, 1, math.nan)
    found = r.report()
    assert (found.runs, found.stopped, found.steps_spent, found.steps_saved) == (3, 3, 3, 57)


def test_a_run_from_a_late_step_is_read_from_there():
    """Steps 1,010 to 1,150 of 1,300 decide as 10 to 150 of 300, and no stop rests on one reading."""
    late, early = StoppingRule(1300, learn=0, audit=0.0), StoppingRule(300, learn=0, audit=0.0)
    for k in range(1, 16):
        value = 0.8 - 0.3 / k
        one, two = late.update("a", 1000 + 10 * k, value), early.update("a", 10 * k, value)
        assert k == 1 or one.p_improve == pytest.approx(two.p_improve, abs=1e-5)
        assert k > 1 or "fewer than 2" in one.reason
    assert one.predicted_final == pytest.approx(two.predicted_final, abs=1e-5)
    assert late.runs["a"].posterior.rows == 15


def test_a_loss_without_a_scale_is_measured_by_the_first_readings():
    r = StoppingRule(20, mode="min", learn=0, audit=0.0)
    assert r.minimize
    r.update("a", 1, 47.0), r.update("a", 2, 46.0)
    decision = r.update("a", 3, 45.2)
    assert r.scale == MetricScale(0.0, math.inf, 0.0, 47.0, minimize=True)
    assert 20 < decision.predicted_final < 46  # and not 9.7
    r.update("b", 1, 2.0), r.update("c", 1, 3.0)
    assert r.scale.soft == (0.0, 3.0)
    told = StoppingRule(20, MetricScale(0.0, math.inf, 0.0, 3.0, minimize=True), learn=0, audit=0.0)
    for name, values in (("a", [47.0, 46.0, 45.2]), ("b", [2.0]), ("c", [3.0, 2.5])):
        for step, value in enumerate(values, 1):
            said = told.update(name, step, value)
            if step == 3:
                assert "45.2 lies beyond the soft range 0 to 3" in said.reason
    assert r.update("c", 2, 2.5).p_improve == pytest.approx(said.p_improve, abs=1e-6)
    other = StoppingRule(20, mode="min", learn=0, audit=0.0)
    other.load_state_dict(r.state_dict())
    assert other.scale == r.scale
    r.update("d", 1, -1.0)  # a likelihood, say
    assert r.scale.lower == -math.inf and r.scale.soft[0] < -1
    with rejected("contradicts the scale"):
        StoppingRule(20, MetricScale(0, 1), mode="min")


def test_a_first_loss_that_explodes_says_nothing_of_the_range():
    for spike in (1e2, 1e4, 1e7):
        r = StoppingRule(60, mode="min", learn=0, audit=0.0)
        values = [spike, *(1.9 * np.arange(2, 12) ** -0.4 + 0.3)]
        assert not report(r, "a", values).stop
        assert r.scale.soft[1] < 3


def test_a_run_that_diverged_and_goes_on_is_going():
    r = rule()
    report(r, "a", GOOD[:4])
    r.update("a", 5, math.nan)
    assert r.report().stopped == 1
    r.update("a", 6, GOOD[5])
    assert r.report().stopped == 0 and r.runs["a"].steps == [1, 2, 3, 4, 6]
    r.update("a", 3, math.nan)  # a restart that diverged
    assert r.runs["a"].steps == [1, 2] and r.report().steps_spent == 3


def test_nothing_beats_a_perfect_value():
    for scale, values, best in (
        (None, [0.9, 0.97, 0.99, 0.995], 1.0),
        (MetricScale(0, 1), [0.9, 0.97, 0.99, 0.995], 1.0),
        (MetricScale(0, math.inf, 0, 1, minimize=True), [0.2, 0.05, 0.01, 0.002], 0.0),
    ):
        for posterior in ("lcpfn", "lcpfn-prior"):
            r = StoppingRule(50, scale, posterior, learn=0, audit=0.0)
            r.update("perfect", 1, best)
            decision = report(r, "a", values)
            assert decision.stop and decision.p_improve == 0


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
    assert r.runs["a"].posterior.rows <= 100
    assert r.runs["a"].read == list(range(0, 300, 4))  # the latest is read too, and does not stay


def test_audits_are_seeded_and_tell_the_regret():
    r = rule(audit=1.0)
    report(r, "good", GOOD)
    late = [*[0.4] * 15, *np.linspace(0.7, 0.9, 5)]  # would be stopped, and wins
    assert not report(r, "late", late).stop
    assert not report(r, "bad", FLAT).stop
    found = r.report()
    assert (found.audited, found.stopped, found.wrong) == (2, 0, 1)
    assert found.regret == pytest.approx((0.9 - max(GOOD)) / 2)
    some = [is_chosen(f"run {k}", 0.3, 0) for k in range(400)]
    assert 80 < sum(some) < 160 and some == [is_chosen(f"run {k}", 0.3, 0) for k in range(400)]
    assert some != [is_chosen(f"run {k}", 0.3, 1) for k in range(400)]


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
    with rejected("horizon 30, and this rule has 20; build both with the same horizon"):
        other.load_state_dict(learner(horizon=30).state_dict())


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


def test_a_run_that_was_stopped_counts_as_stopped_though_it_breaks_off():
    r = rule()
    report(r, "good", GOOD)
    report(r, "bad", FLAT)
    before = r.report()
    r.fail("bad")
    assert r.report() == before and before.stopped == 1
    r.update("c", 1, float("nan"))
    r.fail("c")
    assert r.report().stopped == 2 and r.report().runs == 3


def test_a_run_that_was_complete_and_goes_on_is_not():
    r = rule()
    r.update("a", 1, 0.5)
    r.complete("a")
    assert r.runs["a"].whole
    r.update("a", 2, 0.5)
    assert not r.runs["a"].whole


def test_the_first_runs_are_spared_only_until_others_went_their_whole_way():
    """One that was stopped and goes on again is not one of the first."""
    r = rule(posterior=Forecasting(), learn=2)
    for name in "abc":
        r.observe(name, 1, 0.3)
        r.stop(name)
    for name in "de":
        report(r, name, GOOD)
    r.resume("a")
    assert report(r, "a", [0.3] * 8, first=2).stop


def test_questions_about_a_run_that_has_no_value_are_refused():
    r = rule()
    r.observe("a", 1, float("nan"))
    for question in (r.decide, r.chance, r.explain):
        for name in ("a", "nobody"):
            with pytest.raises(ValueError, match="has reported"):
                question(name)
    with pytest.raises(ValueError, match="horizon"):
        r.update("typo", 0, 0.5)
    assert "typo" not in r.runs
    for state in (3, {"runs": 3}, {"runs": {"a": 3}}):
        with rejected("state"):
            rule().load_state_dict(state)
