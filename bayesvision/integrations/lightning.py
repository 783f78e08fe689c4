"""Stops a Lightning training that is unlikely to improve."""

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

    Of several processes the first decides. What fails inside, a metric that was not logged among others, is told once,
    as a warning, and the training goes on.

    Args:
        monitor: name of the logged metric.
        horizon: epochs of a whole training; the trainer's `max_epochs` if left out.
        scale: units of the metric; None for one in [0, 1]. A loss needs one.
        rule: a rule that other trainings report to as well, in place of `horizon` and `scale`; then `best` is that of
            all of them.
        run: name of this training in such a rule.
        on_train_epoch_end: look at the metric when a training epoch ends, instead of a validation; if left out, only
            where there is no validation. The metric is to be logged by `training_step` then, with `on_epoch=True`.
        mode: `min` or `max`, which way the metric gets better; left out, its scale or a well-known name tells it.

    Raises:
        ValueError: as in `Monitor`; when the training starts, if no horizon is known.
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
        self.at_epoch_end = on_train_epoch_end

    @property
    def decision(self) -> Decision | None:
        """The latest decision; None in processes other than the first."""
        return self.reports.decision

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            epochs = trainer.max_epochs
            self.reports.begin(float(epochs) if epochs is not None and epochs > 0 else None)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not self.at_epoch_end:
            part = (trainer.fit_loop.epoch_loop.batch_idx + 1) / trainer.num_training_batches
            self._report(trainer, trainer.current_epoch + (part if part > 0 else 1.0))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.at_epoch_end or (self.at_epoch_end is None and not trainer.enable_validation):
            self._report(trainer, trainer.current_epoch + 1.0)

    def _report(self, trainer: Trainer, step: float) -> None:
        if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        stop = trainer.is_global_zero and self.reports.report(step, trainer.callback_metrics)
        if trainer.strategy.reduce_boolean_decision(stop, all=False):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return self.reports.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.reports.load_state_dict(state_dict)
