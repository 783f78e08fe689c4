"""`CellTransformer`: a network over the cells of a table, which is indifferent to the order of its columns and rows."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from bayesvision.core.context import Cache
from bayesvision.nn.attention import Attention, LayerNorm, Linear, add_feed_forward, feed_forward

__all__ = ["CellTransformer"]


class CellBlock(nn.Module):
    """Attention among the cells of a row, then of each column to the context rows, then a feed-forward layer."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.columns = Attention(width, heads)
        self.rows = Attention(width, heads)
        add_feed_forward(self, width, hidden)

    def across_columns(self, tokens: Float[Tensor, "*batch rows cells width"]) -> Tensor:
        """Each row by itself: its cells attend to each other."""
        return self.columns.attend(tokens, *self.columns.keys_values(tokens))

    def keys_values(self, context: Float[Tensor, "*batch rows cells width"]) -> tuple[Tensor, Tensor]:
        """Keys and values [*batch, cells, heads, rows, size] that the context rows offer in each column."""
        return self.rows.keys_values(context.transpose(-2, -3))

    def across_rows(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Each column by itself: its cells attend to those of the context rows."""
        attended = self.rows.attend(tokens.transpose(-2, -3), keys, values).transpose(-2, -3)
        return feed_forward(self, attended)


class CellTransformer(nn.Module):
    """Maps context rows and query rows to one raw output for each query; every cell is a token.

    A row has a token for each column and one for the target, where queries say that theirs is unknown. Blocks attend
    along the row and along the column in turn (Hollmann et al. 2025, doi 10.1038/s41586-024-08328-6), so that columns
    and rows may come in any number and order. One learned prior row joins the context, so that an empty context is a
    context too. With n context rows, m queries and c columns a block costs (n + m) c (c + n).

    Args:
        cell_features, target_features: sizes of what a cell and a target say.
        outputs: size of the raw output.
        width, layers, heads: size of the tokens, number of blocks and of attention heads.

    Raises:
        ValueError: `width` is not a multiple of `heads`.
    """

    blocks: Any  # a list of CellBlock, which ModuleList does not say

    def __init__(
        self, cell_features: int, target_features: int, outputs: int, width: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        self.embed_cell = Linear(cell_features, width)
        self.embed_target = Linear(target_features, width)
        self.prior_token = nn.Parameter(torch.randn(2, width, dtype=torch.float32) * width**-0.5)
        self.blocks = nn.ModuleList(CellBlock(width, heads, 2 * width) for _ in range(layers))
        self.norm = LayerNorm(width)
        self.hidden = Linear(width, 2 * width)
        self.output = Linear(2 * width, outputs)
        nn.init.zeros_(self.output.weight)

    def _tokens(self, cells: Tensor, target: Tensor) -> Float[Tensor, "*batch rows tokens width"]:
        return torch.cat([self.embed_cell(cells), self.embed_target(target).unsqueeze(-2)], -2)

    def _context(self, cells: Tensor, target: Tensor) -> Float[Tensor, "*batch rows tokens width"]:
        """Tokens of the context rows, the prior row first."""
        tokens = self._tokens(cells, target)
        cell, last = self.prior_token.to(tokens).unsqueeze(1)
        prior = torch.cat([cell.expand(cells.shape[-2], -1), last])
        return torch.cat([prior.expand(*tokens.shape[:-3], 1, -1, -1), tokens], -3)

    def _read(self, tokens: Tensor) -> Tensor:
        return self.output(gelu(self.hidden(self.norm(tokens[..., -1, :]))))

    def forward(
        self,
        cells: Float[Tensor, "*batch n columns cell_features"],
        target: Float[Tensor, "*batch n target_features"],
        query: Float[Tensor, "*batch m columns cell_features"],
        asked: Float[Tensor, "*batch m target_features"],
    ) -> Float[Tensor, "*batch m outputs"]:
        """Raw outputs of the queries given the context, in one pass over both."""
        context = cells.shape[-3] + 1
        tokens = torch.cat([self._context(cells, target), self._tokens(query, asked)], -3)
        for block in self.blocks:
            tokens = block.across_columns(tokens)
            tokens = block.across_rows(tokens, *block.keys_values(tokens[..., :context, :, :]))
        return self._read(tokens[..., context:, :, :])

    def encode(
        self,
        cells: Float[Tensor, "*batch n columns cell_features"],
        target: Float[Tensor, "*batch n target_features"],
    ) -> Cache:
        """Keys and values of the context in every block: all that later queries need."""
        tokens, cache = self._context(cells, target), []
        for k, block in enumerate(self.blocks):
            tokens = block.across_columns(tokens)
            cache.append(block.keys_values(tokens))
            if k + 1 < len(self.blocks):  # nobody reads the context after the last block
                tokens = block.across_rows(tokens, *cache[-1])
        return tuple(cache)

    def decode(
        self,
        query: Float[Tensor, "*batch m columns cell_features"],
        asked: Float[Tensor, "*batch m target_features"],
        cache: Cache,
    ) -> Float[Tensor, "*batch m outputs"]:
        """Raw outputs of the queries given an encoded context."""
        tokens = self._tokens(query, asked)
        for block, (keys, values) in zip(self.blocks, cache, strict=True):
            tokens = block.across_rows(block.across_columns(tokens), keys, values)
        return self._read(tokens)
