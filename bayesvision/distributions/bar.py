"""`Bar`: the piecewise-uniform distribution with half-normal tails that the transformers predict."""

import math
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import constraints

from bayesvision.distributions.base import Continuous
from bayesvision.distributions.normal import log_gain

__all__ = ["Bar"]

HALF_NORMAL_MEDIAN = 0.6744897501960817  # the median of |N(0, 1)|
HALF_NORMAL_MEAN = math.sqrt(2 / math.pi)
PHI_ZERO = 1 / math.sqrt(2 * math.pi)
# int_{-inf}^0 Phi(t)^2 dt = phi(0) - Phi(0) / sqrt(pi), from the antiderivative
# t Phi(t)^2 + 2 Phi(t) phi(t) - Phi(t sqrt 2) / sqrt(pi)
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

    arg_constraints: ClassVar = {}  # pyright: ignore[reportAssignmentType] (torch's base declares properties)
    support = constraints.real  # pyright: ignore[reportAssignmentType]
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
        loc, scale = _same_kind(borders, loc, scale)
        batch = torch.broadcast_shapes(logits.shape[:-1], loc.shape, scale.shape)
        self.logits = logits.expand(*batch, -1)
        self.borders, self.loc, self.scale = borders, loc.expand(batch), scale.expand(batch)
        super().__init__(batch, validate_args=validate_args)
        if self._validate_args and not (torch.isfinite(borders).all() and (borders.diff() > 0).all()):
            raise ValueError("borders must be finite and strictly increasing; merge ties with Bar.borders_of")
        if self._validate_args and not (self.scale > 0).all():
            raise ValueError(
                f"scale must be positive, got a minimum of {self.scale.min().item()}; use affine to reflect"
            )

    @staticmethod
    def borders_of(targets: Float[Tensor, " n"], bars: int) -> Float[Tensor, " edges"]:
        """Borders of `bars` bars that hold equal parts of the sample `targets`, from its smallest to its largest.

        Ties (atoms in the sample) would make bars of width zero; each such run becomes a single border, so the
        result may hold fewer bars than asked for. An outer bar is at most twice as wide as all inner bars together:
        a heavy-tailed sample's extremes would stretch the tails until a millionth of mass there ruins every moment.

        Raises:
            ValueError: fewer than two bars, or a sample that is empty, not finite, or spread over fewer than two bars.
        """
        if bars < 2:
            raise ValueError(f"bars must be at least 2, got {bars}")
        targets = targets.detach().double().flatten().sort().values
        if not targets.numel():
            raise ValueError("targets must hold at least one value")
        if not torch.isfinite(targets).all():
            raise ValueError("targets must be finite; drop NaN and infinite draws of the prior")
        index = torch.linspace(0, targets.numel() - 1, bars + 1, dtype=torch.float64)
        low = index.floor().long()
        high = index.ceil().long()
        borders = torch.lerp(targets[low], targets[high], index - low)
        borders = torch.unique_consecutive(borders.float())  # distinct in the precision they are used in
        if borders.numel() < 3:
            raise ValueError(f"targets must spread over at least two bars, got {borders.numel()} distinct borders")
        reach = 2 * (borders[-2] - borders[1]) if borders.numel() > 3 else torch.inf
        borders[0], borders[-1] = (
            torch.maximum(borders[0], borders[1] - reach),
            torch.minimum(borders[-1], borders[-2] + reach),
        )
        return borders

    def affine(self, loc: float | Tensor, scale: float | Tensor) -> "Bar":
        """Distribution of loc + scale Y, its borders moved and its density exact; a negative scale reflects.

        Raises:
            ValueError: `scale` is zero, or mixes signs.
        """
        loc, scale = _same_kind(self.scale, loc, scale)
        if (scale > 0).all():
            return Bar(self.logits, self.borders, loc + scale * self.loc, scale * self.scale)
        if (scale < 0).all():
            return Bar(self.logits.flip(-1), -self.borders.flip(0), loc + scale * self.loc, -scale * self.scale)
        raise ValueError("scale must be all positive or all negative")

    def expand(self, batch_shape, _instance=None) -> Self:
        new: Any = self._get_checked_instance(Bar, _instance)
        shape = torch.Size(batch_shape)
        new.borders, new.logits = self.borders, self.logits.expand(*shape, -1)
        new.loc, new.scale = self.loc.expand(shape), self.scale.expand(shape)
        Continuous.__init__(new, shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _at(self, index: tuple[Any, ...]) -> Self:
        new = (self.logits[(*index, slice(None))], self.borders, self.loc[index], self.scale[index])
        return type(self)(*new, validate_args=False)

    # Bars in standard units. Sums of many small probabilities run in float64.

    @property
    def probs(self) -> Float[Tensor, "*batch bars"]:
        """Probability of every bar."""
        return torch.softmax(self.logits, -1)

    @property
    def edges(self) -> Float[Tensor, "*batch edges"]:
        """Borders in the target's units."""
        return self.loc.unsqueeze(-1) + self.scale.unsqueeze(-1) * self.borders

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.logits.dtype, self.scale.dtype)

    def _frame(self) -> tuple[Tensor, Tensor, Tensor]:
        """Borders and the scales of the two tails, in standard units and float64."""
        b = self.borders.double()
        return b, (b[1] - b[0]) / HALF_NORMAL_MEDIAN, (b[-1] - b[-2]) / HALF_NORMAL_MEDIAN

    def _standardize(self, value: Tensor) -> Tensor:
        """Value in standard units and float64."""
        return (value.double() - self.loc.double()) / self.scale.double()

    def _restore(self, z: Tensor) -> Tensor:
        """Value in the target's units from one in standard units."""
        return (self.loc + self.scale * z).to(self._dtype)

    def _cumulative(self) -> tuple[Tensor, Tensor, Tensor]:
        """Probability of every bar, mass below it and mass above it, in float64; each sum starts from its own end."""
        p = torch.softmax(self.logits.double(), -1)
        below = torch.nn.functional.pad(p.cumsum(-1)[..., :-1], (1, 0))
        above = torch.nn.functional.pad(p.flip(-1).cumsum(-1)[..., :-1], (1, 0)).flip(-1)
        return p, below, above

    def _pick(self, values: Float[Tensor, "*batch bars"], index: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        shape = torch.broadcast_shapes(index.shape, self.batch_shape)
        return values.expand(*shape, -1).gather(-1, index.expand(shape).unsqueeze(-1)).squeeze(-1)

    def _log_height(self) -> Float[Tensor, " bars"]:
        """Log density of a unit of mass in every bar, its peak in a tail; in float64."""
        b, left, right = self._frame()
        tails = math.log(HALF_NORMAL_MEAN) - torch.stack([left, right]).log()
        return torch.cat([tails[:1], -b[1:-1].diff().log(), tails[1:]])

    def log_prob(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log softmax_k - log width_k in bar k, and the half-normal's log density in a tail."""
        if self._validate_args:
            self._validate_sample(value)
        z = (value - self.loc) / self.scale
        b, left, right = (v.to(z.dtype) for v in self._frame())
        index = torch.bucketize(z.detach().contiguous(), b[1:-1])
        tail = (z - b[1]).clamp(max=0) / left + (z - b[-2]).clamp(min=0) / right
        log_mass = self._pick(torch.log_softmax(self.logits, -1), index)
        return log_mass + self._log_height().to(z.dtype)[index] - tail.square() / 2 - self.scale.log()

    def cdf(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """Mass of the bars below, and the fraction of its own bar: linear in a bar, the half-normal's in a tail."""
        z, (b, left, right) = self._standardize(value), self._frame()
        p, below, _ = self._cumulative()
        index = torch.bucketize(z.detach().contiguous(), b[1:-1])
        share = (z - b[index]) / (b[index + 1] - b[index])
        share = torch.where(index == 0, torch.erfc((b[1] - z).clamp(min=0) / left / math.sqrt(2)), share)
        share = torch.where(
            index == self.logits.shape[-1] - 1, torch.erf((z - b[-2]).clamp(min=0) / right / math.sqrt(2)), share
        )
        return (self._pick(below, index) + self._pick(p, index) * share).clamp(0, 1).to(self._dtype)

    def icdf(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """Exact inverse of `cdf`: linear in a bar, the normal's quantile in a tail."""
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        u = value.double().expand(shape)
        p, below, above = self._cumulative()
        batch = shape[len(shape) - len(self.batch_shape) :]
        edges = below[..., 1:].expand(*batch, -1).contiguous()
        lead = u.reshape(shape.numel() // max(1, batch.numel()), *batch).movedim(0, -1)  # searchsorted wants it last
        index = torch.searchsorted(edges.detach(), lead.detach().contiguous()).movedim(-1, 0).reshape(shape)
        mass = self._pick(p, index).clamp(min=torch.finfo(torch.float64).tiny)
        share = ((u - self._pick(below, index)) / mass).clamp(0, 1)
        rest = ((1 - u - self._pick(above, index)) / mass).clamp(0, 1)
        b, left, right = self._frame()
        first, last = index == 0, index == self.logits.shape[-1] - 1
        z = b[index] + share * (b[index + 1] - b[index])
        # outside its tail ndtri sees 1/2, so that its gradient is finite where it is not used
        z = torch.where(first, b[1] + left * torch.special.ndtri(share.where(first, 1) / 2), z)
        z = torch.where(last, b[-2] - right * torch.special.ndtri(rest.where(last, 1) / 2), z)
        return self._restore(z)

    def rsample(self, sample_shape: tuple[int, ...] = ()) -> Float[Tensor, "..."]:
        """Inverse transform `icdf(U)` of uniforms drawn in float64."""
        u = torch.rand(self._extended_shape(sample_shape), dtype=torch.float64, device=self.logits.device)
        return self.icdf(u.clamp(min=torch.finfo(torch.float64).tiny))

    def probability_above(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """P(Y > threshold) as the reflected distribution's cdf, accurate in the upper tail too."""
        return self.affine(0.0, -1.0).cdf(-self._value(threshold))

    def log_cdf(self, value: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log P(Y <= value), the reflected distribution's `log_probability_above`."""
        return self.affine(0.0, -1.0).log_probability_above(-self._value(value))

    def log_probability_above(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log sum_k p_k P(Y_k > t): a share in a bar, erf in the lower tail and erfc in the upper one."""
        z, (b, left, right) = self._standardize(self._value(threshold)).unsqueeze(-1), self._frame()
        inner = ((b[2:-1] - z) / b[1:-1].diff()).clamp(0, 1)
        first = torch.erf((b[1] - z).clamp(min=0) / left / math.sqrt(2))
        last = math.log(2) + torch.special.log_ndtr(-(z - b[-2]).clamp(min=0) / right)
        return self._log_sum(torch.cat([first, inner], -1), last)

    def log_expected_improvement(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log sum_k p_k E max(Y_k - t, 0), each term in closed form.

        An inner bar [l, h] has h - t where it lies above t, otherwise (h - t)^2 / 2 (h - l), minus what of it lies
        below l; the upper tail, of scale s and with a = (t - b) / s, has s (sqrt(2 / pi) - a) for a < 0, else
        2 s E max(Z - a, 0); the lower one with c = (b - t) / s > 0 has s (c erf(c / sqrt 2) - 2 (phi(0) - phi(c))).
        """
        z, (b, left, right) = self._standardize(self._value(threshold)).unsqueeze(-1), self._frame()
        low, high = b[1:-2], b[2:-1]
        inside = torch.minimum(torch.maximum(z, low), high)
        inner = (high - inside).square() / (2 * (high - low)) + (low - z).clamp(min=0)
        c = (b[1] - z).clamp(min=0) / left
        first = left * (c * torch.erf(c / math.sqrt(2)) + 2 * PHI_ZERO * torch.expm1(-c.square() / 2))
        a = (z - b[-2]) / right
        below = (HALF_NORMAL_MEAN - a.clamp(max=0)).log()
        last = right.log() + torch.where(a < 0, below, math.log(2) + log_gain(-a.clamp(min=0)))
        return self.scale.log() + self._log_sum(torch.cat([first, inner], -1), last).to(self._dtype)

    def _log_sum(self, parts: Tensor, log_last: Tensor) -> Float[Tensor, "*shape"]:
        """log sum_k p_k v_k of the values of all bars, that of the last one given as its logarithm."""
        logs = torch.where(parts > 0, parts.where(parts > 0, 1.0).log(), -torch.inf)
        total = torch.log_softmax(self.logits.double(), -1) + torch.cat([logs, log_last], -1)
        return total.logsumexp(-1).to(self._dtype)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of every bar, in standard units and float64."""
        b, left, right = self._frame()
        mean, variance = (b[1:] + b[:-1]) / 2, b.diff().square() / 12
        ends = torch.stack([b[1] - left * HALF_NORMAL_MEAN, b[-2] + right * HALF_NORMAL_MEAN])
        tails = torch.stack([left, right]).square() * (1 - 2 / math.pi)
        return (
            torch.cat([ends[:1], mean[1:-1], ends[1:]]),
            torch.cat([tails[:1], variance[1:-1], tails[1:]]),
        )

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        return self._restore(torch.softmax(self.logits.double(), -1) @ self._moments()[0])

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """Law of total variance over the bars, a sum of non-negative terms."""
        return self.stddev.square()

    @property
    def stddev(self) -> Float[Tensor, "*batch"]:
        """Square root of the variance, finite where a square in the target's units would overflow."""
        p, (mean, variance) = torch.softmax(self.logits.double(), -1), self._moments()
        centre = (p @ mean).unsqueeze(-1)
        total = (p * (variance + (mean - centre).square())).sum(-1)
        return (self.scale * total.sqrt()).to(self._dtype)

    @property
    def mode(self) -> Float[Tensor, "*batch"]:
        """Where the density is largest: the middle of the highest bar, or the inner border of a tail."""
        index = (self.logits + self._log_height()).argmax(-1)
        b = self.borders
        places = torch.cat([b[1:2], (b[1:-2] + b[2:-1]) / 2, b[-2:-1]])
        return self._restore(places[index])

    def expected_absolute_error(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """E|Y - y| = sum_k p_k E|Y_k - y|, each term in closed form.

        For an inner bar [l, h], with c the point of the bar nearest to y, E|Y_k - y| is
        |y - c| + ((c - l)^2 + (h - c)^2) / 2(h - l). For a tail of scale s it is s E| |Z| - a |, Z ~ N(0, 1), with
        s a the distance from the tail's inner border to y, positive towards the tail (see `_half_normal_error`).
        """
        z, (b, left, right) = self._standardize(value).unsqueeze(-1), self._frame()
        low, high = b[1:-2], b[2:-1]
        near = torch.minimum(torch.maximum(z, low), high)
        inner = (z - near).abs() + ((near - low).square() + (high - near).square()) / (2 * (high - low))
        first = left * _half_normal_error((b[1] - z) / left)
        last = right * _half_normal_error((z - b[-2]) / right)
        p = torch.softmax(self.logits.double(), -1)
        error = (p * torch.cat([first, inner, last], -1)).sum(-1)
        return (self.scale * error).to(self._dtype)

    @property
    def mean_difference(self) -> Float[Tensor, "*batch"]:
        """E|Y - Y'| = 2 int F (1 - F), with F linear in every bar and 2 p Phi in a tail."""
        b, left, right = self._frame()
        p, below, _ = self._cumulative()
        f0, f1 = below[..., 1:-1], below[..., 2:]
        inner = ((f0 + f1) / 2 - (f0.square() + f0 * f1 + f1.square()) / 3) @ (b[2:-1] - b[1:-2])
        ends = p[..., [0, -1]]
        tails = (2 * PHI_ZERO * ends - 4 * SQUARED_TAIL * ends.square()) @ torch.stack([left, right])
        return (2 * self.scale * (inner + tails)).to(self._dtype)


def _same_kind(like: Tensor, *values: float | Tensor) -> list[Tensor]:
    """The values as tensors on the device of `like`, in the widest dtype among `like` and the tensors."""
    kind = like.dtype
    for value in values:
        if isinstance(value, Tensor):
            kind = torch.promote_types(kind, value.dtype)
    return [torch.as_tensor(value, dtype=kind, device=like.device) for value in values]


def _half_normal_error(a: Tensor) -> Tensor:
    """E| |Z| - a | for Z ~ N(0, 1).

    sqrt(2 / pi) - a for a < 0, else a (2 erf(a / sqrt 2) - 1) + sqrt(2 / pi) (2 exp(-a^2 / 2) - 1).
    """
    outside = HALF_NORMAL_MEAN - a
    inside = a * (2 * torch.erf(a / math.sqrt(2)) - 1) + HALF_NORMAL_MEAN * (2 * torch.exp(-a.square() / 2) - 1)
    return torch.where(a < 0, outside, inside)
