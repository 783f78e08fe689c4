"""The transformer over prefixes of a curve."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from bayesvision.core.context import Cache
from bayesvision.nn.attention import Block, LayerNorm, Linear

__all__ = ["PrefixTransformer"]


class PrefixTransformer(nn.Module):
    """Maps every prefix of a sequence to a state, and a state with a query to a raw output.

    Row n attends to a learned prior token and to the rows 1, ..., n, so one pass over a sequence gives the states of
    all its prefixes, the empty one too, and a new row costs one token: the keys and values of the earlier ones stay
    as they are. A query is read from a state by a residual network of its own and attends to nothing.

    Args:
        features, queries: sizes of a row and of a query.
        outputs: size of the raw output.
        width, layers, heads: size of the tokens, number of blocks and of attention heads.
        readers: residual blocks between a state with its query and the output.

    Raises:
        ValueError: `width` is not a multiple of `heads`.
    """

    blocks: Any  # lists of modules, which ModuleList does not say
    readers: Any

    def __init__(
        self, features: int, queries: int, outputs: int, width: int, layers: int, heads: int, readers: int
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        self.embed = Linear(features, width)
        self.prior_token = nn.Parameter(torch.randn(1, width, dtype=torch.float32) * width**-0.5)
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(layers))
        self.norm = LayerNorm(width)
        self.state = Linear(width, width)
        self.embed_query = Linear(queries, width)
        self.readers = nn.ModuleList(Reader(width, 2 * width) for _ in range(readers))
        self.output_norm = LayerNorm(width)
        self.output = Linear(width, outputs)

    def encode(
        self, rows: Float[Tensor, "*batch n features"], cache: Cache = ()
    ) -> tuple[Float[Tensor, "*batch states width"], Cache]:
        """States of the prefixes that end in each of `rows`, and the cache with them in it.

        Without a cache the sequence starts here, and the state of the empty prefix comes first.
        """
        tokens = self.embed(rows)
        if not cache:
            tokens = torch.cat([self.prior_token.to(rows).expand(*rows.shape[:-2], 1, -1), tokens], -2)
        count, before = tokens.shape[-2], cache[0][0].shape[-2] if cache else 0
        mask = None  # a single new row sees everything
        if count > 1:
            mask = torch.ones(count, before + count, dtype=torch.bool, device=rows.device).tril(before)
        grown = []
        for k, block in enumerate(self.blocks):
            keys, values = block.keys_values(tokens)
            if cache:
                keys, values = torch.cat([cache[k][0], keys], -2), torch.cat([cache[k][1], values], -2)
            grown.append((keys, values))
            tokens = block(tokens, keys, values, mask)
        return self.state(self.norm(tokens)), tuple(grown)

    def read(
        self, state: Float[Tensor, "*#batch width"], query: Float[Tensor, "*#batch queries"]
    ) -> Float[Tensor, "*batch outputs"]:
        """Raw outputs of the queries given the states, whose axes broadcast."""
        tokens = state + self.embed_query(query)
        for reader in self.readers:
            tokens = reader(tokens)
        return self.output(self.output_norm(tokens))


class Reader(nn.Module):
    """Pre-norm residual feed-forward block."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width)
        self.input_layer = Linear(width, hidden)
        self.output_layer = Linear(hidden, width)

    def forward(self, tokens: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return tokens + self.output_layer(gelu(self.input_layer(self.norm(tokens))))
