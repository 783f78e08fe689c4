import functools
import math
import multiprocessing
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from trend import Forecasting, Trend

import bayesvision as bv
from bayesvision.integrations.optuna import LCPFNPruner, attach

optuna.logging.set_verbosity(optuna.logging.ERROR)
EPOCHS = 30
TrendPruner = functools.partial(LCPFNPruner, posterior=Trend())  # fast, and its forecasts never change


def curve(trial, epoch):
    """A learning curve whose end depends on x, with some noise that depends on the trial and the epoch alone."""
    x = trial.suggest_float("x", 0.0, 1.0)
    noise = 0.004 * math.sin(37.0 * epoch + 11 * trial.number)
    return min(1.0, max(0.0, 0.95 - 1.2 * (x - 0.3) ** 2 - (0.15 + 0.3 * x) * (epoch + 1) ** -0.8 + noise))


def objective(trial):
    for epoch in range(EPOCHS):
        trial.report(curve(trial, epoch), epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return curve(trial, EPOCHS - 1)


def make_study(pruner, **options):
    options = {"direction": "maximize", "sampler": optuna.samplers.RandomSampler(seed=0), **options}
    return optuna.create_study(pruner=pruner, **options)


@pytest.fixture(scope="module")
def pruned():
    study = make_study(TrendPruner(horizon=EPOCHS))
    study.optimize(objective, n_trials=20)
    return study


def last_steps(study):
    return [(t.state.name, t.last_step) for t in study.trials]


def test_one_line_saves_epochs_and_keeps_the_best(pruned):
    full = make_study(optuna.pruners.NopPruner())
    full.optimize(objective, n_trials=20)
    spent = sum(t.last_step + 1 for t in pruned.trials)
    assert spent < 0.6 * 20 * EPOCHS
    assert pruned.best_value > full.best_value - 0.01
    assert any(t.state.name == "PRUNED" for t in pruned.trials)


def test_shipped_network_in_one_line():
    study = optuna.create_study(direction="maximize", pruner=bv.integrations.optuna.LCPFNPruner())
    for level in (0.9, 0.85, 0.4):
        trial = study.ask()
        for k in range(EPOCHS):
            trial.report(level - 0.4 * (k + 1) ** -0.8, k)
            if trial.should_prune():
                break
        study.tell(trial, level)
    assert study.trials[0].last_step == EPOCHS - 1
    assert study.trials[-1].last_step < EPOCHS / 2


def test_no_horizon_waits_for_a_complete_trial():
    study = make_study(TrendPruner())
    study.optimize(objective, n_trials=10)
    assert study.trials[0].state.name == "COMPLETE"
    assert any(t.state.name == "PRUNED" for t in study.trials)
    longer = optuna.create_study(direction="maximize", pruner=TrendPruner())
    for length in (5, 30):  # a trial longer than all complete ones goes on
        trial = longer.ask()
        for step in range(length):
            trial.report(0.5, step)
        longer.tell(trial, 0.5)
    trial = longer.ask()
    trial.report(0.1, 0)
    trial.report(0.1, 1)
    assert trial.should_prune() is True


@pytest.mark.parametrize("storage", ["memory", "sqlite", "journal"])
def test_storages_agree(storage, pruned, tmp_path):
    stores = {
        "memory": lambda: None,
        "sqlite": lambda: f"sqlite:///{tmp_path}/study.db",
        "journal": lambda: optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "journal.log"))),
    }
    study = make_study(TrendPruner(horizon=EPOCHS), storage=stores[storage]())
    study.optimize(objective, n_trials=6)
    assert last_steps(study) == last_steps(pruned)[:6]


