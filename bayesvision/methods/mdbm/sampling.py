"""Gibbs sampling of a Boltzmann machine of one-hot variables."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bayesvision.methods.mdbm.ascent import Coupling
from bayesvision.training.seeds import generator

__all__ = ["gibbs"]

WHOLE = 4_096  # entries up to which Phi is kept as a matrix


@torch.no_grad()
def gibbs(
    coupling: Coupling,
    bias: Float[Tensor, " size"],
    start: Float[Tensor, "draws size"],
    free: Bool[Tensor, "draws size"],
    sweeps: int,
    seed: int,
) -> Float[Tensor, "draws size"]:
    """One-hot states after sweeps over all variables that are free, in random order, from draws of `start`.

    p(x_i | the rest) = softmax((Phi x + b)_i); Phi x is kept up to date, one variable's rows at a time.
    """
    rng, layout = generator(start.device, seed), coupling.layout
    x = layout.each(lambda chance: _drawn(chance, rng), start)
    spans = [(low, high) for low, high in layout.spans() if bool(free[:, low].any())]
    matrix = coupling.rows(0, layout.size) if layout.size <= WHOLE else None
    field = coupling(x) + bias
    for _ in range(sweeps):
        for place in torch.randperm(len(spans), generator=rng, device=start.device).tolist():
            low, high = spans[place]
            drawn = _drawn(field[:, low:high].softmax(-1), rng)
            change = torch.where(free[:, low:high], drawn - x[:, low:high], 0.0)
            x[:, low:high] += change
            field += change @ (coupling.rows(low, high) if matrix is None else matrix[low:high])
    return x


def _drawn(chance: Float[Tensor, "*shape levels"], rng: torch.Generator) -> Float[Tensor, "*shape levels"]:
    """One level of each, one-hot."""
    mass = chance.cumsum(-1)
    u = torch.rand(*mass.shape[:-1], 1, generator=rng, device=mass.device, dtype=mass.dtype) * mass[..., -1:]
    level = (u >= mass).sum(-1).clamp(max=mass.shape[-1] - 1)
    return torch.nn.functional.one_hot(level, mass.shape[-1]).to(chance)
