"""`LastValue`: the last value of a curve, with an uncertainty that grows with the gap."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.core.data import Data, asked_epochs, one_curve
from bayesvision.core.modules import outside_inference_mode
from bayesvision.core.recipes import convert_fields
from bayesvision.core.roles import Log, Posterior
from bayesvision.distributions import Normal

__all__ = ["LastValue", "LastValuePosterior"]


# No curve at all


def _check_noise(noise: float) -> None:
    if not 0 < noise < math.inf:
        raise ValueError(f"noise must be a positive finite standard deviation in units of y, got {noise!r}")


@dataclass(frozen=True)
class LastValue:
    """The last value seen, with a spread that grows with the gap: y(t') ~ N(y_n, s^2 (1 + |ln(t' / t_n)|)).

    s^2 = (noise^2 + sum_i (y_(i+1) - y_i)^2) / n over consecutive rows, a random walk in the logarithm of the epochs.

    Example:
        >>> bv.LastValue().fit(bv.Data(epochs, accuracy)).predict([100]).stddev

    Args:
        noise: standard deviation that counts as one more difference, in units of y.

    Raises:
        ValueError: `noise` is not positive.
    """

    noise: float = 0.01

    def __post_init__(self) -> None:
        convert_fields(self)
        _check_noise(self.noise)

    @outside_inference_mode
    def fit(self, source: Data, log: Log | None = None) -> "LastValuePosterior":
        """Read off the last of the epochs [n] or [n, 1] and the differences of the values [n].

        Raises:
            TypeError: `source` is not a `Data`.
            ValueError: wrong data, or epochs not above 0.
        """
        curve = one_curve(source)
        t, y = curve.t, curve.y
        variance = (self.noise**2 + y.diff().square().sum()) / len(y)
        if log is not None:
            log.log({"residual": float(variance.sqrt())}, 0)
        return LastValuePosterior(self, t[-1], y[-1], variance, curve.dtype)


class LastValuePosterior(Posterior):
    """The last row of a curve.

    Attributes:
        method: the recipe.
        epoch, value: of the last row.
        variance: s^2.
    """

    epoch: Tensor
    value: Tensor
    variance: Tensor

    def __init__(
        self,
        method: LastValue,
        epoch: Float[Tensor, ""],
        value: Float[Tensor, ""],
        variance: Float[Tensor, ""],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.method, self.dtype = method, dtype
        for name, entry in {"epoch": epoch, "value": value, "variance": variance}.items():
            self.register_buffer(name, entry)

    def predict(self, x: Any) -> Normal:
        """Normal distribution of a noisy value at the epochs `x`, [m] or [*batch, m, 1].

        It is in float64 where `x` or the values seen are.

        Raises:
            ValueError: wrong shapes, values that are not finite, or epochs not above 0.
        """
        t, dtype = asked_epochs(x, self.dtype)
        t = t.to(self.value.device)
        growth = 1 + (t / self.epoch.double()).log().abs()
        stddev = (self.variance.double() * growth).sqrt().to(dtype)
        return Normal(self.value.to(dtype).expand(stddev.shape), stddev)
