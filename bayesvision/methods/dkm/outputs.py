"""The output layer: Gaussian processes on the last Gram matrix, for numbers and for classes."""

import math

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from bayesvision.methods.dkm.machine import Features
from bayesvision.nn.kernels import cholesky

__all__ = ["GaussianOutput", "SoftmaxOutput", "Statistics", "Weights"]

QUIET = 1e-6  # least variance of the noise, in standardised units
CAUTION = 9.0  # steps that the learning of q(w) is held to have behind it when it begins
SWING = 0.5  # deviation of the logarithm of a varying noise, at the start
TINY = 1e-300
FASTEST = 40.0  # most that the logarithm of a varying noise can be from its mean


def solved(
    precision: Float[Tensor, "laws P P"], shift: Float[Tensor, "outputs P"]
) -> tuple[Float[Tensor, "outputs P"], Float[Tensor, "laws P P"]]:
    """Means m and factors R of N(m, R R^T), whose precisions are I + `precision`, and (I + precision) m = shift.

    One precision may be that of all.
    """
    eye = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    lower = cholesky(eye + precision, "the precision of the output's weights")
    root = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False).mT
    return (root @ (root.mT @ shift.unsqueeze(-1))).squeeze(-1), root


class Weights(nn.Module):
    """q(w_k) = N(m_k, S), S^-1 = I + A and m_k = S b_k, learned by natural gradients from parts of the rows.

    For f = a^T w + e, and a sum over rows whose derivatives to the mean and the variance of f are g and -h / 2, a step
    of the natural gradient is (Khan and Lin 2017, arXiv 1703.04265, section 3)

        A <- (1 - r) A + r sum h a a^T,    b_k <- (1 - r) b_k + r sum (g_k + h a^T m_k) a,

    with r = (t + 9)^-1/2 at the t-th step. For Gaussian noise it has the optimum as its fixed point.

    Args:
        count: P.
        outputs: numbers of processes.
        shared: whether all have one S.
    """

    square: Tensor
    shift: Tensor
    steps: Tensor

    def __init__(self, count: int, outputs: int, shared: bool) -> None:
        super().__init__()
        self.register_buffer("square", torch.zeros(1 if shared else outputs, count, count, dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(outputs, count, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))

    def mean_and_factor(self) -> tuple[Float[Tensor, "outputs P"], Float[Tensor, "laws P P"]]:
        """Means and factors R of the covariances R R^T."""
        return solved(self.square, self.shift)

    def divergence(self) -> Float[Tensor, ""]:
        """KL(q(w) || N(0, I)), summed over outputs."""
        mean, root = self.mean_and_factor()
        own = (root.square().sum((-1, -2)) - root.shape[-1]) / 2 - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return mean.square().sum() / 2 + own.sum() * len(mean) / len(root)

    def forward(self, a: Float[Tensor, "P n"], rest: Float[Tensor, " n"]) -> tuple[Tensor, Tensor]:
        """Mean [n, outputs] and variance [n, laws] of f at every row."""
        mean, root = self.mean_and_factor()
        return a.mT @ mean.mT, rest.unsqueeze(-1) + (root.mT @ a).square().sum(-2).mT

    @torch.no_grad()
    def learn(self, a: Float[Tensor, "P n"], g: Tensor, h: Tensor, share: float) -> None:
        """One step from a part `share` of the rows, g [n, outputs] and h [n, outputs]."""
        self.steps += 1
        rate = (self.steps + CAUTION).rsqrt()
        mean, _ = self.mean_and_factor()
        h = h.mean(1, keepdim=True).expand_as(h) if len(self.square) < len(self.shift) else h
        shift = (g + h * (a.mT @ mean.mT)).mT @ a.mT
        square = (a * h.mT[: len(self.square)].unsqueeze(1)) @ a.mT
        self.square.lerp_(square / share, rate)
        self.shift.lerp_(shift / share, rate)


class Statistics(nn.Module):
    """Sums over rows that have been seen, each with a weight: of a a^T, of a y; they add up, in any order."""

    square: Tensor
    product: Tensor

    def __init__(self, square: Float[Tensor, "laws P P"], product: Float[Tensor, "outputs P"]) -> None:
        super().__init__()
        self.register_buffer("square", square)
        self.register_buffer("product", product)

    def added(
        self, a: Float[Tensor, "P n"], y: Float[Tensor, "n outputs"], weight: Float[Tensor, "n laws"]
    ) -> "Statistics":
        """With more rows."""
        square = (a * weight.mT.unsqueeze(1)) @ a.mT
        return Statistics(self.square + square, self.product + (weight * y).mT @ a.mT)


class GaussianOutput(nn.Module):
    """y = f + noise, f = a^T w + e with w ~ N(0, I) and e ~ N(0, rest) for each output.

    The variance of the noise is a number s for each output, or varies: s exp(g), g another process on the same Gram
    matrix.

    Args:
        outputs: numbers of a target.
        count: P.
        batched: whether training sees parts of the rows at a time, and so learns q(w).
        varying: whether the noise varies.
    """

    def __init__(self, outputs: int, count: int, batched: bool, varying: bool = False) -> None:
        super().__init__()
        self.log_noise = nn.Parameter(torch.full((outputs,), math.log(0.1), dtype=torch.float64))
        self.weights = Weights(count, outputs, False) if batched or varying else None
        self.swing = Weights(count, outputs, False) if varying else None
        start = torch.full((outputs,), math.log(SWING), dtype=torch.float64)
        self.log_swing = nn.Parameter(start) if varying else None

    @property
    def noise(self) -> Float[Tensor, " outputs"]:
        """Variance of the noise of each output; where it varies, at g = 0."""
        return self.log_noise.exp() + QUIET

    def bound(self, seen: Features, y: Float[Tensor, "n outputs"]) -> Float[Tensor, ""]:
        """The lower bound of log p(y), q(w) at its optimum (Titsias 2009, eq. 9), summed over outputs.

        log N(y; 0, a^T a + s I) - sum rest / (2 s), s the noise.
        """
        n, total = y.shape[0], y.new_zeros(())
        for noise, target in zip(self.noise, y.mT, strict=True):
            scaled = seen.a / noise.sqrt()
            eye = torch.eye(len(scaled), dtype=scaled.dtype, device=scaled.device)
            lower = cholesky(eye + scaled @ scaled.mT, "the precision of the output's weights")
            told = torch.linalg.solve_triangular(lower, (scaled @ target).unsqueeze(-1), upper=False)
            fit = (target.square().sum() - told.square().sum()) / noise
            log_det = 2 * lower.diagonal().log().sum() + n * noise.log()
            total = total - (fit + log_det + n * math.log(2 * math.pi) + seen.rest.sum() / noise) / 2
        return total

    def batch_bound(self, seen: Features, y: Float[Tensor, "n outputs"], share: float) -> Float[Tensor, ""]:
        """The same bound for the q(w) of now (Hensman et al. 2013, eq. 4), of a part `share` of the rows.

        With g ~ N(m, v) at a row, E log N(y; f, s exp g) = -(log 2 pi s + m + exp(v / 2 - m) E (y - f)^2 / s) / 2.
        Each call in training is followed by a step of q(w).
        """
        assert self.weights is not None
        mean, variance = self.weights(seen.a, seen.rest)
        middle, spread = self._swing(seen)
        precision = (spread / 2 - middle).exp() / self.noise
        squares = ((y - mean).square() + variance) * precision
        told = -(squares + middle + self.noise.log() + math.log(2 * math.pi)).sum() / 2
        told = told - share * self.weights.divergence()
        if self.swing is not None:
            told = told - share * self.swing.divergence()
        if self.training:
            self.weights.learn(seen.a, ((y - mean) * precision).detach(), precision.detach().expand_as(mean), share)
        if self.training and self.swing is not None and self.log_swing is not None:
            scale, squares = self.log_swing.detach().exp(), squares.detach()
            a, _ = self._correlations(seen)
            self.swing.learn(a, scale * (squares - 1) / 2, scale.square() * squares / 2, share)
        return told

    def _swing(self, seen: Features) -> tuple[Tensor, Tensor]:
        """Mean and variance of g at every row, [n, outputs]; zeros [1, 1] where the noise does not vary."""
        if self.swing is None or self.log_swing is None:
            return seen.a.new_zeros(1, 1), seen.a.new_zeros(1, 1)
        a, rest = self._correlations(seen)
        mean, variance = self.swing(a, rest)
        scale = self.log_swing.exp()
        return (scale * mean).clamp(-FASTEST, FASTEST), (scale.square() * variance).clamp(max=FASTEST)

    @staticmethod
    def _correlations(seen: Features) -> tuple[Float[Tensor, "P n"], Float[Tensor, " n"]]:
        """a and rest of a process with the correlations of f and the variance 1 at every row."""
        rest = seen.rest if seen.rest.ndim == 1 else seen.rest.diagonal()
        whole = (seen.a.square().sum(0) + rest).clamp(min=TINY)
        return seen.a / whole.sqrt(), rest / whole

    def weight(self, seen: Features) -> Float[Tensor, "n laws"]:
        """What each row counts in `Statistics`: E exp(-g)."""
        mean, variance = self._swing(seen)
        return (variance / 2 - mean).exp().expand(seen.a.shape[1], -1)

    def noise_at(self, seen: Features) -> Float[Tensor, "n outputs"]:
        """Variance of the noise at every row: s E exp(g)."""
        mean, variance = self._swing(seen)
        return ((variance / 2 + mean).exp() * self.noise).expand(seen.a.shape[1], -1)

    def posterior(self, known: Statistics) -> tuple[Float[Tensor, "outputs P"], Float[Tensor, "outputs P P"]]:
        """Mean of w given all rows, and the factor R of its covariance R R^T, for each output."""
        noise = self.noise.unsqueeze(-1)
        return solved(known.square / noise.unsqueeze(-1), known.product / noise)


class SoftmaxOutput(nn.Module):
    """Classes by the softmax of one process each, with a q(w) that is learned and one covariance for all.

    Args:
        draws: of the processes, for expectations; a tenth of them in training.
    """

    def __init__(self, classes: int, count: int, draws: int) -> None:
        super().__init__()
        self.draws = draws
        self.weights = Weights(count, classes, True)

    def logits(self, seen: Features, source: Generator | None = None) -> Float[Tensor, "draws n classes"]:
        """Draws of the processes at every row; with the noise of `source` in place of the global one."""
        mean, variance = self.weights(seen.a, seen.rest)
        draws = math.ceil(self.draws / 10) if self.training else self.draws
        shape = (draws, 1 if source is not None else len(mean), mean.shape[1])
        noise = torch.randn(shape, dtype=mean.dtype, generator=source).to(mean.device)
        return mean + variance.clamp(min=0).sqrt() * noise

    def batch_bound(self, seen: Features, y: Int[Tensor, " n"], share: float) -> Float[Tensor, ""]:
        """Expected log-likelihood, by draws, less a share of the divergence of q(w).

        With p the softmax, its derivatives are E[1(y) - p] to the means and -E[p (1 - p)] / 2 to the variances.
        """
        chance = self.logits(seen).log_softmax(-1)
        labels = y.long().unsqueeze(-1)
        told = chance.gather(-1, labels.expand(len(chance), -1, -1)).mean(0).sum()
        told = told - share * self.weights.divergence()
        if self.training:
            p = chance.detach().exp()
            slope = -p.mean(0)
            slope.scatter_add_(-1, labels, torch.ones_like(slope[:, :1]))
            self.weights.learn(seen.a, slope, (p * (1 - p)).mean(0), share)
        return told
