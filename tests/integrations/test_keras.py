import copy
import os

os.environ["KERAS_BACKEND"] = "torch"  # keras reads it when it is imported

import keras
import numpy as np
import pytest
from trend import Trend

import bayesvision as bv
from bayesvision.integrations.keras import LCPFNStopping

RISING = [0.9 - 0.6 * (k + 1) ** -0.8 for k in range(20)]
FALLING = [0.7 - 0.05 * k for k in range(14)] + [0.05] * 6
BAD = [0.4 - 0.2 * (k + 1) ** -0.8 for k in range(20)]


pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def fit(values, callback, epochs=20, **options):
    """Train a line whose logs hold the given values; the number of epochs it took."""
    script = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(val_acc=values[epoch]))
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    history = model.fit(np.ones((4, 1)), np.ones(4), epochs=epochs, verbose=0, callbacks=[script, callback], **options)
    return len(history.epoch)


def test_runs_on_torch():
    assert keras.backend.backend() == "torch"


def test_stops_alone_when_it_will_not_improve():
    stopping = LCPFNStopping("val_acc")
    assert 2 <= fit(FALLING, stopping) < 12
    assert stopping.decision.stop and stopping.reports.rule.horizon == 20
    assert fit(RISING, LCPFNStopping("val_acc", horizon=100), epochs=5) == 5


def test_trainings_that_share_a_rule():
    rule = bv.StoppingRule(20, posterior=Trend(), audit=0.0)
    assert fit(RISING, LCPFNStopping("val_acc", rule=rule, run="a")) == 20
    assert fit(BAD, LCPFNStopping("val_acc", rule=rule, run="b")) < 10


def test_a_second_fit_starts_afresh_at_its_epoch():
    stopping = LCPFNStopping("val_acc")
    fit(RISING, stopping, epochs=4)
    fit(RISING, stopping, epochs=6, initial_epoch=4)
    assert stopping.reports.state_dict()["runs"]["run"]["steps"] == [5, 6]


def test_minimised_metric():
    loss = bv.MetricScale(lower=0, soft_lower=0, soft_upper=2, minimize=True)
    with pytest.raises(ValueError, match="sounds as if larger were better, and its scale says smaller"):
        LCPFNStopping("val_acc", scale=loss)
    assert fit([0.3 + 0.05 * k for k in range(20)], LCPFNStopping("val_acc", scale=loss, mode="min")) < 15
    rising = [1 - v for v in FALLING]
    assert fit(rising, LCPFNStopping("val_acc", mode="min")) < 12
    assert fit([1 - v for v in RISING], LCPFNStopping("val_acc", mode="min", horizon=100), epochs=6) == 6


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_epochs_without_validation_are_passed_over():
    stopping = LCPFNStopping("val_loss")
    data = {"validation_data": (np.ones((4, 1)), np.ones(4)), "validation_freq": 2}
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    model.fit(np.ones((4, 1)), np.ones(4), epochs=4, verbose=0, callbacks=[stopping], **data)
    assert stopping.reports.state_dict()["runs"]["run"]["steps"] == [2, 4]
    with pytest.warns(RuntimeWarning, match="saw no value of 'val_loss'"):
        model.fit(np.ones((4, 1)), np.ones(4), epochs=2, verbose=0, callbacks=[stopping])


def test_copies_are_callbacks_of_their_own():
    """As tuners make them, before and after a training."""
    first = LCPFNStopping("val_acc")
    second = copy.deepcopy(first)
    fit(RISING, first, epochs=3)
    third = copy.deepcopy(first)
    fit(BAD, second, epochs=2), fit(BAD, third, epochs=4)
    lengths = [len(c.reports.state_dict()["runs"]["run"]["steps"]) for c in (first, second, third)]
    assert lengths[:2] == [3, 2]
    rule = bv.StoppingRule(20, posterior=Trend())
    assert copy.deepcopy(LCPFNStopping("val_acc", rule=rule, run="a")).reports.rule is rule


def test_nan_stops_and_failures_warn_once():
    assert fit([0.5, 0.6, float("nan"), 0.6], LCPFNStopping("val_acc")) == 3
    with pytest.warns(RuntimeWarning, match="must be one of") as caught:
        assert fit(RISING, LCPFNStopping("accuracy"), epochs=4) == 4
    assert len([w for w in caught if "early stopping" in str(w.message)]) == 1
    with pytest.warns(RuntimeWarning, match=r"must lie in \[0, 1\]"):
        assert fit([50.0, 60.0, 70.0], LCPFNStopping("val_acc"), epochs=3) == 3


def test_bad_arguments():
    rule = bv.StoppingRule(20, posterior=Trend())
    with pytest.raises(ValueError, match="run must name"):
        LCPFNStopping("val_acc", rule=rule)
    with pytest.raises(ValueError, match="left out"):
        LCPFNStopping("val_acc", horizon=3, rule=rule, run="a")