def late(trial):
    """A curve that rises late, so that forecasts are too low and nothing is stopped."""
    for epoch in range(EPOCHS):
        trial.report(0.3 + trial.suggest_float("x", 0.0, 0.6) * (epoch / EPOCHS) ** 2, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return 0.5


@pytest.mark.parametrize(
    "options, train",
    [
        ({}, objective),
        ({"least": 4}, objective),
        ({"at": (0.1, 0.2, 0.5)}, objective),
        ({"posterior": Forecasting(), "learn": 2}, objective),
        ({"posterior": Forecasting(), "learn": 2}, late),
    ],
)
def test_agrees_with_the_rule(options, train):
    options = {"posterior": Trend(), **options}
    study = make_study(LCPFNPruner(horizon=EPOCHS, **options))
    study.optimize(train, n_trials=15)
    rule = bv.StoppingRule(EPOCHS, **options)
    asked = optuna.create_study(direction="maximize")
    pruner = LCPFNPruner(horizon=EPOCHS, **options)
    for trial in study.trials:
        asked.add_trial(trial)
        for step, value in sorted(trial.intermediate_values.items()):
            decision = rule.update(trial.number, step + 1, value)
            assert decision.stop == (trial.state.name == "PRUNED" and step == trial.last_step)
        again = pruner.decide(asked, trial)  # of the whole curve at once; the reason tells the level
        assert (again.stop, again.reason, again.step) == (decision.stop, decision.reason, decision.step)
    assert (rule.level == 0) == (train is late)
    assert (rule.level == rule.delta) == (rule.learn == 0)


def test_same_reports_same_decision_whatever_was_asked_before(pruned):
    pruner = TrendPruner(horizon=EPOCHS)
    order = np.random.default_rng(0).permutation(len(pruned.trials))
    first = [pruner.decide(pruned, pruned.trials[k]).stop for k in range(len(order))]
    shuffled = {k: pruner.decide(pruned, pruned.trials[k]).stop for k in order}
    fresh = {k: TrendPruner(horizon=EPOCHS).decide(pruned, pruned.trials[k]).stop for k in (0, 5, 11)}
    assert first == [shuffled[k] for k in range(len(first))]
    assert all(shuffled[k] == stop for k, stop in fresh.items())
    copy = pickle.loads(pickle.dumps(pruner))
    assert copy.decide(pruned, pruned.trials[7]).stop == first[7]


def work(path, seed):
    """One worker: it knows the study's name and its storage, nothing of the pruner."""
    storage = optuna.storages.JournalStorage(JournalFileBackend(path))
    sampler = optuna.samplers.RandomSampler(seed=seed)
    study = attach(optuna.load_study(study_name="shared", storage=storage, sampler=sampler))
    assert isinstance(study.pruner, LCPFNPruner) and study.pruner.horizon == EPOCHS
    study.optimize(objective, n_trials=6)


def test_two_processes_on_one_journal(tmp_path):
    path = str(tmp_path / "journal.log")
    storage = optuna.storages.JournalStorage(JournalFileBackend(path))
    study = optuna.create_study(study_name="shared", storage=storage, direction="maximize")
    attach(study, LCPFNPruner(horizon=EPOCHS, scale=bv.MetricScale(0, 1), at=(0.1, 0.2, 0.4), audit=0.0))
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(path, seed)) for seed in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [w.exitcode for w in workers] == [0, 0]
    states = [t.state.name for t in study.trials]
    assert len(states) == 12 and set(states) <= {"COMPLETE", "PRUNED"} and "PRUNED" in states
    # the storage alone decides: a third process says of each finished trial what the others said
    for trial in study.trials:
        if trial.state.name == "PRUNED":
            assert study.pruner.prune(study, trial) is True


def reported(study, values):
    trial = study.ask()
    for step, value in values.items():
        trial.report(value, step)
    return trial


def good(n=EPOCHS):
    return {k: 0.9 - 0.5 * (k + 1) ** -0.8 for k in range(n)}


def bad(n=6):
    return {k: 0.4 - 0.2 * (k + 1) ** -0.8 for k in range(n)}


@pytest.fixture
def study():
    study = make_study(TrendPruner(horizon=EPOCHS, audit=0.0))
    study.tell(reported(study, good()), 0.87)
    return study


def test_builtin_bool_and_unsorted_sparse_steps(study):
    steps = bad(20)
    trial = reported(study, {k: steps[k] for k in (12, 3, 7, 0)})
    assert trial.should_prune() is True
    assert reported(study, {0: 0.4}).should_prune() is False  # one reading
    assert study.pruner.prune(study, study.ask()._get_latest_trial()) is False  # none
    decision = study.pruner.decide(study, study.trials[1])
    assert decision.step == 13 and 0.2 < decision.predicted_final < 0.6


def test_steps_from_one():
    study = make_study(TrendPruner(horizon=EPOCHS))
    study.tell(reported(study, {k + 1: v for k, v in good().items()}), 0.87)
    trial = reported(study, {k + 1: v for k, v in bad().items()})
    assert trial.should_prune() and study.pruner.decide(study, study.trials[1]).step == 6


def test_nan_and_divergence(study):
    assert reported(study, {**bad(2), 2: math.nan}).should_prune() is True
    assert reported(study, {0: math.nan}).should_prune() is True
    assert reported(study, {0: 0.85, 1: math.nan, 2: 0.88, 3: 0.9}).should_prune() is False  # a gap
    assert reported(study, {**bad(2), 2: math.inf}).should_prune() is True


