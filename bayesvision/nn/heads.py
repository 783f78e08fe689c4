"""Raw network output to distribution, and nothing else; a target's shift and scale live here."""

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Tensor, nn

from bayesvision.distributions import Bar, Categorical, Mixture, Normal

__all__ = ["BarHead", "CategoricalHead", "MixtureHead"]


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


class MixtureHead(nn.Module):
    """Three numbers for each component to a `Mixture` of normals whose parts live on every scale.

    With raw output (w, a, b), component k has the weight softmax(w)_k, the mean loc + unit sinh(a_k) and the standard
    deviation unit exp(b_k): steps of `a` near zero move the mean by a few thousandths of what large ones do, so that
    one head resolves both a wide prior and the last digits of an almost noise-free series.

    Args:
        components: number of normals.
        unit: where sinh turns from linear to exponential, in the target's units.
    """

    REACH = 8.0  # largest |a|: sinh(8) is 1,490 units
    LEAST, MOST = -4.6, 8.0  # of b: standard deviations from unit / 100 to 2,981 units

    def __init__(self, components: int, unit: float) -> None:
        super().__init__()
        self.components, self.unit, self.outputs = components, unit, 3 * components

    def bias(self) -> Float[Tensor, " outputs"]:
        """Raw output to start from: components spread evenly in `a`, each as wide as it is far."""
        spread = torch.linspace(-4, 4, self.components, dtype=torch.float32)
        zero = torch.zeros_like(spread)
        return torch.cat([zero, spread, spread.abs()])

    def forward(self, raw: Float[Tensor, "*batch outputs"], loc: float | Float[Tensor, "*#batch"] = 0.0) -> Mixture:
        """Distribution in the target's units; in the widest dtype of the arguments."""
        wide = torch.promote_types(raw.dtype, torch.float32)
        if isinstance(loc, Tensor):
            wide = torch.promote_types(wide, loc.dtype)
            loc = loc.to(wide).unsqueeze(-1)
        logits, a, b = raw.to(wide).chunk(3, -1)
        mean = loc + self.unit * a.clamp(-self.REACH, self.REACH).sinh()
        stddev = self.unit * b.clamp(self.LEAST, self.MOST).exp()
        mean, stddev, logits = torch.broadcast_tensors(mean, stddev, logits)
        component = Normal(mean, stddev, validate_args=False)
        return Mixture(td.Categorical(logits=logits, validate_args=False), component, validate_args=False)


class CategoricalHead(nn.Module):
    """Logits to a `Categorical`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.outputs = classes

    def forward(self, raw: Float[Tensor, "*batch outputs"]) -> Categorical:
        return Categorical(logits=raw, validate_args=False)
