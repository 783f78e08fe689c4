"""Leave-one-out predictions of a Gaussian process as inputs of a network: what is known in closed form is not learned.

A network that has to find lengthscales, invert covariances and resolve small noise by attention needs a great many
training tasks for it. Here a Gaussian process with one lengthscale for each column is fitted to the context first, by
a fixed number of steps towards the maximum a posteriori of its hyper-parameters, and the network predicts what is left:
its output is a distribution in units of the process's own predictive mean and standard deviation. A context row is told
what the process predicts for it from the other rows, so that it means the same as what a query is told.
"""

import math
from typing import NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["FittedProcess", "GPFeatures", "Hyperparameters", "fit_process"]

STEPS = 20  # of the search for the hyper-parameters
FIRST, GROWTH, DECAY = 0.4, 1.3, 0.5  # length of a step in logarithms, and its factors where signs agree and do not
SHORTEST, LONGEST = 1e-3, 2.0
STEEP = 3.0  # gradients well below 1 / STEEP take shorter steps
NOISE_FLOOR = 1e-6  # of the target's variance
JITTER = 1e-8
# Normal priors of the logarithms: mean and standard deviation
PRIORS = {"lengthscale": (1.0, 1.2), "variance": (0.0, 1.0), "slope": (-2.0, 2.0), "noise": (-3.0, 2.5)}


class Hyperparameters(NamedTuple):
    """Logarithms of the hyper-parameters of each data set.

    Attributes:
        lengthscale: of each column, relative to sqrt(columns).
        variance, slope, noise: variance of the Matern part, of the linear part, and of the noise.
    """

    lengthscale: Float[Tensor, "*batch columns"]
    variance: Float[Tensor, "*batch"]
    slope: Float[Tensor, "*batch"]
    noise: Float[Tensor, "*batch"]


class GPFeatures(NamedTuple):
    """What the process says about rows, in units of the standardised target.

    Attributes:
        mean: predictive mean of each output, from the other rows where the row is one of the context.
        stddev: predictive standard deviation, noise included.
    """

    mean: Float[Tensor, "*batch rows outputs"]
    stddev: Float[Tensor, "*batch rows"]


class _Kernel:
    """k(a, b) = variance m(r) + slope (1 + a^T b / columns), m Matern 5/2, r^2 = sum_c |a_c - b_c|^2 / l_c^2.

    A column c has several dimensions: its value, whether it is missing, and one for each level of a category, which
    share one lengthscale.
    """

    def __init__(self, hyper: Hyperparameters, columns: int, dims: int) -> None:
        self.hyper, self.columns, self.dims = hyper, columns, dims
        self.scale = (hyper.lengthscale + 0.5 * math.log(columns)).exp()

    def scaled(self, x: Float[Tensor, "*batch n columns dims"]) -> Float[Tensor, "*batch n all"]:
        return (x / self.scale.unsqueeze(-2).unsqueeze(-1)).flatten(-2)

    def distance(self, a: Tensor, b: Tensor) -> Float[Tensor, "*batch n m"]:
        """Squared scaled distances."""
        a, b = self.scaled(a), self.scaled(b)
        centre = b.mean(-2, keepdim=True)
        a, b = a - centre, b - centre
        norms = a.square().sum(-1, keepdim=True) + b.square().sum(-1).unsqueeze(-2)
        return (norms - 2 * a @ b.mT).clamp(min=1e-12)

    def linear(self, a: Tensor, b: Tensor) -> Float[Tensor, "*batch n m"]:
        return 1 + a.flatten(-2) @ b.flatten(-2).mT / self.columns

    def __call__(self, a: Tensor, b: Tensor) -> Float[Tensor, "*batch n m"]:
        s = (5 * self.distance(a, b)).sqrt()
        matern = (1 + s + s.square() / 3) * torch.exp(-s)
        variance, slope = (v.exp()[..., None, None] for v in (self.hyper.variance, self.hyper.slope))
        return variance * matern + slope * self.linear(a, b)

    def diagonal(self, a: Tensor) -> Float[Tensor, "*batch n"]:
        variance, slope = (v.exp().unsqueeze(-1) for v in (self.hyper.variance, self.hyper.slope))
        return variance + slope * (1 + a.square().sum((-1, -2)) / self.columns)


@torch.no_grad()
def fit_process(
    x: Float[Tensor, "*batch n columns dims"], y: Float[Tensor, "*batch n outputs"], steps: int = STEPS
) -> Hyperparameters:
    """Hyper-parameters near the maximum of log p(y | x) + log prior, which the outputs share.

    The search is Rprop (Riedmiller and Braun 1993): each parameter has a step of its own, which grows while the
    gradient keeps its sign and shrinks where it changes. It crosses the nine units of log noise between a rough start
    and a noise-free table in a dozen steps, for a whole batch of tables at once, where Adam takes eighty.
    """
    batch, columns = x.shape[:-3], x.shape[-2]
    hyper = Hyperparameters(
        x.new_full((*batch, columns), 0.5), x.new_zeros(batch), x.new_full(batch, -2.0), x.new_full(batch, -2.5)
    )
    sizes, last = [torch.full_like(v, FIRST) for v in hyper], [torch.zeros_like(v) for v in hyper]
    for _ in range(steps):
        moved = []
        for k, (value, gradient) in enumerate(zip(hyper, _gradients(hyper, x, y), strict=True)):
            turn = gradient * last[k]
            factor = torch.ones_like(turn).masked_fill(turn > 0, GROWTH).masked_fill(turn < 0, DECAY)
            sizes[k] = (sizes[k] * factor).clamp(SHORTEST, LONGEST)
            last[k] = torch.where(turn < 0, torch.zeros_like(gradient), gradient)  # and the next step starts afresh
            moved.append(value - sizes[k] * torch.tanh(STEEP * last[k]))
        hyper = Hyperparameters(*moved)
        hyper = hyper._replace(noise=hyper.noise.clamp(min=math.log(NOISE_FLOOR)))
    return hyper


