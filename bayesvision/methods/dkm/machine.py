"""The layers of a deep kernel machine: Gram matrices of inducing points, learned, and what follows for other rows."""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesvision.nn.kernels import GramKernel, KernelName, factor

__all__ = ["Features", "GramLayer", "Grams", "Layered", "Machine", "Objective", "whitened_kernel"]

Objective = Literal["kl", "taylor"]


class Grams(NamedTuple):
    """Gram matrices of inducing points and rows.

    Attributes:
        inducing: [P, P] of inducing points with themselves.
        cross: [P, n] of inducing points with rows.
        rows: [n], the diagonal of rows with themselves; or [n, n], all of it.
    """

    inducing: Float[Tensor, "P P"]
    cross: Float[Tensor, "P n"]
    rows: Tensor

    @property
    def diagonal(self) -> Float[Tensor, " n"]:
        """Of rows with themselves."""
        return self.rows if self.rows.ndim == 1 else self.rows.diagonal()


class Features(NamedTuple):
    """A row as the output layer sees it: f = a^T w + e, w ~ N(0, I), e ~ N(0, rest).

    Attributes:
        a: [P, n], L^-1 K_it.
        rest: [n], or [n, n]: what inducing points do not tell, K_tt - a^T a.
        penalty: of each hidden layer, KL(N(0, G_l) || N(0, K(G_{l-1}))) or what the objective has in its place.
    """

    a: Float[Tensor, "P n"]
    rest: Tensor
    penalty: Float[Tensor, " layers"]


def triangle(lower: Float[Tensor, "P P"]) -> Float[Tensor, "P P"]:
    """A lower triangular factor W with a positive diagonal, whose logarithms `lower` has; the identity at zero."""
    return lower.tril(-1) + torch.diag_embed(lower.diagonal().exp())


def spread(lower: Float[Tensor, "P P"]) -> Float[Tensor, ""]:
    """KL(N(0, W W^T) || N(0, I)) = (|W|^2 - P) / 2 - sum log W_ii for W = triangle(lower)."""
    log_diagonal = lower.diagonal()
    return lower.tril(-1).square().sum() / 2 + ((2 * log_diagonal).expm1() / 2 - log_diagonal).sum()


def taylor(lower: Float[Tensor, "P P"]) -> Float[Tensor, ""]:
    """tr ((W W^T)^-1 - I)^2 / 4, the divergence to second order in (W W^T)^-1."""
    eye = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    inverse = torch.linalg.solve_triangular(triangle(lower), eye, upper=False)
    return (inverse @ inverse.mT - eye).square().sum() / 4


