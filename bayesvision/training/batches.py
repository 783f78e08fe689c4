"""Examples from what users have, kept once, and mini-batches of them as pure functions of a seed and a step."""

import bisect
import functools
import tempfile
import zlib
from collections.abc import Callable, Iterable
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Generator, Tensor
from torch.utils.data import Dataset, IterableDataset

from bayesvision.core.checks import as_tensor, check_inputs
from bayesvision.core.data import Data
from bayesvision.training.seeds import generator
from bayesvision.training.train import Train

__all__ = ["Augment", "Examples", "Minibatches", "batches_of", "checksum", "places"]

BLOCK = 64  # examples of a Data or a Dataset asked for at once
LARGE = 1 << 30  # bytes from which on examples are kept in a temporary file
ORDER = 1 << 40  # tells the generators of orders from those of noise
AUGMENT = 1 << 41  # and from those of changes to examples

Augment = Callable[[Tensor, Generator], Tensor]  # a batch of inputs and a generator to what training sees


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> Int[Tensor, " count"]:
    return torch.randperm(count, generator=generator("cpu", seed, ORDER, epoch))


def places(seed: int, step: int, batch: int, count: int) -> Int[Tensor, " batch"]:
    """Which of `count` examples are in the batch of a step: each epoch runs through them in a new order.

    A pure function of its arguments, so that a killed run goes on bit for bit.

    A batch may reach over the end of an epoch into the next; one larger than an epoch holds examples more than once.
    """
    found, start = [], step * batch
    while batch:
        epoch, first = divmod(start, count)
        part = _order(seed, epoch, count)[first : first + batch]
        found.append(part)
        start, batch = start + len(part), batch - len(part)
    return torch.cat(found)


def batches_of(source: Any) -> Iterable[tuple[Any, Any]]:
    """Batches (x, y) of a `Data`, of a map-style Dataset or of a loader, which is read once and to its end.

    Raises:
        ValueError: no batches, other things than pairs, or a stream of single examples.
        TypeError: none of these.
    """
    if isinstance(source, Data):
        yield from _blocks(source)
        return
    if isinstance(source, IterableDataset):
        raise ValueError("source must give batches, got an IterableDataset of examples; wrap it in a DataLoader")
    if isinstance(source, Dataset):
        source = _stacked(source)
    if not isinstance(source, Iterable):
        raise TypeError(
            f"source must be Data(x, y), a Dataset or a loader of batches (x, y), got {type(source).__name__}"
        )
    count = 0
    for batch in source:
        count += 1
        yield _pair(batch, "batches")
    if not count:
        raise ValueError(
            "source gave no batch; a generator can be read once only, and drop_last=True drops a single short batch"
        )


def _pair(value: Any, what: str) -> tuple[Any, Any]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        got = f"{type(value).__name__} of {len(value)}" if isinstance(value, list | tuple) else type(value).__name__
        raise ValueError(f"source must give {what} (x, y), got a {got}; map them to pairs first")
    return value[0], value[1]


def _stacked(source: Any) -> Iterable[tuple[Any, Any]]:
    """Batches of a map-style Dataset."""
    try:
        count = len(source)
    except TypeError:
        raise ValueError(
            f"source must have a length, got the Dataset {type(source).__name__} without one; wrap it in a DataLoader"
        ) from None
    for first in range(0, count, BLOCK):
        pairs = [_pair(source[k], "examples") for k in range(first, min(first + BLOCK, count))]
        yield _stack("x", [x for x, _ in pairs]), _stack("y", [y for _, y in pairs])


def _stack(name: str, values: list[Any]) -> Tensor:
    tensors = [as_tensor(name, value) for value in values]
    shapes = {tuple(value.shape) for value in tensors}
    if len(shapes) > 1:
        raise ValueError(f"{name} must have one shape in all examples, got {sorted(shapes)[:2]}; resize or pad them")
    return torch.stack(tensors)


def _blocks(source: Data) -> Iterable[tuple[Any, Any]]:
    """Batches of a Data; arrays of more than two axes, which may be mapped from a file, are read one by one."""
    x, y = source
    if y is None:
        raise ValueError("y must hold the targets of the rows of x, got None: Data(x, y)")
    x, y = (x if getattr(x, "ndim", 0) > 2 else check_inputs(x)), as_tensor("y", y)
    if not y.ndim or not len(x) or len(x) != len(y):
        raise ValueError(
            "y must have one value for each row of x, and at least one, "
            f"got the shapes {tuple(y.shape)} and {tuple(x.shape)}"
        )
    for k in range(0, len(x), BLOCK):
        yield as_tensor("x", x[k : k + BLOCK]), y[k : k + BLOCK]


class Block(NamedTuple):
    """Examples that came together.

    Attributes:
        first, count: number of the first one, and of all.
        held: their tensors; None if they are in the file.
        offset: where they begin in the file.
        kinds: type, and shape of one example, of each tensor.
    """

    first: int
    count: int
    held: tuple[Tensor, ...] | None
    offset: int
    kinds: tuple[tuple[torch.dtype, tuple[int, ...]], ...]