def _gradients(
    hyper: Hyperparameters, x: Float[Tensor, "*batch n columns dims"], y: Float[Tensor, "*batch n outputs"]
) -> list[Tensor]:
    """Gradients of -log p(y | x) - log prior by each hyper-parameter.

    With A = (k(x, x) + noise I)^{-1} and alpha = A y, the gradient of -log p(y | x) by a parameter t is tr(W dk/dt),
    W = (outputs A - alpha alpha^T) / 2 (Rasmussen and Williams 2006, eq. 5.9). By a lengthscale, dk/dlog l_c is
    variance 5/3 (1 + s) exp(-s) |a_c - b_c|^2 / l_c^2 with s = sqrt 5 r, and the sum over pairs of weighted squared
    differences of one column takes two products.
    """
    kernel = _Kernel(hyper, *x.shape[-2:])
    s = (5 * kernel.distance(x, x)).sqrt()
    decay = torch.exp(-s)
    variance, slope, noise = (v.exp()[..., None, None] for v in hyper[1:])
    matern, linear = variance * (1 + s + s.square() / 3) * decay, slope * kernel.linear(x, x)
    inverse = torch.cholesky_inverse(_factor(matern + linear, noise))
    alpha = inverse @ y
    w = (y.shape[-1] * inverse - alpha @ alpha.mT) / 2
    m = w * (5 / 3) * variance * (1 + s) * decay
    scaled = kernel.scaled(x)
    squares = 2 * ((m.sum(-1, keepdim=True) * scaled.square()).sum(-2) - (scaled * (m @ scaled)).sum(-2))
    found = [
        squares.unflatten(-1, x.shape[-2:]).sum(-1),
        (w * matern).sum((-1, -2)),
        (w * linear).sum((-1, -2)),
        w.diagonal(dim1=-1, dim2=-2).sum(-1) * noise[..., 0, 0],
    ]
    priors = zip(PRIORS.values(), hyper, found, strict=True)
    return [gradient + (value - mean) / stddev**2 for (mean, stddev), value, gradient in priors]


def _factor(covariance: Tensor, noise: Tensor) -> Tensor:
    """Cholesky factor of covariance + noise I, with as much more on the diagonal as it takes."""
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    size = covariance.diagonal(dim1=-1, dim2=-2).mean(-1)[..., None, None]
    jitter = JITTER
    while True:
        factor, info = torch.linalg.cholesky_ex(covariance + (noise + jitter * size) * eye)
        if not info.any() or jitter > 1:
            return factor
        jitter *= 100


class FittedProcess(NamedTuple):
    """The process given context rows.

    Attributes:
        hyper: its hyper-parameters.
        x: the context's design.
        factor: Cholesky factor of k(x, x) + noise I.
        alpha: (k(x, x) + noise I)^{-1} y of each output.
        seen: what it says of each context row given the others.
    """

    hyper: Hyperparameters
    x: Float[Tensor, "*batch n columns dims"]
    factor: Float[Tensor, "*batch n n"]
    alpha: Float[Tensor, "*batch n outputs"]
    seen: GPFeatures

    @classmethod
    def of(cls, x: Float[Tensor, "*batch n columns dims"], y: Float[Tensor, "*batch n outputs"]) -> Self:
        """The process fitted to the rows (x, y).

        Without row i the prediction at it is y_i - alpha_i / A_ii with the variance 1 / A_ii, A = (k(x, x) + noise
        I)^{-1} (Rasmussen and Williams 2006, eq. 5.12).
        """
        hyper = fit_process(x, y)
        factor = _factor(_Kernel(hyper, *x.shape[-2:])(x, x), hyper.noise.exp()[..., None, None])
        inverse = torch.cholesky_inverse(factor)
        alpha, precision = inverse @ y, inverse.diagonal(dim1=-1, dim2=-2)
        seen = GPFeatures(y - alpha / precision.unsqueeze(-1), precision.rsqrt())
        return cls(hyper, x, factor, alpha, seen)

    def at(self, query: Float[Tensor, "*batch m columns dims"]) -> GPFeatures:
        """What the process says of the queries: k(x', x) alpha and k(x', x') - k(x', x) A k(x, x') + noise.

        Rasmussen and Williams (2006), eqs. 2.25-2.26.
        """
        kernel = _Kernel(self.hyper, *self.x.shape[-2:])
        cross = kernel(query, self.x)
        half = torch.linalg.solve_triangular(self.factor, cross.mT, upper=False)
        variance = kernel.diagonal(query) - half.square().sum(-2)
        noise = self.hyper.noise.exp().unsqueeze(-1)
        return GPFeatures(cross @ self.alpha, (variance.clamp(min=0) + noise).sqrt())
