"""`Qubit`: the Hamiltonian of a qubit from ten measurements."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Generator, Tensor

from priors.checks import check_counts, check_positive
from priors.draws import Draws
from priors.families.problem import Problem, Seen

__all__ = ["Qubit"]

ROOT = math.sqrt(0.5)
STATES = [(1.0, 0.0, t) for t in (1.0, 2.0, 3.0, 4.0, 5.0)]
STATES += [(0.0, 1.0, t) for t in (1.0, 2.0)] + [(ROOT, ROOT, t) for t in (1.0, 2.0, 3.0)]
NODES = 2_001  # of the quadrature over D


@dataclass(frozen=True)
class Qubit:
    """Measurements of a qubit that evolved for a time t under H = D sigma_x + (1 - D) sigma_z (arXiv 2502.02463, 4.3).

    A design is (psi_0, psi_1, t): a real state, and how long it evolves. The observation is 1 if it is then found in
    the first state. Its preparation is off by N(0, 0.1^2 I) before it is normalised, and t by N(0, 0.05^2). Averaged
    over both in closed form, with w^2 = D^2 + (1 - D)^2 and <> the mean over prepared states,

        P(1) = (1 + c) / 2 <psi_0^2> + (1 - c) / 2 <((1 - D) psi_0 + D psi_1)^2> / w^2,
        c = cos(2 w t) exp(-2 w^2 0.05^2).

    D lies between 0 and 1 and has a Beta(a, b) prior, with a, b ~ InverseGamma(*meta).

    Args:
        meta: concentration and rate of the inverse gamma that a and b are drawn from.

    Raises:
        ValueError: `meta` is not positive.
    """

    meta: tuple[float, float] = (4.0, 6.0)

    latents = 1
    features = 3
    inputs = 5
    hyperparameters = 2
    supports = ("unit",)
    reading: ClassVar[Tensor] = torch.tensor(STATES, dtype=torch.float64)  # the ten measurements of the paper
    state_noise: ClassVar[float] = 0.1
    time_noise: ClassVar[float] = 0.05

    def __post_init__(self) -> None:
        check_positive(concentration=self.meta[0], rate=self.meta[1])

    def sample(self, batch: int, rows: int, *, generator: Generator) -> Problem:
        """Draw `batch` problems with `rows` measurements each: all ten in order, or others of them in any order."""
        check_counts(batch=batch, rows=rows)
        draws = Draws(batch, generator)
        concentration, rate = self.meta
        hyper = math.log(rate) - draws.log_gamma(2, shape=concentration)
        theta = self.draws(hyper, 1, generator)[:, 0]
        count = len(self.reading)
        place = draws.integers(rows, high=count)
        if rows == count:
            place = torch.where(draws.happens(1, p=0.5), torch.arange(count, device=generator.device), place)
        x = self.reading.to(generator.device, torch.float32)[place]
        prepared = x[..., :2] + self.state_noise * draws.normal(rows, 2)
        state = prepared / prepared.norm(dim=-1, keepdim=True)
        time = x[..., 2] + self.time_noise * draws.normal(rows)
        chance = _found(theta, state[..., 0].square(), state[..., 1].square(), state.prod(-1), time, 1.0)
        return Problem(x, (draws.uniform(rows) < chance).float(), theta, self, hyper)

    def draws(
        self, hyper: Float[Tensor, "batch 2"], count: int, generator: Generator
    ) -> Float[Tensor, "batch draws 1"]:
        """Draws of D from each prior, kept in floating-point numbers below 1."""
        draws = Draws(len(hyper), generator)
        a, b = (draws.log_gamma(count, shape=shape) for shape in hyper.exp().split(1, -1))
        return (a - b).clamp(-15, 15).sigmoid().unsqueeze(-1)

    def describe(self, prior: td.Distribution) -> Float[Tensor, "*batch 2"]:
        """(log a, log b) of a Beta distribution.

        Raises:
            ValueError: another distribution.
        """
        if not isinstance(prior, td.Beta):
            raise ValueError(f"the prior must be a torch.distributions.Beta, got {type(prior).__name__}")
        return torch.stack([prior.concentration1.log(), prior.concentration0.log()], -1)

    def distribution(self, hyper: Float[Tensor, "*batch 2"]) -> td.Distribution:
        """The prior of D [*batch, 1] that `hyper` tells."""
        a, b = hyper.exp().unbind(-1)
        return td.Independent(td.Beta(a.unsqueeze(-1), b.unsqueeze(-1)), 1)

    def moments(self, hyper: Float[Tensor, "*batch 2"]) -> tuple[Tensor, Tensor]:
        """Mean digamma(a) - digamma(b) of logit D, and standard deviation sqrt(trigamma(a) + trigamma(b))."""
        a, b = hyper.exp().split(1, -1)
        return torch.digamma(a) - torch.digamma(b), (torch.polygamma(1, a) + torch.polygamma(1, b)).sqrt()

    def own(self, count: int, generator: Generator) -> Float[Tensor, "count latents"]:
        """Draws of theta where nothing is said of its prior: averaged over the meta-prior."""
        return self.sample(count, 1, generator=generator).theta

    def relative(self, x: Tensor, y: Tensor, loc: Tensor, tril: Tensor) -> tuple[Tensor, Tensor]:
        """The design with the prior's mean and deviation beside it, and the outcome as -1 or 1."""
        prior = torch.cat([loc, tril[..., 0]], -1).unsqueeze(-2)
        shape = torch.broadcast_shapes(x.shape[:-1], prior.shape[:-1])
        return torch.cat([x.expand(*shape, 3), prior.expand(*shape, 2)], -1), (2 * y - 1).expand(shape)

    def check(self, x: Float[Tensor, "*batch rows 3"], y: Float[Tensor, "*batch rows"]) -> None:
        """Refuse outcomes other than 0 and 1, states without a direction and negative times.

        Raises:
            ValueError: one of them.
        """
        if not ((y == 0) | (y == 1)).all():
            raise ValueError("y must hold the outcomes 0 and 1")
        if (x[..., :2].norm(dim=-1) == 0).any() or (x[..., 2] < 0).any():
            raise ValueError("x must hold states that are not 0, and times from 0 up")

    def log_likelihood(
        self, theta: Float[Tensor, "*draws 1"], x: Float[Tensor, "*#draws rows 3"], y: Float[Tensor, "*#draws rows"]
    ) -> Float[Tensor, "*draws rows"]:
        """Log probability of every outcome."""
        return self.observed(theta, x).log_prob(y)

    def observed(
        self, theta: Float[Tensor, "*draws 1"], x: Float[Tensor, "*#draws rows 3"], seen: Seen = None
    ) -> td.Bernoulli:
        """Probability of the first state, averaged over preparation and time, [*draws, rows].

        The direction of u + N(0, s^2 I), |u| = 1 at the angle f, has E cos 2 angle = rho cos 2 f with
        rho = 1 - 2 s^2 (1 - exp(-1 / (2 s^2))), and the like for the sine (Mardia and Jupp 2000, section 3.5.6).
        """
        kappa = 1 / (2 * self.state_noise**2)
        rho = 1 + math.expm1(-kappa) / kappa
        first, second = x[..., 0], x[..., 1]
        size = first.square() + second.square()
        double, product = rho * (first.square() - second.square()) / size, rho * first * second / size
        damping = (-2 * _frequency(theta).square() * self.time_noise**2).exp()
        chance = _found(theta, (1 + double) / 2, (1 - double) / 2, product, x[..., 2], damping)
        return td.Bernoulli(probs=chance.clamp(1e-12, 1 - 1e-7), validate_args=False)

    def prior_of(self, problem: Problem) -> td.Beta:
        """The prior of every problem of a batch, in float64."""
        assert problem.hyper is not None
        a, b = problem.hyper.double().exp().unbind(-1)
        return td.Beta(a, b)

    def log_density(
        self,
        prior: td.Beta,
        x: Float[Tensor, "*batch rows 3"],
        y: Float[Tensor, "*batch rows"],
        value: Float[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch"]:
        """Log density of the exact posterior at `value`: the evidence by a quadrature over logit D."""
        loc, scale = (v[..., 0] for v in self.moments(self.describe(prior).double()))
        reach = torch.linspace(-12, 12, NODES, dtype=torch.float64).view(-1, *(1 for _ in loc.shape))
        u = loc + reach * (scale + 1)
        theta = u.sigmoid().clamp(1e-300, 1 - 1e-16)
        slope = torch.nn.functional.logsigmoid(u) + torch.nn.functional.logsigmoid(-u)
        joint = prior.log_prob(theta) + slope + self.log_likelihood(theta.unsqueeze(-1), x, y).sum(-1)
        evidence = joint.logsumexp(0) + (24 / (NODES - 1) * (scale + 1)).log()
        return prior.log_prob(value) + self.log_likelihood(value.unsqueeze(-1), x, y).sum(-1) - evidence

    def log_posterior(self, problem: Problem) -> Float[Tensor, " batch"]:
        """Log density of the exact posterior of every problem at its theta."""
        theta = problem.theta[:, 0].double()
        return self.log_density(self.prior_of(problem), problem.x.double(), problem.y.double(), theta)


def _frequency(theta: Float[Tensor, "*shape 1"]) -> Float[Tensor, "*shape 1"]:
    """w = |(D, 1 - D)|."""
    return torch.hypot(theta, 1 - theta)


def _found(
    theta: Tensor, first: Tensor, second: Tensor, product: Tensor, time: Tensor, damping: float | Tensor
) -> Tensor:
    """P(first state) from <psi_0^2>, <psi_1^2> and <psi_0 psi_1>: |<0| cos(w t) - i sin(w t) H / w |psi>|^2."""
    w = _frequency(theta)
    cosine = torch.cos(2 * w * time) * damping
    turned = (1 - theta).square() * first + theta.square() * second + 2 * theta * (1 - theta) * product
    return (1 + cosine) / 2 * first + (1 - cosine) / 2 * turned / w.square()
