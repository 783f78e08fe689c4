"""Several processes that train one network: joining them, spreading a module over them, and gathering it again."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Group", "Sharding", "gather", "joined", "later", "spread"]

Sharding = Literal["ddp", "fsdp"]


class Group(NamedTuple):
    """The processes that train together, and which of them this one is."""

    device: torch.device
    rank: int = 0
    size: int = 1

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds in any process."""
        if self.size == 1:
            return flag
        found = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found.item())

    def mean(self, value: Tensor) -> float:
        """Mean of `value` over the processes."""
        if self.size > 1:
            dist.all_reduce(value)
        return value.item() / self.size


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """Join the process group that torchrun announces, if any, and leave it afterwards if it was not there before."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 and not dist.is_initialized():
        yield Group(device)
        return
    ours = not dist.is_initialized()
    if ours:
        cpu = device.type == "cpu"
        dist.init_process_group("gloo" if cpu else None, device_id=None if cpu else device)
    try:
        yield Group(device, dist.get_rank(), dist.get_world_size())
    finally:
        if ours:
            dist.destroy_process_group()


def spread(module: nn.Module, group: Group, sharding: Sharding) -> nn.Module:
    """The module over all processes: a replica in each, or its parameters sharded over them; itself if there is one."""
    if group.size == 1:
        return module
    if sharding == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(module, mesh=init_device_mesh(group.device.type, (group.size,)))
        return module
    return nn.parallel.DistributedDataParallel(module)


def later(module: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """A block whose gradients replicas keep to themselves for now; shards always exchange theirs, to save memory."""
    return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else contextlib.nullcontext()


def gather(module: nn.Module) -> None:
    """Make sharded parameters plain ones again, in every process."""
    if not dist.is_initialized():
        return
    from torch.distributed.tensor import DTensor

    whole: dict[int, nn.Parameter] = {}  # parameters that share storage go on doing so
    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False, remove_duplicate=False)):
            if isinstance(value, DTensor):
                if id(value) not in whole:
                    full = cast(DTensor, value.detach()).full_tensor()
                    whole[id(value)] = nn.Parameter(full, requires_grad=value.requires_grad)
                part.register_parameter(name, whole[id(value)])