class GramLayer(nn.Module):
    """One learned Gram matrix G = V V^T of the inducing points, V = L W with L L^T = K.

    W is lower triangular with a positive diagonal, and the identity at the start, where G is K: the network of infinite
    width. Relative to L the divergence depends on W alone,

        KL(N(0, G) || N(0, K)) = (|W|^2 - P) / 2 - sum log W_ii,

    which is 0 at W = I only, and no solve can spoil it.

    Args:
        count: P.
        kernel: from the layer below.
        fixed: whether W stays the identity.
        ridge: of stochastic kernel regularisation (Milsom et al. 2024, arXiv 2410.06171, section 4): with it W in
            training is W Z / n^1/2, Z [P, n] normal and n = P / 4, and G gets `ridge` times its mean diagonal more.
        stiffness: number that W's parameters are divided by, so that a large penalty leaves their gradient as it is.
        objective: `kl`, or `taylor` for tr (G^-1 K - I)^2 / 4, which is near the KL where G is near K; it is 1/2 of the
            square in that paper, whose divergence has no factor 1/2.
    """

    nothing: Tensor

    def __init__(
        self,
        count: int,
        kernel: GramKernel,
        fixed: bool,
        ridge: float = 0.0,
        objective: Objective = "kl",
        stiffness: float = 1.0,
    ) -> None:
        super().__init__()
        self.count, self.kernel, self.ridge, self.objective, self.stiffness = count, kernel, ridge, objective, stiffness
        self.register_buffer("nothing", torch.zeros((), dtype=torch.float64), persistent=False)
        self.lower = None if fixed else nn.Parameter(torch.zeros(count, count, dtype=torch.float64))

    def kl(self) -> Float[Tensor, ""]:
        """KL(N(0, G) || N(0, K))."""
        return self.nothing if self.lower is None else spread(self.lower / self.stiffness)

    def penalty(self) -> Float[Tensor, ""]:
        """The KL, or what the objective has in its place."""
        return self.kl() if self.lower is None or self.objective == "kl" else taylor(self.lower / self.stiffness)

    def forward(self, below: Grams, name: str) -> Grams:
        """Gram matrices of this layer.

        With X = L^-1 K_it: G_it = L W W^T X and G_tt = K_tt - X^T X + X^T W W^T X, whose diagonal cannot be negative.
        """
        if self.lower is None and not self.ridge:  # G = K
            return next_kernel(self.kernel, below)
        small, x, rest = whitened_kernel(self.kernel, below, name)
        w = None if self.lower is None else triangle(self.lower / self.stiffness)
        if self.ridge and self.training:
            count = max(1, len(small) // 4)
            noise = torch.randn(len(small), count, dtype=small.dtype, device=small.device) / math.sqrt(count)
            w = noise if w is None else w @ noise
        v, seen = (small, x) if w is None else (small @ w, w.mT @ x)
        inducing = v @ v.mT
        if self.ridge:
            inducing = inducing + self.ridge * inducing.diagonal().mean() * torch.eye(len(small)).to(inducing)
        return Grams(inducing, v @ seen, rest + (seen.square().sum(0) if rest.ndim == 1 else seen.mT @ seen))


def next_kernel(kernel: GramKernel, below: Grams) -> Grams:
    """The kernel of all blocks."""
    own, seen = below.inducing.diagonal(), below.diagonal
    rows = kernel.diagonal(below.rows) if below.rows.ndim == 1 else kernel(below.rows, seen, seen)
    return Grams(kernel(below.inducing, own, own), kernel(below.cross, own, seen), rows)


def whitened_kernel(kernel: GramKernel, below: Grams, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """L, X = L^-1 K_it, and K_tt - X^T X (its diagonal, if no more is known of the rows)."""
    inducing, cross, rows = next_kernel(kernel, below)
    small = factor(inducing, name)
    x = torch.linalg.solve_triangular(small, cross, upper=False)
    if rows.ndim == 1:
        return small, x, (rows - x.square().sum(0)).clamp(min=0)
    return small, x, rows - x.mT @ x


class Layered(nn.Module):
    """Hidden layers, each with a Gram matrix."""

    layers: nn.ModuleList
    inducing: Tensor

    def kl(self) -> Float[Tensor, " layers"]:
        """Of each hidden layer from the kernel of the one below."""
        return torch.stack([self.inducing.new_zeros(()), *(layer.kl() for layer in self.layers)])[1:]  # pyright: ignore

    def penalty(self) -> Float[Tensor, " layers"]:
        """The same, or what the objective has in its place."""
        found = (layer.penalty() for layer in self.layers)  # pyright: ignore
        return torch.stack([self.inducing.new_zeros(()), *found])[1:]


class Machine(Layered):
    """Inducing inputs, scales of the columns, and Gram matrices, layer by layer; all in float64.

    Args:
        inducing: [P, columns], where inducing inputs start.
        layers: hidden layers, each with a Gram matrix.
        kernel: of each layer and of the output.
        ard: whether each column has a scale of its own.
        fixed: layers whose Gram matrix stays that of the kernel.
        free: whether inducing inputs are learned.
        bias: of the kernels at the start; 0 for kernels without weight and bias.
        stiffness: of each layer, as in `GramLayer`.
    """

    def __init__(
        self,
        inducing: Float[Tensor, "P columns"],
        layers: int,
        kernel: KernelName,
        ard: bool,
        fixed: tuple[bool, ...],
        free: bool,
        bias: float = 0.1,
        stiffness: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        stiffness = stiffness or (1.0,) * layers
        self.inducing = nn.Parameter(inducing.double(), requires_grad=free)
        columns = inducing.shape[1] if ard else 1
        self.log_scale = nn.Parameter(torch.zeros(columns, dtype=torch.float64)) if bias else None
        self.layers = nn.ModuleList(
            GramLayer(len(inducing), GramKernel(kernel, bias), fixed[k], stiffness=stiffness[k]) for k in range(layers)
        )
        self.output = GramKernel(kernel, bias)

    def grams(self, x: Float[Tensor, "n columns"], whole: bool = False) -> list[Grams]:
        """Gram matrices of the inputs, x x^T / columns, and of each layer.

        Args:
            whole: all of rows with themselves, in place of the diagonal.
        """
        scale = 1.0 if self.log_scale is None else self.log_scale.exp()
        x, z = (v * scale / math.sqrt(x.shape[1]) for v in (x, self.inducing))
        found = [Grams(z @ z.mT, z @ x.mT, x @ x.mT if whole else x.square().sum(1))]
        for number, layer in enumerate(self.layers):
            found.append(layer(found[-1], f"layer {number + 1}"))
        return found

    def learned(self) -> list[Float[Tensor, "P P"]]:
        """Gram matrices of the inducing points, of the inputs and of each layer."""
        return [grams.inducing for grams in self.grams(self.inducing[:1])]

    def forward(self, x: Float[Tensor, "n columns"], whole: bool = False) -> Features:
        """What the output layer sees of the rows."""
        _, a, rest = whitened_kernel(self.output, self.grams(x, whole)[-1], "the output")
        return Features(a, rest, self.penalty())
