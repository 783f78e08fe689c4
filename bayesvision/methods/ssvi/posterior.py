"""What a trained `SSVI` knows: a predictive of weight draws, the kept weights, what they cost, and a plain module."""

from typing import Any, NamedTuple, Self

import torch
import torch.distributions as td
from torch import Tensor, nn

from bayesvision.core.modules import outside_inference_mode, split_state
from bayesvision.core.recipes import build, to_json
from bayesvision.core.roles import Draws, Exported, Posterior
from bayesvision.distributions import Categorical, Mixture, Normal, Predictive
from bayesvision.methods.ssvi.compact import Compact, compacted
from bayesvision.methods.ssvi.cost import Cost, counted
from bayesvision.methods.ssvi.model import Model
from bayesvision.methods.ssvi.network import check_same, deterministic, layers_of
from bayesvision.training.examples import Inputs, Scales
from bayesvision.training.seeds import generator

__all__ = ["Density", "SSVIPosterior"]

BLOCK = 1 << 18  # numbers of the inputs that go through the network together
DRAW = 1 << 44  # tells the generators of draws from others


class Density(NamedTuple):
    """Shares of the weights that are kept: of all, and of each layer."""

    overall: float
    layers: dict[str, float]


class SSVIPosterior(Posterior):
    """A sparse Bayesian network.

    Attributes:
        method: the recipe, without the network.
        model: the sparse network with the units of its data.
        metadata: what training cost, and the noise that it learned.
    """

    def __init__(
        self, method: Any, model: Model, metadata: dict[str, Any], names: list[str], signature: list[str]
    ) -> None:
        super().__init__()
        self.method, self.model, self.metadata = method, model, metadata
        self._names, self._signature = names, signature
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay as it is: a posterior predicts, inside a module that trains as well."""
        return super().train(False)

    def predict(self, x: Any) -> Predictive:
        """A mixture of `draws` normals, one for each draw of the weights; for classes the average of their softmaxes.

        Component k is the same draw of the weights in every row: (mean, noise) of network k. Their spread is what the
        posterior does not know, `epistemic_variance` of a mixture and `mutual_information` of a categorical.

        Raises:
            ValueError: another shape, other columns or numbers that are not finite.
        """
        law = self._given(x, range(self.method.draws))
        if isinstance(law, Categorical):
            return Categorical.of_members(law.logits)
        loc, scale = law.loc.movedim(0, -1), law.scale.movedim(0, -1)
        return Mixture.of(Normal(loc, scale, validate_args=False))

    def _given(self, x: Any, draws: range) -> Categorical | Normal:
        """Distribution [draws, *rows] of y at the rows of x given each of the draws of the weights."""
        rows, batch, dtype = self.model.inputs.check(x)
        raws = [self._outputs(rows, k).to(dtype) for k in draws]
        if self.method.classes:
            return Categorical(logits=torch.stack(raws).unflatten(1, batch))
        laws = [self.model.law(raw.unflatten(0, batch)) for raw in raws]
        loc, scale = (torch.stack([getattr(law, name) for law in laws]) for name in ("loc", "scale"))
        y_loc, y_scale = self.model.y_loc.to(loc), self.model.y_scale.to(loc)
        return Normal(y_loc + y_scale * loc, y_scale * scale, validate_args=False)

    def sampled(self, count: int, seed: int, x: Any = None) -> Draws:
        """`count` draws of the kept weights, which are independent, and y given each at the rows of `x`."""
        if x is None:
            raise ValueError("x must hold rows to predict: a sparse network does not keep those that it learned from")
        picked = range(seed * count, (seed + 1) * count)
        drawn = [self._drawn(k) for k in picked]
        sites = {}
        for name, layer in layers_of(self.model.network).items():
            prefix = f"{name}." if name else ""
            for key, what in (("mu", "weight"), ("bias_mu", "bias")):
                if getattr(layer, key) is not None:
                    sites[prefix + what] = torch.stack([weights[f"network.{prefix}{key}"] for weights in drawn])
        law = self._given(x, picked)
        return Draws({name: value.unsqueeze(0) for name, value in sites.items()}, _one_chain(law))

    def _outputs(self, rows: Tensor, draw: int) -> Tensor:
        """Raw outputs of one draw of the weights."""
        rows, weights = rows.to(self.model.y_loc.device), self._drawn(draw)
        blocks = rows.split(max(1, BLOCK // rows[0].numel()))
        parts = [torch.func.functional_call(self.model, weights, (block,)) for block in blocks]
        return torch.cat(parts)

    def _drawn(self, draw: int) -> dict[str, Tensor]:
        """Weights of a draw, under the names of their means."""
        found = {}
        for number, (name, layer) in enumerate(layers_of(self.model).items()):
            source = generator("cpu", self.method.train.seed, DRAW, number, draw)
            for key, mu, rho in (("mu", layer.mu, layer.rho), ("bias_mu", layer.bias_mu, layer.bias_rho)):
                if mu is not None and rho is not None:
                    noise = torch.randn(mu.shape, generator=source, dtype=torch.float32).to(mu)
                    found[f"{name}.{key}"] = mu + nn.functional.softplus(rho) * noise
        return found

    @property
    def latent(self) -> dict[str, td.Normal]:
        """The normals of the kept weights and of the biases, by the names of the network's parameters."""
        found = {}
        for name, layer in layers_of(self.model.network).items():
            prefix = f"{name}." if name else ""
            found[f"{prefix}weight"] = td.Normal(layer.mu, layer.sigma, validate_args=False)
            if layer.bias_mu is not None and layer.bias_rho is not None:
                scale = nn.functional.softplus(layer.bias_rho)
                found[f"{prefix}bias"] = td.Normal(layer.bias_mu, scale, validate_args=False)
        return found

    @property
    def places(self) -> dict[str, Tensor]:
        """Where the kept weights of `latent` are, [kept, axes of the weight], by the names of the parameters."""
        return {
            f"{name}.weight" if name else "weight": torch.stack(torch.unravel_index(layer.index, layer.shape), -1)
            for name, layer in layers_of(self.model.network).items()
        }

    @property
    def density(self) -> Density:
        """What is kept, of all weights and layer by layer."""
        layers = layers_of(self.model.network)
        kept = sum(len(layer.index) for layer in layers.values())
        shares = {name: len(layer.index) / layer.size for name, layer in layers.items()}
        return Density(kept / sum(layer.size for layer in layers.values()), shares)

    @property
    def cost(self) -> Cost:
        """Multiply-adds of one input and bytes, of training and inference, against the dense network."""
        return counted(self.model, self.method.train.optimizer)

    @outside_inference_mode
    def compact(self, draw: int | None = None) -> Compact:
        """A plain module for deployment, from inputs to outputs in the units of the data: logits, or numbers.

        Its weights are the means, or those of a draw. Weights that are not kept are gone: inputs that nothing reads and
        units of which nothing is read are sliced away, and each layer is dense or on compressed rows, as is faster.

        Raises:
            ValueError: `draw` is none of the posterior's.
        """
        if draw is not None and not 0 <= draw < self.method.draws:
            raise ValueError(f"draw must be one of 0 to {self.method.draws - 1}, got {draw}")
        weights = {} if draw is None else self._drawn(draw)
        return compacted(self.model, weights)

    def __repr__(self) -> str:
        layers = layers_of(self.model.network)
        share = self.density.overall
        total = sum(layer.size for layer in layers.values())
        lines = [f"{type(self).__name__}: {share:.3g} of {total:,} weights kept", "sparse and Bayesian:"]
        lines += [f"  {name or 'net'}: {type(v).__name__}, {v.extra_repr()}" for name, v in layers.items()]
        rest = deterministic(self.model.network)
        return "\n".join([*lines, "deterministic:", *(f"  {line}" for line in rest or ["nothing"])])

    def export(self) -> Exported:
        """All that was learned; what inputs are, what training cost, and the network's layers, to know it again."""
        learned = {"inputs": to_json(self.model.inputs), "column": self.model.column, "layers": self._names}
        return Exported(*split_state(self.model), {**learned, "metadata": self.metadata, "network": self._signature})

    @classmethod
    def restore(
        cls, method: Any, tensors: dict[str, Tensor], header: dict[str, Any], net: Any = None
    ) -> "SSVIPosterior":
        """The posterior that `export` described, around a network like the one it was learned with.

        Raises:
            ValueError: another network; the first layer that differs is named.
        """
        check_same(net, header["network"])
        model = method.untrained(net, build(Inputs, header["inputs"]), header["layers"])
        model.column = header["column"]
        for name in Scales._fields:
            setattr(model, name, tensors[name])
        model.load_state_dict(tensors, assign=True)  # each of the type that it has in the file
        return cls(method, model, header["metadata"], header["layers"], header["network"])


def _one_chain(law: Categorical | Normal) -> Categorical | Normal:
    """The distribution with a batch axis of length 1 before the others."""
    if isinstance(law, Categorical):
        return Categorical(logits=law.logits.unsqueeze(0))
    return law.expand(torch.Size([1, *law.batch_shape]))
