"""Several processes that train one network: joining them, spreading a module over them, and gathering it again."""

import atexit
import contextlib
import os
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = [
    "Group",
    "Sharding",
    "ask_first",
    "full_tensor",
    "gather",
    "init_distributed",
    "no_sync",
    "overwrite",
    "wrap",
]

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

    def differ(self, number: int) -> bool:
        """Whether `number` is not the same in all processes."""
        ends = torch.tensor([number, -number], device=self.device)
        if self.size > 1:
            dist.all_reduce(ends, op=dist.ReduceOp.MAX)
        return bool(ends.sum() != 0)

    def wait(self) -> None:
        """Wait for all processes to come here."""
        if self.size > 1:
            dist.barrier()

    def mean(self, value: Tensor) -> float:
        """Mean of `value` over the processes."""
        if self.size > 1:
            dist.all_reduce(value)
        return value.item() / self.size


def ask_first(question: Callable[[], bool]) -> bool:
    """The answer of the first process, in every process; the others do not work it out."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return question()
    box = [question() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return bool(box[0])


def init_distributed(device: torch.device) -> Group:
    """Join the process group that torchrun announces, if any; it is left when the process ends.

    A group that was left cannot be joined again, so a second training of the same process finds the first one's.
    """
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return Group(device)
        cpu = device.type == "cpu"
        dist.init_process_group("gloo" if cpu else None, device_id=None if cpu else device)
        atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
    return Group(device, dist.get_rank(), dist.get_world_size())


def wrap(module: nn.Module, group: Group, sharding: Sharding) -> nn.Module:
    """The module over all processes: a replica in each, or its parameters sharded over them; itself if there is one."""
    if group.size == 1:
        return module
    if sharding == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(module, mesh=init_device_mesh(group.device.type, (group.size,)))
        return module
    return nn.parallel.DistributedDataParallel(module)


def no_sync(module: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """A block whose gradients replicas keep to themselves for now; shards always exchange theirs, to save memory."""
    return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else contextlib.nullcontext()


def _shards(value: Tensor) -> Any:
    """`value` if it is sharded, None if not."""
    if not dist.is_initialized():  # the import below takes a second
        return None
    from torch.distributed.tensor import DTensor

    return value if isinstance(value, DTensor) else None


def full_tensor(value: Tensor) -> Tensor:
    """A tensor on the CPU and in one piece; all processes must ask for it."""
    value, shards = value.detach(), _shards(value.detach())
    return (value if shards is None else shards.full_tensor()).cpu()


@torch.no_grad()
def overwrite(place: Tensor, value: Tensor) -> None:
    """Copy a tensor that is in one piece to `place`, which may be sharded."""
    value, shards = value.to(place.device), _shards(place)
    if shards is not None:
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value, shards.device_mesh, shards.placements)
    place.copy_(value)


def gather(module: nn.Module) -> None:
    """Make sharded parameters plain ones again, in every process."""
    plain: dict[int, nn.Parameter] = {}  # what several modules share, they go on sharing
    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False, remove_duplicate=False)):
            shards = _shards(value.detach())
            if shards is not None:
                if id(value) not in plain:
                    plain[id(value)] = nn.Parameter(shards.full_tensor(), requires_grad=value.requires_grad)
                part.register_parameter(name, plain[id(value)])
