"""`GP`: Gaussian process regression in closed form, hyper-parameters by marginal likelihood."""

import math
from dataclasses import dataclass
from typing import Any, Self, get_args

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Tensor

from bayesvision.baselines.marginal_likelihood import SMOOTHNESS, Hyper, Kernel, infinite_width, learn
from bayesvision.core.checks import check_count, check_inputs, check_targets, columns_of
from bayesvision.core.data import Data, output_dtype, rows_to_fit
from bayesvision.core.modules import outside_inference_mode
from bayesvision.core.recipes import convert_fields
from bayesvision.core.roles import Conditionable, Exported, Following
from bayesvision.core.standardize import Standardization
from bayesvision.distributions import Normal

__all__ = ["GP", "GPPosterior"]

QUERIES = 4096  # rows of one block in predict: bounds its memory


@dataclass(frozen=True)
class GP:
    """Gaussian process regression with one lengthscale for each column (Rasmussen and Williams 2006, chapters 2 and 5).

    y = f(x) + noise, with f a zero-mean Gaussian process of covariance variance * k(r),
    r^2 = sum_d (x_d - x'_d)^2 / lengthscale_d^2, or variance times the `nngp` of x / lengthscale.
    What is not given is set by maximising log p(y | x) (eq. 5.8) with L-BFGS from several starting points. Type-II
    maximum likelihood is overconfident on a handful of rows.

    Example:
        >>> post = bv.GP(kernel="matern52").fit(bv.Data(x, y))
        >>> post.predict(new).interval(0.9), post.joint(new[:10])

    Args:
        kernel: `rbf`, `matern12`, `matern32` or `matern52`; or `nngp`, the process of an infinitely wide rectifying
            network, whose k is `bayesvision.baselines.marginal_likelihood.infinite_width`.
        depth: hidden layers of that network, of no meaning to other kernels; a deep kernel machine at nu = inf has one
            more than its `layers`.
        lengthscale: one for all columns or one for each; None learns them.
        noise, variance: noise variance and output variance; None learns them. Learnt noise is at least 1e-4 of the
            target's variance.
        standardize: give columns and target mean 0 and standard deviation 1 by the statistics of the rows of `fit`, and
            read the three above in those units. Without it f has mean 0 in the target's own units.
        restarts: random starting points besides the default one.
        steps: maximum number of L-BFGS steps from each.
        seed: of the starting points.

    Raises:
        ValueError: a field is out of range.
    """

    kernel: Kernel = "rbf"
    lengthscale: float | tuple[float, ...] | None = None
    noise: float | None = None
    variance: float | None = None
    depth: int = 2
    standardize: bool = True
    restarts: int = 3
    steps: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        convert_fields(self)
        if self.kernel not in get_args(Kernel):
            raise ValueError(f"kernel must be one of {', '.join(get_args(Kernel))}, got {self.kernel!r}")
        check_count("depth", self.depth)
        scales = self.lengthscale if isinstance(self.lengthscale, tuple) else (self.lengthscale,)
        for name, values in (("lengthscale", scales), ("noise", (self.noise,)), ("variance", (self.variance,))):
            for value in values:
                if value is not None and not 0 < value < math.inf:
                    raise ValueError(f"{name} must be positive and finite, or None to learn it, got {value!r}")
        if self.restarts < 0 or self.steps < 1:
            raise ValueError(f"restarts must be at least 0 and steps 1, got {self.restarts} and {self.steps}")

    @outside_inference_mode
    def fit(self, source: Any, y: Any = None, log: Following = None) -> "GPPosterior":
        """Learn the hyper-parameters that are not given from the rows `source`, and condition on them.

        Args:
            source: Data(x, y), or x with `y` beside it.

        Raises:
            TypeError: `source` is not a `Data`.
            ValueError: no targets, wrong shapes, a batch of data sets, values that are not finite, a single row to
                learn from, or a constant target where its standard deviation is the unit to learn in.
        """
        source, log = rows_to_fit(source, y, log)
        if not isinstance(source, Data):
            raise TypeError(f"source must be Data(x, y), or x and y, got {type(source).__name__} alone")
        learnt = self.standardize and None in (self.lengthscale, self.noise, self.variance)
        x, y = _one_data_set(check_inputs(source.x), source.y, constant=not learnt)
        units = Standardization.of(x, y.double(), self.standardize)
        hyper = learn(self, units.inputs(x), units.targets(y.double()), log)
        return GPPosterior(self, x, y, units, hyper, columns_of(source.x))


