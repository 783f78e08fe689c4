"""What training minimises, and the exchange of weights between its steps."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesvision.methods.ssvi.model import Model
from bayesvision.methods.ssvi.network import dense_gradients, layers_of
from bayesvision.methods.ssvi.selection import exchange
from bayesvision.training.batches import Minibatches
from bayesvision.training.optimizers import Optimizers
from bayesvision.training.seeds import generator, seed_current

__all__ = ["Learner"]

EXCHANGE = 1 << 43  # tells the generators of exchanges from those of steps


class Learner:
    """The evidence lower bound of a model, an example, and the hook between steps.

    Args:
        method: the recipe.
        model: what is trained.
        batches: its examples.
    """

    def __init__(self, method: Any, model: Model, batches: Minibatches) -> None:
        self.method, self.model, self.batches = method, model, batches

    def batch(self, step: int, part: int) -> tuple[Tensor, Tensor, float]:
        """Examples, and the weight of the KL at this step."""
        rise = self.method.beta_warmup * self.method.train.steps
        share = 1.0 if step >= rise else step / rise
        return (*self.batches(step, part), self.method.beta * share)

    def loss(self, model: Any, batch: tuple[Tensor, Tensor, float]) -> Float[Tensor, ""]:
        """-mean log p(y | theta) + beta KL / N, theta drawn once for each example (eq. 5, over N)."""
        x, y, beta = batch
        fit = self.misfit(model, x, y)
        if not beta:
            return fit
        divergence: Any = sum(layer.kl(self.method.prior_std) for layer in layers_of(model).values())
        return fit + beta / self.batches.num_data * divergence

    def misfit(self, model: Model, x: Tensor, y: Tensor) -> Float[Tensor, ""]:
        """-mean log p(y | theta), in standardised units."""
        raw = model(x)
        if self.method.classes:
            return nn.functional.cross_entropy(raw.float(), y)
        y = ((y - model.y_loc) / model.y_scale).to(torch.float64 if raw.dtype == torch.float64 else torch.float32)
        return -model.law(raw, y.ndim == 1).log_prob(y).mean()

    def between(self, step: int, optimizers: Optimizers) -> None:
        """Exchange weights where it is time: a pure function of the step, the weights and their moments.

        The fraction is exchange / 2 (1 + cos(pi t / T)), T being the last step with exchanges.
        """
        method, end = self.method, self.method.until * self.method.train.steps
        layers = {k: v for k, v in layers_of(self.model).items() if len(v.index) < v.size}
        if step % method.interval or step >= end or not method.exchange or not layers:
            return
        fraction = method.exchange / 2 * (1 + math.cos(math.pi * step / end))
        gradients = dense_gradients(layers, [self._look(step, k) for k in range(method.micro_batches)])
        for name, layer in layers.items():
            exchange(layer, gradients[name], fraction, method.criterion, method.exponent, optimizers)

    def _look(self, step: int, part: int) -> Any:
        def loss() -> Tensor:
            number = self.method.train.steps + step // self.method.interval * self.method.micro_batches + part
            x, y = self.batches(number, 0)
            seed_current(generator("cpu", self.method.train.seed, EXCHANGE, step, part).initial_seed())
            return self.misfit(self.model, x, y)

        return loss
