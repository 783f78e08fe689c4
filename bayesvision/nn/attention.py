"""The attention block that the transformers share."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

__all__ = ["Attention", "Block", "LayerNorm", "Linear", "add_feed_forward", "feed_forward"]

Linear = partial(nn.Linear, dtype=torch.float32)  # whatever torch's default is: the same seed, the same weights
LayerNorm = partial(nn.LayerNorm, dtype=torch.float32)


class Attention(nn.Module):
    """Pre-norm multi-head attention whose keys and values come from tokens that are named apart from the queries."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = LayerNorm(width)
        self.query = Linear(width, width)
        self.key_value = Linear(width, 2 * width)
        self.attention_out = Linear(width, width)
        nn.init.zeros_(self.attention_out.weight)  # every block starts as the identity
        nn.init.zeros_(self.attention_out.bias)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def keys_values(self, context: Float[Tensor, "*batch tokens width"]) -> tuple[Tensor, Tensor]:
        """Keys and values that the context offers in this block."""
        keys, values = self.key_value(self.attention_norm(context)).chunk(2, -1)
        return self._split(keys), self._split(values)

    def attend(
        self,
        tokens: Float[Tensor, "*batch tokens width"],
        keys: Tensor,
        values: Tensor,
        mask: Bool[Tensor, "tokens keys"] | None = None,
    ) -> Float[Tensor, "*batch tokens width"]:
        """The tokens, and what they take from the keys and values added to them."""
        query = self._split(self.query(self.attention_norm(tokens)))
        attended = scaled_dot_product_attention(query, keys, values, mask).transpose(-2, -3).flatten(-2)
        return tokens + self.attention_out(attended)


def add_feed_forward(module: Any, width: int, hidden: int) -> None:
    """Give `module` the layers of a pre-norm feed-forward block that starts as the identity."""
    module.forward_norm = LayerNorm(width)
    module.forward_in = Linear(width, hidden)
    module.forward_out = Linear(hidden, width)
    nn.init.zeros_(module.forward_out.weight)
    nn.init.zeros_(module.forward_out.bias)


def feed_forward(module: Any, tokens: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """The tokens, and what the block's feed-forward layers make of them added to them."""
    return tokens + module.forward_out(gelu(module.forward_in(module.forward_norm(tokens))))


class Block(Attention):
    """Pre-norm attention and feed-forward block whose keys and values come from the context alone."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__(width, heads)
        add_feed_forward(self, width, hidden)

    def forward(
        self,
        tokens: Float[Tensor, "*batch tokens width"],
        keys: Tensor,
        values: Tensor,
        mask: Bool[Tensor, "tokens keys"] | None = None,
    ) -> Float[Tensor, "*batch tokens width"]:
        return feed_forward(self, self.attend(tokens, keys, values, mask))
