"""`MCMC`: the No-U-Turn sampler on any pyro program, slow and asymptotically exact."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import arviz
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bayesvision.baselines.nuts import Chain, run_chains
from bayesvision.baselines.programs import Program, check_program, isolated, read_off
from bayesvision.core.checks import check_inputs, check_targets, columns_of
from bayesvision.core.data import Data, output_dtype, rows_to_fit
from bayesvision.core.modules import outside_inference_mode
from bayesvision.core.recipes import convert_fields
from bayesvision.core.roles import Draws, Following, Posterior
from bayesvision.core.warn import warn
from bayesvision.distributions import Mixture, Normal
from bayesvision.training.loggers import following

__all__ = ["MCMC", "Diagnostic", "MCMCPosterior", "Trajectories"]


class Diagnostic(NamedTuple):
    """How well the chains of one site mixed, entry by entry.

    Attributes:
        r_hat: rank-normalised split R-hat, near 1 (below 1.01) if they agree (Vehtari et al. 2021, eq. 14).
        ess: bulk effective sample size; 400 is enough for means and standard deviations (section 4).
    """

    r_hat: Float[Tensor, "..."]
    ess: Float[Tensor, "..."]


class Trajectories(NamedTuple):
    """How the chains went after their warm-up.

    Attributes:
        tree_depth: doublings of every step; a step took up to 2^tree_depth - 1 gradients.
        diverging: steps whose energy went astray (Hoffman and Gelman 2014, section 3.1.1); where they gather, the draws
            miss a region.
        step_size: of the leapfrog steps of each chain.
        acceptance: mean acceptance probability of each chain; near `target_accept` if the warm-up was long enough.
    """

    tree_depth: Int[Tensor, "chains draws"]
    diverging: Bool[Tensor, "chains draws"]
    step_size: Float[Tensor, " chains"]
    acceptance: Float[Tensor, " chains"]


@dataclass(frozen=True)
class MCMC:
    """No-U-Turn sampler (Hoffman and Gelman 2014, arXiv 1111.4246) on a pyro program, in float64.

    The predictive distribution is the equal mixture of p(y | x, draw) over the posterior draws. Each chain is a pure
    function of (seed, chain), whether the chains run one after the other or in processes of their own.

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
        dense_mass: adapt a dense mass matrix in place of a diagonal, for strongly correlated latent variables.
        processes: chains that run at once, each on one thread; the program is then pickled, by value where it is of
            `__main__` or of a notebook.

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
    dense_mass: bool = False
    processes: int = 1

    def __post_init__(self) -> None:
        convert_fields(self)
        if not callable(self.program):
            raise TypeError(f"program must be a pyro model program(x, y=None), got {type(self.program).__name__}")
        for name, least in (("warmup", 1), ("draws", 8), ("chains", 1), ("max_tree_depth", 1), ("processes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.target_accept < 1:
            raise ValueError(f"target_accept must lie strictly between 0 and 1, got {self.target_accept}")

    @outside_inference_mode
    def fit(self, source: Any, y: Any = None, log: Following = None) -> "MCMCPosterior":
        """Draw from the posterior given the rows `source`, Data(x, y), or x with `y` beside it.

        Raises:
            TypeError: `source` is not a `Data`.
            ValueError: wrong data, no observed site `y`, nothing latent or a discrete latent site; for a plain model
                also a latent site that grows with the rows, or a site `y` that is not normal with independent rows.
        """
        source, log = rows_to_fit(source, y, log)
        if not isinstance(source, Data):
            raise TypeError(f"source must be Data(x, y), or x and y, got {type(source).__name__} alone")
        x = check_inputs(source.x)
        if x.ndim != 2:
            raise ValueError(f"x must be one data set [rows, features], got {tuple(x.shape)}; fit them one by one")
        if source.y is None:
            raise ValueError("y must hold the targets of the rows of x, got None")
        x, y = x.detach().double(), check_targets(source.y, x, constant=True).detach()
        with isolated(self.seed):
            check_program(self.program, x, y.double())
        with following(log, self.chains * (self.warmup + self.draws)) as open_log:
            chains = list(run_chains(self, x, y.double(), open_log))
        _warn(self, chains)
        return MCMCPosterior(self, x, y, chains, columns_of(source.x))


def _warn(method: MCMC, chains: list[Chain]) -> None:
    """Say what went wrong on the way, and what helps."""
    steps = method.chains * method.draws
    diverged = sum(int(chain.diverging.sum()) for chain in chains)
    deepest = sum(int((chain.tree_depth >= method.max_tree_depth).sum()) for chain in chains)
    if diverged:
        warn(
            f"{diverged} of {steps:,} steps diverged, so the draws may miss a part of the posterior; raise "
            f"target_accept (now {method.target_accept:g}), or write the latent variables in units of their spread "
            "(a non-centred model)"
        )
    if deepest > steps / 20:
        warn(
            f"{deepest} of {steps:,} steps reached max_tree_depth={method.max_tree_depth}, so the chains move slowly; "
            "set dense_mass=True for correlated latent variables, or warm up for longer"
        )


class MCMCPosterior(Posterior):
    """Posterior draws of a program's latent variables, and the rows that they were drawn given.

    Attributes:
        method: the recipe.
        sites: names of the latent sites.
        trajectories: tree depths, divergences, step sizes and acceptance of the chains.
    """

    x: Tensor
    y: Tensor

    def __init__(
        self,
        method: MCMC,
        x: Float[Tensor, "n features"],
        y: Float[Tensor, " n"],
        chains: list[Chain],
        columns: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        self.method, self.sites, self.columns = method, tuple(chains[0].sites), columns
        self.trajectories = Trajectories(
            torch.stack([chain.tree_depth for chain in chains]),
            torch.stack([chain.diverging for chain in chains]),
            torch.tensor([chain.step_size for chain in chains], dtype=torch.float64),
            torch.tensor([chain.acceptance for chain in chains], dtype=torch.float64),
        )
        self.register_buffer("x", x)
        self.register_buffer("y", y)
        for k, name in enumerate(self.sites):  # by number: a site's name may hold dots, a buffer's may not
            self.register_buffer(f"site{k}", torch.cat([chain.sites[name] for chain in chains]))

    def facts(self) -> list[str]:
        method = self.method
        draws = f"{method.chains} x {method.draws:,} draws of {', '.join(self.sites)}"
        return [draws, f"{self.divergences} divergences", f"has seen {len(self.y):,} rows"]

    @property
    def divergences(self) -> int:
        """Steps that diverged after the warm-up; more than a few mean that the draws miss a region."""
        return int(self.trajectories.diverging.sum())

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

    def sampled(self, count: int, seed: int, x: Any = None) -> Draws:
        """All draws, chain by chain, and y given each at the rows of `x`, or at those seen."""
        shape, known = (self.method.chains, self.method.draws), x is None
        parts: Any = self.predict(self.x if known else x).component_distribution
        observed = Normal(*(value.movedim(-1, 0).unflatten(0, shape) for value in (parts.loc, parts.scale)))
        ways = self.trajectories
        return Draws(
            {name: value.unflatten(0, shape) for name, value in self.latent.items()},
            observed,
            self.x if known else check_inputs(x),
            self.y if known else None,
            pointwise=not isinstance(self.method.program, Program),
            iid=False,
            statistics={"diverging": ways.diverging, "tree_depth": ways.tree_depth},
        )

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
            mean, stddev = read_off(program, draws, rows)
        mean, stddev = (value.to(wide).mT.reshape(*shape, -1) for value in (mean, stddev))
        return Mixture.of(Normal(mean, stddev))