class Examples:
    """Examples of one or more tensors each, kept once: in memory, or in a temporary file when they are large.

    Examples of different batches may differ in shape (`examples[k]`); those that `take` stacks may not.

    Args:
        large: bytes from which on they are kept in a file, which is mapped and goes with this object.
    """

    def __init__(self, large: int = LARGE) -> None:
        self.large, self.bytes, self.count = large, 0, 0
        self.blocks: list[Block] = []
        self.file: IO[bytes] | None = None
        self._sums: list[int] = []
        self._whole: tuple[Tensor, ...] | None = None  # all blocks, one after the other

    def __len__(self) -> int:
        return self.count

    @property
    def digest(self) -> list[int]:
        """A checksum of all examples for each tensor: it does not depend on the batches that they came in."""
        return [len(self), *self._sums]

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        block = self.blocks[bisect.bisect_right(self.blocks, index, key=lambda b: b.first) - 1]
        place = index - block.first
        if block.held is not None:
            return tuple(value[place] for value in block.held)
        found, offset = [], block.offset
        for dtype, shape in block.kinds:
            size = torch.Size(shape).numel() * dtype.itemsize
            raw = np.array(np.memmap(self.file, np.uint8, "r", offset + place * size, (size,)))  # pyright: ignore
            found.append(torch.from_numpy(raw).view(dtype).reshape(shape))
            offset += block.count * size
        return tuple(found)

    def add(self, *batch: Tensor) -> None:
        """Take in examples along the first axis of each tensor."""
        held = tuple(value.detach().cpu().clone(memory_format=torch.contiguous_format) for value in batch)
        kinds = tuple((value.dtype, tuple(value.shape[1:])) for value in held)
        block = Block(len(self), len(held[0]), held, 0, kinds)
        self._sums = self._sums or [0] * len(held)
        self._sums = [checksum(value, known) for value, known in zip(held, self._sums, strict=True)]
        self.bytes += sum(value.numel() * value.dtype.itemsize for value in held)
        self.blocks.append(block)
        self.count, self._whole = len(self) + block.count, None
        if self.file is None and self.bytes > self.large:
            self.file = tempfile.TemporaryFile()  # noqa: SIM115 (gone with this object)
        if self.file is not None:
            self.blocks = [self._written(one) for one in self.blocks]

    def _written(self, block: Block) -> Block:
        assert self.file is not None
        if block.held is None:
            return block
        self.file.seek(0, 2)
        offset = self.file.tell()
        for value in block.held:
            self.file.write(_bytes(value))
        self.file.flush()
        return block._replace(held=None, offset=offset)

    def take(self, chosen: Int[Tensor, " n"]) -> tuple[Tensor, ...]:
        """The chosen examples, stacked."""
        if self.file is not None or len({block.kinds for block in self.blocks}) > 1:
            return tuple(torch.stack(parts) for parts in zip(*(self[k] for k in chosen.tolist()), strict=True))
        if self._whole is None:
            held: Any = [block.held for block in self.blocks]
            self._whole = tuple(torch.cat(parts) for parts in zip(*held, strict=True))
            self.blocks = [Block(0, len(self), self._whole, 0, self.blocks[0].kinds)]
        return tuple(value[chosen] for value in self._whole)


def checksum(value: Tensor, known: int = 0) -> int:
    """A checksum of a tensor's bytes, after those of `known`: tells whether a run that goes on has the same data."""
    return zlib.crc32(_bytes(value), known)


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


class Minibatches:
    """Mini-batches of examples: micro-batch j of step i as a pure function of the seed and of both.

    Args:
        examples: pairs (x, y).
        train: whose `batch` counts examples and whose `seed` orders them.
        device: that batches are put on.
        augment: what changes inputs, `augment(x, generator)`; it must be a pure function of both.
    """

    def __init__(self, examples: Examples, train: Train, device: torch.device, augment: Augment | None = None) -> None:
        self.examples, self.train, self.device, self.augment = examples, train, device, augment
        self.size = train.batch // train.accumulate

    @property
    def num_data(self) -> int:
        """Number of examples."""
        return len(self.examples)

    def __call__(self, step: int, part: int) -> tuple[Tensor, Tensor]:
        number = step * self.train.accumulate + part
        x, y = self.examples.take(places(self.train.seed, number, self.size, self.num_data))
        if self.augment is not None:
            changed = self.augment(x, generator("cpu", self.train.seed, AUGMENT, number))
            if not isinstance(changed, Tensor) or changed.shape != x.shape:
                got = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
                raise ValueError(f"augment must return inputs of the shape {tuple(x.shape)}, got {got}")
            x = changed
        return x.to(self.device), y.to(self.device)
