"""Input designs: how the rows of a data set spread over the unit cube, and checks that the priors share."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Generator, Tensor

__all__ = ["Design", "check_design", "choose", "draw_inputs"]

Design = Literal["uniform", "gaussian", "clustered", "mixed"]


def check_design(design: str) -> None:
    """Raise a `ValueError` unless `design` is known."""
    if design not in get_args(Design):
        raise ValueError(f"design must be one of {', '.join(get_args(Design))}, got {design!r}")


def choose(options: list[Tensor], index: Tensor) -> Tensor:
    """Entry b of `options[index[b]]` for every b of the batch."""
    picked = options[0]
    for k, option in enumerate(options[1:], start=1):
        picked = torch.where((index == k).reshape(-1, *(1 for _ in option.shape[1:])), option, picked)
    return picked


def draw_inputs(
    design: Design, batch: int, rows: int, features: int, generator: Generator
) -> Float[Tensor, "batch rows features"]:
    """Inputs of a whole batch of data sets.

    `uniform` fills [0, 1]^features; `gaussian` is N(1/2, 1/4^2) in each feature; `clustered` scatters rows around
    2 to 6 uniform centres with a standard deviation drawn for each data set from LogN(-2.5, 0.5); `mixed` draws one of
    the three for each data set.

    Raises:
        ValueError: an unknown design.
    """
    check_design(design)
    device, kind = generator.device, torch.float32
    shape = batch, rows, features
    if design == "uniform":
        return torch.rand(shape, generator=generator, device=device, dtype=kind)
    if design == "gaussian":
        return 0.5 + 0.25 * torch.randn(shape, generator=generator, device=device, dtype=kind)
    if design == "clustered":
        centres = torch.rand(batch, 6, features, generator=generator, device=device, dtype=kind)
        count = torch.randint(2, 7, (batch, 1), generator=generator, device=device)
        member = (torch.rand(batch, rows, generator=generator, device=device, dtype=kind) * count).long()
        spread = torch.exp(-2.5 + 0.5 * torch.randn(batch, 1, 1, generator=generator, device=device, dtype=kind))
        middle = centres.gather(1, member.unsqueeze(-1).expand(shape))
        return middle + spread * torch.randn(shape, generator=generator, device=device, dtype=kind)
    parts = [draw_inputs(kind, batch, rows, features, generator) for kind in ("uniform", "gaussian", "clustered")]
    return choose(parts, torch.randint(0, 3, (batch,), generator=generator, device=device))
