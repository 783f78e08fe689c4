"""Gibbs sampling of a Boltzmann machine of one-hot variables."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bayesvision.methods.mdbm.inference import Coupling
from bayesvision.training.seeds import generator

__all__ = ["gibbs"]


@torch.no_grad()
def gibbs(
    coupling: Coupling,
    bias: Float[Tensor, "groups levels"],
    start: Float[Tensor, "*batch groups levels"],
    known: Bool[Tensor, "*batch groups"],
    shape: tuple[int, ...],
    sweeps: int,
    seed: int,
) -> Int[Tensor, "..."]:
    """Levels [*shape, *batch, groups] after sweeps over all groups that are not known, from draws of `start`."""
    rng = generator(start.device, seed)
    chance = start.expand(*shape, *start.shape)
    state = _drawn(chance, rng)
    groups, levels = bias.shape
    for _ in range(sweeps):
        for group in torch.randperm(groups, generator=rng, device=start.device).tolist():
            if bool(known[..., group].all()):
                continue
            z = torch.nn.functional.one_hot(state, levels).to(start)
            logits = coupling(z)[..., group, :] + bias[group]
            drawn = _drawn(logits.softmax(-1), rng)
            state[..., group] = torch.where(known[..., group], state[..., group], drawn)
    return state


def _drawn(chance: Float[Tensor, "*shape levels"], rng: torch.Generator) -> Int[Tensor, "*shape"]:
    mass = chance.cumsum(-1)
    u = torch.rand(*mass.shape[:-1], 1, generator=rng, device=mass.device, dtype=mass.dtype) * mass[..., -1:]
    return (u >= mass).sum(-1).clamp(max=mass.shape[-1] - 1)
