import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from trend import Trend

import bayesvision as bv
from bayesvision.integrations.lightning import LCPFNStopping

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:.*log_every_n_steps.*", "ignore:.*LeafSpec.*", "ignore:.*litlogger.*"
)


class Scripted(pl.LightningModule):
    """Trains a line, and logs the values it was given."""

    def __init__(self, values, name="val_acc"):
        super().__init__()
        self.net, self.values, self.name, self.seen = torch.nn.Linear(1, 1), list(values), name, 0

    def training_step(self, batch):
        self.log("train_acc", self.values[min(self.current_epoch, len(self.values) - 1)], on_step=False, on_epoch=True)
        return self.net(batch).square().mean()

    def validation_step(self, batch):
        return None

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.log(self.name, self.values[min(self.seen, len(self.values) - 1)])
            self.seen += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def loader():
    return torch.utils.data.DataLoader(torch.ones(4, 1), batch_size=2)


def fit(values, callback, epochs=20, validate=True, folder=None, ckpt=None, data=None, **options):
    callbacks = callback if isinstance(callback, list) else [callback]
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=callbacks, **options,
    )  # fmt: skip
    trainer.fit(Scripted(values), loader() if data is None else data, loader() if validate else None, ckpt_path=ckpt)
    return trainer


RISING = [0.9 - 0.6 * (k + 1) ** -0.8 for k in range(20)]
FALLING = [0.7 - 0.05 * k for k in range(14)] + [0.05] * 6
BAD = [0.4 - 0.2 * (k + 1) ** -0.8 for k in range(20)]


def test_stops_alone_when_it_will_not_improve():
    stopping = LCPFNStopping("val_acc")
    trainer = fit(FALLING, stopping)
    assert 2 <= trainer.current_epoch < 12
    assert stopping.decision.stop and stopping.reports.rule.horizon == 20
    assert fit(RISING, LCPFNStopping(monitor="val_acc", horizon=100), epochs=6).current_epoch == 6


def test_trainings_that_share_a_rule():
    rule = bv.StoppingRule(20, posterior=Trend(), audit=0.0)
    first, second = LCPFNStopping("val_acc", rule=rule, run="a"), LCPFNStopping("val_acc", rule=rule, run="b")
    assert fit(RISING, first).current_epoch == 20
    assert fit(BAD, second).current_epoch < 10
    assert rule.report().runs == 2 and rule.report().stopped == 1


@pytest.mark.parametrize("options, steps", [
    ({}, [1, 2, 3]),
    ({"check_val_every_n_epoch": 2}, [2]),
    ({"val_check_interval": 0.5}, [0.5, 1, 1.5, 2, 2.5, 3]),
    ({"validate": False}, [1, 2, 3]),
])  # fmt: skip
def test_steps_are_epochs(options, steps):
    rule = bv.StoppingRule(20, posterior=Trend())
    name = "val_acc" if options.get("validate", True) else "train_acc"
    fit(RISING, LCPFNStopping(name, rule=rule, run="a"), epochs=3, **options)
    assert rule.state_dict()["runs"]["a"]["steps"] == steps


def test_training_metric_besides_a_validation():
    rule = bv.StoppingRule(20, posterior=Trend())
    fit(RISING, LCPFNStopping("train_acc", rule=rule, run="a", on_train_epoch_end=True), epochs=3)
    assert rule.state_dict()["runs"]["a"]["values"] == pytest.approx(RISING[:3])


def test_minimised_metric():
    loss = bv.MetricScale(lower=0, soft_lower=0, soft_upper=2, minimize=True)
    with pytest.raises(ValueError, match="sounds as if larger were better, and its scale says smaller"):
        LCPFNStopping("val_acc", scale=loss)
    assert fit([0.3 + 0.05 * k for k in range(20)], LCPFNStopping("val_acc", scale=loss, mode="min")).current_epoch < 15
    assert fit([1 - v for v in FALLING], LCPFNStopping("val_acc", mode="min")).current_epoch < 12


def test_nan_stops_and_failures_warn_once():
    assert fit([0.5, 0.6, float("nan")], LCPFNStopping("val_acc")).current_epoch == 3
    with pytest.warns(RuntimeWarning, match="must be one of") as caught:
        assert fit(RISING, LCPFNStopping("accuracy"), epochs=4).current_epoch == 4
    assert len([w for w in caught if w.category is RuntimeWarning and "early stopping" in str(w.message)]) == 1
    with pytest.warns(RuntimeWarning, match=r"must lie in \[0, 1\]"):
        assert fit([50.0, 60.0, 70.0], LCPFNStopping("val_acc"), epochs=3).current_epoch == 3


