"""The two abstract predictive distributions: `Continuous` and `Discrete`."""

import functools
import math
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.distributions as td
from jaxtyping import Float, Shaped
from torch import Tensor

from bayesvision.distributions.numerics import tail_levels
from bayesvision.distributions.tell import framed, shown

if TYPE_CHECKING:
    import pandas

__all__ = ["Continuous", "Discrete", "LocationFamily", "reshaped"]

TAKE_NUMBERS = (
    "log_prob",
    "cdf",
    "log_cdf",
    "expected_absolute_error",
    "crps",
    "probability_above",
    "log_probability_above",
    "expected_improvement",
    "log_expected_improvement",
)


class Continuous(td.Distribution):
    """A distribution over the whole real line, one marginal for every element of `batch_shape`.

    A family states `log_prob`, `cdf`, `icdf`, `mean`, `variance`, `rsample`, indexing and two expectations,
    `E|Y - y|` and `E|Y - Y'|`; the rest is derived here, once, and our families override what loses digits far out in
    the tails. Values may be numbers, arrays and tensors alike.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in TAKE_NUMBERS:
            method = getattr(cls, name)
            if not getattr(method, "__isabstractmethod__", False) and not hasattr(method, "takes_numbers"):
                setattr(cls, name, _taking_numbers(method))

    @abstractmethod
    def _at(self, index: tuple[Any, ...]) -> Self:
        """The marginals at `index`, which selects among the batch axes alone and ends in an ellipsis."""

    def __getitem__(self, index: Any) -> Self:
        """The marginals that `index` selects along the batch axes, as it would in a tensor of the shape `batch_shape`.

        Raises:
            IndexError: no such marginals.
        """
        return self._at(_batch_index(self.batch_shape, index))

    def __repr__(self) -> str:
        return said(self, _median_and_interval)

    def _repr_html_(self) -> str:
        return shown(self)

    @torch.no_grad()
    def to_frame(self, mass: float = 0.9) -> "pandas.DataFrame":
        """Mean, standard deviation, median and central interval of every marginal as a pandas frame.

        One batch axis gives its rows; more give a row for each of their indices. `mass` is that of the interval.

        Raises:
            ValueError: `mass` lies outside (0, 1).
            ImportError: pandas is missing.
        """
        low, high = self.interval(mass)
        parts = {"mean": self.mean, "stddev": self.stddev, "median": self.quantile(0.5), "lower": low, "upper": high}
        return framed(parts, tuple(self.batch_shape))

    @abstractmethod
    def expected_absolute_error(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """Expected absolute error E|Y - value|."""

    @property
    @abstractmethod
    def mean_difference(self) -> Float[Tensor, "*batch"]:
        """Gini mean difference E|Y - Y'| of two independent draws."""

    @torch.no_grad()
    def knots(self, levels: int = 256) -> Float[Tensor, "*batch knots"]:
        """Points in increasing order between which the cdf varies little: about `levels` quantiles, tails included."""
        u = tail_levels(levels).to(self.mean)
        u = u.clamp(torch.finfo(u.dtype).eps, 1 - torch.finfo(u.dtype).eps)
        grid = self.icdf(u.reshape(-1, *(1 for _ in self.batch_shape)).expand(-1, *self.batch_shape))
        return grid.movedim(0, -1)

    def quantile(self, levels: float | Float[Tensor, "*levels"]) -> Float[Tensor, "..."]:
        """Quantiles at the given `levels`, whose axes come first.

        Raises:
            ValueError: a level lies outside (0, 1).
        """
        like = self._value(0.0)
        levels = torch.as_tensor(levels, dtype=torch.float64, device=like.device)  # 1 - 1e-9 would be 1 in float32
        if not ((levels > 0) & (levels < 1)).all():
            raise ValueError(f"levels must lie strictly between 0 and 1, got {levels.tolist()}")
        shape = levels.shape + (1,) * len(self.batch_shape)
        return self.icdf(levels.reshape(shape).expand(levels.shape + self.batch_shape)).to(like.dtype)

    def interval(self, mass: float) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """Central interval `(lower, upper)` that holds the probability `mass`.

        Raises:
            ValueError: `mass` lies outside (0, 1).
        """
        if not 0 < mass < 1:
            raise ValueError(f"mass must lie strictly between 0 and 1, got {mass}")
        lower, upper = self.quantile(torch.tensor([(1 - mass) / 2, (1 + mass) / 2], dtype=torch.float64))
        return lower, upper

    def crps(self, value: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """Continuous ranked probability score, in the units of `value`; smaller is better.

        CRPS(F, y) = E|Y - y| - E|Y - Y'| / 2 (Gneiting and Raftery 2007, eq. 21).
        """
        return self.expected_absolute_error(value) - self.mean_difference / 2

    def log_cdf(self, value: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log P(Y <= value)."""
        return self.cdf(self._value(value)).log()

    def probability_above(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """Survival function P(Y > threshold), the probability of improvement."""
        return 1 - self.cdf(self._value(threshold))

    def log_probability_above(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """Log survival function log P(Y > threshold)."""
        return self.probability_above(threshold).log()

    def expected_improvement(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """Expected improvement E max(Y - threshold, 0), as the exponential of its logarithm."""
        return self.log_expected_improvement(threshold).exp()

    def log_expected_improvement(self, threshold: float | Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """log E max(Y - threshold, 0) = log (E|Y - threshold| + E[Y] - threshold) / 2, an acquisition whose gradient
        does not vanish where a family states it without cancellation (Ament et al. 2023, arXiv 2310.20708).
        """
        value = self._value(threshold)
        return ((self.expected_absolute_error(value) + self.mean - value) / 2).clamp(min=0).log()

    def _value(self, value: Any) -> Tensor:
        return torch.as_tensor(value, dtype=self.mean.dtype, device=self.mean.device)


def _taking_numbers(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`method` with a first argument that may be a number or an array."""

    @functools.wraps(method)
    def taking(self: Any, value: Any, *more: Any, **named: Any) -> Tensor:
        value = value if isinstance(value, Tensor) else self._value(value)
        return method(self, value, *more, **named)

    taking.__dict__["takes_numbers"] = True
    return taking


def _batch_index(shape: torch.Size, index: Any) -> tuple[Any, ...]:
    """`index` as a tuple that ends in an ellipsis, once it is known to fit a tensor of this `shape`."""
    index = tuple(index) if isinstance(index, tuple) else (index,)
    torch.empty(()).expand(shape)[index]
    return index if any(part is Ellipsis for part in index) else (*index, Ellipsis)


def said(law: Any, words: Callable[[Any], str]) -> str:
    """The class and the shape of `law`, and in words its first and its last marginal; never an error."""
    shape, name = tuple(law.batch_shape), type(law).__name__
    try:
        with torch.no_grad():
            ends = [words(law[tuple(end for _ in shape)]) for end in ((0, -1) if math.prod(shape) > 1 else (0,))]
    except Exception:  # parameters that are not finite, or an empty batch
        return f"{name}(shape {shape})"
    return f"{name}({', ..., '.join(ends)})" if not shape else f"{name}(shape {shape}: {', ..., '.join(ends)})"


def _median_and_interval(law: Any) -> str:
    low, median, high = law.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
    return f"median {median:.4g}, 90 % in {low:.4g} to {high:.4g}"


def _likeliest(law: Any) -> str:
    mode = int(law.mode)
    return f"{mode} with probability {float(law.class_probs[mode]):.2g} of {law.class_probs.shape[-1]} classes"


class LocationFamily(Continuous):
    """A family of tensors named in `arg_constraints`, all of one shape, among them `loc`, its mean and mode."""

    loc: Tensor

    def expand(self, batch_shape, _instance=None) -> Self:
        new: Any = self._get_checked_instance(type(self), _instance)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        Continuous.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _at(self, index: tuple[Any, ...]) -> Self:
        return reshaped(self, lambda parameter: parameter[index])

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        return self.loc

    @property
    def mode(self) -> Float[Tensor, "*batch"]:
        return self.loc


def reshaped(law: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The `Normal` or `LocationFamily` whose parameters are those of `law`, each of them changed in shape."""
    return type(law)(*(change(getattr(law, name)) for name in law.arg_constraints), validate_args=False)


class Discrete(td.Distribution):
    """A distribution over finitely many classes; `class_probs` holds them on the last axis."""

    @abstractmethod
    def __getitem__(self, index: Any) -> Self:
        """The marginals that `index` selects along the batch axes, as it would in a tensor of the shape `batch_shape`.

        Raises:
            IndexError: no such marginals.
        """

    @property
    @abstractmethod
    def class_probs(self) -> Float[Tensor, "*batch classes"]:
        """Probability of every class."""

    def __repr__(self) -> str:
        return said(self, _likeliest)

    def _repr_html_(self) -> str:
        return shown(self)

    @torch.no_grad()
    def to_frame(self) -> "pandas.DataFrame":
        """The likeliest class and the probability of each class as a pandas frame, a row for every marginal.

        Raises:
            ImportError: pandas is missing.
        """
        chances = self.class_probs
        parts = {"mode": self.mode, **{f"p{k}": chances[..., k] for k in range(chances.shape[-1])}}
        return framed(parts, tuple(self.batch_shape))

    @property
    def mode(self) -> Shaped[Tensor, "*batch"]:
        """The most probable class, the first one of a tie."""
        return self.class_probs.argmax(-1)

    def brier(self, value: Any) -> Float[Tensor, "*shape"]:
        """Brier score sum_k (p_k - 1[y = k])^2, from 0 (certain and right) to 2; smaller is better."""
        probs = self.class_probs
        value = torch.as_tensor(value, device=probs.device)
        truth = torch.nn.functional.one_hot(value.long(), probs.shape[-1]).to(probs.dtype)
        return (probs - truth).square().sum(-1)
