"""`MCMC`: the No-U-Turn sampler on any pyro program, slow and asymptotically exact."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import arviz
import pyro
import torch
import torch.distributions as td
from jaxtyping import Float
from pyro import infer, poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from bayesvision.core.checks import check_inputs, check_targets, columns_of
from bayesvision.core.data import Data, output_dtype
from bayesvision.core.modules import outside_inference_mode
from bayesvision.core.recipes import convert_fields
from bayesvision.core.roles import Log, Posterior
from bayesvision.distributions import Mixture, Normal
from bayesvision.training.seeds import generator, seeded

__all__ = ["MCMC", "Diagnostic", "MCMCPosterior", "Program"]

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


class Diagnostic(NamedTuple):
    """How well the chains of one site mixed, entry by entry.

    Attributes:
        r_hat: rank-normalised split R-hat, near 1 (below 1.01) if they agree (Vehtari et al. 2021, eq. 14).
        ess: bulk effective sample size; 400 is enough for means and standard deviations (section 4).
    """

    r_hat: Float[Tensor, "..."]
    ess: Float[Tensor, "..."]


@dataclass(frozen=True)
class MCMC:
    """No-U-Turn sampler (Hoffman and Gelman 2014, arXiv 1111.4246) on a pyro program, in float64.

    The predictive distribution is the equal mixture of p(y | x, draw) over the posterior draws. Chains run one after
    the other in this process, each a pure function of (seed, chain).

    Example:
        >>> post = bv.MCMC(program, chains=4).fit(bv.Data(x, y))
        >>> post.predict(new).interval(0.9), post.diagnostics["slope"].r_hat

    Args:
        program: a pyro model `model(x, y=None)` with the observed site `y`, normal and with independent rows given the
            latent variables, which are the same for all rows; or an object that is called like one and has a method
            `predictive(draws, x_seen, y_seen, x)`, the mean and standard deviation [draws, rows] of y at new rows x,
            such as `priors.programs.model(prior)`.
        warmup: steps of each chain that adapt step size and mass matrix, and are dropped.
        draws: draws kept of each chain.
        chains: number of chains.
        seed: of the chains.
        target_accept: acceptance probability that the step size is adapted to; raise it where steps diverge.
        max_tree_depth: each step takes at most 2^max_tree_depth - 1 gradients.

    Raises:
        ValueError: a field is out of range.
        TypeError: `program` cannot be called.
    """

    program: Program | Callable[..., Any]
    warmup: int = 500
    draws: int = 500
    chains: int = 2
    seed: int = 0
    target_accept: float = 0.8
    max_tree_depth: int = 10

    def __post_init__(self) -> None:
        convert_fields(self)
        if not callable(self.program):
            raise TypeError(f"program must be a pyro model program(x, y=None), got {type(self.program).__name__}")
        for name, least in (("warmup", 1), ("draws", 8), ("chains", 1), ("max_tree_depth", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.target_accept < 1:
            raise ValueError(f"target_accept must lie strictly between 0 and 1, got {self.target_accept}")

    @outside_inference_mode
    def fit(self, source: Data, log: Log | None = None) -> "MCMCPosterior":
        """Draw from the posterior given the rows `source`.

        Raises:
            TypeError: `source` is not a `Data`.
            ValueError: wrong data, no observed site `y`, nothing latent or a discrete latent site; for a plain model
                also a latent site that grows with the rows, or a site `y` that is not normal with independent rows.
        """
        if not isinstance(source, Data):
            raise TypeError(f"source must be Data(x, y), got {type(source).__name__}")
        x = check_inputs(source.x)
        if x.ndim != 2:
            raise ValueError(f"x must be one data set [rows, features], got {tuple(x.shape)}; fit them one by one")
        if source.y is None:
            raise ValueError("y must hold the targets of the rows of x, got None")
        x, y = x.detach().double(), check_targets(source.y, x, constant=True).detach()
        with _isolated(self.seed):
            _check(self.program, x, y.double())
        chains, divergences = [], 0
        for chain in range(self.chains):
            sites, diverged = self._run(chain, x, y.double())
            chains.append(sites)
            divergences += diverged
            if log is not None:
                log.log({"divergences": float(diverged)}, chain)
        latent = {name: torch.cat([sites[name] for sites in chains]) for name in chains[0]}
        return MCMCPosterior(self, x, y, latent, divergences, columns_of(source.x))

    def _run(self, chain: int, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], int]:
        kernel = infer.NUTS(self.program, target_accept_prob=self.target_accept, max_tree_depth=self.max_tree_depth)
        # pyro would switch validation off by itself, and then switch the flags of torch to those of pyro
        sampler = infer.MCMC(kernel, self.draws, self.warmup, disable_progbar=True, disable_validation=None)  # pyright: ignore[reportArgumentType]
        seed = generator("cpu", self.seed, chain).initial_seed()
        with _isolated(seed), _unvalidated(), _quiet(), torch.enable_grad():
            sampler.run(x, y)
            sites = {name: value.detach() for name, value in sampler.get_samples().items()}
            return sites, sum(map(len, sampler.diagnostics()["divergences"].values()))


@contextlib.contextmanager
def _isolated(seed: int) -> Iterator[None]:
    """Run a block in float64 with seeded generators and a copy of pyro's parameters; put all of it back afterwards."""
    store, kind = pyro.get_param_store(), torch.get_default_dtype()
    with seeded(seed), store.scope(store.get_state()), poutine.block():
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(kind)


