"""`ComponentTransformer`: tokens that are the components of a mixture, and attend to each other and to observations."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from bayesvision.core.roles import Family
from bayesvision.methods.dt.linearized import Base, Linearized, updated
from bayesvision.methods.dt.tokens import Parts, Units, revised
from bayesvision.nn.attention import Attention, LayerNorm, Linear, add_feed_forward, feed_forward

__all__ = ["ComponentTransformer", "posterior", "squashed"]


LARGEST = 1e18  # whose square float32 can hold
TRUST = 12.0  # largest logit of a trust


def squashed(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape 3"]:
    """A number of any size as three of moderate size: v / (1 + |v|), asinh v, and log(v^2 + 1e-8) / 5."""
    value = value.clamp(-LARGEST, LARGEST)
    return torch.stack([value / (1 + value.abs()), value.asinh(), (value.square() + 1e-8).log() / 5], -1)


class _Perceptron(nn.Sequential):
    """One hidden layer."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__(Linear(inputs, width), nn.GELU(), Linear(width, outputs))


class _Core(nn.Module):
    """Self-attention among components, cross-attention to observations, feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.components = Attention(width, heads)
        self.observations = Attention(width, heads)
        add_feed_forward(self, width, 2 * width)

    def forward(self, tokens: Tensor, observations: Tensor) -> Tensor:
        tokens = self.components.attend(tokens, *self.components.keys_values(tokens))
        tokens = self.observations.attend(tokens, *self.observations.keys_values(observations))
        return feed_forward(self, tokens)


class ComponentTransformer(nn.Module):
    """Maps a prior, as K tokens, and a set of observations to the K components of a mixture (arXiv 2502.02463, fig. 2).

    There is no positional encoding: neither the order of components nor that of observations matters. `read` un-embeds
    tokens in units of the prior. Where the prior is a mixture, `revise` un-embeds those of the posterior, each
    component in units of the prior's own, so that narrow ones far apart stay as exact as one. Beside the attention to
    observations, tokens see the sum of an embedding of them: the sufficient statistics of an update are such sums.

    Args:
        latents, inputs, hyperparameters: sizes of theta, of a design in units of the prior, and of what tells a prior
            (0 if nothing does).
        components: number K of tokens.
        width, layers, heads: size of the tokens, number of blocks and of attention heads.
    """

    blocks: Any  # a list of _Core, which ModuleList does not say

    def __init__(
        self, latents: int, inputs: int, hyperparameters: int, components: int, width: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        self.latents, self.components = latents, components
        self.shape = 1 + latents + latents * (latents + 1) // 2  # numbers of a component
        self.embed_component = _Perceptron(self.shape, 2 * width, width)
        self.embed_draw = _Perceptron(3 * latents, width, width)
        self.seeds = nn.Parameter(torch.randn(components, width, dtype=torch.float32) * width**-0.5)
        self.pool = _Core(width, heads)
        self.embed_observation = _Perceptron(3 * (inputs + 1), 2 * width, width)
        self.embed_pair = _Perceptron(3 * (inputs + 1), 2 * width, width)
        self.prior_token = nn.Parameter(torch.randn(1, width, dtype=torch.float32) * width**-0.5)
        if hyperparameters:
            self.embed_hyper = _Perceptron(3 * hyperparameters, width, width)
            self.split_hyper = nn.ModuleList(_Perceptron(width, width, width) for _ in range(components))
        self.blocks = nn.ModuleList(_Core(width, heads) for _ in range(layers))
        self.norm = LayerNorm(width)
        self.hidden = Linear(width, 2 * width)
        self.output = Linear(2 * width, self.shape)
        self.revision = Linear(2 * width, self.shape)
        self.of_pair, self.of_token, self.trusted = Linear(width, width), Linear(width, width), Linear(width, 1)
        for last in (self.revision, self.trusted):  # at first the posterior is the linear update, or the prior
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def of_hyper(self, hyper: Float[Tensor, "*batch hyper"]) -> Float[Tensor, "*batch components width"]:
        """Tokens of a prior that its hyper-parameters tell: K distinct networks read one embedding."""
        shared = gelu(self.embed_hyper(squashed(hyper).flatten(-2)))
        return torch.stack([part(shared) for part in self.split_hyper], -2)

    def of_mixture(self, numbers: Float[Tensor, "*batch components shape"]) -> Float[Tensor, "*batch components width"]:
        """Tokens of a Gaussian mixture, one for each component."""
        return self.embed_component(numbers)

    def of_draws(self, draws: Float[Tensor, "*batch n latents"]) -> Float[Tensor, "*batch components width"]:
        """Tokens of a prior that draws tell: K learned seeds attend to them."""
        tokens = self.embed_draw(squashed(draws).flatten(-2))
        return self.pool(self.seeds.to(tokens).expand(*tokens.shape[:-2], -1, -1), tokens)

    def pair(
        self, rows: Float[Tensor, "*batch #components rows numbers"]
    ) -> Float[Tensor, "*batch #components rows width"]:
        """Embeddings of observations in units of every component."""
        return self.embed_pair(squashed(rows).flatten(-2))

    def update(
        self,
        tokens: Float[Tensor, "*batch components width"],
        rows: Float[Tensor, "*batch rows numbers"],
        pairs: Float[Tensor, "*batch #components rows width"],
    ) -> Float[Tensor, "*batch components width"]:
        """Tokens of the posterior given observations in units of the prior, and their embeddings in units of each."""
        seen = self.embed_observation(squashed(rows).flatten(-2))
        seen = torch.cat([self.prior_token.to(seen).expand(*seen.shape[:-2], 1, -1), seen], -2)
        tokens = tokens + pairs.sum(-2)
        for block in self.blocks:
            tokens = block(tokens, seen)
        return tokens

    def trust(
        self, tokens: Float[Tensor, "*batch components width"], pairs: Float[Tensor, "*batch #components rows width"]
    ) -> Float[Tensor, "*batch components rows"]:
        """How much every component trusts the linearised observations, between 0 and 2."""
        hidden = gelu(self.of_pair(pairs) + self.of_token(self.norm(tokens)).unsqueeze(-2))
        return 2 * self.trusted(hidden).squeeze(-1).clamp(-TRUST, TRUST).sigmoid()

    def read(self, tokens: Float[Tensor, "*batch components width"]) -> Float[Tensor, "*batch components shape"]:
        """The numbers of every component in units of the prior."""
        return self.output(gelu(self.hidden(self.norm(tokens))))

    def revise(self, tokens: Float[Tensor, "*batch components width"]) -> Float[Tensor, "*batch components shape"]:
        """The numbers of every component in units of one of the prior."""
        return self.revision(gelu(self.hidden(self.norm(tokens))))


def posterior(
    network: ComponentTransformer,
    family: Family,
    units: Units,
    prior: Parts | None,
    tokens: Float[Tensor, "*batch components width"],
    x: Float[Tensor, "*batch rows features"],
    y: Float[Tensor, "*batch rows"],
) -> Parts:
    """The mixture after the observations (x, y), in the precision of `units`.

    Args:
        network: what knows.
        family: brings observations into units of the prior, and of each of its components.
        units: of the prior.
        prior: its K components, if it was told as a mixture; otherwise K copies of the normal with its moments.
        tokens: of the prior.
        x, y: observations.
    """
    kind = tokens.dtype
    reference = units.copies(network.components) if prior is None else prior
    each = (x.unsqueeze(-3), y.unsqueeze(-2), *reference.each())
    rows = _joined(*family.relative(x, y, *units)).to(kind)
    pairs = network.pair(rows.unsqueeze(-3) if prior is None else _joined(*family.relative(*each)).to(kind))
    tokens = network.update(tokens, rows, pairs)
    raw = network.read(tokens) if prior is None else network.revise(tokens)
    base = None
    if isinstance(family, Linearized):
        base = updated(*family.linearized(*each), network.trust(tokens, pairs))
        base = Base(*(value.to(units.loc) for value in base))
    return revised(reference, raw.to(units.loc), base)


def _joined(x: Float[Tensor, "*batch rows inputs"], y: Float[Tensor, "*batch rows"]) -> Float[Tensor, "*batch rows n"]:
    return torch.cat([x, y.unsqueeze(-1)], -1)
