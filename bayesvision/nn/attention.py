"""The attention block that the transformers share."""

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

__all__ = ["Block", "LayerNorm", "Linear"]

Linear = partial(nn.Linear, dtype=torch.float32)  # whatever torch's default is: the same seed, the same weights
LayerNorm = partial(nn.LayerNorm, dtype=torch.float32)


class Block(nn.Module):
    """Pre-norm attention and feed-forward block whose keys and values come from the context alone."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = LayerNorm(width)
        self.query = Linear(width, width)
        self.key_value = Linear(width, 2 * width)
        self.attention_out = Linear(width, width)
        self.forward_norm = LayerNorm(width)
        self.forward_in = Linear(width, hidden)
        self.forward_out = Linear(hidden, width)
        for layer in (self.attention_out, self.forward_out):  # every block starts as the identity
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def keys_values(self, context: Float[Tensor, "*batch tokens width"]) -> tuple[Tensor, Tensor]:
        """Keys and values that the context offers in this block."""
        keys, values = self.key_value(self.attention_norm(context)).chunk(2, -1)
        return self._split(keys), self._split(values)

    def forward(
        self,
        tokens: Float[Tensor, "*batch tokens width"],
        keys: Tensor,
        values: Tensor,
        mask: Bool[Tensor, "tokens keys"] | None = None,
    ) -> Float[Tensor, "*batch tokens width"]:
        query = self._split(self.query(self.attention_norm(tokens)))
        attended = scaled_dot_product_attention(query, keys, values, mask).transpose(-2, -3).flatten(-2)
        tokens = tokens + self.attention_out(attended)
        return tokens + self.forward_out(gelu(self.forward_in(self.forward_norm(tokens))))
