"""Stops a Lightning training that is unlikely to improve."""

import math
from collections.abc import Hashable
from typing import Any

from bayesvision.distributions.metric import MetricScale
from bayesvision.early_stopping.directions import Mode
from bayesvision.early_stopping.monitor import Monitor
from bayesvision.early_stopping.rule import StoppingRule
from bayesvision.early_stopping.runs import Decision
from bayesvision.integrations import needs

with needs("lightning"):
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback

__all__ = ["LCPFNStopping"]


class LCPFNStopping(Callback):
    """Stops when P(y_t > best) <= delta at every later epoch t, where `best` is the best value so far.

    Several callbacks may watch several metrics of one training. Of several processes the first decides. What fails
    inside, a metric that was not logged among others, is told once, as a warning, and the training goes on.

    Args:
        monitor: name of the logged metric.
        horizon: epochs of a whole training; those of the trainer's `max_epochs` or `max_steps` if left out. Where the
            data's length is unknown and validation comes inside an epoch, steps are the trainer's `global_step`, and
            the horizon is `max_steps`, or a number of optimiser steps.
        scale: units of the metric; without it a score lies in [0, 1], and a loss is measured between 0 and its first
            value.
        rule: a rule that other trainings report to as well, in place of `horizon` and `scale`; then `best` is that of
            all of them.
        run: name of this training in such a rule.
        on_train_epoch_end: look at the metric when a training epoch ends, instead of a validation; if left out, only
            where there is no validation. The metric is to be logged by `training_step` then, with `on_epoch=True`.
        mode: `min` or `max`, which way the metric gets better; left out, its scale or a well-known name tells it.

    Raises:
        ValueError: as in `Monitor`; when the training starts, if no horizon is known, or the callback's state in a
            checkpoint is of another horizon.
    """

    def __init__(
        self,
        monitor: str,
        horizon: float | None = None,
        scale: MetricScale | None = None,
        rule: StoppingRule | None = None,
        run: Hashable = None,
        on_train_epoch_end: bool | None = None,
        mode: Mode | None = None,
    ) -> None:
        self.reports = Monitor(monitor, horizon, scale, rule, run, mode)
        self.at_epoch_end, self.monitor = on_train_epoch_end, monitor
        self.in_steps = False

    @property
    def decision(self) -> Decision | None:
        """The latest decision; None in processes other than the first."""
        return self.reports.decision

    @property
    def state_key(self) -> str:
        return self._generate_state_key(monitor=self.monitor)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.reports.reset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, once the trainer knows its data."""
        batches, steps = trainer.num_training_batches, trainer.max_steps if trainer.max_steps > 0 else math.inf
        epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else math.inf
        inside = not self.at_epoch_end and trainer.enable_validation and math.isfinite(trainer.val_check_batch or 1)
        self.in_steps = math.isinf(batches) and (inside or math.isinf(epochs))
        horizon = steps if self.in_steps else min(epochs, steps * trainer.accumulate_grad_batches / batches)
        if math.isinf(horizon) and self.reports.horizon is None and not self.reports.shared:
            raise ValueError(
                "the horizon is unknown, as the trainer does not know how long it trains; set max_epochs"
                + (", or max_steps, since the data's length is unknown" if math.isinf(batches) else " or max_steps")
                + f", or LCPFNStopping(horizon={'optimiser steps' if self.in_steps else 'epochs'})"
            )
        self.reports.begin(None if math.isinf(horizon) else float(horizon))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not self.at_epoch_end:
            part = (trainer.fit_loop.epoch_loop.batch_idx + 1) / trainer.num_training_batches
            self._report(trainer, trainer.current_epoch + (part if part > 0 else 1.0))  # 0 where there is no length

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.at_epoch_end or (self.at_epoch_end is None and not trainer.enable_validation):
            self._report(trainer, trainer.current_epoch + 1.0)

    def _report(self, trainer: Trainer, step: float) -> None:
        if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        step = float(trainer.global_step) if self.in_steps else step
        stop = trainer.is_global_zero and self.reports.report(step, trainer.callback_metrics)
        if trainer.strategy.reduce_boolean_decision(stop, all=False):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return self.reports.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.reports.load_state_dict(state_dict)
