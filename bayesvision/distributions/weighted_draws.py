"""`WeightedDraws`: a distribution over latent variables by draws and their weights."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

__all__ = ["WeightedDraws"]


class WeightedDraws:
    """Draws of the latent variables with weights that sum to 1.

    Attributes:
        values: the draws.
        weights: one for each.
    """

    def __init__(self, values: Float[Tensor, "*batch draws latents"], weights: Float[Tensor, "*batch draws"]) -> None:
        self.values, self.weights = values, weights

    def __repr__(self) -> str:
        return f"{type(self).__name__}(batch_shape={tuple(self.weights.shape[:-1])}, draws={self.weights.shape[-1]})"

    @property
    def mean(self) -> Float[Tensor, "*batch latents"]:
        """Weighted mean."""
        return (self.weights.unsqueeze(-1) * self.values).sum(-2)

    @property
    def covariance_matrix(self) -> Float[Tensor, "*batch latents latents"]:
        """Weighted covariance."""
        apart = self.values - self.mean.unsqueeze(-2)
        return (self.weights.unsqueeze(-1) * apart).mT @ apart

    @property
    def effective_size(self) -> Float[Tensor, "*batch"]:
        """1 / sum w^2: so many equally weighted draws say as much."""
        return 1 / self.weights.square().sum(-1)

    def quantile(self, level: float) -> Float[Tensor, "*batch latents"]:
        """Weighted quantile of every latent variable.

        Raises:
            ValueError: `level` lies outside (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
        order = self.values.argsort(-2)
        mass = self.weights.unsqueeze(-1).expand(self.values.shape).gather(-2, order).cumsum(-2)
        place = (mass < level).sum(-2, keepdim=True).clamp(max=self.values.shape[-2] - 1)
        return self.values.gather(-2, order.gather(-2, place)).squeeze(-2)

    def interval(self, mass: float) -> tuple[Float[Tensor, "*batch latents"], Float[Tensor, "*batch latents"]]:
        """Central interval of every latent variable by itself.

        Raises:
            ValueError: `mass` lies outside (0, 1).
        """
        return self.quantile((1 - mass) / 2), self.quantile((1 + mass) / 2)

    def resampled(self, count: int, generator: Generator) -> Float[Tensor, "*batch count latents"]:
        """Equally weighted draws, by systematic resampling (Kitagawa 1996)."""
        batch = self.weights.shape[:-1]
        start = torch.rand(*batch, 1, generator=generator, device=generator.device, dtype=torch.float64)
        points = (torch.arange(count, dtype=torch.float64, device=generator.device) + start) / count
        edges = self.weights.double().cumsum(-1)
        place = torch.searchsorted(edges / edges[..., -1:], points).clamp(max=self.weights.shape[-1] - 1)
        return self.values.gather(-2, place.unsqueeze(-1).expand(*place.shape, self.values.shape[-1]))
