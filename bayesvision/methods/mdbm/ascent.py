"""The solver of mean field: accelerated proximal ascent to the only maximum, with a certificate.

Mean field maximises E(z) = z^T Phi z / 2 + b^T z + H(z) over a product of simplices. Interactions are such that
-d^2 E >= m |v|^2 along them (see `couplings`), so E has one maximum, the one solution of z_i = softmax((Phi z + b)_i).
The negative entropy alone has 2: where sum v = 0, sum v^2 / z >= (sum |v|)^2 >= 2 |v|^2.

A step theta <- (lambda theta + Phi z + b) / (lambda + 1) of the logits, z = softmax(theta), is proximal ascent with the
entropy as distance: E rises by it if 2 lambda is at least the largest eigenvalue of -Phi, since |v|^2 <= KL (Lu, Freund
and Nesterov 2018). lambda = 0 is plain parallel mean field, which need not converge. The proximal step of arXiv
2307.04990, section 3.2, is that of the squared distance, and needs Newton's method for every variable; here every step
is a softmax.

With t = softmax(Phi z + b), the gradient of E at t is Phi (t - z) along the simplices, so |t - q| <= |Phi (t - z)| / m.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bayesvision.methods.mdbm.layout import Layout

__all__ = ["CURVATURE", "Ascent", "Bounded", "Coupling"]

CURVATURE = 2.0  # of the negative entropy
MEMORY = 8  # last steps that Anderson acceleration combines
RIDGE = 1e-10  # of their Gram matrix, relative
CHECKED = 4  # iterations between two certificates
BOLD = 4.0  # an accelerated step is about so much longer than one that is known to go uphill


@runtime_checkable
class Coupling(Protocol):
    """Symmetric interactions Phi between one-hot variables, whose largest eigenvalue is at most `most`."""

    layout: Layout
    most: Tensor

    def __call__(self, z: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        """Phi z."""
        ...

    def rows(self, first: int, last: int) -> Float[Tensor, "rows size"]:
        """Rows of Phi."""
        ...


class Bounded(NamedTuple):
    """Interactions Phi, the m with which E is strongly concave, and the largest eigenvalue of -Phi."""

    coupling: Coupling
    margin: float
    opposite: float


class Steps(NamedTuple):
    """Where the problems are, and how they came there.

    Attributes:
        logits: theta.
        gap: Phi z + b - theta along the simplices of free variables.
        value: E.
        plain: whether the last step was one that is known to go uphill.
        moved, pulled: differences of the logits and of the gaps over the last steps.
    """

    logits: Float[Tensor, "batch size"]
    gap: Float[Tensor, "batch size"]
    value: Float[Tensor, " batch"]
    plain: Bool[Tensor, " batch"]
    moved: Float[Tensor, "batch steps size"]
    pulled: Float[Tensor, "batch steps size"]


class Ascent:
    """The solver for one machine.

    Args:
        bounded: Phi.
        bias: b.
    """

    def __init__(self, bounded: Bounded, bias: Float[Tensor, " size"]) -> None:
        self.coupling, self.bias, self.layout = bounded.coupling, bias, bounded.coupling.layout
        self.margin, lead = bounded.margin, bounded.opposite / 2
        self.careful, self.bold = 1 / (1 + lead), 1 / (1 + lead / BOLD)

    @torch.no_grad()
    def solve(
        self,
        free: Bool[Tensor, "batch size"],
        start: Float[Tensor, "batch size"],
        tolerance: float,
        most: int,
        logits: Float[Tensor, "batch size"] | None = None,
    ) -> tuple[Float[Tensor, "batch size"], Float[Tensor, " batch"], Int[Tensor, " batch"], Bool[Tensor, " batch"]]:
        """Solutions, bounds of their distance to the only ones, numbers of iterations, and whether each converged.

        Every iteration takes one product with Phi, and every fourth another for the certificate. It starts at `logits`,
        by default b.
        """
        answer, bound = start.clone(), start.new_full(start.shape[:1], torch.inf)
        iterations = torch.zeros_like(bound, dtype=torch.long)
        todo = torch.arange(len(start), device=start.device)
        steps, logits = None, self.bias.expand(start.shape) if logits is None else logits
        for iteration in range(1, most + 1):
            z, image, steps = self._look(logits, free, start, steps)
            if iteration % CHECKED == 0 or iteration == most:
                t = torch.where(free, self.layout.softmax(image + self.bias), start)
                off = torch.where(free, self.layout.centered(self.coupling(t - z)), 0.0).norm(dim=-1)
                answer[todo], bound[todo], iterations[todo] = t, off / self.margin, iteration
                left = bound[todo] > tolerance
                if not left.any():
                    break
                if left.sum() <= 0.75 * len(left):  # go on with those only
                    todo, free, start, steps = todo[left], free[left], start[left], Steps(*(v[left] for v in steps))
            logits = self._next(steps)
        return answer, bound, iterations, bound <= tolerance

    def _look(self, logits: Tensor, free: Tensor, start: Tensor, before: Steps | None) -> tuple[Tensor, Tensor, Steps]:
        """Marginals and Phi z at the logits, and the state after the step to them: undone where E fell."""
        log_z = self.layout.log_softmax(logits)
        z = torch.where(free, log_z.exp(), start)
        image = self.coupling(z)
        value = (z * ((image / 2 + self.bias) - torch.where(free, log_z, 0.0))).sum(-1)
        gap = torch.where(free, self.layout.centered(image + self.bias - logits), 0.0)
        if before is None:
            none = z.new_empty(len(z), 0, z.shape[-1])
            return z, image, Steps(logits, gap, value, torch.zeros_like(value, dtype=torch.bool), none, none)
        slack = 10 * torch.finfo(z.dtype).eps * (before.value.abs() + z.shape[-1])
        fell = (value < before.value - slack) & ~before.plain
        undone = fell.unsqueeze(-1)
        moved = torch.cat([before.moved, (logits - before.logits).unsqueeze(1)], 1)[:, -MEMORY:]
        pulled = torch.cat([before.pulled, (gap - before.gap).unsqueeze(1)], 1)[:, -MEMORY:]
        if bool(fell.any()):  # forget how it came there
            moved, pulled = (torch.where(undone.unsqueeze(-1), 0.0, v) for v in (moved, pulled))
            logits, gap = torch.where(undone, before.logits, logits), torch.where(undone, before.gap, gap)
            value = torch.where(fell, before.value, value)
        return z, image, Steps(logits, gap, value, fell, moved, pulled)

    def _next(self, steps: Steps) -> Tensor:
        """Anderson acceleration (Walker and Ni 2011): the combination of the last steps that leaves the least gap."""
        careful, bold = (steps.gap.new_tensor(v) for v in (self.careful, self.bold))
        pace = torch.where(steps.plain, careful, bold).unsqueeze(-1)
        if not steps.moved.shape[1]:
            return steps.logits + pace * steps.gap
        pulled = steps.pulled
        gram = (pulled @ pulled.mT).double()
        size = gram.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True).clamp(min=1e-100)
        gram = gram + torch.diag_embed((RIDGE * size).expand(gram.shape[:-1]))
        weights = torch.linalg.solve(gram, (pulled @ steps.gap.unsqueeze(-1)).double()).to(pulled)
        best = steps.gap - (weights.mT @ pulled).squeeze(-2)
        return steps.logits - (weights.mT @ steps.moved).squeeze(-2) + pace * best
