"""The roles that priors, methods and posteriors play."""

import html
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import torch.distributions as td
from torch import Generator, Tensor, nn

from bayesvision.distributions import Predictive

__all__ = [
    "Amortized",
    "Checked",
    "Conditionable",
    "Draws",
    "Exported",
    "Family",
    "Following",
    "Joint",
    "Latent",
    "Log",
    "Method",
    "Parametric",
    "Posterior",
    "Prior",
    "Sampled",
    "Storable",
]


LEARNED = {  # name in metadata: what it is called
    "rows of data": "rows",
    "rows seen": "rows more",
    "examples": "examples",
    "images": "images",
}


@runtime_checkable
class Task(Protocol):
    """What a prior draws: inputs `x` [batch, rows, features] and targets `y` [batch, rows]."""

    @property
    def x(self) -> Tensor: ...
    @property
    def y(self) -> Tensor: ...


@runtime_checkable
class Prior(Protocol):
    """A distribution over data sets."""

    def sample(self, batch: int, rows: int, *, generator: Generator) -> Task:
        """Draw a batch of data sets on the generator's device."""
        ...


@runtime_checkable
class Family(Protocol):
    """A family of inference problems: priors over latent variables theta, and what is observed of them.

    `sample` draws problems: x, y and theta [batch, latents], and of each prior what tells it: `hyper` [batch,
    hyperparameters], the Gaussian `mixture` that it is, or `draws` [batch, n, latents] from it.
    """

    @property
    def latents(self) -> int:
        """Number of latent variables."""
        ...

    @property
    def features(self) -> int:
        """Number of columns of an observation's design."""
        ...

    @property
    def inputs(self) -> int:
        """Number of columns that `relative` makes of a design."""
        ...

    @property
    def reading(self) -> Tensor | None:
        """Designs [rows, features] of the observations that come together; None where each comes by itself."""
        ...

    @property
    def hyperparameters(self) -> int:
        """Number of numbers that tell a prior; 0 where priors are Gaussian mixtures, or told by draws."""
        ...

    @property
    def supports(self) -> tuple[str, ...]:
        """`real`, `positive` or `unit` (between 0 and 1) for each latent variable."""
        ...

    def sample(self, batch: int, rows: int, *, generator: Generator) -> Any:
        """Draw a batch of problems with `rows` observations each."""
        ...

    def own(self, count: int, generator: Generator) -> Tensor:
        """Draws [count, latents] of theta where nothing is said of its prior."""
        ...

    def relative(self, x: Tensor, y: Tensor, loc: Tensor, tril: Tensor) -> tuple[Tensor, Tensor]:
        """Observations x [*batch, rows, features], y [*batch, rows] as seen from a prior, or from a component of it.

        Its unconstrained latent variables have the mean `loc` and the covariance tril tril^T. The first of the two that
        it gives has `inputs` columns. Batch axes broadcast.
        """
        ...

    def observed(self, theta: Tensor, x: Tensor, seen: tuple[Tensor, Tensor] | None = None) -> td.Distribution:
        """Distribution of the observations at x [*draws, rows, features] given theta [*draws, latents].

        `seen` holds x and y of observations before them, for families where theta alone does not tell them.
        """
        ...

    def log_likelihood(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Log density of every observation given theta (and those before it, where that matters), [*draws, rows]."""
        ...


@runtime_checkable
class Checked(Protocol):
    """A family that knows which observations there cannot be."""

    def check(self, x: Tensor, y: Tensor) -> None:
        """A `ValueError` where a design or an observation is none of the family's."""
        ...


@runtime_checkable
class Parametric(Family, Protocol):
    """A family with a parametric kind of priors."""

    def describe(self, prior: td.Distribution) -> Tensor:
        """The numbers [*batch, hyperparameters] that tell a prior; a `ValueError` if it is of another kind."""
        ...

    def distribution(self, hyper: Tensor) -> td.Distribution:
        """The prior of theta [*batch, latents] that they tell."""
        ...

    def moments(self, hyper: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the unconstrained latent variables, [*batch, latents] each."""
        ...

    def draws(self, hyper: Tensor, count: int, generator: Generator) -> Tensor:
        """Draws [batch, count, latents] of theta."""
        ...


@runtime_checkable
class Log(Protocol):
    """Anything that records metrics: `bayesvision.training.loggers.JsonLines`, a progress bar, a tracker."""

    def log(self, metrics: dict[str, float], step: int, /) -> object:
        """Record `metrics` of `step`."""
        ...


Following = Log | str | None  # how a fit is followed: a log, "progress" for a bar, or not at all


class Posterior(nn.Module, ABC):
    """What `fit` returns: everything that was learned, ready to predict."""

    @abstractmethod
    def predict(self, x: Any) -> Predictive:
        """Posterior predictive p(y | x, everything seen) of every row, noise included.

        Returns marginals: `batch_shape` is the target's shape and `event_shape` is ().
        """

    def facts(self) -> list[str]:
        """What `repr` says: its size, what it learned from, and what it has seen."""
        size, told = sum(p.numel() for p in self.parameters()), vars(self).get("metadata", {})
        found = [f"{size:,} parameters"] if size else []
        found += [f"trained on {told['prior']['name']}"] if "prior" in told else []
        found += [f"learned from {told[key]:,} {what}" for key, what in LEARNED.items() if key in told]
        return [*found, f"has seen {self.rows:,} rows"] if isinstance(self, Amortized) else found

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.facts())})"

    def _repr_html_(self) -> str:
        facts = "".join(f"<li>{html.escape(fact)}</li>" for fact in self.facts())
        return f"<div><b>{type(self).__name__}</b><ul>{facts}</ul></div>"


class Conditionable(Posterior):
    """A posterior that takes in more rows without being fitted again."""

    @abstractmethod
    def condition(self, x: Any, y: Any) -> Self:
        """A new posterior that has seen the rows (x, y) too; `self` is left as it was."""


@runtime_checkable
class Amortized(Protocol):
    """A posterior that was learned from a prior, and so predicts and takes in rows before it has seen any."""

    @property
    def rows(self) -> int:
        """Number of rows that it was conditioned on."""
        ...

    def unconditioned(self) -> Self:
        """The posterior without these rows; `self` is left as it was."""
        ...


@runtime_checkable
class Joint(Protocol):
    """A posterior that knows the joint distribution of several targets."""

    def joint(self, x: Any) -> td.MultivariateNormal:
        """Joint posterior predictive at the rows of `x`, noise included."""
        ...


@runtime_checkable
class Latent(Protocol):
    """A posterior over latent variables."""

    @property
    def latent(self) -> Any:
        """Distribution, or draws, of the latent variables."""
        ...


class Draws(NamedTuple):
    """Draws of a posterior's latent variables, and the rows of y given each of them.

    Attributes:
        sites: draws [chains, draws, ...] of every latent variable, by name; entry by entry they are joint.
        observed: distribution of y [chains, draws, rows] at the rows of x given each draw; None without rows.
        x, y: the rows of `observed`, as far as they are known.
        pointwise: whether rows are independent given a draw, so that `observed` gives the log-likelihood of each.
        iid: whether draws are independent of one another; those of a Markov chain are not.
        statistics: numbers [chains, draws] that say how the sampler went.
    """

    sites: dict[str, Tensor]
    observed: td.Distribution | None = None
    x: Tensor | None = None
    y: Tensor | None = None
    pointwise: bool = True
    iid: bool = True
    statistics: dict[str, Tensor] = {}  # noqa: RUF012 (read, never written)


@runtime_checkable
class Sampled(Protocol):
    """A posterior of which there are draws."""

    def sampled(self, count: int, seed: int, x: Any = None) -> Draws:
        """Draws, and y at the rows of `x`, or at those that the posterior remembers.

        `count` of them, chosen by `seed`, where they are independent; a sampler has the draws that it has.
        """
        ...


class Exported(NamedTuple):
    """What a file keeps of a posterior besides its recipe.

    Attributes:
        weights: tensors that may be stored in half precision.
        exact: tensors that are stored as they are: rows, borders, constants.
        header: all that is no tensor, as JSON data.
    """

    weights: dict[str, Tensor]
    exact: dict[str, Tensor]
    header: dict[str, Any]


@runtime_checkable
class Storable(Protocol):
    """A posterior that is data, and so can be kept in a file."""

    method: Any

    def export(self) -> Exported:
        """Tensors, and all that is neither a tensor nor part of the recipe."""
        ...

    @classmethod
    def restore(cls, method: Any, tensors: dict[str, Tensor], header: dict[str, Any]) -> Self:
        """The posterior of the recipe `method` with all tensors and the header of `export`.

        A posterior around somebody's network takes that as a fourth argument `net`: a file does not hold it.

        Raises:
            ValueError: they do not fit.
        """
        ...


@runtime_checkable
class Method(Protocol):
    """A recipe: a frozen dataclass of hyper-parameters."""

    def fit(self, source: Any, log: Log | None = None) -> Posterior:
        """Learn from a prior or from data."""
        ...
