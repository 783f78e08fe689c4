"""`PyroPrior`: any pyro program as a prior."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Generator, Tensor

from priors.checks import check_counts
from priors.programs.models import Draws
from priors.task import Task

__all__ = ["PyroPrior"]

HINT = (
    "write it so that a batch axis may stand to the left of every draw: one `with pyro.plate('rows', rows)` around the "
    "draws of each row, event axes through .to_event(1), sums over the last axis, and no torch.rand"
)


@dataclass(frozen=True)
class PyroPrior:
    """Any pyro program as a prior: `program(rows)` returns x [rows, features] and y [rows].

    A whole batch of data sets is one run of the program under an outer plate, so it has to broadcast::

        def program(rows):
            slope = pyro.sample("slope", dist.Normal(0, 1))
            with pyro.plate("rows", rows):
                x = pyro.sample("x", dist.Uniform(0, 1))
                y = pyro.sample("y", dist.Normal(slope * x, 0.1))
            return x.unsqueeze(-1), y

    Inputs that are the same in every data set, such as a fixed grid, are returned as they are, [rows, features].

    Args:
        program: draws one data set.
        max_plate_nesting: maximum number of nested plates in it.

    Raises:
        ValueError: `max_plate_nesting` is not a positive integer.
        TypeError: `program` cannot be called.
    """

    program: Callable[[int], tuple[Tensor, Tensor]]
    max_plate_nesting: int = 1

    def __post_init__(self) -> None:
        check_counts(max_plate_nesting=self.max_plate_nesting)
        if not callable(self.program):
            raise TypeError(f"program must be a function of the number of rows, got {type(self.program).__name__}")

    def __repr__(self) -> str:
        name = getattr(self.program, "__qualname__", None)  # without the address, the same in every process
        program = repr(self.program) if name is None else f"{self.program.__module__}.{name}"
        return f"PyroPrior(program={program}, max_plate_nesting={self.max_plate_nesting})"

    def sample(self, batch: int, rows: int, *, generator: Generator) -> Task:
        """Draw `batch` data sets of `rows` rows; `theta` holds the sites that are outside every plate of the program.

        Raises:
            ValueError: the program does not broadcast, or returns other shapes.
        """
        check_counts(batch=batch, rows=rows)
        trace = self.trace(batch, rows, generator, {})
        value = trace.nodes["_RETURN"]["value"]
        if not (isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, Tensor) for v in value)):
            raise ValueError(f"the program must return two tensors (x, y), got {type(value).__name__}")
        x, y = value
        if x.shape[:-1] == (rows,) and x.ndim == 2:  # a grid, the same in every data set
            x = x.expand(batch, -1, -1)
        if x.ndim != 3 or x.shape[:2] != (batch, rows) or y.shape != (batch, rows):
            raise ValueError(
                f"with a batch axis the program must return x [{batch}, {rows}, features] and y [{batch}, {rows}], "
                f"got {list(x.shape)} and {list(y.shape)}; {HINT}"
            )
        return Task(x.to(generator.device), y.to(generator.device), _globals(trace, batch), self)

    def trace(self, batch: int, rows: int, generator: Generator, given: dict[str, Tensor]) -> Any:
        """Pyro's trace of a run with a batch axis, where the sites named in `given` have these values.

        Raises:
            ValueError: the program does not broadcast.
        """
        try:
            with seeded_by(generator), poutine.block(), poutine.condition(data=given):
                plate = pyro.plate("_data_sets", batch, dim=-1 - self.max_plate_nesting)
                return poutine.trace(plate(self.program)).get_trace(rows)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(f"the program failed with a batch of {batch} data sets ({error}); {HINT}") from error

    def model(self, x: Float[Tensor, "n features"], y: Float[Tensor, " n"] | None = None) -> Any:
        """The program as a pyro model given data, for Markov chain Monte Carlo.

        What the program returns must be its sample sites "x" and "y", as in the example above.
        """
        with _Given(x, y):
            return self.program(x.shape[-2])


class _Given(Messenger):
    """Observes the sites "x" and "y"."""

    def __init__(self, x: Tensor, y: Tensor | None) -> None:
        super().__init__()
        self.given = {"x": x, "y": y}

    def _pyro_sample(self, msg: Any) -> None:
        value = self.given.get(msg["name"])
        if value is None or msg["done"]:
            return
        if msg["name"] == "x" and msg["fn"].event_dim == 0:  # one draw for each row, which the program makes a column
            value = value.squeeze(-1)
        msg["value"], msg["is_observed"] = value, True


@contextlib.contextmanager
def seeded_by(generator: Generator) -> Iterator[None]:
    """Run a block with torch and pyro seeded from `generator`, and put their global state back afterwards."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    store = pyro.get_param_store()
    with torch.random.fork_rng(), store.scope(store.get_state()), generator.device, torch.no_grad():
        torch.manual_seed(seed)
        yield


def _globals(trace: Any, batch: int) -> Draws:
    theta = {}
    nodes: dict[str, Any] = dict(prune_subsample_sites(trace).nodes)
    for name, site in nodes.items():
        if site["type"] != "sample" or site["is_observed"] or len(site["cond_indep_stack"]) != 1:
            continue
        event = site["value"].shape[site["value"].ndim - site["fn"].event_dim :]
        theta[name] = site["value"].reshape(batch, *event)
    return theta
