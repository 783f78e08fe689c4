"""Mean-field inference with a unique answer: the solver, its certificate, and gradients by implicit differentiation."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bayesvision.methods.mdbm.activation import CURVATURE, activate

__all__ = ["Certificate", "Coupling", "elbo", "largest_eigenvalue", "mean_field"]

RISK = 1.02  # of the largest eigenvalue found by power iteration, which comes from below
MOST = 2_000  # steps of conjugate gradients


@runtime_checkable
class Coupling(Protocol):
    """The symmetric interactions Phi between one-hot variables, with 2 I - Phi >= m I."""

    margin: float

    def __call__(self, z: Float[Tensor, "*batch groups levels"]) -> Float[Tensor, "*batch groups levels"]:
        """Phi z."""
        ...


class Certificate(NamedTuple):
    """How near an answer is to the only one.

    Attributes:
        bound: no farther, |z - q| <= bound, for each problem.
        iterations: that it took, for each problem.
        converged: whether the bound is within the tolerance.
    """

    bound: Float[Tensor, "*batch"]
    iterations: Int[Tensor, "*batch"]
    converged: Bool[Tensor, "*batch"]


def largest_eigenvalue(coupling: Coupling, like: Float[Tensor, "groups levels"], steps: int = 60) -> float:
    """An upper bound of that of 2 I - Phi, in all likelihood: power iteration, which is from below, and 2 % more."""
    with torch.no_grad():
        v = torch.rand(like.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(like) - 0.5
        value = 1.0
        for _ in range(steps):
            v = CURVATURE * v - coupling(v)
            value = float(v.norm())
            v = v / value
    return RISK * max(value, CURVATURE)


def elbo(
    coupling: Coupling, bias: Float[Tensor, "*#batch groups levels"], z: Float[Tensor, "*batch groups levels"]
) -> Float[Tensor, "*batch"]:
    """z^T Phi z / 2 + b^T z + H(z), a lower bound of log Z; m-strongly concave in z."""
    entropy = -torch.special.xlogy(z, z).sum((-1, -2))
    pull = torch.where(z > 0, bias, 0.0)  # minus infinity where a level does not exist
    return (z * (coupling(z) / 2 + pull)).sum((-1, -2)) + entropy


def mean_field(
    coupling: Coupling,
    bias: Float[Tensor, "*batch groups levels"],
    known: Bool[Tensor, "*batch groups"],
    start: Float[Tensor, "*batch groups levels"],
    lipschitz: float,
    tolerance: float = 1e-6,
    most: int = 1_000,
) -> tuple[Float[Tensor, "*batch groups levels"], Certificate]:
    """The q with q_i = softmax((Phi q + b)_i) in every group that is not known; known groups stay as in `start`.

    Forward-backward splitting with acceleration (Beck and Teboulle 2009) and restart (O'Donoghue and Candes 2015):
    z+ = prox(y - ((2 I - Phi) y - b) / L) at the step 1 / L. The answer is certified by
    |z+ - q| <= |(y - z+) L - (2 I - Phi) (y - z+)| / m, the subgradient of an m-strongly convex function. Gradients are
    those of the fixed point, whatever the number of iterations: with J = S S^T the Jacobian of softmax at q,
    S = diag(sqrt q) (I - sqrt q sqrt q^T), the adjoint solves (I - S^T Phi S) s = S^T g by conjugate gradients.

    Args:
        coupling: Phi.
        bias: b; minus infinity at levels that do not exist.
        known: groups that are observed.
        start: where they are observed their values, elsewhere a first guess.
        lipschitz: L, at least the largest eigenvalue of 2 I - Phi.
        tolerance: of the bound, at which the iteration stops.
        most: number of iterations after which it stops anyway, which the certificate says.
    """
    free = ~known.unsqueeze(-1)
    with torch.no_grad():
        z, certificate = _solved(coupling, bias, free, start, lipschitz, tolerance, most)
    if not torch.is_grad_enabled():
        return z, certificate
    logits = coupling(z) + bias  # one step at the solution carries the gradients of Phi and b
    q = torch.where(free, logits.softmax(-1), z)
    if q.requires_grad:
        q.register_hook(lambda gradient: gradient + coupling(_adjoint(coupling, z, free, gradient)))
    return q, certificate


def _solved(
    coupling: Coupling, bias: Tensor, free: Tensor, start: Tensor, lipschitz: float, tolerance: float, most: int
) -> tuple[Tensor, Certificate]:
    step = 1 / lipschitz
    z = torch.where(free, torch.where(bias.isfinite(), start, 0.0), start)
    image = coupling(z)  # Phi z; that of y follows, since Phi is linear
    y, image_y, momentum = z, image, torch.ones_like(z[..., :1, :1])
    bound = z.new_full(z.shape[:-2], torch.inf)
    iterations = torch.zeros_like(bound, dtype=torch.long)
    for _ in range(most):
        forward = y - step * (CURVATURE * y - image_y - bias)
        new = torch.where(free, activate(forward, step), z)
        image_new, apart = coupling(new), y - new
        residual = torch.where(free, lipschitz * apart - (CURVATURE * apart - image_y + image_new), 0.0)
        found = residual.square().sum((-1, -2)).sqrt() / coupling.margin
        running = bound > tolerance
        iterations = iterations + running
        uphill = (apart * (new - z)).sum((-1, -2), keepdim=True) > 0
        momentum = torch.where(uphill, torch.ones_like(momentum), momentum)
        following = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        ahead = torch.where(uphill, 0.0, (momentum - 1) / following)
        keep = running[..., None, None]
        y = torch.where(keep, new + ahead * (new - z), y)
        image_y = torch.where(keep, image_new + ahead * (image_new - image), image_y)
        z, image = torch.where(keep, new, z), torch.where(keep, image_new, image)
        momentum = torch.where(keep, following, momentum)
        bound = torch.where(running, found, bound)
        if bool((bound <= tolerance).all()):
            break
    return z, Certificate(bound, iterations, bound <= tolerance)


def _adjoint(coupling: Coupling, z: Tensor, free: Tensor, gradient: Tensor) -> Tensor:
    """J (I - Phi J)^-1 g on the free groups."""
    root = torch.where(free, z, 0.0).sqrt()

    def down(v: Tensor) -> Tensor:  # S v
        return root * (v - root * (root * v).sum(-1, keepdim=True))

    def up(v: Tensor) -> Tensor:  # S^T v
        v = root * v
        return v - root * (root * v).sum(-1, keepdim=True)

    with torch.no_grad():
        s = torch.zeros_like(gradient)
        residual = up(gradient)
        direction, size = residual, residual.square().sum((-1, -2), keepdim=True)
        goal = size * torch.finfo(z.dtype).eps
        for _ in range(MOST):
            if bool((size <= goal).all()):
                break
            image = direction - up(coupling(down(direction)))
            curvature = (direction * image).sum((-1, -2), keepdim=True)
            pace = torch.where(size > goal, size / curvature.clamp(min=torch.finfo(z.dtype).tiny), 0.0)
            s, residual = s + pace * direction, residual - pace * image
            new = residual.square().sum((-1, -2), keepdim=True)
            direction = (
                residual + torch.where(size > 0, new / size.clamp(min=torch.finfo(z.dtype).tiny), 0.0) * direction
            )
            size = new
        return down(s)
