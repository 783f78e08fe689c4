"""Hyper-parameters of a Gaussian process by maximum marginal likelihood, with gpytorch and L-BFGS."""

import math
from typing import Any, Literal, NamedTuple

import gpytorch
import numpy as np
import scipy.optimize
import torch
from jaxtyping import Float
from linear_operator.utils.errors import NotPSDError
from torch import Tensor

from bayesvision.core.roles import Following, Log
from bayesvision.core.standardize import statistics
from bayesvision.nn.kernels import arc_cosine
from bayesvision.training.loggers import following
from bayesvision.training.seeds import generator

__all__ = ["SMOOTHNESS", "Hyper", "Kernel", "infinite_width", "learn"]

Kernel = Literal["rbf", "matern12", "matern32", "matern52", "nngp"]
BIAS = 0.1  # of every layer of the infinitely wide network
SMOOTHNESS = {"matern12": 0.5, "matern32": 1.5, "matern52": 2.5}
NOISE_FLOOR = 1e-4  # of the target's variance: keeps the Cholesky factor accurate
BOUNDS = {"lengthscale": (1e-2, 1e3), "variance": (1e-3, 1e3), "noise": (NOISE_FLOOR, 10.0)}  # times the data's spread


class Hyper(NamedTuple):
    """Hyper-parameters in the units of the process."""

    lengthscale: Float[Tensor, " features"]
    noise: Float[Tensor, ""]
    variance: Float[Tensor, ""]


def infinite_width(
    a: Float[Tensor, "... n features"], b: Float[Tensor, "... m features"], depth: int
) -> Float[Tensor, "... n m"]:
    """Covariance of the outputs of an infinitely wide rectifying network of `depth` hidden layers, of scaled inputs.

    G = a b^T, and `depth` times G <- `arc_cosine` of G, plus 0.1 (Cho and Saul 2009, eqs. 1 and 11; Lee et al. 2018,
    arXiv 1711.00165).
    """
    gram, left, right = a @ b.mT, a.square().sum(-1), b.square().sum(-1)
    for _ in range(depth):
        gram = arc_cosine(gram, left, right) + BIAS
        left, right = left + BIAS, right + BIAS
    return gram


class _InfiniteWidth(gpytorch.kernels.Kernel):
    """`infinite_width` as gpytorch writes kernels."""

    has_lengthscale = True

    def __init__(self, depth: int, **shape: Any) -> None:
        super().__init__(**shape)
        self.depth = depth

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
        """Covariance of all pairs, or of each row of `x1` with the same of `x2`."""
        a, b = x1 / self.lengthscale, x2 / self.lengthscale
        if diag:
            return infinite_width(a.unsqueeze(-2), b.unsqueeze(-2), self.depth)[..., 0, 0]
        return infinite_width(a, b, self.depth)


class _Exact(gpytorch.models.ExactGP):
    """The process as gpytorch writes it, every parameter kept as its logarithm."""

    raw: dict[str, Any]

    def __init__(self, method: Any, x: Tensor, y: Tensor, hyper: Hyper) -> None:
        exponential: Any = {"transform": torch.exp, "inv_transform": torch.log}

        def positive() -> gpytorch.constraints.Positive:
            return gpytorch.constraints.Positive(**exponential)

        likelihood: Any = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=positive())
        super().__init__(x, y, likelihood)
        shape: Any = {"ard_num_dims": x.shape[-1], "lengthscale_constraint": positive()}
        if method.kernel == "rbf":
            base = gpytorch.kernels.RBFKernel(**shape)
        elif method.kernel == "nngp":
            base = _InfiniteWidth(method.depth, **shape)
        else:
            base = gpytorch.kernels.MaternKernel(SMOOTHNESS[method.kernel], **shape)
        self.mean_module = gpytorch.means.ZeroMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(base, outputscale_constraint=positive())
        self.to(x)
        self.raw = {
            "lengthscale": base.raw_lengthscale,
            "noise": likelihood.noise_covar.raw_noise,
            "variance": self.covar_module.raw_outputscale,
        }
        for name, value in hyper._asdict().items():
            self.raw[name].data.copy_(value.log())

    def forward(self, x: Tensor) -> Any:
        mean: Any = self.mean_module(x)
        return gpytorch.distributions.MultivariateNormal(mean, self.covar_module(x))


