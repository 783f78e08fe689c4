"""`SetTransformer`: a context set and queries to one raw output for each query."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from bayesvision.core.context import Cache
from bayesvision.nn.attention import Block, LayerNorm, Linear

__all__ = ["SetTransformer"]


class SetTransformer(nn.Module):
    """Maps a context set (x, y) and query inputs x' to one raw output for each query.

    A context token is Lin(x) + Lin(y), a query token is Lin(x'); one learned prior token joins the context, so that
    an empty context is a context too. There is no positional encoding: the rows are a set. With n context tokens and m
    queries the attention costs n (n + m), and no mask is built (Mueller et al. 2022, arXiv 2112.10510, section 3).

    Args:
        features, targets: sizes of x and of y.
        outputs: size of the raw output.
        width, layers, heads: size of the tokens, number of blocks and of attention heads.

    Raises:
        ValueError: `width` is not a multiple of `heads`.
    """

    blocks: Any  # a list of Block, which ModuleList does not say

    def __init__(self, features: int, targets: int, outputs: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        self.embed_x = Linear(features, width)
        self.embed_y = Linear(targets, width)
        self.prior_token = nn.Parameter(torch.randn(1, width, dtype=torch.float32) * width**-0.5)
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(layers))
        self.norm = LayerNorm(width)
        self.hidden = Linear(width, 2 * width)
        self.output = Linear(2 * width, outputs)

    def _context(self, x: Tensor, y: Tensor) -> Tensor:
        rows = self.embed_x(x) + self.embed_y(y)
        return torch.cat([self.prior_token.to(rows).expand(*x.shape[:-2], 1, -1), rows], -2)

    def _read(self, tokens: Tensor) -> Tensor:
        return self.output(gelu(self.hidden(self.norm(tokens))))

    def forward(
        self,
        x: Float[Tensor, "*batch n features"],
        y: Float[Tensor, "*batch n targets"],
        query: Float[Tensor, "*batch m features"],
    ) -> Float[Tensor, "*batch m outputs"]:
        """Raw outputs of the queries given the context (x, y), in one pass over both."""
        context = x.shape[-2] + 1
        tokens = torch.cat([self._context(x, y), self.embed_x(query)], -2)
        for block in self.blocks:
            tokens = block(tokens, *block.keys_values(tokens[..., :context, :]))
        return self._read(tokens[..., context:, :])

    def encode(self, x: Float[Tensor, "*batch n features"], y: Float[Tensor, "*batch n targets"]) -> Cache:
        """Keys and values of the context in every block: all that later queries need."""
        tokens, cache = self._context(x, y), []
        for k, block in enumerate(self.blocks):
            cache.append(block.keys_values(tokens))
            if k + 1 < len(self.blocks):  # nobody reads the context after the last block
                tokens = block(tokens, *cache[-1])
        return tuple(cache)

    def decode(self, query: Float[Tensor, "*batch m features"], cache: Cache) -> Float[Tensor, "*batch m outputs"]:
        """Raw outputs of the queries given a remembered context."""
        tokens = self.embed_x(query)
        for block, (keys, values) in zip(self.blocks, cache, strict=True):
            tokens = block(tokens, keys, values)
        return self._read(tokens)
