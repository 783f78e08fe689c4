"""`Ensemble`: the affine-invariant ensemble sampler on a learning-curve prior, slow and asymptotically exact."""

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import emcee
import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Generator, Tensor

from bayesvision.core.checks import check_count
from bayesvision.core.data import Data, asked_epochs, one_curve
from bayesvision.core.modules import outside_inference_mode
from bayesvision.core.recipes import convert_fields
from bayesvision.core.roles import Log, Posterior
from bayesvision.distributions import Mixture, Normal
from bayesvision.training.seeds import generator

__all__ = ["CurvePrior", "Ensemble", "EnsemblePosterior"]

Sites = dict[str, Tensor]


@runtime_checkable
class CurvePrior(Protocol):
    """A prior over parameters of noise-free curves with normal noise of standard deviation `sigma`, one of them."""

    def accepted(self, count: int, generator: Generator) -> tuple[Sites, Tensor]:
        """`count` draws of the parameters, and their curves."""
        ...

    def curve(self, theta: Sites, t: Tensor) -> Tensor:
        """The curve [*batch, epochs] at the epochs `t`, for parameters with batch axes."""
        ...

    def log_prob(self, theta: Sites) -> Tensor:
        """Log density [*batch] of the parameters up to a constant, -inf outside the support."""
        ...


@dataclass(frozen=True)
class Ensemble:
    """Affine-invariant ensemble sampler (Goodman and Weare 2010) on a curve prior, by emcee (arXiv 1202.3665).

    The target is p(theta) prod_i N(y_i; f(t_i; theta), sigma^2), hard constraints of the prior included; the predictive
    distribution is the equal mixture of N(f(t; theta), sigma^2) over the draws. Domhan et al. (2015) and Adriaensen et
    al. (2023, arXiv 2310.20447) extrapolate curves this way. Walkers start at draws of the prior, picked from
    `proposals` without replacement with probabilities proportional to their likelihood.

    Example:
        >>> bv.Ensemble(LearningCurves()).fit(bv.Data(epochs, accuracy)).predict([100]).interval(0.9)

    Args:
        prior: a `CurvePrior`, such as `priors.curves.LearningCurves()`.
        walkers: an even number, at least twice that of the parameters.
        burn: steps of every walker that are dropped.
        steps: steps of every walker after those.
        thin: one in so many of these is kept.
        proposals: draws of the prior among which the walkers' starts are found.
        positive: parameters that are sampled on the logarithmic scale.
        seed: of the starts and the moves.

    Raises:
        ValueError: a field is out of range.
        TypeError: `prior` is not a `CurvePrior`.
    """

    prior: CurvePrior
    walkers: int = 100
    burn: int = 500
    steps: int = 2000
    thin: int = 20
    proposals: int = 50_000
    positive: tuple[str, ...] = ("pow3_alpha", "janoschek_kappa", "janoschek_delta", "sigma")
    seed: int = 0

    def __post_init__(self) -> None:
        convert_fields(self)
        if isinstance(self.prior, type) or not isinstance(self.prior, CurvePrior):
            raise TypeError(f"prior must have the methods accepted, curve and log_prob, got {self.prior!r}")
        for name, least in (("walkers", 4), ("burn", 1), ("steps", 1), ("thin", 1), ("proposals", self.walkers)):
            check_count(name, getattr(self, name), least)
        if self.walkers % 2 or self.thin > self.steps:
            raise ValueError(
                f"walkers must be even and thin at most steps, got walkers={self.walkers}, thin={self.thin} and "
                f"steps={self.steps}"
            )

    @outside_inference_mode
    def fit(self, source: Data, log: Log | None = None) -> "EnsemblePosterior":
        """Draw from the posterior of the parameters given one curve, epochs [n] or [n, 1] and values [n].

        Raises:
            TypeError: `source` is not a `Data`.
            ValueError: wrong data, epochs not above 0, or fewer walkers than twice the parameters.
        """
        curve = one_curve(source)
        t, y = curve.t, curve.y
        names, start = self._start(t, y)
        target = _Target(self, names, t, y)
        sampler = emcee.EnsembleSampler(self.walkers, len(names), target, vectorize=True)
        sampler.random_state = np.random.RandomState(self.seed % 2**32).get_state()
        state = sampler.run_mcmc(start, self.burn, skip_initial_state_check=True)
        sampler.reset()
        sampler.run_mcmc(state, self.steps, skip_initial_state_check=True)
        acceptance = float(np.mean(sampler.acceptance_fraction))
        chain: Any = sampler.get_chain()
        chain = torch.from_numpy(chain)
        times = {name: _autocorrelation(chain[..., k]) for k, name in enumerate(names)}
        if log is not None:
            log.log({"acceptance": acceptance, "autocorrelation": max(times.values())}, 0)
        draws = target.sites(chain[self.thin - 1 :: self.thin].flatten(0, 1))
        return EnsemblePosterior(self, draws, curve.dtype, acceptance, times)

    def _start(self, t: Tensor, y: Tensor) -> tuple[tuple[str, ...], Shaped[np.ndarray, "walkers parameters"]]:
        """Names of the parameters, and the walkers' places.

        Adding Gumbel noise to the log-likelihoods and taking the largest draws without replacement.
        """
        source = generator("cpu", self.seed)
        theta, _ = self.prior.accepted(self.proposals, source)
        theta = {name: value.double() for name, value in theta.items()}
        missing = {*self.positive, "sigma"} - theta.keys()
        if missing or self.walkers < 2 * len(theta):
            raise ValueError(
                f"prior must have the parameters {sorted({*self.positive, 'sigma'})} and walkers be at least "
                f"{2 * len(theta)}, got {sorted(theta)} and {self.walkers}; set positive and walkers to fit the prior"
            )
        scores = Normal(self.prior.curve(theta, t), theta["sigma"].unsqueeze(-1)).log_prob(y).sum(-1)
        gumbel = -torch.empty_like(scores).exponential_(generator=source).log()
        best = (scores + gumbel).topk(self.walkers).indices
        places = [theta[name][best].log() if name in self.positive else theta[name][best] for name in theta]
        return tuple(theta), torch.stack(places, -1).numpy()