def _one_data_set(x: Tensor, y: Any, constant: bool) -> tuple[Float[Tensor, "n features"], Float[Tensor, " n"]]:
    """Rows in float64, and their targets in the precision that they have."""
    if x.ndim != 2:
        raise ValueError(
            f"x must be one data set [rows, features], got {tuple(x.shape)}; fit a batch of data sets one by one"
        )
    if y is None:
        raise ValueError("y must hold the targets of the rows of x, got None")
    return x.detach().double(), check_targets(y, x, constant=constant).detach()


class GPPosterior(Conditionable):
    """A Gaussian process given the rows that it has seen.

    Attributes:
        method: the recipe.
        x, y: the rows, in the user's units.
        lengthscale, noise, variance: hyper-parameters, in standardised units if the recipe standardises.
    """

    x: Tensor
    y: Tensor
    y_loc: Tensor
    y_scale: Tensor
    lengthscale: Tensor
    noise: Tensor
    variance: Tensor
    factor: Tensor
    weights: Tensor

    def __init__(
        self,
        method: GP,
        x: Float[Tensor, "n features"],
        y: Float[Tensor, " n"],
        units: Standardization,
        hyper: Hyper,
        columns: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        self.method, self.columns = method, columns
        for name, value in {"x": x, "y": y, **units._asdict(), **hyper._asdict()}.items():
            self.register_buffer(name, value)
        self._factorise()

    def facts(self) -> list[str]:
        return [f"kernel {self.method.kernel}", f"has seen {len(self.y):,} rows of {self.x.shape[-1]} features"]

    @torch.no_grad()
    def _factorise(self) -> None:
        """Cholesky factor of K = k(x, x) + noise I and K^{-1} y, always in float64."""
        x, y = self.units.inputs(self.x.double()), self.units.targets(self.y.double())
        factor = _cholesky(self._covariance(x, x), self.noise.double())
        self.register_buffer("factor", factor)
        self.register_buffer("weights", torch.cholesky_solve(y.unsqueeze(-1), factor))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, value in exact.items():  # a rounded row moves predictions, a rounded factor loses a small variance
            setattr(self, name, value.to(self.x.device))
        return self

    @property
    def units(self) -> Standardization:
        """Where the rows of `fit` sat."""
        return Standardization(*(getattr(self, name).double() for name in Standardization._fields))

    @property
    def hyper(self) -> Hyper:
        """The hyper-parameters, in the units of the process."""
        return Hyper(self.lengthscale, self.noise, self.variance)

    @property
    def log_evidence(self) -> Float[Tensor, ""]:
        """log p(y | x) of all rows seen, in the target's units.

        log N(y; 0, K) = -y^T K^{-1} y / 2 - log det K / 2 - n log(2 pi) / 2 (eq. 5.8), less n log y_scale.
        """
        y = self.units.targets(self.y.double())
        fit = y @ self.weights.squeeze(-1) / 2 + self.factor.diagonal().log().sum()
        return -fit - len(y) * (math.log(2 * math.pi) / 2 + self.units.y_scale.squeeze(-1).log())

    @outside_inference_mode
    def condition(self, x: Any, y: Any) -> Self:
        """A new posterior that has also seen the rows (x, y), with the same hyper-parameters and units.

        Raises:
            ValueError: wrong shapes, or values that are not finite.
        """
        x, y = _one_data_set(check_inputs(x, self.x.shape[-1], self.columns).to(self.x.device), y, constant=True)
        x, y = torch.cat([self.x, x]), torch.cat([self.y, y])
        return type(self)(self.method, x, y, self.units, self.hyper, self.columns)

    def predict(self, x: Any) -> Normal:
        """Marginal distribution of a noisy target at every row of `x`, in float64 where `x` or the targets seen are.

        Mean k(x', x) K^{-1} y and variance k(x', x') - k(x', x) K^{-1} k(x, x') + noise (eqs. 2.25-2.26).

        Raises:
            ValueError: wrong shapes, or values that are not finite.
        """
        x = check_inputs(x, self.x.shape[-1], self.columns).to(self.x.device)
        blocks = [self._marginals(part) for part in self.units.inputs(x.double()).split(QUERIES, -2)]
        mean, variance = (torch.cat(parts, -1) for parts in zip(*blocks, strict=True))
        y_loc, y_scale, wide = self.y_loc.double(), self.y_scale.double(), output_dtype(x, self.y)
        return Normal((y_loc + y_scale * mean).to(wide), (y_scale * variance.sqrt()).to(wide))

    def joint(self, x: Any) -> td.MultivariateNormal:
        """Joint distribution of noisy targets at the rows of `x`, in float64 where `x` or the targets seen are.

        Raises:
            ValueError: wrong shapes, or values that are not finite.
        """
        x = check_inputs(x, self.x.shape[-1], self.columns).to(self.x.device)
        wide, x = output_dtype(x, self.y), self.units.inputs(x.double())
        mean, half = self._project(x)
        factor = _cholesky(self._covariance(x, x) - half.mT @ half, self.noise.double())
        y_loc, y_scale = self.y_loc.double(), self.y_scale.double()
        return td.MultivariateNormal((y_loc + y_scale * mean).to(wide), scale_tril=(y_scale * factor).to(wide))

    def _covariance(self, a: Tensor, b: Tensor) -> Float[Tensor, "*batch n m"]:
        lengthscale = self.lengthscale.double()
        if self.method.kernel == "nngp":
            return self.variance.double() * infinite_width(a / lengthscale, b / lengthscale, self.method.depth)
        r = torch.cdist(a / lengthscale, b / lengthscale, compute_mode="donot_use_mm_for_euclid_dist")
        return self.variance.double() * _correlation(self.method.kernel, r)

    def _project(self, x: Tensor) -> tuple[Float[Tensor, "*batch m"], Float[Tensor, "*batch n m"]]:
        """Mean k(x', x) K^{-1} y, and L^{-1} k(x, x')."""
        cross = self._covariance(x, self.units.inputs(self.x.double()))
        half = torch.linalg.solve_triangular(self.factor, cross.mT, upper=False)
        return (cross @ self.weights).squeeze(-1), half

    def _marginals(self, x: Tensor) -> tuple[Float[Tensor, "*batch m"], Float[Tensor, "*batch m"]]:
        mean, half = self._project(x)
        prior = self.variance.double()
        if self.method.kernel == "nngp":
            alone = x.unsqueeze(-2)
            prior = self._covariance(alone, alone)[..., 0, 0]
        return mean, (prior - half.square().sum(-2)).clamp(min=0) + self.noise.double()

    def export(self) -> Exported:
        """Rows, units, hyper-parameters and Cholesky factor; the recipe."""
        return Exported({}, dict(self.state_dict()), {"columns": self.columns})

    @classmethod
    def restore(cls, method: GP, tensors: dict[str, Tensor], header: dict[str, Any]) -> Self:
        """The posterior that `export` described.

        Raises:
            ValueError: a tensor is missing, or does not fit the others.
        """
        n, features = tensors["x"].shape if "x" in tensors and tensors["x"].ndim == 2 else (0, 0)
        expected = {"x": (n, features), "y": (n,), "factor": (n, n), "weights": (n, 1)}
        expected |= dict.fromkeys(("x_loc", "x_scale"), (1, features)) | {"lengthscale": (features,)}
        expected |= dict.fromkeys(("y_loc", "y_scale"), (1,)) | dict.fromkeys(("noise", "variance"), ())
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        if shapes != expected:
            raise ValueError(f"the tensors must have the shapes {expected}, got {shapes}; save the posterior again")
        units, hyper = (
            Standardization(*(tensors[n] for n in Standardization._fields)),
            Hyper(*(tensors[n] for n in Hyper._fields)),
        )
        columns = tuple(header["columns"]) if header["columns"] else None
        posterior = cls(method, tensors["x"], tensors["y"], units, hyper, columns)
        posterior.load_state_dict(tensors)  # the factor of the file, bit for bit
        return posterior.eval()


def _correlation(kernel: Kernel, r: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Correlation at the scaled distance r (Rasmussen and Williams 2006, eqs. 4.9 and 4.17)."""
    if kernel == "rbf":
        return torch.exp(-r.square() / 2)
    s = math.sqrt(2 * SMOOTHNESS[kernel]) * r
    polynomial = {"matern12": torch.ones_like(s), "matern32": 1 + s, "matern52": 1 + s + s.square() / 3}[kernel]
    return polynomial * torch.exp(-s)


def _cholesky(covariance: Float[Tensor, "*batch n n"], noise: Float[Tensor, ""]) -> Float[Tensor, "*batch n n"]:
    factor, info = torch.linalg.cholesky_ex(covariance + torch.diag_embed(noise.expand(covariance.shape[:-1])))
    if info.any():
        raise ValueError(
            f"the covariance of the {covariance.shape[-1]} rows is not positive definite with the noise variance "
            f"{noise.item():g}; raise the noise, or leave out rows that are nearly the same"
        )
    return factor
