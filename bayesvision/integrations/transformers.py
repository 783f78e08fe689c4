"""Stops a training of the Hugging Face trainer that is unlikely to improve."""

from collections.abc import Hashable
from typing import Any

from bayesvision.distributions.metric import MetricScale
from bayesvision.early_stopping.directions import Mode
from bayesvision.early_stopping.monitor import Monitor
from bayesvision.early_stopping.rule import StoppingRule
from bayesvision.early_stopping.runs import Decision
from bayesvision.integrations import needs
from bayesvision.training.distributed import ask_first

with needs("transformers"):
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState

__all__ = ["LCPFNStopping"]


class LCPFNStopping(TrainerCallback, ExportableState):
    """Stops when P(y_t > best) <= delta at every later step t, where `best` is the best value so far.

    The direction is that of `mode`, of `greater_is_better` in the training arguments if the metric is their
    `metric_for_best_model`, of the scale, or of a well-known name. Of several processes the first decides. What fails
    inside is told once, as a warning, and the training goes on.

    Args:
        metric: name of an evaluation metric, with or without `eval_`; `metric_for_best_model` if left out.
        horizon: optimiser steps of a whole training; the trainer's own if left out.
        scale: units of the metric; without it a score lies in [0, 1], and a loss is measured between 0 and its first
            value.
        rule: a rule that other trainings report to as well, in place of `horizon` and `scale`; then `best` is that of
            all of them, and the direction is the rule's.
        run: name of this training in such a rule.
        mode: `min` or `max`, which way the metric gets better.

    Raises:
        ValueError: as in `Monitor`; when the training starts, if no metric is named or there is no evaluation.
    """

    def __init__(
        self,
        metric: str | None = None,
        horizon: float | None = None,
        scale: MetricScale | None = None,
        rule: StoppingRule | None = None,
        run: Hashable = None,
        mode: Mode | None = None,
    ) -> None:
        self.reports = Monitor(metric, horizon, scale, rule, run, mode)

    @property
    def decision(self) -> Decision | None:
        """The latest decision; None in processes other than the first."""
        return self.reports.decision

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        metric = self.reports.metric or args.metric_for_best_model
        if metric is None or args.eval_strategy == "no":
            raise ValueError(
                "early stopping needs metric_for_best_model and eval_strategy to be set, "
                f"got {metric!r} and {args.eval_strategy!r}"
            )
        self.reports.metric = metric if metric.startswith("eval_") else f"eval_{metric}"
        own = self.reports.metric.removeprefix("eval_") == (args.metric_for_best_model or "").removeprefix("eval_")
        better = args.greater_is_better if own else None  # of another metric it says nothing
        self.reports.begin(float(state.max_steps), None if better is None else "max" if better else "min")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        step = float(state.global_step)
        if step > 0 and ask_first(lambda: self.reports.report(step, metrics or {})):
            control.should_training_stop = True

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"saved": self.saved}}

    @property
    def saved(self) -> dict[str, Any]:
        """All that a checkpoint keeps, which `restore_callback_states_from_checkpoint` gives to a new callback.

        Raises:
            ValueError: when set, if the callback shared a rule, which a checkpoint of one training does not hold.
        """
        reports = self.reports
        scale = None if reports.scale is None else reports.scale.recipe
        arguments = {"metric": reports.metric, "horizon": reports.horizon, "scale": scale, "mode": reports.mode}
        return {**arguments, "shared": reports.shared, "rule": reports.state_dict()}

    @saved.setter
    def saved(self, state: dict[str, Any]) -> None:
        if state["shared"]:
            raise ValueError("a shared rule is in no checkpoint; leave restore_callback_states_from_checkpoint out")
        scale = None if state["scale"] is None else MetricScale(**state["scale"])
        self.reports = Monitor(state["metric"], state["horizon"], scale, mode=state.get("mode"))
        self.reports.load_state_dict(state["rule"])
