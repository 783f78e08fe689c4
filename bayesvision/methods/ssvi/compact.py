"""A trained sparse network as a plain module: what is not kept is gone."""

import copy
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesvision.methods.ssvi.layers import SparseConv, SparseLayer, SparseLinear
from bayesvision.methods.ssvi.model import Model
from bayesvision.methods.ssvi.network import layers_of
from bayesvision.methods.ssvi.products import Pattern, compressed
from bayesvision.training.examples import Scales

__all__ = ["Compact", "CompactLinear", "compacted"]

UNIT_BY_UNIT = (
    nn.CELU, nn.Dropout, nn.ELU, nn.GELU, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU,
    nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Tanh,
)  # fmt: skip
CHANNEL_BY_CHANNEL = (*UNIT_BY_UNIT, nn.AvgPool1d, nn.AvgPool2d, nn.Dropout1d, nn.Dropout2d, nn.MaxPool1d, nn.MaxPool2d)
SPARSE_FROM = 0.15  # share of weights up to which a single product is faster on compressed rows
TRIES = 4  # random inputs on which the sliced network is compared


class CompactLinear(nn.Module):
    """A linear layer whose weight is on compressed rows.

    Args:
        weight: dense [outputs, inputs], with many zeros.
        bias: of the outputs.
    """

    ends: Tensor
    columns: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, weight: Float[Tensor, "outputs inputs"], bias: Tensor | None) -> None:
        super().__init__()
        index = weight.flatten().nonzero().squeeze(-1)
        pattern = Pattern.of(index, (weight.shape[0], weight.shape[1]))
        self.shape = pattern.shape
        for name, value in {"ends": pattern.ends, "columns": pattern.columns, "bias": bias}.items():
            self.register_buffer(name, value)
        self.register_buffer("values", weight.flatten()[index])

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        if x.shape[-1] != self.shape[1]:
            raise RuntimeError(f"the layer takes {self.shape[1]} inputs, got the shape {tuple(x.shape)}")
        columns = x.reshape(-1, self.shape[1]).mT.contiguous()
        out = compressed(self.ends, self.columns, self.values, self.shape) @ columns
        out = out if self.bias is None else out + self.bias.unsqueeze(-1)
        return out.mT.reshape(*x.shape[:-1], self.shape[0])

    def extra_repr(self) -> str:
        """Inputs, outputs, kept weights."""
        return f"{self.shape[1]} to {self.shape[0]}, {len(self.values):,} weights on compressed rows"


class Selected(nn.Module):
    """A layer that reads some of its inputs: those at `places` along `axis`."""

    places: Tensor

    def __init__(self, layer: nn.Module, places: Tensor, axis: int) -> None:
        super().__init__()
        self.layer, self.axis = layer, axis
        self.register_buffer("places", places)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.index_select(self.axis, self.places))


class Compact(nn.Module):
    """Inputs to outputs in the units of the data: logits [n, classes], or numbers [n] or [n, outputs].

    Attributes:
        network: the sliced network, in standardised units.
    """

    x_loc: Tensor
    x_scale: Tensor
    y_loc: Tensor
    y_scale: Tensor

    def __init__(self, network: nn.Module, model: Model) -> None:
        super().__init__()
        self.network, self.tokens, self.numbers = network, model.inputs.tokens, not model.classes
        self.with_variance = model.noise == "output"
        self.scalar = model.column and not model.inputs.targets
        for name in Scales._fields:
            self.register_buffer(name, getattr(model, name).clone())

    def forward(self, x: Tensor) -> Tensor:
        if not self.tokens:
            x = (x.to(self.x_loc.dtype) - self.x_loc) / self.x_scale if self.x_loc.ndim else x
            values = [*self.network.parameters(), *self.network.buffers()]
            x = x.to(next(v.dtype for v in values if v.is_floating_point()))
        out = self.network(x)
        if not self.numbers:
            return out
        out = out.chunk(2, -1)[0] if self.with_variance else out
        out = out.squeeze(-1) if self.scalar else out
        return self.y_loc.to(out) + self.y_scale.to(out) * out


class Kept(NamedTuple):
    """What is left of a layer.

    Attributes:
        rows: outputs that something reads; all without.
        columns: inputs that it reads.
        given: whether its inputs are these columns already, since the layer before it makes no others.
    """

    rows: Tensor | None
    columns: Tensor
    given: bool