def _unvalidated() -> contextlib.AbstractContextManager[None]:
    names = ("distributions_torch", "distributions_pyro", "infer", "poutine")
    return pyro.settings.context(**{f"validate_{name}": False for name in names})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Put back the handlers that pyro's sampler gives its logger."""
    logger = logging.getLogger("pyro.infer.mcmc")
    handlers, propagate = logger.handlers, logger.propagate
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate


def _latent_sites(trace: Any) -> dict[str, Any]:
    nodes: dict[str, Any] = dict(prune_subsample_sites(trace).nodes)
    return {name: site for name, site in nodes.items() if site["type"] == "sample" and not site["is_observed"]}


def _check(program: Any, x: Float[Tensor, "n features"], y: Float[Tensor, " n"]) -> None:
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


class MCMCPosterior(Posterior):
    """Posterior draws of a program's latent variables, and the rows that they were drawn given.

    Attributes:
        method: the recipe.
        sites: names of the latent sites.
        divergences: steps that diverged after the warm-up; more than a few mean that the draws miss a region.
    """

    x: Tensor
    y: Tensor

    def __init__(
        self,
        method: MCMC,
        x: Float[Tensor, "n features"],
        y: Float[Tensor, " n"],
        latent: dict[str, Tensor],
        divergences: int = 0,
        columns: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        self.method, self.sites, self.divergences, self.columns = method, tuple(latent), divergences, columns
        self.register_buffer("x", x)
        self.register_buffer("y", y)
        for k, value in enumerate(latent.values()):  # by number: a site's name may hold dots, a buffer's may not
            self.register_buffer(f"site{k}", value)

    def facts(self) -> list[str]:
        method = self.method
        draws = f"{method.chains} x {method.draws:,} draws of {', '.join(self.sites)}"
        return [draws, f"{self.divergences} divergences", f"has seen {len(self.y):,} rows"]

    @property
    def latent(self) -> dict[str, Tensor]:
        """Draws [chains * draws, ...] of every latent site, chain after chain."""
        return {name: getattr(self, f"site{k}") for k, name in enumerate(self.sites)}

    @property
    def diagnostics(self) -> dict[str, Diagnostic]:
        """R-hat and bulk effective sample size of every latent site; a single chain is compared by its halves."""
        method, report = self.method, {}
        for name, value in self.latent.items():
            values = value.detach().double().cpu()
            chains = values.reshape(method.chains, method.draws, *values.shape[1:])
            if method.chains == 1:
                half = method.draws // 2
                chains = torch.stack([chains[0, :half], chains[0, half : 2 * half]])
            data = arviz.convert_to_dataset({"site": chains.numpy()})
            with warnings.catch_warnings():  # 0 / 0 where a site never moved: R-hat is NaN there
                warnings.simplefilter("ignore", RuntimeWarning)
                tables: tuple[Any, Any] = arviz.rhat(data), arviz.ess(data, method="bulk")
            report[name] = Diagnostic(*(torch.as_tensor(table["site"].values) for table in tables))
        return report

    def predict(self, x: Any) -> Mixture:
        """Mixture over the draws of p(y | draw) at every row of `x`, in float64 where `x` or the targets seen are.

        Raises:
            ValueError: wrong shapes, or values that are not finite.
        """
        x = check_inputs(x, self.x.shape[-1], self.columns).to(self.x.device)
        wide, shape = output_dtype(x, self.y), x.shape[:-1]
        rows = x.double().flatten(0, -2)
        draws = {name: value.double() for name, value in self.latent.items()}
        program = self.method.program
        if isinstance(program, Program):
            mean, stddev = program.predictive(draws, self.x.double(), self.y.double(), rows)
        else:
            mean, stddev = _read_off(program, draws, rows)
        mean, stddev = (value.to(wide).mT.reshape(*shape, -1) for value in (mean, stddev))
        return Mixture.of(Normal(mean, stddev))


def _read_off(program: Callable[..., Any], draws: dict[str, Tensor], x: Float[Tensor, "m features"]):
    """Mean and standard deviation [draws, m] of the site `y` with each draw put in for the latent sites."""
    parts = []
    with _isolated(0), _unvalidated():
        for k in range(len(next(iter(draws.values())))):
            model = poutine.condition(program, data={name: value[k] for name, value in draws.items()})
            trace: Any = _traced(model, x)
            parts.append(_normal_rows(trace.nodes[SITE]["fn"], len(x)))
    means, stddevs = zip(*parts, strict=True)
    return torch.stack(means), torch.stack(stddevs)
