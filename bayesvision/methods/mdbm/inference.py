"""Mean-field inference with a unique answer, its certificate, and gradients by implicit differentiation."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bayesvision.methods.mdbm.ascent import Ascent, Bounded, Coupling

__all__ = ["Certificate", "Exactness", "elbo", "mean_field"]

MOST = 500  # steps of conjugate gradients


class Exactness(NamedTuple):
    """When to stop.

    Attributes:
        tolerance: of the certified distance to the fixed point.
        most: number of iterations after which the solver stops anyway, which the certificate says.
        gradient: relative residual at which the solution of the adjoint equation stops.
    """

    tolerance: float = 1e-5
    most: int = 2_000
    gradient: float = 1e-8


class Certificate(NamedTuple):
    """How near an answer is to the only one.

    Attributes:
        bound: no farther, |z - q| <= bound, for each problem.
        iterations: that it took, for each problem.
        converged: whether the bound is within the tolerance.
    """

    bound: Float[Tensor, "..."]
    iterations: Int[Tensor, "..."]
    converged: Bool[Tensor, "..."]


def elbo(coupling: Coupling, bias: Float[Tensor, " size"], z: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch"]:
    """z^T Phi z / 2 + b^T z + H(z), a lower bound of log Z; m-strongly concave in z."""
    return (z * (coupling(z) / 2 + bias)).sum(-1) - torch.special.xlogy(z, z).sum(-1)


def mean_field(
    bounded: Bounded,
    bias: Float[Tensor, " size"],
    free: Bool[Tensor, "batch size"],
    start: Float[Tensor, "batch size"],
    exactness: Exactness,
) -> tuple[Float[Tensor, "batch size"], Certificate]:
    """The q with q_i = softmax((Phi q + b)_i) in every variable that is free; the others stay as in `start`.

    Gradients are those of the fixed point, whatever the number of iterations: with J = S S^T the Jacobian of softmax at
    q, S = diag(sqrt q) (I - sqrt q sqrt q^T), the adjoint solves (I - S^T Phi S) s = S^T g by conjugate gradients.

    Args:
        bounded: Phi.
        bias: b.
        free: entries of variables that are not observed.
        start: values of those that are; elsewhere it does not matter.
        exactness: when to stop.
    """
    coupling = bounded.coupling
    z, *found = Ascent(bounded, bias).solve(free, start, exactness.tolerance, exactness.most)
    certificate = Certificate(*found)
    if not torch.is_grad_enabled():
        return z, certificate
    q = torch.where(free, coupling.layout.softmax(coupling(z) + bias), z)  # carries the gradients of Phi and b
    if q.requires_grad:
        q.register_hook(lambda g: g + coupling(_adjoint(coupling, z, free, g, exactness.gradient)))
    return q, certificate


def _adjoint(coupling: Coupling, z: Tensor, free: Tensor, gradient: Tensor, accuracy: float) -> Tensor:
    """J (I - Phi J)^-1 g on the free entries."""
    root, sums = torch.where(free, z, 0.0).sqrt(), coupling.layout.sums

    def down(v: Tensor) -> Tensor:  # S v
        return root * (v - root * sums(root * v))

    def up(v: Tensor) -> Tensor:  # S^T v
        v = root * v
        return v - root * sums(v)

    with torch.no_grad():
        s, tiny = torch.zeros_like(gradient), torch.finfo(z.dtype).tiny
        residual = up(gradient)
        direction, size = residual, residual.square().sum(-1, keepdim=True)
        goal = size * accuracy**2
        for _ in range(MOST):
            if bool((size <= goal).all()):
                break
            image = direction - up(coupling(down(direction)))
            curvature = (direction * image).sum(-1, keepdim=True)
            pace = torch.where(size > goal, size / curvature.clamp(min=tiny), 0.0)
            s, residual = s + pace * direction, residual - pace * image
            new = residual.square().sum(-1, keepdim=True)
            direction = residual + torch.where(size > 0, new / size.clamp(min=tiny), 0.0) * direction
            size = new
        return down(s)
