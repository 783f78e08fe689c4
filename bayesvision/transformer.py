"""Two transformers of the same blocks: over sets, and over sequences whose every prefix is a context."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

__all__ = ["Cache", "Memory", "PrefixTransformer", "SetTransformer"]

Cache = tuple[
    tuple[Tensor, Tensor], ...
]  # keys and values of the context [*batch, heads, tokens, size], layer by layer
Linear = partial(nn.Linear, dtype=torch.float32)  # whatever torch's default is: the same seed, the same weights
LayerNorm = partial(nn.LayerNorm, dtype=torch.float32)


class Memory(nn.Module):
    """Keys and values of a context as buffers: they move with the module that holds them, and stay out of files."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = 0

    def store(self, cache: Cache) -> None:
        """Keep `cache` in place of what was kept before."""
        for k, (keys, values) in enumerate(cache):
            self.register_buffer(f"keys{k}", keys, persistent=False)
            self.register_buffer(f"values{k}", values, persistent=False)
        self.layers = len(cache)

    @property
    def cache(self) -> Cache:
        """What was kept; empty if nothing was."""
        return tuple((getattr(self, f"keys{k}"), getattr(self, f"values{k}")) for k in range(self.layers))


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

    def remember(self, x: Float[Tensor, "*batch n features"], y: Float[Tensor, "*batch n targets"]) -> Cache:
        """Keys and values of the context in every block: all that later queries need."""
        tokens, cache = self._context(x, y), []
        for k, block in enumerate(self.blocks):
            cache.append(block.keys_values(tokens))
            if k + 1 < len(self.blocks):  # nobody reads the context after the last block
                tokens = block(tokens, *cache[-1])
        return tuple(cache)

    def recall(self, query: Float[Tensor, "*batch m features"], cache: Cache) -> Float[Tensor, "*batch m outputs"]:
        """Raw outputs of the queries given a remembered context."""
        tokens = self.embed_x(query)
        for block, (keys, values) in zip(self.blocks, cache, strict=True):
            tokens = block(tokens, keys, values)
        return self._read(tokens)


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
        self.inward = Linear(width, hidden)
        self.outward = Linear(hidden, width)

    def forward(self, tokens: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return tokens + self.outward(gelu(self.inward(self.norm(tokens))))