def learn(method: Any, x: Float[Tensor, "n features"], y: Float[Tensor, " n"], log: Following) -> Hyper:
    """Hyper-parameters of the `GP` recipe `method`: those given, and the likeliest of the others."""
    features = x.shape[-1]
    given = {name: getattr(method, name) for name in Hyper._fields}
    if isinstance(method.lengthscale, tuple) and len(method.lengthscale) != features:
        raise ValueError(f"lengthscale must be one number or {features} numbers, got {len(method.lengthscale)}")
    free = [name for name in Hyper._fields if given[name] is None]
    if free and len(x) < 2:
        raise ValueError(
            f"x must have at least 2 rows to learn from, got 1; give {', '.join(free)} to GP, or more rows"
        )
    # how far the data spread in the units of the process: 1 if standardised
    spread = Hyper(statistics(x, 0)[1].squeeze(0), statistics(y, 0)[1].squeeze(0).square(), y.square().mean())
    start = {"lengthscale": math.sqrt(features), "noise": 0.1, "variance": 1.0}
    fixed = {
        name: (getattr(spread, name) * start[name] if name in free else x.new_tensor(given[name]))
        for name in Hyper._fields
    }
    hyper = Hyper(fixed["lengthscale"].expand(features).clone(), fixed["noise"], fixed["variance"])
    with following(log, method.restarts + 1) as open_log:
        return _maximise(method, x, y, hyper, spread, free, open_log) if free else hyper


def _maximise(
    method: Any, x: Tensor, y: Tensor, hyper: Hyper, spread: Hyper, free: list[str], log: Log | None
) -> Hyper:
    """The hyper-parameters of the largest marginal likelihood that L-BFGS finds; those not `free` stay."""
    source = generator("cpu", method.seed)
    best, best_cost = hyper, math.inf
    for k in range(method.restarts + 1):
        begin = hyper
        if k:  # a factor e of spread around the default
            noise = {name: torch.randn(getattr(hyper, name).shape, generator=source).to(x) for name in free}
            begin = hyper._replace(**{name: getattr(hyper, name) * noise[name].exp() for name in free})
        found, cost = _climb(_Exact(method, x, y, begin), x, y, spread, free, method.steps)
        if log is not None:
            log.log({"loss": cost}, k + 1)
        if cost < best_cost:
            best, best_cost = found, cost
    return best


def _climb(model: _Exact, x: Tensor, y: Tensor, spread: Hyper, free: list[str], steps: int) -> tuple[Hyper, float]:
    """One run of L-BFGS-B on the logarithms; the end point and its -log p(y | x) / n."""
    marginal: Any = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    raw = [model.raw[name] for name in free]
    bounds = []
    for name, parameter in zip(free, raw, strict=True):
        unit = getattr(spread, name).log().expand(parameter.shape).flatten().tolist()
        low, high = (math.log(bound) for bound in BOUNDS[name])
        bounds += [(u + low, u + high) for u in unit]

    def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
        _assign(raw, flat)
        with torch.enable_grad(), gpytorch.settings.fast_computations(False, False, False):
            loss = -marginal(model(x), y)
            gradients = torch.autograd.grad(loss, raw)
        return loss.item(), torch.cat([g.flatten() for g in gradients]).cpu().numpy()

    begin = torch.cat([p.detach().flatten() for p in raw]).cpu().numpy()
    begin = np.clip(begin, *np.array(bounds).T)
    try:
        result = scipy.optimize.minimize(
            cost, begin, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": steps}
        )
    except NotPSDError:
        noise = model.raw["noise"].exp().item()
        raise ValueError(
            f"the covariance is not positive definite with the noise variance {noise:g}; raise noise, or learn it"
        ) from None
    _assign(raw, result.x)
    values = {name: model.raw[name].detach().exp() for name in Hyper._fields}
    return Hyper(values["lengthscale"].flatten(), values["noise"].squeeze(), values["variance"]), float(result.fun)


@torch.no_grad()
def _assign(parameters: list[torch.nn.Parameter], flat: np.ndarray) -> None:
    start = 0
    for parameter in parameters:
        part = torch.as_tensor(flat[start : start + parameter.numel()]).to(parameter)
        parameter.copy_(part.reshape(parameter.shape))
        start += parameter.numel()
