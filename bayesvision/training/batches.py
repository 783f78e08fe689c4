"""Examples from what users have, and mini-batches of them as pure functions of a seed and a step."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from bayesvision.core.checks import as_tensor, check_inputs
from bayesvision.core.data import Data
from bayesvision.training.seeds import generator

__all__ = ["batches_of", "places"]

BLOCK = 64  # examples of a Data asked for at once

ORDER = 1 << 40  # tells the generators of orders from those of noise


def places(seed: int, step: int, batch: int, count: int) -> Int[Tensor, " batch"]:
    """Which of `count` examples are in the batch of a step: each epoch runs through them in a new order.

    A pure function of its arguments, so that a killed run goes on bit for bit.

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


def batches_of(source: Any) -> Iterable[tuple[Any, Any]]:
    """Batches (x, y) of a `Data` or of a loader.

    Raises:
        ValueError: no batches, or other things than pairs.
        TypeError: neither a `Data` nor an iterable.
    """
    if isinstance(source, Data):
        yield from _blocks(source)
        return
    if not isinstance(source, Iterable):
        raise TypeError(f"source must be Data(x, y) or a loader of batches (x, y), got {type(source).__name__}")
    count = 0
    for batch in source:
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            got = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, list | tuple) else type(batch).__name__
            raise ValueError(f"source must give batches (x, y), got a {got}; map them to pairs first")
        count += 1
        yield batch[0], batch[1]
    if not count:
        raise ValueError(
            "source gave no batch; a generator can be read once only, and drop_last=True drops a single short batch"
        )


def _blocks(source: Data) -> Iterable[tuple[Any, Any]]:
    x, y = source
    if y is None:
        raise ValueError("y must hold the targets of the rows of x, got None: Data(x, y)")
    x, y = (as_tensor("x", x) if getattr(x, "ndim", 0) > 2 else check_inputs(x)), as_tensor("y", y)
    if not y.ndim or not len(x) or len(x) != len(y):
        raise ValueError(
            "y must have one value for each row of x, and at least one, "
            f"got the shapes {tuple(y.shape)} and {tuple(x.shape)}"
        )
    for k in range(0, len(x), BLOCK):
        yield x[k : k + BLOCK], y[k : k + BLOCK]