def test_repeated_steps_are_optunas(study):
    trial = reported(study, bad(1))
    with pytest.warns(UserWarning, match="already reported"):
        trial.report(0.9, 0)
    assert trial.should_prune() is False


def test_first_value_is_the_best(study):
    trial = reported(study, {0: 0.93, 1: 0.94, 2: 0.95})
    assert study.pruner.decide(study, study.trials[trial.number]).p_improve > 0.05
    assert trial.should_prune() is False
    falling = reported(study, {k: 0.98 - 0.1 * k for k in range(8)})
    assert falling.should_prune() is True


def test_failed_trials_do_not_count(study):
    trial = reported(study, {0: 0.97, 1: 0.99, 2: 0.999})
    assert study.pruner.decide(study, reported(study, good(10))._get_latest_trial()).p_improve < 0.05
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert study.pruner.decide(study, reported(study, good(10))._get_latest_trial()).p_improve > 0.05


def test_steps_count_as_they_are_reported():
    """At 0, 10, ..., 100 with the horizon 100 the last report is the last step, and step 0 the untrained state."""
    study = make_study(TrendPruner(horizon=100))
    study.tell(reported(study, {10 * k: 0.5 + 0.03 * k for k in range(11)}), 0.8)
    trial = reported(study, {0: 0.1, 10: 0.4, 20: 0.41})
    assert trial.should_prune() is True
    decision = study.pruner.decide(study, study.trials[1])
    assert decision.step == 20 and "0.8" in decision.reason  # the best is the last value
    assert "step 0 alone" in study.pruner.decide(study, reported(study, {0: 0.1})._get_latest_trial()).reason
    every = make_study(TrendPruner(horizon=10))  # 0, 1, ..., 10 of 10: the last is no eleventh epoch
    every.tell(reported(every, {k: 0.5 + 0.03 * k for k in range(11)}), 0.8)
    trial = reported(every, {0: 0.1, 1: 0.4, 2: 0.4})
    assert trial.should_prune() is True and every.pruner.decide(every, every.trials[1]).step == 2


def test_trials_that_died_while_running_do_not_set_the_best_for_ever():
    study = make_study(TrendPruner(horizon=EPOCHS))
    reported(study, {0: 0.97, 1: 0.99, 2: 0.999})  # its process is killed
    decide = lambda: study.pruner.decide(study, reported(study, good(10))._get_latest_trial()).p_improve  # noqa: E731
    assert decide() < 0.05
    for _ in range(6):
        study.tell(reported(study, good()), 0.87)
    assert decide() > 0.05


def test_minimised():
    study = make_study(TrendPruner(horizon=EPOCHS), direction="minimize")  # an error rate
    study.tell(reported(study, {k: 1 - v for k, v in good().items()}), 0.13)
    assert reported(study, {k: 1 - v for k, v in bad().items()}).should_prune() is True
    assert reported(study, {k: 0.3 - 0.02 * k for k in range(6)}).should_prune() is False
    loss = TrendPruner(EPOCHS, bv.MetricScale(lower=0, soft_lower=0, soft_upper=3))  # the direction is the study's
    study = make_study(loss, direction="minimize")
    study.tell(reported(study, {k: 0.2 + 2 * (k + 1) ** -0.8 for k in range(EPOCHS)}), 0.3)
    assert reported(study, {k: 1.5 + (k + 1) ** -0.8 for k in range(6)}).should_prune() is True


def test_a_failure_warns_once_and_prunes_nothing(study):
    trial = reported(study, {0: 40.0, 1: 41.0})
    with pytest.warns(RuntimeWarning, match=r"must lie in \[0, 1\], got 41"):
        assert trial.should_prune() is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reported(study, {0: 57.0}).should_prune() is False
    assert reported(study, bad()).should_prune() is True  # other trials go on as before
    beyond = make_study(TrendPruner(horizon=3))
    trial = reported(beyond, bad(6))
    with pytest.warns(RuntimeWarning, match="horizon 3"):
        assert trial.should_prune() is False


def test_a_broken_network_does_not_kill_the_study():
    pruner = TrendPruner(horizon=EPOCHS)
    pruner._rule = lambda horizon, minimize: 1 / 0
    study = make_study(pruner)
    with pytest.warns(RuntimeWarning, match="ZeroDivisionError"):
        study.optimize(objective, n_trials=2)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 2


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_wrapped_by_patient_pruner(study):
    pruner = optuna.pruners.PatientPruner(study.pruner, patience=3)
    study.pruner = pruner
    assert reported(study, bad(6)).should_prune() is False  # it still improves
    falling = reported(study, {k: 0.5 - 0.02 * k for k in range(8)})
    assert falling.should_prune() is True