def test_unknown_horizon_is_refused_before_training():
    rule = bv.StoppingRule(20, posterior=Trend())
    with pytest.raises(ValueError, match="set max_epochs or max_steps"):
        fit(RISING, LCPFNStopping("val_acc"), epochs=-1)
    alone = LCPFNStopping("val_acc")
    fit(RISING, alone, epochs=-1, max_steps=4)
    assert alone.reports.rule.horizon == 2 and alone.state_dict()["runs"]["run"]["steps"] == [1, 2]
    fit(RISING, LCPFNStopping("val_acc", rule=rule, run="a"), epochs=-1, max_steps=4)
    assert rule.state_dict()["runs"]["a"]["steps"] == [1, 2]


class Endless(torch.utils.data.IterableDataset):
    """Twelve examples, which nobody knows beforehand."""

    def __iter__(self):
        return iter(torch.ones(12, 1))


def test_data_of_unknown_length():
    """Validation inside an epoch counts optimiser steps up to max_steps; at its end it counts epochs."""
    unknown = torch.utils.data.DataLoader(Endless(), batch_size=1)
    inside = LCPFNStopping("val_acc")
    fit(RISING, inside, data=unknown, epochs=1, max_steps=12, val_check_interval=3)
    assert inside.state_dict()["runs"]["run"]["steps"] == [3, 6, 9, 12] and inside.reports.rule.horizon == 12
    falling = LCPFNStopping("val_acc")
    trainer = fit(FALLING, falling, data=unknown, epochs=-1, max_steps=60, val_check_interval=3)
    assert trainer.global_step < 36 and falling.decision.stop
    ends = LCPFNStopping("val_acc")
    fit(RISING, ends, data=unknown, epochs=3)
    assert ends.state_dict()["runs"]["run"]["steps"] == [1, 2, 3] and ends.reports.rule.horizon == 3
    with pytest.raises(ValueError, match=r"max_steps, since the data's length is unknown.*horizon=optimiser steps"):
        fit(RISING, LCPFNStopping("val_acc"), data=unknown, epochs=2, val_check_interval=3)


def test_two_callbacks_for_two_metrics(tmp_path):
    both = [LCPFNStopping("val_acc", horizon=20), LCPFNStopping("train_acc", horizon=20, on_train_epoch_end=True)]
    assert both[0].state_key != both[1].state_key
    path = tmp_path / "last.ckpt"
    fit(RISING, both, epochs=3).save_checkpoint(path)
    again = [LCPFNStopping("val_acc", horizon=20), LCPFNStopping("train_acc", horizon=20, on_train_epoch_end=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(RISING, again, epochs=4, ckpt=path)
    for callback in again:
        assert callback.state_dict()["runs"]["run"]["steps"] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="build both with the same horizon"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(RISING, LCPFNStopping("val_acc", horizon=30), epochs=4, ckpt=path)


def test_resumes_from_a_checkpoint(tmp_path):
    stopping = LCPFNStopping("val_acc", horizon=20)
    path = tmp_path / "last.ckpt"
    fit(RISING, stopping, epochs=4).save_checkpoint(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resumed = LCPFNStopping("val_acc", horizon=20)
        fit(RISING[4:], resumed, epochs=6, ckpt=path)
    steps = resumed.state_dict()["runs"]["run"]["steps"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert json.loads(json.dumps(stopping.state_dict())) == stopping.state_dict()
    longer, known = LCPFNStopping("val_acc"), LCPFNStopping("val_acc")
    fit(RISING, known, epochs=2).save_checkpoint(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(RISING[2:], longer, epochs=4, ckpt=path)  # meant for two epochs, and going on to four
    assert longer.state_dict()["runs"]["run"]["steps"] == [1, 2, 3, 4] and longer.reports.rule.horizon == 4


def test_a_second_fit_starts_afresh():
    stopping = LCPFNStopping("val_acc")
    fit(RISING, stopping, epochs=5)
    fit(RISING, stopping, epochs=3)
    assert stopping.state_dict()["runs"]["run"]["steps"] == [1, 2, 3]


@pytest.mark.parametrize("framework", ["lightning", pytest.param("transformers", marks=pytest.mark.slow)])
def test_two_processes_the_first_decides(framework, tmp_path):
    script = Path(__file__).with_name("ranks_script.py")
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(script.parent), str(Path(__file__).parents[1])])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, framework]
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second  # epochs, with the bad values in the first process and in the second one
    assert first[0] < 10 and first[1] == 12
