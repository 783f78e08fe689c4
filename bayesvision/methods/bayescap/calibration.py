"""Distributions that are fitted without a network: constant ones, the factor of a scale, and conformal quantiles."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.special
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesvision.methods.bayescap.heads import Family

__all__ = ["Conformal", "constant_law", "legacy_loss", "scale_factor"]

KEPT = 10_000  # scores that stand for all of them
WIDEST = 4.0  # largest |log| of a factor


def constant_law(errors: Float[Tensor, " n"], family: Family, least: float) -> tuple[float, float]:
    """Maximum-likelihood log-scale and tail of errors around zero, in the terms of `ScaleHead`.

    Of a generalised normal alpha^beta = beta mean |r|^beta at the best alpha for each beta, which is at most 1.9; a t
    has at most 50 degrees of freedom. The scale is at least `least`, and families without a tail get 1.
    """
    r = np.maximum(np.abs(errors.double().numpy()), 1e-3 * least)  # an error of zero has no logarithm
    spread = max(float(np.sqrt(np.mean(r**2))), least)
    if family == "gaussian":
        return math.log(spread), 1.0
    if family == "laplace":
        return math.log(max(float(r.mean()), least)), 1.0
    z = r / spread
    if family == "generalized":
        found = scipy.optimize.minimize_scalar(lambda b: _generalized(z, b)[0], bounds=(0.31, 1.9), method="bounded")
        beta = float(found.x)
        return math.log(max(spread * math.exp(_generalized(z, beta)[1]), least)), beta
    found = scipy.optimize.minimize(lambda p: _student(z, *p), [-0.3, 1.0], method="Nelder-Mead")
    return math.log(max(spread * math.exp(found.x[0]), least)), 2.1 + min(math.exp(min(found.x[1], 9.0)), 47.9)


def _generalized(z: np.ndarray, beta: float) -> tuple[float, float]:
    """Mean of -log p at the best alpha, and log alpha."""
    log_alpha = math.log(beta * float(np.mean(z**beta))) / beta
    return 1 / beta + log_alpha + math.log(2) + float(scipy.special.gammaln(1 + 1 / beta)), log_alpha


def _student(z: np.ndarray, log_scale: float, log_extra: float) -> float:
    v = 2.1 + math.exp(min(log_extra, 8.0))
    normaliser = scipy.special.gammaln((v + 1) / 2) - scipy.special.gammaln(v / 2) - math.log(v * math.pi) / 2
    tails = np.log1p((z / math.exp(log_scale)) ** 2 / v)
    return float(log_scale - normaliser + (v + 1) / 2 * tails.mean())


def legacy_loss(law: Any, y: Tensor) -> Float[Tensor, ""]:
    """The loss of the method's released code: (r beta / alpha) in the place of the power (r / alpha)^beta.

    mean of clamp(r beta / alpha, 1e-4, 1e3) - log(beta / alpha) + log Gamma(1 / beta), r = |y - loc|. The best alpha is
    beta E r whatever beta, and what is left is log Gamma(1 / beta), least where 1 / beta = 1.4616: so beta becomes
    0.6842 for all data, and the variance of normal errors 3.34 times what it is.
    """
    ratio = ((y - law.loc).abs() * law.beta / law.alpha).clamp(1e-4, 1e3)
    return (ratio - law.beta.log() + law.alpha.log() + torch.lgamma(1 / law.beta)).mean()


def scale_factor(cost: Callable[[float], float]) -> float:
    """log s of the factor s on all scales (of classes, on the temperature) that makes held-out targets most likely.

    For a normal distribution s^2 is the mean of (r / sigma)^2 (Laves et al. 2020, arXiv 2006.13092, eq. 9).

    Args:
        cost: mean of -log p of the targets at each log s.
    """
    found: Any = scipy.optimize.minimize_scalar(cost, bounds=(-WIDEST, WIDEST), method="bounded")
    return float(found.x)


class Conformal(nn.Module):
    """Scores of held-out examples, each of which has the same weight, and one more at infinity.

    With n examples of m_i scores, score ij weighs 1 / ((n + 1) m_i) (Lee et al. 2023, arXiv 2306.06342, section 3).
    """

    scores: Tensor
    cumulative: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.resize(torch.zeros(0))

    def resize(self, like: Tensor) -> None:
        """Room for as many scores as in `like`."""
        for name in ("scores", "cumulative"):
            self.register_buffer(name, torch.zeros(len(like), dtype=torch.float32))

    def keep(self, scores: Sequence[Tensor]) -> None:
        """Take the scores of each example in the place of earlier ones; of very many, enough to err upwards alone."""
        weights = torch.cat([torch.full((len(s),), 1 / len(s), dtype=torch.float64) for s in scores]) / (
            len(scores) + 1
        )
        pooled, order = torch.cat([s.double() for s in scores]).sort()
        cumulative = weights[order].cumsum(0)
        if len(pooled) > KEPT:
            kept = torch.linspace(0, len(pooled) - 1, KEPT, dtype=torch.float64).round().long()
            pooled, cumulative = pooled[kept], cumulative[kept]
        device = self.scores.device
        self.scores, self.cumulative = pooled.float().to(device), cumulative.float().to(device)

    def quantile(self, mass: float) -> float:
        """The least score up to which the weights add up to `mass`.

        Raises:
            ValueError: no scores, a mass outside (0, 1), or more than the weight of all examples.
        """
        if not 0 < mass < 1:
            raise ValueError(f"mass must lie strictly between 0 and 1, got {mass!r}")
        if not len(self.scores):
            raise ValueError("interval needs held-out examples: fit(..., calibrate=...) or posterior.calibrate(...)")
        index = int(torch.searchsorted(self.cumulative, self.cumulative.new_tensor(mass - 1e-6)))
        if index >= len(self.scores):
            need = math.ceil(mass / (1 - mass) - 1e-9)
            raise ValueError(
                f"an interval of mass {mass} needs at least {need} held-out examples, "
                f"and the {round(1 / max(1 - float(self.cumulative[-1]), 1e-9)) - 1} that were given allow "
                f"{float(self.cumulative[-1]):.3f} at most"
            )
        return float(self.scores[index])
