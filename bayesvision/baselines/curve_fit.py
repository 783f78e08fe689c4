"""`CurveFit` and `LastValue`: learning curves extrapolated by least squares, and by nothing."""

import math
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import scipy.optimize
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from bayesvision.baselines.last_value import LastValue, LastValuePosterior, _check_noise
from bayesvision.core.checks import check_count
from bayesvision.core.data import Data, asked_epochs, one_curve
from bayesvision.core.modules import outside_inference_mode
from bayesvision.core.recipes import convert_fields
from bayesvision.core.roles import Log, Posterior
from bayesvision.distributions import Normal

__all__ = ["CurveFit", "CurveFitPosterior"]

Family = Literal["pow4", "mmf", "ilog2"]
SHAPES = {  # bounds and grid sizes of the logarithms of the shape parameters
    "pow4": ((math.log(1e-2), math.log(1e3), 9), (math.log(1e-2), math.log(10.0), 13)),
    "mmf": ((math.log(1e-4), math.log(1e2), 13), (math.log(0.1), math.log(10.0), 9)),
    "ilog2": (),
}
STEPS = 25  # of the fit from each start, at most
FAR = 20.0  # times the data's range: largest amplitude


@dataclass(frozen=True)
class CurveFit:
    """Least squares with one family of learning curves (Domhan et al. 2015, table 1).

        pow4:  c - (a t + b)^-alpha             with a > 0, b >= 0, alpha > 0
        mmf:   alpha - (alpha - beta) / (1 + (kappa t)^delta)
        ilog2: c - a / ln(t + 1)

    As c + A g(t; shape), each is linear but for at most two shapes: the best cells of a grid over them start a bounded
    robust fit (soft L1 beyond three deviations). With residuals r_i, p parameters and the gradient J of f,

        s^2 = (sum_i r_i^2 + noise^2) / (n - p + 1),
        y(t') ~ N(f(t'), s^2 + j(t')^T (J^T J / s^2 + P)^-1 j(t')),

    the delta method, with a weak diagonal precision P: one unit of `limits` for c and A, a factor e^2 for shapes. A
    curve with no more than p rows gets the distribution of `LastValue`.

    Example:
        >>> bv.CurveFit("pow4").fit(bv.Data(epochs, accuracy)).predict([100]).interval(0.9)

    Args:
        family: `pow4`, `mmf` or `ilog2`.
        limits: where the curve may level off, widened to the range of the values seen.
        noise: standard deviation that counts as one more residual, in units of y.
        starts: grid cells from which the fit starts.

    Raises:
        ValueError: a field is out of range.
    """

    family: Family = "pow4"
    limits: tuple[float, float] = (0.0, 1.0)
    noise: float = 0.01
    starts: int = 1

    def __post_init__(self) -> None:
        convert_fields(self)
        if self.family not in get_args(Family):
            raise ValueError(f"family must be one of {', '.join(get_args(Family))}, got {self.family!r}")
        if not -math.inf < self.limits[0] < self.limits[1] < math.inf:
            raise ValueError(f"limits must be two finite numbers, the smaller first, got {self.limits}")
        check_count("starts", self.starts)
        _check_noise(self.noise)

    @outside_inference_mode
    def fit(self, source: Data, log: Log | None = None) -> "CurveFitPosterior | LastValuePosterior":
        """Fit one curve, epochs [n] or [n, 1] and values [n].

        Raises:
            TypeError: `source` is not a `Data`.
            ValueError: wrong data, or epochs not above 0.
        """
        curve = one_curve(source)
        t, y = curve.t, curve.y
        shapes = len(SHAPES[self.family])
        if len(t) <= 2 + shapes:
            return LastValue(self.noise).fit(source, log)
        values = _least_squares(self, t, y)
        f, jacobian = _value_and_gradient(self.family, values, t)
        variance = ((y - f).square().sum() + self.noise**2) / (len(t) - len(values) + 1)
        width = self.limits[1] - self.limits[0]
        precision = torch.tensor([width**-2, width**-2, *[0.25] * shapes], dtype=torch.float64)
        covariance = torch.linalg.inv(jacobian.mT @ jacobian / variance + precision.diag())
        if log is not None:
            log.log({"residual": float(variance.sqrt())}, 0)
        return CurveFitPosterior(self, values, covariance, variance, curve.dtype)


