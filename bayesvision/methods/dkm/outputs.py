"""The output layer: a Gaussian process on the last Gram matrix, in closed form for numbers, by draws for classes."""

import math

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from bayesvision.methods.dkm.machine import Features, spread, triangle

__all__ = ["GaussianOutput", "SoftmaxOutput", "Statistics"]

QUIET = 1e-6  # least variance of the noise, in standardised units


class Statistics(nn.Module):
    """Sums over rows that have been seen: of a a^T, of a y^T; they add up, in any order."""

    square: Tensor
    product: Tensor

    def __init__(self, square: Float[Tensor, "P P"], product: Float[Tensor, "P outputs"]) -> None:
        super().__init__()
        self.register_buffer("square", square)
        self.register_buffer("product", product)

    def added(self, a: Float[Tensor, "P n"], y: Float[Tensor, "n outputs"]) -> "Statistics":
        """With more rows."""
        return Statistics(self.square + a @ a.mT, self.product + a @ y)


class GaussianOutput(nn.Module):
    """y = f + noise, f = a^T w + e with w ~ N(0, I) and e ~ N(0, rest) for each output.

    Args:
        outputs: numbers of a target; each has noise of its own.
        batched: whether training sees parts of the rows at a time, and so learns q(w) with one covariance for all.
    """

    def __init__(self, outputs: int, count: int, batched: bool) -> None:
        super().__init__()
        self.log_noise = nn.Parameter(torch.full((outputs,), math.log(0.1), dtype=torch.float64))
        self.mean = nn.Parameter(torch.zeros(count, outputs, dtype=torch.float64)) if batched else None
        self.lower = nn.Parameter(torch.zeros(count, count, dtype=torch.float64)) if batched else None

    @property
    def noise(self) -> Float[Tensor, " outputs"]:
        """Variance of the noise of each output."""
        return self.log_noise.exp() + QUIET

    def bound(self, seen: Features, y: Float[Tensor, "n outputs"]) -> Float[Tensor, ""]:
        """The lower bound of log p(y), q(w) at its optimum (Titsias 2009, eq. 9), summed over outputs.

        log N(y; 0, a^T a + s I) - sum rest / (2 s), s the noise.
        """
        n, total = y.shape[0], y.new_zeros(())
        for noise, target in zip(self.noise, y.mT, strict=True):
            scaled = seen.a / noise.sqrt()
            eye = torch.eye(len(scaled), dtype=scaled.dtype, device=scaled.device)
            lower = torch.linalg.cholesky(eye + scaled @ scaled.mT)
            told = torch.linalg.solve_triangular(lower, (scaled @ target).unsqueeze(-1), upper=False)
            fit = (target.square().sum() - told.square().sum()) / noise
            log_det = 2 * lower.diagonal().log().sum() + n * noise.log()
            total = total - (fit + log_det + n * math.log(2 * math.pi) + seen.rest.sum() / noise) / 2
        return total

    def batch_bound(self, seen: Features, y: Float[Tensor, "n outputs"], share: float) -> Float[Tensor, ""]:
        """The same bound for a q(w) that is learned (Hensman et al. 2013, eq. 4), of a part `share` of the rows."""
        assert self.mean is not None and self.lower is not None
        mean, variance = moments(seen, self.mean, triangle(self.lower))
        squares = (y - mean).square() + variance.unsqueeze(-1)
        fit = -(squares / self.noise + self.noise.log() + math.log(2 * math.pi)).sum() / 2
        return fit - share * divergence(self.mean, self.lower)

    def posterior(self, known: Statistics) -> tuple[Float[Tensor, "outputs P"], Float[Tensor, "outputs P P"]]:
        """Mean of w given all rows, and the factor R of its covariance R R^T, for each output."""
        eye = torch.eye(len(known.square), dtype=torch.float64, device=known.square.device)
        noise = self.noise.view(-1, 1, 1)
        lower = torch.linalg.cholesky(eye + known.square / noise)
        root = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)
        mean = root.mT @ (root @ (known.product.mT.unsqueeze(-1) / noise))
        return mean.squeeze(-1), root.mT


class SoftmaxOutput(nn.Module):
    """Classes by the softmax of one process each, with a q(w) that is learned and one covariance for all.

    Args:
        draws: of the processes, for expectations.
    """

    def __init__(self, classes: int, count: int, draws: int) -> None:
        super().__init__()
        self.draws = draws
        self.mean = nn.Parameter(torch.zeros(count, classes, dtype=torch.float64))
        self.lower = nn.Parameter(torch.zeros(count, count, dtype=torch.float64))

    def logits(self, seen: Features, source: Generator | None = None) -> Float[Tensor, "draws n classes"]:
        """Draws of the processes at every row; with the noise of `source` in place of the global one."""
        mean, variance = moments(seen, self.mean, triangle(self.lower))
        shape = (self.draws, 1 if source is not None else len(mean), mean.shape[1])
        noise = torch.randn(shape, dtype=mean.dtype, generator=source).to(mean.device)
        return mean + variance.clamp(min=0).sqrt().unsqueeze(-1) * noise

    def batch_bound(self, seen: Features, y: Int[Tensor, " n"], share: float) -> Float[Tensor, ""]:
        """Expected log-likelihood, by draws, less a share of the divergence of q(w)."""
        chance = self.logits(seen).log_softmax(-1)
        labels = y.long().expand(len(chance), -1).unsqueeze(-1)
        return chance.gather(-1, labels).mean(0).sum() - share * divergence(self.mean, self.lower)


def moments(seen: Features, mean: Tensor, root: Tensor) -> tuple[Float[Tensor, "n outputs"], Float[Tensor, " n"]]:
    """Mean of f for each output and its variance, which they share, for w ~ N(mean, root root^T)."""
    return seen.a.mT @ mean, seen.rest + (root.mT @ seen.a).square().sum(0)


def divergence(mean: Tensor, lower: Tensor) -> Float[Tensor, ""]:
    """KL(q(w) || N(0, I)), summed over outputs."""
    return mean.square().sum() / 2 + mean.shape[1] * spread(lower)
