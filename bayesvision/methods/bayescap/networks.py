"""Plain networks that read maps or vectors: `ConvNet` and `MLP`."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["MLP", "ConvNet", "fitting_width"]

Drop = Literal["each", "all"] | None
SMOOTH = 0.01  # local standard deviation, of a channel with standard deviation 1, that counts as none


def _dropped(hidden: Tensor, rate: float, axes: int, drop: Drop) -> Tensor:
    """Channels dropped with the given rate: other ones of `each` example, or the same of `all`."""
    if drop is None or not rate:
        return hidden
    channels = hidden.shape[-axes - 1]
    shape = (*hidden.shape[: -axes - 1], channels) if drop == "each" else (channels,)
    kept = torch.rand(shape, device=hidden.device).view(*shape, *(1,) * axes) >= rate
    return hidden * kept / (1 - rate)


def _roughness(blocks: Float[Tensor, "batch four_inputs height width"]) -> Float[Tensor, "batch inputs height width"]:
    """Logarithm of the local standard deviation of each channel, over 3 x 3 blocks and within each place of a block."""
    padded = nn.functional.pad(blocks, (1, 1, 1, 1), mode="replicate")
    mean, square = (nn.functional.avg_pool2d(v, 3, 1) for v in (padded, padded.square()))
    variance = (square - mean.square()).clamp(min=0).unflatten(1, (-1, 4)).mean(2)
    return (variance + SMOOTH**2).log() / 4 + 1


class ConvNet(nn.Module):
    """Residual convolutions at half resolution; two numbers in, any number out, of every pixel.

    Blocks of 2 x 2 pixels become channels and back (Shi et al. 2016, arXiv 1609.05158), which costs a quarter and keeps
    apart what repeats every second pixel. Beside the values the first layer sees the logarithm of their local standard
    deviation, from 3 x 3 blocks: how rough a place is, over all orders of magnitude, and so how noisy. Nothing is
    normalised by the batch. The last layer starts at zero.

    Args:
        inputs, outputs: channels.
        width: channels inside.
        depth: residual blocks.
        dropout: rate at which channels are dropped.
    """

    def __init__(self, inputs: int, outputs: int, width: int, depth: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.input_layer = nn.Conv2d(5 * inputs, width, 3, padding=1, padding_mode="replicate", dtype=torch.float32)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, dtype=torch.float32) for _ in range(depth))
        self.output_layer = nn.Conv2d(width, 4 * outputs, 1, dtype=torch.float32)
        self.dropout = dropout
        nn.init.zeros_(self.output_layer.weight)
        nn.init.zeros_(self.output_layer.bias)  # pyright: ignore[reportArgumentType]

    def hidden(self, x: Float[Tensor, "batch inputs height width"], drop: Drop = None) -> Tensor:
        """What the last layer sees, at half the resolution."""
        height, width = x.shape[-2:]
        x = nn.functional.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
        blocks = nn.functional.pixel_unshuffle(x, 2)
        h = self.input_layer(torch.cat([blocks, _roughness(blocks)], 1))
        for block in self.blocks:
            h = h + block(_dropped(torch.relu(h), self.dropout, 2, drop))
        return torch.relu(h)

    def read(self, hidden: Tensor, like: Tensor) -> Tensor:
        """Outputs, cut to the size of `like`."""
        whole = nn.functional.pixel_shuffle(self.output_layer(hidden), 2)
        return whole[..., : like.shape[-2], : like.shape[-1]]

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs height width"]:
        return self.read(self.hidden(x, "each" if self.training else None), x)


class MLP(nn.Module):
    """Residual layers on vectors; the last one starts at zero.

    Args:
        inputs, outputs: numbers in and out.
        width: of the layers.
        depth: residual blocks.
        dropout: rate at which units are dropped.
    """

    def __init__(self, inputs: int, outputs: int, width: int, depth: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.input_layer = nn.Linear(inputs, width, dtype=torch.float32)
        self.blocks = nn.ModuleList(nn.Linear(width, width, dtype=torch.float32) for _ in range(depth))
        self.output_layer = nn.Linear(width, outputs, dtype=torch.float32)
        self.dropout = dropout
        nn.init.zeros_(self.output_layer.weight)
        nn.init.zeros_(self.output_layer.bias)

    def hidden(self, x: Float[Tensor, "*batch inputs"], drop: Drop = None) -> Tensor:
        """What the last layer sees."""
        h = self.input_layer(x)
        for block in self.blocks:
            h = h + block(_dropped(nn.functional.silu(h), self.dropout, 0, drop))
        return nn.functional.silu(h)

    def read(self, hidden: Tensor, like: Tensor) -> Tensor:
        """Outputs."""
        return self.output_layer(hidden)

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return self.read(self.hidden(x, "each" if self.training else None), x)


def fitting_width(make: Callable[[int], nn.Module], most: int, widest: int, step: int = 4) -> int:
    """The largest width, a multiple of `step` up to `widest`, with at most `most` parameters; or `step`."""
    for width in range(widest, step, -step):
        with torch.device("meta"):
            if sum(p.numel() for p in make(width).parameters()) <= most:
                return width
    return step