def test_several_objectives_are_refused_before_training():
    study = optuna.create_study(directions=["maximize", "minimize"], pruner=TrendPruner())
    with pytest.raises(ValueError, match="one objective"):
        attach(study, TrendPruner())
    with pytest.raises(ValueError, match="one objective"):
        study.pruner.prune(study, study.ask()._get_latest_trial())
    with pytest.raises(NotImplementedError):  # Optuna itself
        study.ask().report(1.0, 0)


def test_attach(tmp_path):
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="s", direction="minimize")
    with pytest.raises(ValueError, match="keeps none"):
        attach(study)
    scale = bv.MetricScale(lower=0, soft_lower=0, soft_upper=4, minimize=True)
    attach(study, LCPFNPruner(30, scale, "return_prediction", delta=0.1, at=(0.25, 0.5)))
    other = attach(optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/study.db"))
    pruner = other.pruner
    assert isinstance(pruner, LCPFNPruner)
    assert (pruner.horizon, pruner.scale, pruner.on_stop) == (30, scale, "return_prediction")
    assert pruner.options["delta"] == 0.1 and list(pruner.options["at"]) == [0.25, 0.5]
    in_memory = TrendPruner(30)
    assert attach(optuna.create_study(), in_memory).pruner is in_memory


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_return_prediction(direction):
    pruner = TrendPruner(horizon=EPOCHS, on_stop="return_prediction")
    flip = (lambda v: 1 - v) if direction == "minimize" else (lambda v: v)

    def predicted(trial):
        for epoch in range(EPOCHS):
            trial.report(flip(curve(trial, epoch)), epoch)
            if trial.should_prune():
                return pruner.stop(trial)
        return flip(curve(trial, EPOCHS - 1))

    study = make_study(pruner, direction=direction)
    study.optimize(predicted, n_trials=15)
    stopped = [t for t in study.trials if "bayesvision:predicted_after" in t.user_attrs]
    assert stopped and "bayesvision:predicted_after" not in study.best_trial.user_attrs
    assert all(t.state.name == "COMPLETE" for t in stopped)
    sign = 1 if direction == "maximize" else -1
    real = max(sign * t.value for t in study.trials if t not in stopped)
    for t in stopped:  # the prediction, but worse than the best of those that were not stopped
        predicted_final = sign * pruner.decide(study, t).predicted_final
        assert sign * t.value == pytest.approx(min(predicted_final, real)) and sign * t.value < real


def test_stop_prunes_by_default_and_where_nothing_can_be_predicted(study):
    with pytest.raises(optuna.TrialPruned):
        study.pruner.stop(study.ask())
    study.pruner.on_stop = "return_prediction"
    with pytest.raises(optuna.TrialPruned, match="diverged"):
        study.pruner.stop(reported(study, {0: math.nan}))
    with pytest.raises(optuna.TrialPruned):  # no other trial is complete
        empty = make_study(TrendPruner(EPOCHS, on_stop="return_prediction"))
        empty.pruner.stop(reported(empty, bad()))


def test_threads():
    study = make_study(TrendPruner(horizon=EPOCHS))
    study.optimize(objective, n_trials=8, n_jobs=4)
    assert {t.state.name for t in study.trials} <= {"COMPLETE", "PRUNED"}


def test_bad_options():
    with pytest.raises(ValueError, match="on_stop"):
        TrendPruner(on_stop="stop")
    with pytest.raises(ValueError, match="delta"):
        TrendPruner(delta=2.0)
    with pytest.raises(TypeError, match="patience"):
        TrendPruner(patience=3)
    with pytest.raises(ValueError, match="horizon"):
        TrendPruner(horizon=-1)


FRAMEWORKS = ("optuna", "ray", "lightning", "transformers", "keras")


def test_imports_are_lazy_and_a_missing_framework_names_its_extra():
    code = f"""
import sys, bayesvision
bayesvision.integrations
assert not set({FRAMEWORKS}) & set(sys.modules) and 'torch' not in sys.modules
for name in {FRAMEWORKS}:
    sys.modules[name] = None
    try:
        getattr(bayesvision.integrations, name)
    except ImportError as error:
        assert f'pip install "bayesvision[{{name}}]"' in str(error), error
    else:
        raise AssertionError(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
