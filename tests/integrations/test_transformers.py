import json
import tempfile

import pytest
import torch
from transformers import Trainer, TrainingArguments
from trend import Trend

import bayesvision as bv
from bayesvision.integrations.transformers import LCPFNStopping

RISING = [0.9 - 0.6 * (k + 1) ** -0.8 for k in range(20)]
FALLING = [0.7 - 0.05 * k for k in range(14)] + [0.05] * 6
BAD = [0.4 - 0.2 * (k + 1) ** -0.8 for k in range(20)]


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(1, 1)

    def forward(self, x, labels):
        y = self.net(x).squeeze(-1)
        return {"loss": (y - labels).square().mean(), "logits": y}


def fit(values, callback, epochs=20, folder=None, resume=None, **options):
    """Train a line, evaluated as the given values after every epoch of two steps."""
    left = list(values)
    rows = [{"x": torch.ones(1), "labels": torch.tensor(0.0)} for _ in range(8)]
    settings = {
        "eval_strategy": "epoch", "metric_for_best_model": "accuracy", "save_strategy": "no", "report_to": [],
        "use_cpu": True, "per_device_train_batch_size": 4, "num_train_epochs": epochs, "disable_tqdm": True,
        "logging_strategy": "no", **options,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        trainer = Trainer(
            Line(), TrainingArguments(folder or temporary, **settings), train_dataset=rows, eval_dataset=rows[:2],
            compute_metrics=lambda _: {"accuracy": left.pop(0)}, callbacks=[callback],
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_stops_alone_when_it_will_not_improve():
    stopping = LCPFNStopping()
    trainer = fit(FALLING, stopping)
    assert 2 <= trainer.state.epoch < 12
    assert stopping.decision.stop and stopping.reports.rule.horizon == 40  # optimiser steps
    assert fit(RISING, LCPFNStopping("accuracy", horizon=200), epochs=5).state.epoch == 5


def test_the_direction_of_another_metric_says_nothing():
    """With load_best_model_at_end the trainer looks at the loss, and says that smaller is better."""
    stopping = LCPFNStopping("accuracy")
    fit(RISING, stopping, epochs=4, metric_for_best_model="loss", greater_is_better=False)
    assert not stopping.reports.rule.minimize


def test_trainings_that_share_a_rule():
    rule = bv.StoppingRule(40, posterior=Trend(), audit=0.0)
    assert fit(RISING, LCPFNStopping(rule=rule, run="a")).state.epoch == 20
    assert fit(BAD, LCPFNStopping(rule=rule, run="b")).state.epoch < 10
    assert rule.state_dict()["runs"]["a"]["steps"][:3] == [2, 4, 6]


def test_direction_is_that_of_the_arguments():
    error = [0.3 + 0.05 * min(k, 12) for k in range(20)]
    assert fit(error, LCPFNStopping(), greater_is_better=False).state.epoch < 12
    stopping = LCPFNStopping()
    fit(RISING, stopping, epochs=2, metric_for_best_model="loss", greater_is_better=False)
    first = stopping.reports.state_dict()["runs"]["run"]["values"][0]
    assert stopping.reports.rule.minimize and stopping.reports.rule.scale.soft == (0.0, first)
    loss = bv.MetricScale(lower=0, soft_lower=0, soft_upper=3, minimize=True)
    stopping = LCPFNStopping("eval_loss", scale=loss)
    fit(RISING, stopping, epochs=2, greater_is_better=False)
    assert stopping.reports.rule.minimize and len(stopping.reports.state_dict()["runs"]["run"]["values"]) == 2


def test_nan_stops_and_failures_warn_once():
    assert fit([0.5, 0.6, float("nan"), 0.6], LCPFNStopping()).state.epoch == 3
    with pytest.warns(RuntimeWarning, match="must be one of") as caught:
        assert fit(RISING, LCPFNStopping("f1"), epochs=3).state.epoch == 3
    assert len([w for w in caught if "early stopping" in str(w.message)]) == 1
    with pytest.warns(RuntimeWarning, match=r"must lie in \[0, 1\]"):
        assert fit([50.0, 60.0, 70.0], LCPFNStopping(), epochs=3).state.epoch == 3


def test_refused_before_training():
    with pytest.raises(ValueError, match=r"got 'accuracy' and .*NO"):
        fit(RISING, LCPFNStopping(), eval_strategy="no")
    with pytest.raises(ValueError, match="got None"):
        fit(RISING, LCPFNStopping(), metric_for_best_model=None)


def test_resumes_from_a_checkpoint(tmp_path):
    scale = bv.MetricScale(0, 1)
    fit(RISING, LCPFNStopping(horizon=40, scale=scale), epochs=3, folder=str(tmp_path), save_strategy="epoch")
    state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    assert len(state["stateful_callbacks"]["LCPFNStopping"]["attributes"]["saved"]["rule"]["runs"]["run"]["steps"]) == 3
    trainer = fit(
        RISING[3:], LCPFNStopping(), epochs=5, folder=str(tmp_path), resume=str(tmp_path / "checkpoint-6"),
        restore_callback_states_from_checkpoint=True,
    )  # fmt: skip
    restored = next(c for c in trainer.callback_handler.callbacks if isinstance(c, LCPFNStopping))
    assert restored.reports.state_dict()["runs"]["run"]["steps"] == [2, 4, 6, 8, 10]
    assert restored.reports.horizon == 40 and restored.reports.scale == scale
    with pytest.raises(ValueError, match="shared rule"):
        LCPFNStopping().saved = LCPFNStopping(rule=bv.StoppingRule(9, posterior=Trend()), run="a").saved
