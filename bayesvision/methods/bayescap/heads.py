"""Raw output of a cap to a distribution around the frozen network's answer."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesvision.distributions import Categorical, Continuous, GeneralizedNormal, Normal, StudentT

__all__ = ["Family", "ScaleHead", "TemperatureHead"]

Family = Literal["generalized", "gaussian", "laplace", "student"]


class ScaleHead(nn.Module):
    """One or two numbers to a distribution around a location that is known: a log-scale and, for some families, a tail.

    With raw output a for the scale, s = scale0 exp(REACH tanh(a / REACH)), and with raw output b for the tail

    - generalized: `GeneralizedNormal` with alpha = s, beta = 0.3 + softplus(b), bent to stay below 2
    - laplace: `GeneralizedNormal` with alpha = s, beta = 1
    - gaussian: `Normal` with standard deviation s
    - student: `StudentT` with scale s, 2.1 + softplus(b) degrees of freedom, bent to stay below 100

    which is finite in float32, moments included, wherever a and b are. Zeros give `scale0` and `tail0`: what the head
    starts from.

    Args:
        family: of the distribution.
        channels: numbers of scale0 and tail0, along `axis` of what the head is given.
        axis: of the channels.

    Raises:
        ValueError: an unknown family.
    """

    REACH = 6.0  # largest |log(s / scale0)|
    LEAST, MOST = {"generalized": 0.3, "student": 2.1}, {"generalized": 1.7, "student": 97.9}

    log_scale: Tensor
    tail: Tensor
    log_temperature: Tensor
    floor: Tensor

    def __init__(self, family: Family, channels: int, axis: int) -> None:
        super().__init__()
        if family not in get_args(Family):
            raise ValueError(f"family must be one of {', '.join(get_args(Family))}, got {family!r}")
        self.family, self.axis = family, axis
        self.outputs = 2 if family in self.LEAST else 1
        shape = (channels, *(1 for _ in range(-axis - 1)))
        self.register_buffer("log_scale", torch.zeros(shape, dtype=torch.float32))
        self.register_buffer("tail", torch.ones(shape, dtype=torch.float32))
        self.register_buffer("log_temperature", torch.zeros((), dtype=torch.float32))
        self.register_buffer("floor", torch.zeros((), dtype=torch.float32))

    def forward(self, raw: Float[Tensor, "*rest"], loc: Float[Tensor, "*batch"], stretch: bool = True) -> Continuous:
        """The distribution around `loc`; `raw` holds the scales and then the tails along the axis of the channels.

        Without `stretch` it is the distribution before calibration, exp(log_temperature) left out.
        """
        parts = raw.chunk(self.outputs, self.axis)
        start, tail = (self.log_scale + stretch * self.log_temperature).to(raw), self.tail.to(raw)
        log_scale = start + self.REACH * torch.tanh(parts[0] / self.REACH)
        if self.family == "gaussian":
            return Normal(loc, self._floored(log_scale, torch.zeros_like(log_scale)), validate_args=False)
        if self.family == "laplace":
            beta = torch.ones_like(log_scale)
            spread = torch.full_like(log_scale, 0.5).log().neg() / 2  # of a standard deviation sqrt 2 alpha
            return GeneralizedNormal(loc, self._floored(log_scale, spread), beta, validate_args=False)
        least, most = self.LEAST[self.family], self.MOST[self.family]
        start = -most * torch.log1p(-(tail - least) / most)  # where the bent softplus gives tail0
        shift = start + torch.log(-torch.expm1(-start))
        tail = least - most * torch.expm1(-nn.functional.softplus(shift + parts[1]) / most)
        if self.family == "student":
            scale = self._floored(log_scale, (tail / (tail - 2)).log() / 2)
            return StudentT(loc, scale, tail, validate_args=False)
        spread = (torch.lgamma(3 / tail) - torch.lgamma(1 / tail)) / 2
        return GeneralizedNormal(loc, self._floored(log_scale, spread), tail, validate_args=False)

    def _floored(self, log_scale: Tensor, spread: Tensor) -> Tensor:
        """The scale, so that the standard deviation scale exp(spread) is at least the floor."""
        return torch.maximum(log_scale, self.floor.log().to(log_scale) - spread).exp()


class TemperatureHead(nn.Module):
    """One number to a softmax of given logits, as if these had independent normal errors of one variance.

    E softmax(z), z ~ N(logits, v I), is close to softmax(logits / sqrt(1 + pi v / 8)) (MacKay 1992, section 4.3), with
    v = exp(REACH tanh(a / REACH)) for raw output a. The order of the classes stays that of the logits.
    """

    REACH, outputs = 6.0, 1

    log_temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("log_temperature", torch.zeros((), dtype=torch.float32))

    def forward(
        self, raw: Float[Tensor, "*batch 1"], logits: Float[Tensor, "*batch classes"], stretch: bool = True
    ) -> Categorical:
        """Without `stretch` the temperature exp(log_temperature) is left out."""
        variance = (self.REACH * torch.tanh(raw / self.REACH)).exp()
        cooled = (1 + torch.pi / 8 * variance).rsqrt() * torch.exp(-stretch * self.log_temperature).to(raw)
        return Categorical(logits=logits * cooled, validate_args=False)
