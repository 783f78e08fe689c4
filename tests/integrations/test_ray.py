import json
import math
import pickle
import warnings
from pathlib import Path

import pytest
import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from trend import Trend

import bayesvision as bv
from bayesvision.integrations.ray import LCPFNScheduler, LCPFNStopper, ThawScheduler

EPOCHS = 20


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield str(folder)
    ray.shutdown()


def tuner(folder, scheduler=None, stop=None, mode="max"):
    def train(config):
        for epoch in range(EPOCHS):
            value = config["level"] - 0.4 * (epoch + 1) ** -0.8
            tune.report({"score": value if mode == "max" else 1 - value})

    config = tune.TuneConfig(metric="score", mode=mode, scheduler=scheduler, max_concurrent_trials=1, reuse_actors=True)
    return tune.Tuner(
        train,
        param_space={"level": tune.grid_search([0.95, 0.5, 0.9, 0.45])},
        tune_config=config,
        run_config=tune.RunConfig(storage_path=folder, stop=stop, verbose=0),
    )


def spent(results):
    return [result.metrics["training_iteration"] for result in results]


def test_scheduler_in_tune(session):
    results = tuner(session, LCPFNScheduler(EPOCHS, audit=0.0)).fit()
    first, second, _, fourth = spent(results)
    assert first == second == EPOCHS and fourth < EPOCHS / 2  # the first two are learned from
    assert results.get_best_result().config["level"] == 0.95 and not results.errors


def test_stopper_in_tune(session):
    stopper = LCPFNStopper("score", "min", EPOCHS, posterior=Trend(), audit=0.0)
    results = tuner(session, stop=stopper, mode="min").fit()
    first, second, _, fourth = spent(results)
    assert first == EPOCHS and second < EPOCHS / 2 and fourth < EPOCHS / 2


def scheduler(**options):
    made = LCPFNScheduler(EPOCHS, **{"metric": "score", "mode": "max", "posterior": Trend(), "audit": 0.0, **options})
    made.on_trial_add(None, trial("a"))
    return made


def trial(name):
    return Trial("train", trial_id=name, stub=True)


def result(step, value):
    return {"training_iteration": step, "score": value}


def rising(level, until=EPOCHS):
    return [result(k, level - 0.4 * k**-0.8) for k in range(1, until + 1)]


def run(made, name, results):
    """Decisions up to the first stop."""
    decisions = []
    for one in results:
        decisions.append(made.on_trial_result(None, trial(name), one))
        if decisions[-1] == TrialScheduler.STOP:
            break
    return decisions


def test_stopped_trials_do_not_count_again_when_they_complete():
    made = scheduler()
    run(made, "a", rising(0.9)[:-1])
    made.on_trial_complete(None, trial("a"), rising(0.9)[-1])  # its last result comes only here
    rule = made.trials.rule
    assert rule.state_dict()["runs"]["a"]["steps"][-1] == EPOCHS
    assert run(made, "b", rising(0.5))[-1] == TrialScheduler.STOP
    before = json.dumps(rule.state_dict())
    made.on_trial_complete(None, trial("b"), {**result(3, 0.99), "done": True})
    assert json.dumps(rule.state_dict()) == before and rule.best == pytest.approx(0.9 - 0.4 * EPOCHS**-0.8)
    assert "1 trials stopped" in made.debug_string()
    assert rule.report().stopped == 1


def test_failed_trials_do_not_count():
    made = scheduler()
    run(made, "a", rising(0.9))
    best = made.trials.rule.best
    run(made, "b", [result(1, 0.95), result(2, 0.98)])
    assert made.trials.rule.best == 0.98
    made.on_trial_error(None, trial("b"))
    assert made.trials.rule.best == best


def test_a_trial_that_is_tried_again_keeps_its_curve_up_to_the_restored_iteration():
    """As Ray does it: on_trial_error, then on_trial_add, then results from the checkpoint on."""
    made = scheduler()
    run(made, "a", rising(0.9)[:6])
    made.on_trial_error(None, trial("a"))
    made.on_trial_add(None, trial("a"))
    assert made.trials.rule.best == pytest.approx(0.9 - 0.4 * 6**-0.8)
    run(made, "a", [result(5, 0.77), result(6, 0.8)])
    held = made.trials.rule.state_dict()["runs"]["a"]
    assert held["steps"] == [1, 2, 3, 4, 5, 6] and held["values"][-2:] == [0.77, 0.8]
    made.on_trial_error(None, trial("a"))
    dead = trial("a")
    dead.status = Trial.ERROR  # as Ray adds it when a run is restored
    made.on_trial_add(None, dead)
    assert math.isnan(made.trials.rule.best)
    stopper = LCPFNStopper("score", "max", EPOCHS, posterior=Trend(), audit=0.0)
    for one in [*rising(0.9)[:6], result(5, 0.5)]:
        stopper("a", one)
    assert stopper.trials.rule.state_dict()["runs"]["a"]["values"][-1] == 0.5
    assert len(stopper.trials.rule.state_dict()["runs"]["a"]["steps"]) == 5


