"""`RandomNetwork`: Bayesian neural networks as priors for regression and classification."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from priors.checks import check_counts, check_positive, feature_range
from priors.designs import Design, check_design, draw_inputs
from priors.task import Task

__all__ = ["RandomNetwork"]


@dataclass(frozen=True)
class RandomNetwork:
    """Multilayer perceptron with standard normal weights and biases, activations between the layers.

    h_0 = x - 1/2, h_{l+1} = activation(h_l W_l + b_l), f = h_L w + b; weights have variance gain^2 / fan-in, biases
    variance gain^2 / 4, so f keeps a scale near `gain` at any width. Regression adds N(0, noise). Classification
    thresholds f at quantiles drawn uniformly for each data set (`link="threshold"`), or draws y from softmax(4 f)
    (`link="softmax"`).

    Args:
        features: number of columns of x, or a range drawn anew for each batch.
        width, layers: size and number of hidden layers.
        activation: `tanh`, `relu` or `gelu`.
        gain: standard deviation of the weights before the division by sqrt(fan-in).
        noise: noise variance in regression.
        classes: None for regression, otherwise the number of classes.
        link: how f becomes a class.
        design: how x spreads.

    Raises:
        ValueError: an argument is out of range.
    """

    features: int | tuple[int, int] = 1
    width: int = 32
    layers: int = 2
    activation: Literal["tanh", "relu", "gelu"] = "tanh"
    gain: float = 2.0
    noise: float = 0.01
    classes: int | None = None
    link: Literal["threshold", "softmax"] = "softmax"
    design: Design = "uniform"

    def __post_init__(self) -> None:
        feature_range(self.features)
        check_counts(width=self.width, layers=self.layers)
        check_positive(gain=self.gain, noise=self.noise)
        check_design(self.design)
        if self.activation not in ("tanh", "relu", "gelu"):
            raise ValueError(f"activation must be tanh, relu or gelu, got {self.activation!r}")
        if self.link not in ("threshold", "softmax"):
            raise ValueError(f"link must be threshold or softmax, got {self.link!r}")
        if self.classes is not None:
            check_counts(classes=self.classes)
            if self.classes < 2:
                raise ValueError(f"classes must be None or at least 2, got {self.classes}")

    def shapes(self, features: int) -> list[tuple[int, int]]:
        """Shape `(inputs, outputs)` of every layer's weights."""
        outputs = self.classes if self.classes is not None and self.link == "softmax" else 1
        sizes = [features, *([self.width] * self.layers), outputs]
        return list(pairwise(sizes))

    def function(self, x: Float[Tensor, "*batch rows features"], theta: dict[str, Tensor]) -> Tensor:
        """Output of the network with the standard normal parameters `theta`."""
        h = x - 0.5
        layers = self.layers + 1
        for k in range(layers):
            weight, bias = theta[f"weight{k}"], theta[f"bias{k}"]
            h = self.gain * (h @ (weight / math.sqrt(weight.shape[-2])) + bias.unsqueeze(-2) / 2)
            if k < layers - 1:
                h = getattr(torch.nn.functional, self.activation)(h)
        return h

    def sample(self, batch: int, rows: int, *, generator: Generator) -> Task:
        """Draw `batch` data sets of `rows` rows."""
        check_counts(batch=batch, rows=rows)
        device = generator.device
        least, most = feature_range(self.features)
        features = int(torch.randint(least, most + 1, (), generator=generator, device=device))
        x = draw_inputs(self.design, batch, rows, features, generator)
        theta: dict[str, Tensor] = {}
        for k, shape in enumerate(self.shapes(features)):
            theta[f"weight{k}"] = torch.randn(batch, *shape, generator=generator, device=device, dtype=torch.float32)
            theta[f"bias{k}"] = torch.randn(batch, shape[1], generator=generator, device=device, dtype=torch.float32)
        f = self.function(x, theta)
        if self.classes is None:
            noise = math.sqrt(self.noise) * torch.randn(
                batch, rows, generator=generator, device=device, dtype=torch.float32
            )
            return Task(x, f.squeeze(-1) + noise, theta, self)
        draw = self._threshold if self.link == "threshold" else self._softmax
        return Task(x, draw(f, generator), theta, self)

    def _softmax(self, f: Float[Tensor, "batch rows classes"], generator: Generator) -> Int[Tensor, "batch rows"]:
        # argmax of logits plus Gumbel noise is a draw from their softmax
        uniform = torch.rand(f.shape, generator=generator, device=f.device, dtype=torch.float32).clamp(min=1e-9)
        return (4 * f - (-uniform.log()).log()).argmax(-1)

    def _threshold(self, f: Float[Tensor, "batch rows 1"], generator: Generator) -> Int[Tensor, "batch rows"]:
        assert self.classes is not None
        levels = torch.rand(f.shape[0], self.classes - 1, generator=generator, device=f.device, dtype=torch.float32)
        index = (levels * f.shape[1]).long().sort(-1).values
        borders = f.squeeze(-1).sort(-1).values.gather(-1, index)
        return torch.searchsorted(borders.contiguous(), f.squeeze(-1).contiguous(), right=True)
