"""`Bar`: the piecewise-uniform distribution with half-normal tails that the transformers predict."""

import math
from typing import Self

import torch
import torch.distributions as td
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import constraints

from bayesvision.distributions.base import Continuous

__all__ = ["Bar"]

HALF_NORMAL_MEDIAN = 0.6744897501960817  # the median of |N(0, 1)|
HALF_NORMAL_MEAN = math.sqrt(2 / math.pi)
PHI_ZERO = 1 / math.sqrt(2 * math.pi)
# int_{-inf}^0 Phi(t)^2 dt = phi(0) - Phi(0) / sqrt(pi), from the antiderivative t Phi^2 + 2 Phi phi - Phi(t sqrt 2) / sqrt(pi)
SQUARED_TAIL = PHI_ZERO - 1 / (2 * math.sqrt(math.pi))


class Bar(Continuous):
    """Bars over `borders` in standard units, y = loc + scale z, the two outer bars replaced by half-normal tails.

    With probabilities p = softmax(logits), inner bar k has the density p_k / (b_{k+1} - b_k). The first bar is
    b_1 - s_0 |N(0, 1)| and the last b_{K-1} + s_{K-1} |N(0, 1)|, with s = width / 0.67449, so that half of an outer
    bar's mass lies beyond its old border (Mueller et al. 2022, arXiv 2112.10510, section 4 and appendix).

    Args:
        logits: one for each bar, batch axes first.
        borders: increasing, one more than there are bars, shared by the batch.
        loc, scale: an affine map of the target, applied to the borders; scale > 0.

    Raises:
        ValueError: the borders do not increase, are not finite, or do not match the logits.
    """

    arg_constraints = {}
    support = constraints.real
    has_rsample = True

    def __init__(
        self,
        logits: Float[Tensor, "*#batch bars"],
        borders: Float[Tensor, " edges"],
        loc: float | Float[Tensor, "*#batch"] = 0.0,
        scale: float | Float[Tensor, "*#batch"] = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        if borders.ndim != 1 or borders.shape[0] != logits.shape[-1] + 1 or logits.shape[-1] < 2:
            raise ValueError(
                "borders must be one axis with one more entry than there are logits (at least 2), "
                f"got borders {tuple(borders.shape)} and logits {tuple(logits.shape)}"
            )
        loc, scale = (torch.as_tensor(v, dtype=borders.dtype, device=borders.device) for v in (loc, scale))
        batch = torch.broadcast_shapes(logits.shape[:-1], loc.shape, scale.shape)
        self.logits = logits.expand(*batch, -1)
        self.borders, self.loc, self.scale = borders, loc.expand(batch), scale.expand(batch)
        super().__init__(batch, validate_args=validate_args)
        if self._validate_args and not (torch.isfinite(borders).all() and (borders.diff() > 0).all()):
            raise ValueError("borders must be finite and strictly increasing; merge ties with Bar.borders_of")
        if self._validate_args and not (self.scale > 0).all():
            raise ValueError(f"scale must be positive, got a minimum of {self.scale.min().item()}; use affine to reflect")

    @staticmethod
    def borders_of(targets: Float[Tensor, " n"], bars: int) -> Float[Tensor, " edges"]:
        """Borders of `bars` bars that hold equal shares of the sample `targets`, from its least to its greatest.

        Ties (atoms in the sample) would make bars of width zero; each such run becomes a single border, so the
        result may hold fewer bars than asked for.

        Raises:
            ValueError: the sample is not finite, or has fewer than three distinct borders.
        """
        targets = targets.detach().double().flatten().sort().values
        if not torch.isfinite(targets).all():
            raise ValueError("targets must be finite; drop NaN and infinite draws of the prior")
        index = torch.linspace(0, targets.numel() - 1, bars + 1, dtype=torch.float64)
        low = index.floor().long()
        high = index.ceil().long()
        borders = torch.lerp(targets[low], targets[high], index - low)
        borders = torch.unique_consecutive(borders.float())  # distinct in the precision they are used in
        if borders.numel() < 3:
            raise ValueError(f"targets must spread over at least two bars, got {borders.numel()} distinct borders")
        return borders

    def affine(self, loc: float | Tensor, scale: float | Tensor) -> "Bar":
        """Distribution of loc + scale Y, its borders moved and its density exact; a negative scale reflects.

        Raises:
            ValueError: `scale` is zero, or mixes signs.
        """
        loc, scale = (torch.as_tensor(v, dtype=self.scale.dtype, device=self.scale.device) for v in (loc, scale))
        if (scale > 0).all():
            return Bar(self.logits, self.borders, loc + scale * self.loc, scale * self.scale)
        if (scale < 0).all():
            return Bar(self.logits.flip(-1), -self.borders.flip(0), loc + scale * self.loc, -scale * self.scale)
        raise ValueError("scale must be all positive or all negative")

    def expand(self, batch_shape, _instance=None) -> Self:
        new = self._get_checked_instance(Bar, _instance)
        shape = torch.Size(batch_shape)
        new.borders, new.logits = self.borders, self.logits.expand(*shape, -1)
        new.loc, new.scale = self.loc.expand(shape), self.scale.expand(shape)
        super(Bar, new).__init__(shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    # Bars in standard units. Sums of many small probabilities run in float64.

    @property
    def bars(self) -> int:
        """Number of bars."""
        return self.logits.shape[-1]

    @property
    def probs(self) -> Float[Tensor, "*batch bars"]:
        """Probability of every bar."""
        return torch.softmax(self.logits, -1)

    @property
    def edges(self) -> Float[Tensor, "*batch edges"]:
        """Borders in the target's units."""
        return self.loc.unsqueeze(-1) + self.scale.unsqueeze(-1) * self.borders

    def _standard(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Borders, tail scales and value in standard units, in float64."""
        b = self.borders.double()
        z = (value.double() - self.loc.double()) / self.scale.double()
        return b, (b[1] - b[0]) / HALF_NORMAL_MEDIAN, (b[-1] - b[-2]) / HALF_NORMAL_MEDIAN, z

    def _cumulative(self) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities, mass below every bar and mass above every bar, in float64; each sum ends at exactly 1."""
        p = torch.softmax(self.logits.double(), -1)
        below = torch.nn.functional.pad(p.cumsum(-1)[..., :-1], (1, 0))
        above = torch.nn.functional.pad(p.flip(-1).cumsum(-1)[..., :-1], (1, 0)).flip(-1)
        return p, below, above

    def _back(self, z: Tensor) -> Tensor:
        return (self.loc + self.scale * z).to(torch.promote_types(self.logits.dtype, self.scale.dtype))

    def _index(self, z: Tensor) -> Int[Tensor, "*shape"]:
        return torch.bucketize(z, self.borders[1:-1].double())

    def _pick(self, values: Float[Tensor, "*batch bars"], index: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        shape = torch.broadcast_shapes(index.shape, self.batch_shape)
        return values.expand(*shape, -1).gather(-1, index.expand(shape).unsqueeze(-1)).squeeze(-1)

    def _log_height(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log density of a unit of mass in every bar (its peak in a tail), and the two tail scales."""
        width = self.borders.diff()
        ends = width[0] / HALF_NORMAL_MEDIAN, width[-1] / HALF_NORMAL_MEDIAN
        height = -width.log()
        tails = torch.stack([math.log(HALF_NORMAL_MEAN) - s.log() for s in ends])
        return torch.cat([tails[:1], height[1:-1], tails[1:]]), ends[0], ends[1]

    def log_prob(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log softmax_k - log width_k in bar k, and the half-normal's log density in a tail."""
        if self._validate_args:
            self._validate_sample(value)
        height, left, right = self._log_height()
        z = (value - self.loc) / self.scale
        b = self.borders
        index = torch.bucketize(z.detach(), b[1:-1])
        tail = torch.minimum((z - b[1]) / left, torch.zeros_like(z)) + torch.relu((z - b[-2]) / right)
        log_p = torch.log_softmax(self.logits, -1)
        return self._pick(log_p, index) + height[index] - tail.square() / 2 - self.scale.log()

    def cdf(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        b, left, right, z = self._standard(value)
        p, below, _ = self._cumulative()
        index = self._index(z)
        inside = (z - b[index]) / (b[index + 1] - b[index])
        inside = torch.where(index == 0, 2 * torch.special.ndtr((z - b[1]).clamp(max=0) / left), inside)
        inside = torch.where(index == self.bars - 1, torch.erf((z - b[-2]).clamp(min=0) / right / math.sqrt(2)), inside)
        return (self._pick(below, index) + self._pick(p, index) * inside).clamp(0, 1).to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.logits.dtype, self.scale.dtype)

    def icdf(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """Exact inverse of `cdf`: linear in a bar, the normal's quantile in a tail."""
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        u = value.double().expand(shape)
        p, below, above = self._cumulative()
        lead = u.reshape(-1, *self.batch_shape).movedim(0, -1).contiguous()  # searchsorted wants the batch first
        index = torch.searchsorted(below[..., 1:].contiguous(), lead.detach()).movedim(-1, 0).reshape(shape)
        mass = self._pick(p, index).clamp(min=torch.finfo(torch.float64).tiny)
        b, left, right, _ = self._standard(self.loc)
        inside = ((u - self._pick(below, index)) / mass).clamp(0, 1)
        z = b[index] + inside * (b[index + 1] - b[index])
        tail = ((1 - u - self._pick(above, index)) / mass).clamp(0, 1)
        z = torch.where(index == 0, b[1] + left * torch.special.ndtri(inside / 2), z)
        z = torch.where(index == self.bars - 1, b[-2] - right * torch.special.ndtri(tail / 2), z)
        return self._back(z)

    def rsample(self, sample_shape=torch.Size()) -> Float[Tensor, "..."]:
        shape = self._extended_shape(sample_shape)
        u = torch.rand(shape, dtype=torch.float64, device=self.logits.device)
        return self.icdf(u.clamp(min=torch.finfo(torch.float64).tiny))

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of every bar, in standard units."""
        b, left, right, _ = self._standard(self.loc)
        mean, variance = (b[1:] + b[:-1]) / 2, b.diff().square() / 12
        ends = torch.stack([b[1] - left * HALF_NORMAL_MEAN, b[-2] + right * HALF_NORMAL_MEAN])
        tails = torch.stack([left, right]).square() * (1 - 2 / math.pi)
        return (
            torch.cat([ends[:1], mean[1:-1], ends[1:]]),
            torch.cat([tails[:1], variance[1:-1], tails[1:]]),
        )

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        return self._back(torch.softmax(self.logits.double(), -1) @ self._moments()[0])

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """Law of total variance over the bars, a sum of non-negative terms."""
        p, (mean, variance) = torch.softmax(self.logits.double(), -1), self._moments()
        centre = (p @ mean).unsqueeze(-1)
        total = (p * (variance + (mean - centre).square())).sum(-1)
        return (self.scale.square() * total).to(self._dtype)

    @property
    def mode(self) -> Float[Tensor, "*batch"]:
        """Where the density is greatest: the middle of the highest bar, or the inner border of a tail."""
        index = (self.logits + self._log_height()[0]).argmax(-1)
        b = self.borders
        places = torch.cat([b[1:2], ((b[1:] + b[:-1]) / 2)[1:-1], b[-2:-1]])
        return self._back(places[index])

    def absolute_error(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """sum_k p_k E|Y_k - y|, each bar in closed form.

        A bar [l, h] that holds y gives ((y - l)^2 + (h - y)^2) / 2(h - l), any other |middle - y|. A half-normal tail
        of scale s at distance a from its anchor gives s (a erf(a / sqrt 2) + 2 sqrt(2 / pi) exp(-a^2 / 2)
        - a - sqrt(2 / pi)) + s (2 a) on its own side, which is E| s|Z| - s a |, and s (a + sqrt(2 / pi)) on the other.
        """
        b, left, right, z = self._standard(value)
        p = torch.softmax(self.logits.double(), -1)
        z = z.unsqueeze(-1)
        low, high = b[1:-2], b[2:-1]
        below, over = (z - low).clamp(min=0), (high - z).clamp(min=0)
        width = high - low
        # outside the bar one of the two is zero and the other exceeds the width by the distance to the bar
        inner = (below.clamp(max=width).square() + over.clamp(max=width).square()) / (2 * width)
        inner = inner + (below - width).clamp(min=0) + (over - width).clamp(min=0)
        first, last = _half_normal_error((b[1] - z) / left) * left, _half_normal_error((z - b[-2]) / right) * right
        error = (p * torch.cat([first, inner, last], -1)).sum(-1)
        return (self.scale * error).to(self._dtype)

    @property
    def mean_difference(self) -> Float[Tensor, "*batch"]:
        """E|Y - Y'| = 2 int F (1 - F), with F linear in every bar and 2 p Phi in a tail."""
        b, left, right, _ = self._standard(self.loc)
        p, below, above = self._cumulative()
        f0, f1 = below[..., 1:-1], below[..., 1:-1] + p[..., 1:-1]
        inner = ((f0 + f1) / 2 - (f0.square() + f0 * f1 + f1.square()) / 3) @ (b[2:-1] - b[1:-2])
        ends = p[..., [0, -1]]
        tails = (2 * PHI_ZERO * ends - 4 * SQUARED_TAIL * ends.square()) @ torch.stack([left, right])
        return (2 * self.scale * (inner + tails)).to(self._dtype)


def _half_normal_error(a: Tensor) -> Tensor:
    """E| |Z| - a | for Z ~ N(0, 1): sqrt(2/pi) - a for a < 0, else a(2 erf(a / sqrt 2) - 1) + sqrt(2/pi)(2 exp(-a^2/2) - 1)."""
    outside = HALF_NORMAL_MEAN - a
    inside = a * (2 * torch.erf(a / math.sqrt(2)) - 1) + HALF_NORMAL_MEAN * (2 * torch.exp(-a.square() / 2) - 1)
    return torch.where(a < 0, outside, inside)