def test_save_and_restore(tmp_path):
    made = scheduler()
    run(made, "a", rising(0.9))
    run(made, "b", rising(0.5))
    made.save(str(tmp_path / "state.json"))
    other = LCPFNScheduler(EPOCHS, posterior=Trend(), audit=0.0)
    other.restore(str(tmp_path / "state.json"))
    assert other.set_search_properties("score", "max")
    other.on_trial_add(None, trial("c"))
    copy = pickle.loads(pickle.dumps(made))
    for one in (other, copy):
        assert run(one, "c", rising(0.5)) == run(pickle.loads(pickle.dumps(made)), "c", rising(0.5))
        assert one.trials.stopped == {"b", "c"} and one.trials.rule.best == made.trials.rule.best
    with pytest.raises(ValueError, match="of the mode 'max'"):
        scheduler(mode="min").restore(str(tmp_path / "state.json"))


def test_stopper_is_pickled_without_the_network():
    stopper = LCPFNStopper("score", "max", EPOCHS)
    assert stopper("a", result(1, 0.5)) is False
    copy = pickle.loads(pickle.dumps(stopper))
    assert len(pickle.dumps(stopper)) < 5_000 and copy.stop_all() is False
    copy("a", result(2, 0.6))
    assert copy.trials.rule.state_dict()["runs"]["a"]["values"] == [0.5, 0.6]
    nested = LCPFNStopper("eval/score", "max", EPOCHS, posterior=Trend())
    assert nested("a", {"training_iteration": 1, "eval": {"score": float("nan")}}) is True


def test_nan_stops_and_failures_warn_once():
    made = scheduler()
    assert run(made, "a", [result(1, 0.5), result(2, float("nan"))])[-1] == TrialScheduler.STOP
    with pytest.warns(RuntimeWarning, match="must hold 'score'"):
        assert run(made, "b", [{"training_iteration": 1}]) == [TrialScheduler.CONTINUE]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(made, "b", [result(1, 57.0), result(EPOCHS + 1, 0.5)]) == [TrialScheduler.CONTINUE] * 2


def test_refused_before_training():
    with pytest.raises(ValueError, match="metric and mode"):
        LCPFNScheduler(EPOCHS).on_trial_add(None, trial("a"))
    loss = scheduler(metric="val_loss", mode="min")  # measured by its first values
    loss.on_trial_result(None, trial("a"), {"val_loss": 4.0, "training_iteration": 1})
    assert loss.trials.rule.scale.soft == (0.0, 4.0)
    with pytest.raises(ValueError, match="'min' or 'max'"):
        LCPFNStopper("score", "up", EPOCHS)
    with pytest.raises(ValueError, match="delta"):
        LCPFNScheduler(EPOCHS, delta=0.0)
    assert LCPFNScheduler(EPOCHS, metric="score").set_search_properties("other", "max") is False
    loss = scheduler(metric="val_loss", mode="min", scale=bv.MetricScale(lower=0, soft_lower=0, soft_upper=3))
    assert loss.trials.rule.minimize


LEVELS = [0.5, 0.3, 0.9, 0.2, 0.6, 0.4, 0.35, 0.7, 0.25, 0.45, 0.55, 0.15]


