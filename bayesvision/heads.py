"""Raw network output to distribution, and nothing else; a target's shift and scale live here."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesvision.distributions import Bar, Categorical

__all__ = ["BarHead", "CategoricalHead"]


class BarHead(nn.Module):
    """Logits of bars over fixed borders to a `Bar` in the target's units.

    Raises:
        ValueError: the borders are not one axis.
    """

    borders: Tensor

    def __init__(self, borders: Float[Tensor, " edges"]) -> None:
        super().__init__()
        if borders.ndim != 1:
            raise ValueError(f"borders must be one axis, got the shape {tuple(borders.shape)}")
        self.register_buffer("borders", borders)
        self.outputs = borders.numel() - 1

    def forward(
        self,
        raw: Float[Tensor, "*batch outputs"],
        loc: float | Float[Tensor, "*#batch"] = 0.0,
        scale: float | Float[Tensor, "*#batch"] = 1.0,
    ) -> Bar:
        """Distribution of loc + scale z, z in the network's units; in the widest dtype of the arguments."""
        wide = torch.promote_types(raw.dtype, torch.float32)
        if isinstance(scale, Tensor):
            wide = torch.promote_types(wide, scale.dtype)
        return Bar(raw.to(wide), self.borders.to(wide), loc, scale, validate_args=False)


class CategoricalHead(nn.Module):
    """Logits to a `Categorical`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.outputs = classes

    def forward(self, raw: Float[Tensor, "*batch outputs"]) -> Categorical:
        return Categorical(logits=raw, validate_args=False)
