"""Pyro programs as `MCMC` takes them: what is asked of them, checked before anything is sampled, and read off them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import pyro
import torch
import torch.distributions as td
from jaxtyping import Float
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from bayesvision.training.seeds import seeded

__all__ = ["Program", "check_program", "isolated", "read_off", "unvalidated"]

SITE = "y"


@runtime_checkable
class Program(Protocol):
    """A pyro model that also knows its predictive distribution, as the method `program` of a prior returns it.

    For models whose rows depend on one another given the latent variables, like Gaussian processes.
    """

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Any:
        """Run the model on inputs [n, features], its site "y" observed to be `y`."""
        ...

    def predictive(self, draws: dict[str, Tensor], x_seen: Tensor, y_seen: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [draws, rows] of y at the rows of `x`, given each draw and the rows seen."""
        ...


@contextlib.contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Run a block in float64 with seeded generators and a copy of pyro's parameters; put all of it back afterwards."""
    store, kind = pyro.get_param_store(), torch.get_default_dtype()
    with seeded(seed), store.scope(store.get_state()), poutine.block():
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(kind)


def unvalidated() -> contextlib.AbstractContextManager[None]:
    """A block in which neither pyro nor torch checks arguments; the flags are put back afterwards."""
    names = ("distributions_torch", "distributions_pyro", "infer", "poutine")
    return pyro.settings.context(**{f"validate_{name}": False for name in names})


def _latent_sites(trace: Any) -> dict[str, Any]:
    nodes: dict[str, Any] = dict(prune_subsample_sites(trace).nodes)
    return {name: site for name, site in nodes.items() if site["type"] == "sample" and not site["is_observed"]}


def check_program(program: Any, x: Float[Tensor, "n features"], y: Float[Tensor, " n"]) -> None:
    """Refuse what cannot be sampled, or cannot predict.

    Raises:
        ValueError: no observed site `y`, nothing latent or a discrete latent site; for a plain model also a latent site
            that grows with the rows, or a site `y` that is not normal with independent rows.
    """
    trace: Any = _traced(program, x, y)
    sites = _latent_sites(trace)
    if SITE not in trace.nodes or SITE in sites:
        raise ValueError(
            f'the program must have an observed site: pyro.sample("{SITE}", ..., obs={SITE}); its sites are '
            f"{[name for name, site in trace.nodes.items() if site['type'] == 'sample']}"
        )
    if not sites:
        raise ValueError("the program must have at least one latent site, it has none; there is nothing to sample")
    for name, site in sites.items():
        if site["fn"].has_enumerate_support:
            raise ValueError(
                f"the latent site {name!r} is discrete, and NUTS moves continuous ones alone; sum it out: observe y "
                "from a mixture over its values, in a class that also says what it predicts (see MCMC's program)"
            )
    if isinstance(program, Program):
        return
    _normal_rows(trace.nodes[SITE]["fn"], len(x))
    longer = _latent_sites(_traced(program, torch.cat([x, x[:1]]), torch.cat([y, y[:1]])))
    for name, site in sites.items():
        if name not in longer or site["value"].shape != longer[name]["value"].shape:
            raise ValueError(
                f"the latent site {name!r} changes with the number of rows, so its values at new rows are not known; "
                "integrate it out, or give the program a method predictive (see Program)"
            )
    _check_prediction(poutine.condition(program, data={name: site["value"] for name, site in sites.items()}), x)


def _check_prediction(program: Any, x: Float[Tensor, "n features"]) -> None:
    """Refuse a program that cannot run without y, or that says something else of a row when others stand beside it."""
    try:
        whole = _traced(program, x)
    except (TypeError, AttributeError) as error:
        raise ValueError(
            "the program must run without y, as it does to predict: def program(x, y=None), with the number of rows "
            f"taken from x, such as pyro.plate('rows', len(x)); it failed with {type(error).__name__}: {error}"
        ) from None
    together = [value[:1] for value in _normal_rows(whole.nodes[SITE]["fn"], len(x))]
    alone = _normal_rows(_traced(program, x[:1]).nodes[SITE]["fn"], 1)
    for a, b in zip(together, alone, strict=True):
        if not torch.allclose(a, b, rtol=1e-6, atol=1e-9):
            raise ValueError(
                f"the program gives the first row of x the mean or deviation {float(a.detach()):g} among all rows and "
                f"{float(b.detach()):g} alone, with the same latent values; rows must not depend on one another, so "
                "standardise x before fit, not inside the program"
            )


def _traced(program: Any, *data: Tensor) -> Any:
    """Trace of one run; errors that users of layers and groups meet are told with their cure."""
    try:
        return poutine.trace(program).get_trace(*data)
    except RuntimeError as error:
        if "dtype" not in str(error):
            raise
        raise ValueError(
            f"the program mixes float32 with the sampler's float64 ({error}); make its layers, constants and "
            "distributions after torch.set_default_dtype(torch.float64), or call .double() on its modules"
        ) from None
    except IndexError as error:
        raise ValueError(
            f"the program looks up an entry that is not there ({error}); x may hold a group that its latent sites "
            "have no entry for: give them one for every group that may come, or leave these rows out"
        ) from None


def _normal_rows(law: Any, rows: int) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Mean and standard deviation of the rows of site `y`; a ValueError unless they are normal and independent."""
    while isinstance(law, td.Independent):
        law = law.base_dist
    if not isinstance(law, td.Normal) or law.batch_shape not in ((rows,), ()):
        raise ValueError(
            f'the site "{SITE}" must be a Normal with one entry for each of the {rows} rows, got {type(law).__name__} '
            f"with batch_shape {tuple(law.batch_shape)} and event_shape {tuple(law.event_shape)}; "
            "model a transform of the target that is nearly normal (log y or sqrt y of a count), or write a class "
            "whose method predictive gives the mean and standard deviation of y for every draw (see MCMC's program)"
        )
    return law.loc.expand(rows), law.scale.expand(rows)


def read_off(program: Callable[..., Any], draws: dict[str, Tensor], x: Float[Tensor, "m features"]):
    """Mean and standard deviation [draws, m] of the site `y` with each draw put in for the latent sites."""
    parts = []
    with isolated(0), unvalidated():
        for k in range(len(next(iter(draws.values())))):
            model = poutine.condition(program, data={name: value[k] for name, value in draws.items()})
            trace: Any = _traced(model, x)
            parts.append(_normal_rows(trace.nodes[SITE]["fn"], len(x)))
    means, stddevs = zip(*parts, strict=True)
    return torch.stack(means), torch.stack(stddevs)
