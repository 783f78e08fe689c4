"""`Draws`: random numbers for a whole batch of data sets, from one generator."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

__all__ = ["Draws"]


class Draws:
    """Random tensors [batch, *shape] on the generator's device; bounds and probabilities may be tensors themselves."""

    def __init__(self, batch: int, generator: Generator) -> None:
        self.batch, self.generator = batch, generator

    def uniform(self, *shape: int, low: float | Tensor = 0.0, high: float | Tensor = 1.0) -> Float[Tensor, "..."]:
        """U(low, high)."""
        rng = self.generator
        u = torch.rand(self.batch, *shape, generator=rng, device=rng.device, dtype=torch.float32)
        return low + (high - low) * u

    def normal(self, *shape: int) -> Float[Tensor, "..."]:
        """N(0, 1)."""
        rng = self.generator
        return torch.randn(self.batch, *shape, generator=rng, device=rng.device, dtype=torch.float32)

    def log_uniform(self, *shape: int, low: float, high: float) -> Float[Tensor, "..."]:
        """exp U(log low, log high)."""
        return self.uniform(*shape, low=math.log(low), high=math.log(high)).exp()

    def log_normal(self, *shape: int, mean: float, stddev: float) -> Float[Tensor, "..."]:
        """exp N(mean, stddev^2)."""
        return (mean + stddev * self.normal(*shape)).exp()

    def happens(self, *shape: int, p: float | Tensor) -> Bool[Tensor, "..."]:
        """True with probability p."""
        return self.uniform(*shape) < p

    def integers(self, *shape: int, high: int | Tensor) -> Int[Tensor, "..."]:
        """Uniform on 0, ..., high - 1."""
        top = high - 1
        found = (self.uniform(*shape) * high).long()
        return found.clamp(max=top) if isinstance(top, int) else found.minimum(top.expand(found.shape))

    def log_gamma(self, *size: int, shape: float | Tensor) -> Float[Tensor, "..."]:
        """log G with G ~ Gamma(shape, 1), which does not underflow at small shapes: log G' + log U / shape.

        G' ~ Gamma(shape + 1, 1) and U ~ U(0, 1) (Marsaglia and Tsang 2000, section 6).
        """
        one = self.uniform(*size).clamp(min=1e-30)
        shapes = torch.as_tensor(shape, device=one.device, dtype=one.dtype).expand(one.shape)
        boosted = torch._standard_gamma((shapes + 1).contiguous(), generator=self.generator)
        return boosted.log() + one.log() / shapes

    def student(self, *shape: int, df: float) -> Float[Tensor, "..."]:
        """Student's t with `df` degrees of freedom."""
        z = self.normal(*shape)
        halves = torch.full_like(z, df / 2)
        return z * (df / 2 / torch._standard_gamma(halves, generator=self.generator)).sqrt()
