"""The sparse network with the units of its data and its noise: raw outputs, and the distribution of a target."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesvision.core.standardize import statistics
from bayesvision.distributions import Normal
from bayesvision.methods.ssvi.examples import Inputs
from bayesvision.training.batches import Examples

__all__ = ["Model", "Scales", "scales"]

SAMPLE = 100_000  # examples that tell the units
BOUND = 20.0  # largest |log variance|, in standardised units


class Scales(NamedTuple):
    """Mean and standard deviation of each column of a table and of each target; None where they stay as they are."""

    x_loc: Tensor | None
    x_scale: Tensor | None
    y_loc: Tensor | None
    y_scale: Tensor | None


def scales(examples: Examples, inputs: Inputs, numbers: bool) -> Scales:
    """The units of the data; those of inputs only where these are a table."""
    count = min(len(examples), SAMPLE)
    places = torch.linspace(0, len(examples) - 1, count, dtype=torch.float64).round().long()
    x, y = examples.take(places)
    found: list[Tensor | None] = [None] * 4
    if len(inputs.shape) == 1:
        found[:2] = [v.squeeze(0) for v in statistics(x.double(), 0)]
    if numbers:
        found[2:] = [v.squeeze(0) for v in statistics(y.double(), 0)]
    return Scales(*found)


class Model(nn.Module):
    """A network in standardised units; trained as one.

    Attributes:
        network: the sparse one.
        log_noise: log standard deviation of the noise of each output, in standardised units, if it is learned.
    """

    x_loc: Tensor
    x_scale: Tensor
    y_loc: Tensor
    y_scale: Tensor

    def __init__(self, network: nn.Module, classes: int | None, noise: float | str) -> None:
        super().__init__()
        self.network, self.classes, self.noise = network, classes, noise
        start = nn.Parameter(torch.zeros((), dtype=torch.float32))
        self.log_noise = start if noise == "learned" and not classes else None
        for name in Scales._fields:
            start = torch.zeros((), dtype=torch.float32) if "loc" in name else torch.ones((), dtype=torch.float32)
            self.register_buffer(name, start)

    def take(self, units: Scales) -> None:
        """Use these units from now on."""
        for name, value in units._asdict().items():
            if value is not None:
                setattr(self, name, value.float())

    def check_outputs(self, x: Tensor, y: Tensor, inputs: Inputs) -> None:
        """Try the network on a batch, and fit the noise to its outputs.

        Raises:
            ValueError: the network fails, or gives other outputs than the targets need.
        """
        training = self.training
        try:
            with torch.no_grad():
                raw = self.eval()(x)
        except (RuntimeError, TypeError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"net must take inputs of the shape {tuple(x.shape)}, and it says: {reason}") from None
        finally:
            self.train(training)
        found = tuple(raw.shape[1:]) if isinstance(raw, Tensor) and raw.ndim and len(raw) == len(x) else None
        width = self.classes or (inputs.targets[0] if inputs.targets else 1) * (2 if self.noise == "output" else 1)
        if found != (width,) and not (found == () and width == 1):
            got = tuple(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
            if inputs.targets and found in ((), (2 if self.noise == "output" else 1,)):
                raise ValueError(
                    "y must have one value for each row of x, as the network gives one number, "
                    f"got {inputs.targets[0]} for each"
                )
            what = f"one logit for each of {self.classes} classes" if self.classes else f"{width} numbers"
            raise ValueError(f"net must give {what} an example, the shape [{len(x)}, {width}], got {got}")
        if self.log_noise is not None and inputs.targets:
            self.log_noise = nn.Parameter(torch.zeros(inputs.targets, dtype=torch.float32, device=x.device))

    def forward(self, x: Tensor) -> Tensor:
        """Raw outputs, in standardised units."""
        kind = self._kind
        if self.x_loc.ndim:
            x = ((x.to(torch.promote_types(x.dtype, self.x_loc.dtype)) - self.x_loc) / self.x_scale).to(kind)
        return self.network(x.to(kind))

    @property
    def _kind(self) -> torch.dtype:
        return next(p.dtype for p in self.network.parameters() if p.is_floating_point())

    def law(self, raw: Float[Tensor, "..."], scalar: bool) -> Normal:
        """Distribution of the target around raw outputs, in standardised units."""
        raw = raw if raw.dtype == torch.float64 else raw.float()
        if self.noise == "output":
            raw, log_variance = raw.chunk(2, -1)
            scale = (BOUND * torch.tanh(log_variance / BOUND) / 2).exp()
        elif self.log_noise is not None:
            scale = self.log_noise.to(raw).exp()
        else:
            scale = self.noise / self.y_scale.to(raw)  # pyright: ignore[reportOperatorIssue]
        scale = scale.expand_as(raw)
        if scalar and raw.ndim and raw.shape[-1] == 1:
            raw, scale = raw.squeeze(-1), scale.squeeze(-1)
        return Normal(raw, scale, validate_args=False)

    def noise_of(self) -> Any:
        """Learned standard deviations of the noise, in the units of the targets."""
        assert self.log_noise is not None
        return (self.log_noise.detach().exp() * self.y_scale).cpu().tolist()