def compacted(model: Model, weights: dict[str, Tensor]) -> Compact:
    """The plain module of a sparse model; `weights` take the place of its means.

    Units are sliced away inside `nn.Sequential` alone, and only if the outputs stay what they were; a network that
    reads the weights of its layers gets dense ones.
    """
    model = copy.deepcopy(model).eval()
    for name, value in weights.items():
        model.get_parameter(name).data.copy_(value)
    source = torch.Generator().manual_seed(0)
    if model.inputs.tokens:
        tries = torch.zeros(TRIES, *model.inputs.shape, dtype=torch.int64)
    else:
        tries = torch.randn(TRIES, *model.inputs.shape, generator=source, dtype=torch.float32).to(model.kind)
        tries = torch.cat([tries, 10 * tries])
    tries = tries.to(model.y_loc.device)
    wanted = model.network(tries)
    layers = {"sliced": True, "whole": False, "dense": False}
    for kind, sliced in layers.items():
        try:
            plain = _rebuilt(model.network, _plan(model.network, sliced), dense=kind == "dense")
            out = plain.eval()(tries)
        except Exception:  # a layer that is read, or is called by itself too, cannot be another one
            if kind == "dense":
                raise
            continue
        if out.shape == wanted.shape and torch.allclose(out, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())):
            break
    else:
        raise RuntimeError("the compact network says something else than the one it was made of")
    return Compact(plain, model).requires_grad_(False).eval()


def _coordinates(layer: SparseLayer) -> tuple[Tensor, Tensor]:
    """Output and input of every kept weight that is not zero."""
    index = layer.index[layer.mu != 0]
    row, column, *_ = torch.unravel_index(index, layer.shape)
    return row, column


def _plan(network: nn.Module, sliced: bool) -> dict[str, Kept]:
    layers = layers_of(network)
    plan = {name: Kept(None, _coordinates(layer)[1].unique(), False) for name, layer in layers.items()}
    names = {id(layer): name for name, layer in layers.items()}
    for chain in network.modules() if sliced else ():
        if not isinstance(chain, nn.Sequential):
            continue
        later: Any = None  # the layer after, if nothing but activations lies between
        for part in reversed(list(chain)):
            if isinstance(part, SparseLayer):
                name = names[id(part)]
                if later is not None and type(later) is type(part) and getattr(part, "groups", 1) == 1:
                    rows = plan[names[id(later)]].columns
                    row, column = _coordinates(part)
                    plan[name] = Kept(rows, column[torch.isin(row, rows)].unique(), plan[name].given)
                    plan[names[id(later)]] = plan[names[id(later)]]._replace(given=True)
                later = part if getattr(part, "groups", 1) == 1 else None
            elif type(part) not in (CHANNEL_BY_CHANNEL if isinstance(later, SparseConv) else UNIT_BY_UNIT):
                later = None
    return plan


def _rebuilt(network: nn.Module, plan: dict[str, Kept], dense: bool) -> nn.Module:
    """A copy of the network with plain layers; with `dense` those of torch alone, whole."""
    layers = layers_of(network)
    if "" in layers:
        return _plain(layers[""], plan[""], dense)
    new = copy.deepcopy(network)
    for name, layer in layers.items():
        parent, _, key = name.rpartition(".")
        new.get_submodule(parent).register_module(key, _plain(layer, plan[name], dense))
    return new


def _plain(layer: SparseLayer, kept: Kept, dense: bool) -> nn.Module:
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if kept.rows is not None:
        weight, bias = weight[kept.rows], None if bias is None else bias[kept.rows]
    grouped = isinstance(layer, SparseConv) and layer.groups > 1
    reads_all = dense or grouped or len(kept.columns) in (weight.shape[1], 0)
    weight = weight if reads_all else weight[:, kept.columns]
    if isinstance(layer, SparseLinear):
        part = _linear(weight, bias, dense)
        axis = -1
    else:
        assert isinstance(layer, SparseConv)
        part, axis = _convolution(layer, weight, bias), -layer.axes - 1
    return part if reads_all or kept.given else Selected(part, kept.columns, axis)


def _linear(weight: Tensor, bias: Tensor | None, dense: bool) -> nn.Module:
    if not dense and int((weight != 0).sum()) <= SPARSE_FROM * weight.numel():
        return CompactLinear(weight, bias)
    part = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    return _filled(part, weight, bias)


def _convolution(layer: SparseConv, weight: Tensor, bias: Tensor | None) -> nn.Module:
    kind: Any = nn.Conv1d if layer.axes == 1 else nn.Conv2d
    part = nn.utils.skip_init(
        kind,
        weight.shape[1] * layer.groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=bias is not None,
        padding_mode=layer.padding_mode,
        dtype=weight.dtype,
    )
    return _filled(part, weight, bias)


def _filled(part: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    values: Any = {"weight": weight.clone()} | ({} if bias is None else {"bias": bias.clone()})
    part.load_state_dict(values)
    return part.to(weight.device)