class CurveFitPosterior(Posterior):
    """One fitted curve.

    Attributes:
        method: the recipe.
        values: level c, amplitude A and the logarithms of the shapes.
        covariance: of these.
        variance: of the residuals.
    """

    values: Tensor
    covariance: Tensor
    variance: Tensor

    def __init__(
        self,
        method: CurveFit,
        values: Float[Tensor, " p"],
        covariance: Float[Tensor, "p p"],
        variance: Float[Tensor, ""],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.method, self.dtype = method, dtype
        for name, value in {"values": values, "covariance": covariance, "variance": variance}.items():
            self.register_buffer(name, value)

    def predict(self, x: Any) -> Normal:
        """Normal distribution of a noisy value at the epochs `x`, [m] or [*batch, m, 1].

        It is in float64 where `x` or the values seen are.

        Raises:
            ValueError: wrong shapes, values that are not finite, or epochs not above 0.
        """
        t, dtype = asked_epochs(x, self.dtype)
        t = t.to(self.values.device)
        mean, j = _value_and_gradient(self.method.family, self.values.double(), t)
        variance = self.variance.double() + torch.einsum("...p,pq,...q->...", j, self.covariance.double(), j)
        return Normal(mean.to(dtype), variance.sqrt().to(dtype))


def _shape(family: Family, shapes: tuple[Tensor, ...], t: Float[Tensor, "*n"]) -> list[Tensor]:
    """g(t), which rises to 0, and its derivatives by the logarithms of the shapes.

    pow4: A g = -(a t + b)^-alpha with shapes b / a and alpha, and A = (a + b)^-alpha, so that g(1) = -1.
    mmf: A g = -(alpha - beta) / (1 + (kappa t)^delta) with shapes kappa and delta.
    """
    if family == "ilog2":
        return [-1 / torch.log1p(t)]
    p, q = shapes
    if family == "pow4":
        d, alpha = p.exp(), q.exp()
        log_u = ((t + d) / (1 + d)).log()
        g = -torch.exp(-alpha * log_u)
        return [g, -alpha * g * (d / (t + d) - d / (1 + d)), -alpha * g * log_u]
    z = q.exp() * (p + t.log())
    slope = torch.sigmoid(z) * torch.sigmoid(-z)
    return [-torch.sigmoid(-z), slope * q.exp(), slope * z]


def _value_and_gradient(family: Family, values: Float[Tensor, " p"], t: Float[Tensor, "*n"]) -> tuple[Tensor, Tensor]:
    """c + A g(t) and its gradient by the values (c, A, shapes), along the last axis."""
    level, amplitude, *shapes = values.unbind()
    g, *slopes = _shape(family, tuple(shapes), t)
    return level + amplitude * g, torch.stack([torch.ones_like(g), g, *(amplitude * s for s in slopes)], -1)


def _least_squares(method: CurveFit, t: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, " p"]:
    """Level, amplitude and logarithms of the shapes of the best robust fit."""
    low, high = min(method.limits[0], y.min().item()), max(method.limits[1], y.max().item())
    far = FAR * (high - low)
    starts, scale = _grid(method, t, y, (low, high))
    bounds = [(low, high), (0.0 if method.family == "pow4" else -far, far)]
    bounds += [(a, b) for a, b, _ in SHAPES[method.family]]
    lower, upper = np.array(bounds).T

    def residuals(values: np.ndarray) -> np.ndarray:
        return (_value_and_gradient(method.family, torch.from_numpy(values), t)[0] - y).numpy()

    def gradient(values: np.ndarray) -> np.ndarray:
        return _value_and_gradient(method.family, torch.from_numpy(values), t)[1].numpy()

    margin, solve = 1e-9 * (upper - lower), cast(Any, scipy.optimize.least_squares)  # its stub takes no function jac
    settings = {"loss": "soft_l1", "f_scale": scale, "max_nfev": STEPS, "ftol": 1e-6, "xtol": 1e-7}
    settings["x_scale"] = np.minimum(upper - lower, 1.0)
    found = [
        solve(residuals, np.clip(start, lower + margin, upper - margin), gradient, (lower, upper), **settings)
        for start in starts
    ]
    return torch.from_numpy(min(found, key=lambda result: result.cost).x)


def _grid(
    method: CurveFit, t: Float[Tensor, " n"], y: Float[Tensor, " n"], limits: tuple[float, float]
) -> tuple[Shaped[np.ndarray, "starts p"], float]:
    """The best starts among all cells of a grid over the shapes, and three robust deviations of the best of them.

    In a cell, A = cov(g, y) / var(g) and c = mean(y) - A mean(g); c is clipped to the limits and A solved again.
    """
    axes = [torch.linspace(a, b, size, dtype=torch.float64) for a, b, size in SHAPES[method.family]]
    shapes = torch.cartesian_prod(*axes) if axes else torch.empty(1, 0, dtype=torch.float64)
    g = _shape(method.family, tuple(shapes.unsqueeze(-1).unbind(1)), t)[0].expand(len(shapes), -1)
    centred = g - g.mean(-1, keepdim=True)
    amplitude = centred @ y / centred.square().sum(-1).clamp(min=1e-12)
    level = (y.mean() - amplitude * g.mean(-1)).clamp(*limits)
    square = g.square().sum(-1).clamp(min=1e-12)
    amplitude = (g * (y - level.unsqueeze(-1))).sum(-1) / square
    if method.family == "pow4":
        amplitude = amplitude.clamp(min=0)
    misfit = (y - level.unsqueeze(-1) - amplitude.unsqueeze(-1) * g).abs()
    best = misfit.square().sum(-1).topk(min(method.starts, len(shapes)), largest=False).indices
    scale = 3 * 1.4826 * misfit[best[0]].median().item()
    return torch.cat([level[best, None], amplitude[best, None], shapes[best]], -1).numpy(), max(
        scale, 1e-3 * method.noise
    )
