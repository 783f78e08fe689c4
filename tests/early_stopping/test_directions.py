"""Which way a metric gets better: by its name, as it is told, and refused where nobody knows."""

import pytest
from checks import unchecked

import bayesvision as bv
from bayesvision.early_stopping.directions import directed, direction, known_direction
from bayesvision.early_stopping.monitor import Monitor

SMALLER = """
    loss val_loss eval_loss valLoss Validation/Loss train_loss_epoch val_logloss val_bce valid_mlogloss
    valid_merror val_binary_crossentropy val_cross_entropy val_wer val_kl_divergence rmse test/rmse top5_error
    perplexity eval/nll negative_log_likelihood mean_squared_error val_mae sparse_categorical_crossentropy
    edit_distance FID
"""
LARGER = """
    acc val_acc accuracy val_sparse_categorical_accuracy top5_accuracy eval_f1 valF1 macro_f1 ROC_AUC val/auc
    mAP map50 bleu eval_rougeL r2 R2 episode_reward log_likelihood neg_mean_squared_error neg_log_loss
    val_dice mean_iou
"""
UNKNOWN = "value metric score objective lr time epoch foo val_x entropy"


@pytest.mark.parametrize("name", SMALLER.split())
def test_losses(name):
    assert known_direction(name) == "min"


@pytest.mark.parametrize("name", LARGER.split())
def test_scores(name):
    assert known_direction(name) == "max"


@pytest.mark.parametrize("name", UNKNOWN.split())
def test_what_is_not_known_is_asked(name):
    assert known_direction(name) is None
    with pytest.raises(ValueError, match=r"not known by its name; say mode='min' or mode='max'"):
        direction(name, None, None)
    with pytest.raises(ValueError, match="not known by its name"):
        Monitor(name, horizon=10)
    assert Monitor(name, horizon=10, mode="max").mode == "max"


def test_the_scale_tells_it_unless_the_name_says_otherwise():
    loss, score = bv.MetricScale(lower=0, soft_upper=4, minimize=True), bv.MetricScale(lower=0, soft_upper=4)
    assert direction("foo", None, loss) == ("min", "as its scale says")
    assert direction("foo", None, score) == ("max", "as its scale says")
    with pytest.raises(ValueError, match="sounds as if smaller were better, and its scale says larger"):
        direction("val_loss", None, score)
    assert direction("val_loss", "max", score) == ("max", "as told")
    assert directed(score, "min") == loss and directed(None, "max") is None
    assert directed(None, "min") is None


def test_a_monitor_takes_the_direction():
    monitor = Monitor("val_error_rate", horizon=10, mode="min")
    monitor.begin(None)
    assert monitor.rule.minimize
    loss = Monitor("val_loss", horizon=10)
    loss.begin(None)
    loss.report(1, {"val_loss": 4.0})
    assert loss.rule.scale == bv.MetricScale(lower=0, soft_lower=0, soft_upper=4, minimize=True)  # by its first value
    with pytest.raises(ValueError, match="mode must be 'min' or 'max'"), unchecked():
        Monitor("acc", horizon=10, mode="up")
    rule = bv.StoppingRule(10)
    with pytest.raises(ValueError, match="must be left out where a rule is given"):
        Monitor("acc", rule=rule, run="a", mode="max")
    with pytest.raises(ValueError, match="another direction than the rule"):
        Monitor("val_loss", rule=rule, run="a")
    waiting = Monitor(None, horizon=10)
    with pytest.raises(ValueError, match="must be named"):
        waiting.begin(None)
    waiting.metric = "foo"
    waiting.begin(None, "min")  # a framework that knows
    assert waiting.rule.minimize
