"""What training minimises, and the exchange of weights between its steps."""

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor

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
        self.method, self.model, self.batches, self.layers = method, model, batches, layers_of(model)

    def batch(self, step: int, part: int) -> tuple[Tensor, Tensor, float]:
        """Examples, and the weight of the KL at this step."""
        rise = self.method.beta_warmup * self.method.train.steps
        share = 1.0 if step >= rise else step / rise
        return (*self.batches(step, part), self.method.beta * share)

    def loss(self, model: Any, batch: tuple[Tensor, Tensor, float]) -> Float[Tensor, ""]:
        """-mean log p(y | theta) + beta KL / N (eq. 5, over N), theta drawn for each example as the layers do."""
        x, y, beta = batch
        fit = model.misfit(model(x), y)
        if not beta:
            return fit
        divergence: Any = sum(layer.kl(self.method.prior_std) for layer in self.layers.values())
        return fit + beta / self.batches.num_data * divergence

    def between(self, step: int, optimizers: Optimizers) -> None:
        """Exchange weights where it is time: a pure function of the step, the weights and their moments.

        The fraction is exchange / 2 (1 + cos(pi t / T)), T = until steps, from which on none are made.
        """
        method, end = self.method, self.method.until * self.method.train.steps
        layers = {k: v for k, v in self.layers.items() if len(v.index) < v.size}
        if step % method.interval or step >= end or not method.exchange or not layers:
            return
        fraction = method.exchange / 2 * (1 + math.cos(math.pi * step / end))
        kept = {name: value.clone() for name, value in self.model.named_buffers()}  # statistics of batch norms
        gradients = dense_gradients(layers, [self._look(step, k) for k in range(method.micro_batches)])
        for name, value in self.model.named_buffers():
            value.copy_(kept[name])
        for name, layer in layers.items():
            exchange(layer, gradients[name], fraction, method.criterion, method.exponent, optimizers)

    def _look(self, step: int, part: int) -> Any:
        def loss() -> Tensor:
            number = self.method.train.steps + step // self.method.interval * self.method.micro_batches + part
            x, y = self.batches(number, 0)
            seed_current(generator("cpu", self.method.train.seed, EXCHANGE, step, part).initial_seed())
            return self.model.misfit(self.model(x), y)

        return loss
