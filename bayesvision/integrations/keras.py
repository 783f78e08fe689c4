"""Stops a Keras training that is unlikely to improve."""

from collections.abc import Hashable
from typing import Any

from bayesvision.core.warn import warn
from bayesvision.distributions.metric import MetricScale
from bayesvision.early_stopping.directions import Mode
from bayesvision.early_stopping.monitor import Monitor
from bayesvision.early_stopping.rule import StoppingRule
from bayesvision.early_stopping.runs import Decision
from bayesvision.integrations import needs
from bayesvision.training.distributed import ask_first

with needs("keras"):
    from keras.callbacks import Callback

__all__ = ["LCPFNStopping"]

VALIDATION = "val_"  # how Keras begins the names of validation metrics


class LCPFNStopping(Callback):
    """Stops when P(y_t > best) <= delta at every later epoch t, where `best` is the best value so far.

    Of several processes of torch.distributed the first decides. What fails inside, a metric that is not in the logs
    among others, is told once, as a warning, and the training goes on; an epoch without validation is passed over. A
    copy, as tuners make them, is a callback of its own, and reports to the same rule if one is given.

    Args:
        monitor: name of the metric in the logs.
        horizon: epochs of a whole training; those given to `fit` if left out.
        scale: units of the metric; without it a score lies in [0, 1], and a loss is measured between 0 and its first
            value.
        rule: a rule that other trainings report to as well, in place of `horizon` and `scale`; then `best` is that of
            all of them.
        run: name of this training in such a rule.
        mode: `min` or `max`, which way the metric gets better; left out, its scale or a well-known name tells it.

    Raises:
        ValueError: as in `Monitor`.
    """

    def __init__(
        self,
        monitor: str,
        horizon: float | None = None,
        scale: MetricScale | None = None,
        rule: StoppingRule | None = None,
        run: Hashable = None,
        mode: Mode | None = None,
    ) -> None:
        super().__init__()
        self.reports = Monitor(monitor, horizon, scale, rule, run, mode)

    @property
    def decision(self) -> Decision | None:
        """The latest decision; None in processes other than the first."""
        return self.reports.decision

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.reports.begin((self.params or {}).get("epochs"))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        validated = any(name.startswith(VALIDATION) for name in logs or {})
        if (self.reports.metric or "").startswith(VALIDATION) and not validated:
            return  # validation_freq
        if ask_first(lambda: self.reports.report(epoch + 1, logs or {})):
            assert self.model is not None
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        ask_first(self._complain_if_silent)

    def _complain_if_silent(self) -> bool:
        if self.reports.silent:
            message = f"early stopping saw no value of {self.reports.metric!r}: there was no validation"
            warn(message, RuntimeWarning)
        return False
