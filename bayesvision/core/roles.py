"""The roles that priors, methods and posteriors play."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import torch.distributions as td
from torch import Generator, Tensor, nn

from bayesvision.distributions import Predictive

__all__ = [
    "Amortized",
    "Conditionable",
    "Exported",
    "Family",
    "Joint",
    "Latent",
    "Log",
    "Method",
    "Posterior",
    "Prior",
    "Storable",
]


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

    `sample` draws problems: x, y and theta [batch, latents], and of each prior what tells it, `hyper` [batch,
    hyperparameters], or the Gaussian `mixture` that it is.
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
    def hyperparameters(self) -> int:
        """Number of numbers that tell a prior; 0 where priors are Gaussian mixtures."""
        ...

    @property
    def supports(self) -> tuple[str, ...]:
        """`real` or `positive` for each latent variable."""
        ...

    def sample(self, batch: int, rows: int, *, generator: Generator) -> Any:
        """Draw a batch of problems with `rows` observations each."""
        ...

    def relative(self, x: Tensor, y: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Observations in units of a prior whose unconstrained latent variables are about loc +- scale."""
        ...

    def observed(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a normal observation given theta."""
        ...

    def log_likelihood(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Log density of every observation given theta."""
        ...


@runtime_checkable
class Log(Protocol):
    """Anything that records metrics: `bayesvision.training.loggers.JsonLines`, a progress bar, a tracker."""

    def log(self, metrics: dict[str, float], step: int, /) -> object:
        """Record `metrics` of `step`."""
        ...


class Posterior(nn.Module, ABC):
    """What `fit` returns: everything that was learned, ready to predict."""

    @abstractmethod
    def predict(self, x: Any) -> Predictive:
        """Posterior predictive p(y | x, everything seen) of every row, noise included.

        Returns marginals: `batch_shape` is the target's shape and `event_shape` is ().
        """


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


class Method(Protocol):
    """A recipe: a frozen dataclass of hyper-parameters."""

    def fit(self, source: Any, log: Log | None = None) -> Posterior:
        """Learn from a prior or from data."""
        ...
