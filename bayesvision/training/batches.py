"""Mini-batches of examples as pure functions of a seed and a step, so that a killed run goes on bit for bit."""

import torch
from jaxtyping import Int
from torch import Tensor

from bayesvision.training.seeds import generator

__all__ = ["places"]

ORDER = 1 << 40  # tells the generators of orders from those of noise


def places(seed: int, step: int, batch: int, count: int) -> Int[Tensor, " batch"]:
    """Which of `count` examples are in the batch of a step: each epoch runs through them in a new order.

    A batch may reach over the end of an epoch into the next; one larger than an epoch holds examples more than once.
    """
    found, start = [], step * batch
    while batch:
        epoch, first = divmod(start, count)
        order = torch.randperm(count, generator=generator("cpu", seed, ORDER, epoch))
        part = order[first : first + batch]
        found.append(part)
        start, batch = start + len(part), batch - len(part)
    return torch.cat(found)