def thawing(folder, checkpoints=True, **options):
    def train(config):
        from tempfile import TemporaryDirectory

        first = 0
        if (checkpoint := tune.get_checkpoint()) is not None:
            with checkpoint.as_directory() as path:
                first = int((Path(path) / "epoch").read_text())
        for epoch in range(first, 27):
            score = config["level"] - 0.1 * (epoch + 1) ** -0.8
            if not checkpoints:
                tune.report({"score": score})
                continue
            with TemporaryDirectory() as path:
                (Path(path) / "epoch").write_text(str(epoch + 1))
                tune.report({"score": score}, checkpoint=tune.Checkpoint.from_directory(path))

    made = ThawScheduler(27, posterior=Trend(), **options)
    return made, tune.Tuner(
        train,
        param_space={"level": tune.grid_search(LEVELS)},
        tune_config=tune.TuneConfig(metric="score", mode="max", scheduler=made, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    )


def test_trials_are_paused_and_go_on_from_their_checkpoints(session):
    made, tuned = thawing(session)
    results = tuned.fit()
    assert not results.errors and results.get_best_result().config["level"] == 0.9
    done = {result.config["level"]: result.metrics["training_iteration"] for result in results}
    assert done[0.5] == done[0.9] == 27 and sum(done.values()) < 5 * 27
    assert sum(1 for steps in done.values() if steps <= 3) >= 6
    runs = made.trials.rule.rule.runs.values()  # each step was taken once
    assert sorted(len(run.steps) for run in runs) == sorted(done.values())
    assert all(run.steps == list(range(1, len(run.steps) + 1)) for run in runs)
    assert "frozen" in made.debug_string()


def test_trials_without_checkpoints_are_not_paused(session):
    with pytest.warns(RuntimeWarning, match="no checkpoint"):
        results = thawing(session, checkpoints=False)[1].fit()
    assert not results.errors and spent(results) == [27] * len(LEVELS)


class Controller:
    """The trials of a run, as Ray shows them to a scheduler."""

    def __init__(self, *names):
        self.trials = {name: trial(name) for name in names}
        self.ended = []

    def get_trials(self):
        return list(self.trials.values())

    def stop_trial(self, one):
        self.ended.append(one.trial_id)
        one.status = Trial.TERMINATED


def test_what_a_scheduler_chooses_stays_until_it_runs(tmp_path):
    made = ThawScheduler(27, metric="score", mode="max", posterior=Trend())
    ray = Controller("a", "b", "c", "d")
    for one in ray.get_trials():
        made.on_trial_add(ray, one)
    first = made.choose_trial_to_run(ray)
    assert first.trial_id == "a" and made.choose_trial_to_run(ray) is first
    first.status = Trial.RUNNING
    for name, value in (("b", 0.2), ("c", 0.6), ("d", 0.3)):
        one = made.choose_trial_to_run(ray)
        assert one.trial_id == name
        one.status = Trial.RUNNING
        assert made.on_trial_result(ray, one, {**result(1, value), "should_checkpoint": True}) == TrialScheduler.PAUSE
        one.status = Trial.PAUSED
    assert made.choose_trial_to_run(ray).trial_id == "c"
    made.save(str(tmp_path / "thaw.json"))
    other = ThawScheduler(27, metric="score", mode="max", posterior=Trend())
    other.restore(str(tmp_path / "thaw.json"))
    other.on_trial_add(ray, ray.trials["a"])
    assert other.choose_trial_to_run(ray).trial_id == "c" and pickle.loads(pickle.dumps(made)).debug_string()
    ray.trials["c"].status = Trial.RUNNING
    assert made.on_trial_result(ray, ray.trials["c"], result(2, float("nan"))) == TrialScheduler.STOP
    made.on_trial_error(ray, ray.trials["a"])
    for name in "ac":
        ray.trials[name].status = Trial.TERMINATED
    made.on_trial_remove(ray, ray.trials["b"])
    assert made.choose_trial_to_run(ray) is None and ray.ended == ["b", "d"]  # nothing waits, and d is far behind
    with pytest.raises(ValueError, match="eta"):
        ThawScheduler(27, eta=1)


def test_a_trial_that_dies_before_its_first_report_begins_anew():
    """As Ray does it: on_trial_error, the trial is PENDING again, on_trial_add."""
    made = ThawScheduler(27, metric="score", mode="max", posterior=Trend())
    ray = Controller("a", "b")
    assert made.choose_trial_to_run(ray) is None  # before any trial was added
    for one in ray.get_trials():
        made.on_trial_add(ray, one)
    first = made.choose_trial_to_run(ray)
    made.on_trial_error(ray, first)
    made.on_trial_add(ray, first)
    assert made.choose_trial_to_run(ray) is first
    for last in rising(0.5, 27):
        made.on_trial_result(ray, first, last)
    made.on_trial_complete(ray, first, last)
    assert made.trials.rule.ladder.since <= 1 and made.trials.rule.ladder.fair


def test_a_state_older_than_the_trials_chooses_none_that_is_gone(tmp_path):
    made = ThawScheduler(27, metric="score", mode="max", posterior=Trend())
    ray = Controller("a", "b", "c")
    for one in ray.get_trials():
        made.on_trial_add(ray, one)
        made.choose_trial_to_run(ray)
        made.on_trial_result(ray, one, {**result(1, 0.5), "should_checkpoint": True})
    made.save(str(tmp_path / "thaw.json"))
    other = ThawScheduler(27, metric="score", mode="max", posterior=Trend())
    other.restore(str(tmp_path / "thaw.json"))
    later = Controller("b", "d")
    later.trials["b"].status = Trial.TERMINATED
    for one in later.get_trials():
        other.on_trial_add(later, one)
    assert other.choose_trial_to_run(later).trial_id == "d"
    assert other.trials.rule.frozen == []
