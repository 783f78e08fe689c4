"""Modules: copies that share memory, and tensors that gradients may pass through wherever they are made."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

__all__ = ["outside_inference_mode", "share", "split_state"]

Module = TypeVar("Module", bound=nn.Module)
Function = TypeVar("Function", bound=Callable[..., Any])


def outside_inference_mode(function: Function) -> Function:
    """`function`, run as if its caller were not inside `torch.inference_mode()`.

    For `fit`, `condition` and `load`: tensors that are made in that mode take no part in any gradient, ever.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode(False):
            return function(*args, **kwargs)

    return cast(Function, run)


def split_state(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state of a module: its weight matrices, which may be rounded, and the rest, which may not."""
    matrices = {name for name, value in module.named_parameters(remove_duplicate=False) if value.ndim > 1}
    state = module.state_dict()
    return {k: v for k, v in state.items() if k in matrices}, {k: v for k, v in state.items() if k not in matrices}


def share(module: Module) -> Module:
    """A copy of `module` whose parameters and buffers share memory with the original's but are objects of their own.

    So `.to(...)` on the copy does not reach the original, and nothing large is copied.
    """
    memo: dict[int, Any] = {}
    return _share(module, memo)


def _share(value: Any, memo: dict[int, Any]) -> Any:
    """A module's copy, each module and tensor in it copied once; copy.deepcopy does the same in ten times the time."""
    if id(value) in memo or value is None:
        return memo.get(id(value))
    if isinstance(value, nn.Parameter):
        memo[id(value)] = nn.Parameter(value.detach(), requires_grad=value.requires_grad)
    elif isinstance(value, Tensor):
        memo[id(value)] = value.detach()
    else:
        new = memo[id(value)] = value.__class__.__new__(value.__class__)
        for name, held in vars(value).items():  # dicts of hooks and the like are copied, so that each has its own
            new.__dict__[name] = held.copy() if isinstance(held, dict | list | set) else held
        for group in ("_parameters", "_buffers", "_modules"):
            new.__dict__[group] = {name: _share(held, memo) for name, held in vars(value)[group].items()}
    return memo[id(value)]
