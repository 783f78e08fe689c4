"""The roles that priors, methods and posteriors play."""

from abc import ABC, abstractmethod
from typing import Any, Protocol, Self, runtime_checkable

import torch.distributions as td
from torch import Generator, Tensor, nn

from bayesvision.distributions import Predictive

__all__ = ["Conditionable", "Joint", "Latent", "Log", "Method", "Posterior", "Prior", "Storable"]


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
class Log(Protocol):
    """Anything that records metrics: `bayesvision.training.loggers.JsonLines`, a progress bar, an experiment tracker."""

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
class Joint(Protocol):
    """A posterior that knows the joint law of several targets."""

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


@runtime_checkable
class Storable(Protocol):
    """A posterior that is data, and so can be kept in a file: its recipe, tensors, and what else is JSON."""

    method: Any

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and all that is neither a tensor nor part of the recipe as JSON data."""
        ...

    @classmethod
    def restore(cls, method: Any, tensors: dict[str, Tensor], header: dict[str, Any]) -> Self:
        """The posterior of the recipe `method` that `export` described; a ValueError if they do not fit."""
        ...


class Method(Protocol):
    """A recipe: a frozen dataclass of hyper-parameters."""

    def fit(self, source: Any, log: Log | None = None) -> Posterior:
        """Learn from a prior or from data."""
        ...
