"""Generators and global seeds as functions of integers."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator

__all__ = ["generator", "seed_current", "seeded"]


def generator(device: torch.device | str, *key: int) -> Generator:
    """A generator that is a pure function of the integers in `key`."""
    state = 0x9E3779B97F4A7C15
    for part in key:  # splitmix64 steps: neighbouring keys give unrelated seeds
        state = (state + part + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return Generator(device).manual_seed(state % 2**63)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block under a global seed; put the generators of the CPU and the current accelerator back afterwards."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    homes: list[Any] = [torch.random] if kind is None else [torch.random, torch.get_device_module(kind)]
    before = [home.get_rng_state() for home in homes]
    try:
        seed_current(seed)
        yield
    finally:
        for home, state in zip(homes, before, strict=True):
            home.set_rng_state(state)


def seed_current(seed: int) -> None:
    """Seed the generators of the CPU and the current accelerator, and no others."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach accelerators that are none of ours
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is not None:
        torch.get_device_module(kind).manual_seed(seed)
