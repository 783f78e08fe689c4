"""Chains of the No-U-Turn sampler, one after the other or each in a process of its own."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import joblib
import pyro
import torch
from jaxtyping import Bool, Float, Int
from pyro import infer
from torch import Tensor

from bayesvision.baselines.programs import isolated, unvalidated
from bayesvision.core.roles import Log
from bayesvision.training.seeds import generator

__all__ = ["Chain", "run_chains"]

REPORTS = 20  # a chain, to its log


class Chain(NamedTuple):
    """What one chain drew after its warm-up, and how it went.

    Attributes:
        sites: draws [draws, ...] of every latent site.
        tree_depth: doublings of every step; a step took 2^tree_depth - 1 gradients.
        diverging: whether the energy of a step's trajectory went astray.
        step_size: of the leapfrog steps, as the warm-up left it.
        acceptance: mean acceptance probability after the warm-up.
    """

    sites: dict[str, Tensor]
    tree_depth: Int[Tensor, " draws"]
    diverging: Bool[Tensor, " draws"]
    step_size: float
    acceptance: float


class _Kernel(infer.NUTS):
    """Pyro's kernel, which also remembers how deep each of its trees was."""

    def __init__(self, method: Any) -> None:
        super().__init__(
            method.program,
            target_accept_prob=method.target_accept,
            max_tree_depth=method.max_tree_depth,
            full_mass=method.dense_mass,
        )
        self.depths: list[int] = []

    def sample(self, params: Any) -> Any:
        self.depths.append(0)
        return super().sample(params)

    def _build_tree(self, z, r, z_grads, log_slice, direction, tree_depth, energy_current) -> Any:
        self.depths[-1] = max(self.depths[-1], tree_depth + 1)  # the doubling number tree_depth, from 0
        return super()._build_tree(z, r, z_grads, log_slice, direction, tree_depth, energy_current)


def run_chains(method: Any, x: Float[Tensor, "n features"], y: Float[Tensor, " n"], log: Log | None) -> Iterator[Chain]:
    """The chains of a recipe in their order, each a pure function of (seed, chain)."""
    if min(method.processes, method.chains) == 1:
        diverged = 0
        for number in range(method.chains):
            chain = run_chain(method, number, x, y, log, diverged)
            diverged += int(chain.diverging.sum())
            yield chain
        return
    params = pyro.get_param_store().get_state()  # which a program may read
    tasks = (joblib.delayed(_run_alone)(method, number, x, y, params) for number in range(method.chains))
    # loky sends programs of a notebook or of a script without a main guard too, and shuts down by itself
    workers = joblib.Parallel(n_jobs=method.processes, backend="loky", return_as="generator")
    found: Any = workers(tasks)
    diverged = 0
    for number, chain in enumerate(found):
        diverged += int(chain.diverging.sum())
        if log is not None:
            log.log(_report(diverged, chain.acceptance, chain.step_size), (number + 1) * _steps(method))
        yield chain


def _run_alone(method: Any, number: int, x: Tensor, y: Tensor, params: Any) -> Chain:
    torch.set_num_threads(1)  # the processes are what shares the cores
    pyro.get_param_store().set_state(params)
    return run_chain(method, number, x, y, None)


def run_chain(
    method: Any,
    number: int,
    x: Float[Tensor, "n features"],
    y: Float[Tensor, " n"],
    log: Log | None,
    diverged: int = 0,
) -> Chain:
    """Chain `number` of a recipe, in this process; `diverged` steps of those before it count in its log."""
    kernel, steps = _Kernel(method), _steps(method)
    every, last = max(1, steps // REPORTS), {}

    def follow(*_: Any) -> None:
        done = len(kernel.depths)
        last.update(_report(diverged + len(kernel._divergences), kernel._mean_accept_prob, kernel.step_size))
        if log is not None and (done % every == 0 or done == steps):
            log.log(last.copy(), number * steps + done)

    # pyro would switch validation off by itself, and then switch the flags of torch to those of pyro
    flags: dict[str, Any] = {"disable_progbar": True, "disable_validation": None}
    sampler = infer.MCMC(kernel, method.draws, method.warmup, hook_fn=follow, **flags)
    seed = generator("cpu", method.seed, number).initial_seed()
    with isolated(seed), unvalidated(), _quiet(), torch.enable_grad():
        sampler.run(x, y)
        sites = {name: value.detach() for name, value in sampler.get_samples().items()}
    diverging = torch.zeros(method.draws, dtype=torch.bool)
    found: Any = sampler.diagnostics()["divergences"]
    for steps_of_chain in found.values():
        diverging[steps_of_chain] = True
    depths = torch.tensor(kernel.depths[-method.draws :])
    return Chain(sites, depths, diverging, last["step size"], last["acceptance"])


def _steps(method: Any) -> int:
    return method.warmup + method.draws


def _report(divergences: Any, acceptance: float, step_size: Any) -> dict[str, float]:
    return {"divergences": float(divergences), "acceptance": float(acceptance), "step size": float(step_size)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Put back the handlers that pyro's sampler gives its logger."""
    logger = logging.getLogger("pyro.infer.mcmc")
    handlers, propagate = logger.handlers, logger.propagate
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
