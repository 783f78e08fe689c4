"""`Frozen`: a trained network, or any callable, that is asked and never changed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesvision.core.checks import as_tensor
from bayesvision.core.modules import share

__all__ = ["Frozen", "stacked"]

OUTPUT, INPUT = "output", "input"


class Frozen(nn.Module):
    """What a network says about its inputs, with its weights, buffers and flags left as they are.

    A module is asked in evaluation mode and without gradients of its weights, through a copy that shares their memory
    and nothing else, so that moving this object to another device or type moves no module of the caller's. Any other
    callable is handed the inputs as a tensor, which `np.asarray` turns into an array.

    Args:
        net: a torch module, or a callable that returns a tensor or an array.
        reads: what to return, in this order: "output" first, then "input" or the names of submodules (as in
            `named_modules`) whose outputs are wanted.

    Raises:
        ValueError: `net` cannot be called, or `reads` names what it does not have.
    """

    module: nn.Module | None
    call: Any

    def __init__(self, net: Any, reads: Sequence[str] = (OUTPUT,)) -> None:
        super().__init__()
        if not callable(net):
            raise ValueError(
                f"net must be a torch module or a callable that returns the network's output, got {type(net).__name__}"
            )
        self.reads = tuple(reads)
        net = getattr(net, "_orig_mod", net)  # of torch.compile, whose forward is bound to the caller's module
        self.module, self.call = None, net
        if isinstance(net, nn.Module) and not isinstance(net, torch.jit.ScriptModule):
            self.module, self.call = share(net).eval().requires_grad_(False), None
        known = dict(self.module.named_modules()) if self.module is not None else {}
        if not self.reads or self.reads[0] != OUTPUT or len(set(self.reads)) < len(self.reads):
            raise ValueError(f"reads must start with 'output' and name everything once, got {self.reads}")
        for name in self.reads[1:]:
            if name != INPUT and (name not in known or not name):
                near = ", ".join(list(known)[1:9]) or "none, as it is a callable"
                raise ValueError(f"reads must name 'output', 'input' or submodules of net ({near}, ...), got {name!r}")

    @property
    def parameters_count(self) -> int | None:
        """Numbers that the module learned; None for a callable."""
        return sum(p.numel() for p in self.module.parameters()) if self.module is not None else None

    def forward(self, x: Any) -> list[Tensor]:
        """What was asked for, outputs first, in float32 or wider.

        Raises:
            ValueError: an input that is not finite, an output that is not one real tensor, or a submodule to read that
                was not called.
        """
        x = as_tensor("x", x) if not isinstance(x, Tensor) else x
        if x.is_floating_point() and not torch.isfinite(x).all():
            raise ValueError(
                f"x must be finite, got {int((~torch.isfinite(x)).sum())} NaN or infinite values; drop them"
            )
        if self.module is None:
            output, found = _one_tensor(self.call(x)), {}
            x = x.to(output.device)
        else:
            x = self._placed(x)
            with self._hooked() as found:
                output = _one_tensor(self.module(x))
        missing = [name for name in self.reads[1:] if name != INPUT and name not in found]
        if missing:
            raise ValueError(f"reads must name submodules that net calls, and it did not call {', '.join(missing)}")
        others = (x if name == INPUT else _one_tensor(found[name]) for name in self.reads[1:])
        return [_wide(output), *map(_wide, others)]

    def _placed(self, x: Tensor) -> Tensor:
        """Inputs where the module is, and of its type."""
        weights = next((p for p in [*self.parameters(), *self.buffers()] if p.is_floating_point()), None)
        if weights is None:
            return x
        return x.to(weights.device, weights.dtype) if x.is_floating_point() else x.to(weights.device)

    @contextmanager
    def _hooked(self) -> Iterator[dict[str, Any]]:
        """Collect the outputs of the named submodules."""
        assert self.module is not None
        found: dict[str, Any] = {}
        modules = dict(self.module.named_modules())
        handles = [
            modules[name].register_forward_hook(lambda _, __, output, name=name: found.__setitem__(name, output))
            for name in self.reads[1:]
            if name != INPUT
        ]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()


def _one_tensor(output: Any) -> Tensor:
    if isinstance(output, np.ndarray | np.generic):
        output = torch.as_tensor(np.array(output))
    if not isinstance(output, Tensor) or output.is_complex():
        raise ValueError(f"net must return one real tensor or array, got {type(output).__name__}; wrap it and pick one")
    return output


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def stacked(parts: list[Tensor], maps: bool, scalar: bool) -> Tensor:
    """What was read as one tensor, outputs first: as channels of maps, or entries of vectors.

    With `maps`, others of another size are brought to the outputs' by bilinear interpolation, and without it what else
    was read is flattened. With `scalar` the outputs are single numbers, and get a channel.
    """
    output = parts[0].unsqueeze(-1) if scalar else parts[0]
    if maps and output.ndim != 4:
        raise ValueError(
            f"x must give maps [batch, channels, height, width], got outputs of the shape {tuple(output.shape)}; "
            "add the axis of the batch"
        )
    if len(parts) == 1:
        return output
    if maps:
        size = output.shape[-2:]
        others = [p if p.ndim == 4 else p.reshape(len(p), -1, 1, 1).expand(-1, -1, *size) for p in parts[1:]]
        others = [m if m.shape[-2:] == size else nn.functional.interpolate(m, size, mode="bilinear") for m in others]
        return torch.cat([output, *(m.to(output) for m in others)], 1)
    batch = output.shape[:-1]
    return torch.cat([output, *(p.reshape(*batch, -1).to(output) for p in parts[1:])], -1)