class _Target:
    """Log density of the posterior, up to a constant, at walkers [walkers, parameters]."""

    def __init__(
        self, method: Ensemble, names: tuple[str, ...], t: Float[Tensor, " n"], y: Float[Tensor, " n"]
    ) -> None:
        self.prior, self.names, self.t, self.y = method.prior, names, t, y
        self.positive = torch.tensor([name in method.positive for name in names])

    def sites(self, places: Float[Tensor, "walkers parameters"]) -> Sites:
        values = torch.where(self.positive, places.exp(), places)
        return dict(zip(self.names, values.unbind(-1), strict=True))

    def __call__(self, places: Shaped[np.ndarray, "walkers parameters"]) -> Shaped[np.ndarray, " walkers"]:
        """log p(theta) + log p(y | theta) + log |d theta / d place|, where d exp(u) / du = exp(u)."""
        at = torch.from_numpy(places)
        theta = self.sites(at)
        z = (self.y - self.prior.curve(theta, self.t)) / theta["sigma"].unsqueeze(-1)
        fit = -z.square().sum(-1) / 2 - len(self.y) * theta["sigma"].log()
        value = self.prior.log_prob(theta) + fit + (at * self.positive).sum(-1)
        return value.nan_to_num(-math.inf, neginf=-math.inf).numpy()


def _autocorrelation(chain: Float[Tensor, "steps walkers"]) -> float:
    """Integrated autocorrelation time 1 + 2 sum_k rho(k) in steps, over the first window of at least five such times.

    rho is the mean autocovariance of the walkers around the mean of all, so walkers that disagree or stand still count.
    """
    steps = len(chain)
    spectrum = torch.fft.rfft(chain - chain.mean(), 2 * steps, dim=0).abs().square()
    covariance = torch.fft.irfft(spectrum, dim=0)[:steps].mean(1)
    if covariance[0] <= 0:
        return float(steps)
    times = 2 * (covariance / covariance[0]).cumsum(0) - 1
    long_enough = torch.arange(steps) >= 5 * times
    return float(times[int(long_enough.int().argmax()) if long_enough.any() else -1])


class EnsemblePosterior(Posterior):
    """Draws of the parameters of a curve given its first epochs.

    Attributes:
        method: the recipe.
        acceptance: fraction of the proposed moves that were accepted; 0.2 to 0.5 is healthy.
        autocorrelation: integrated autocorrelation time of each parameter, in steps; the walkers together hold about
            walkers * steps / time independent draws, and estimates need steps of at least 50 times it.
    """

    def __init__(
        self,
        method: Ensemble,
        latent: Sites,
        dtype: torch.dtype,
        acceptance: float = math.nan,
        autocorrelation: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.method, self.names, self.dtype = method, tuple(latent), dtype
        self.acceptance, self.autocorrelation = acceptance, autocorrelation or {}
        for k, value in enumerate(latent.values()):
            self.register_buffer(f"site{k}", value)

    @property
    def latent(self) -> Sites:
        """Draws [steps / thin * walkers] of every parameter."""
        return {name: getattr(self, f"site{k}") for k, name in enumerate(self.names)}

    def predict(self, x: Any) -> Mixture:
        """Mixture over the draws of N(f(t), sigma^2) at the epochs `x`, [m] or [*batch, m, 1].

        It is in float64 where `x` or the values seen are.

        Raises:
            ValueError: wrong shapes, values that are not finite, or epochs not above 0.
        """
        draws = {name: value.double() for name, value in self.latent.items()}
        t, dtype = asked_epochs(x, self.dtype)
        t = t.to(draws["sigma"].device)
        mean = self.method.prior.curve(draws, t.flatten()).mT.reshape(*t.shape, -1)
        return Mixture.of(Normal(mean.to(dtype), draws["sigma"].expand(mean.shape).to(dtype)))
