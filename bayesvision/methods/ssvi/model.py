"""The sparse network with the units of its data and its noise: raw outputs, and the distribution of a target."""

from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesvision.distributions import Normal
from bayesvision.training.examples import Inputs, Scales

__all__ = ["Model"]

BOUND = 20.0  # largest |log variance|, in standardised units
QUIET = 1e-6  # least standard deviation of the noise at the start, of that of the targets


class Model(nn.Module):
    """A network in standardised units; trained as one.

    Attributes:
        network: the sparse one.
        log_noise: log standard deviation of the noise of each output, in standardised units, if it is learned.
        column: whether the network gives [n, outputs], and not [n].
        tokens: whether inputs are whole numbers, which the network reads as they are.
    """

    x_loc: Tensor
    x_scale: Tensor
    y_loc: Tensor
    y_scale: Tensor

    def __init__(self, network: nn.Module, classes: int | None, noise: float | str, inputs: Inputs) -> None:
        super().__init__()
        self.network, self.classes, self.noise, self.inputs = network, classes, noise, inputs
        self.column = True
        start = torch.zeros(inputs.targets, dtype=torch.float32)
        self.log_noise = nn.Parameter(start) if noise == "learned" and not classes else None
        for name in Scales._fields:
            start = torch.zeros((), dtype=torch.float64) if "loc" in name else torch.ones((), dtype=torch.float64)
            self.register_buffer(name, start)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Units stay in float64, where the device has it: large numbers that vary little are told apart by no less."""
        exact = {name: getattr(self, name) for name in Scales._fields}
        super()._apply(fn, recurse)
        for name, value in exact.items():
            device = getattr(self, name).device
            setattr(self, name, value.to(device, torch.float32 if device.type == "mps" else value.dtype))
        return self

    def take(self, units: Scales) -> None:
        """Use these units from now on."""
        for name, value in units._asdict().items():
            if value is not None:
                setattr(self, name, value.to(getattr(self, name).device))

    @torch.no_grad()
    def prepare(self, x: Tensor, y: Tensor) -> None:
        """Try the network on a batch, and start the noise from its errors.

        Raises:
            ValueError: the network fails, or gives other outputs than the targets need.
        """
        targets = self.inputs.targets
        width = self.classes or (targets[0] if targets else 1) * (2 if self.noise == "output" else 1)
        training = self.training
        try:
            raw = self.eval()(x)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"net must take inputs of the shape {tuple(x.shape)}, and it says: {reason}") from error
        finally:
            self.train(training)
        found = tuple(raw.shape[1:]) if isinstance(raw, Tensor) and raw.ndim and len(raw) == len(x) else None
        if found != (width,) and not (found == () and width == 1):
            if targets and found in ((), (2 if self.noise == "output" else 1,)):
                raise ValueError(
                    f"y must have one value for each row of x, as the network gives one number, got {targets[0]} each"
                )
            got = tuple(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
            what = f"one logit for each of {self.classes} classes" if self.classes else f"{width} numbers"
            raise ValueError(f"net must give {what} an example, the shape [{len(x)}, {width}], got {got}")
        self.column = found != ()
        if self.log_noise is not None:
            standard = ((y - self.y_loc) / self.y_scale).double()
            spread = standard.std(0, correction=0).clamp(min=1e-12)
            error = (standard - self.law(raw).mean).square().mean(0).sqrt()
            self.log_noise.copy_(torch.maximum(torch.minimum(error, spread), QUIET * spread).log())

    def forward(self, x: Tensor) -> Tensor:
        """Raw outputs, in standardised units."""
        if self.inputs.tokens:
            return self.network(x)
        if self.x_loc.ndim:
            x = (x.to(self.x_loc.dtype) - self.x_loc) / self.x_scale
        return self.network(x.to(self.kind))

    @property
    def kind(self) -> torch.dtype:
        """The floating-point type of the network."""
        return next(p.dtype for p in self.network.parameters() if p.is_floating_point())

    def law(self, raw: Float[Tensor, "..."]) -> Normal:
        """Distribution of the target around raw outputs, in standardised units."""
        raw = raw if raw.dtype == torch.float64 else raw.float()
        if self.noise == "output":
            raw, log_variance = raw.chunk(2, -1)
            scale = (BOUND * torch.tanh(log_variance / BOUND) / 2).exp()
        elif self.log_noise is not None:
            scale = self.log_noise.to(raw).exp()
        else:
            assert isinstance(self.noise, float)
            scale = self.noise / self.y_scale.to(raw)
        scale = scale.expand_as(raw)
        if self.column and not self.inputs.targets:
            raw, scale = raw.squeeze(-1), scale.squeeze(-1)
        return Normal(raw, scale, validate_args=False)

    def noise_of(self) -> Any:
        """Learned standard deviations of the noise, in the units of the targets; None where none is learned."""
        if self.log_noise is None:
            return None
        found = (self.log_noise.detach().exp() * self.y_scale).cpu()
        return [float(v) for v in found] if self.inputs.targets else float(found)

    def misfit(self, raw: Tensor, y: Tensor) -> Float[Tensor, ""]:
        """-mean log p(y | raw outputs), in standardised units."""
        if self.classes:
            return nn.functional.cross_entropy(raw.float(), y)
        law = self.law(raw)
        return -law.log_prob(((y - self.y_loc) / self.y_scale).to(law.mean)).mean()

    @staticmethod
    def reads_tokens(net: Any) -> bool:
        """Whether a network has an embedding, and so may read whole numbers."""
        kinds = (nn.Embedding, nn.EmbeddingBag)
        return isinstance(net, nn.Module) and any(isinstance(part, kinds) for part in net.modules())
