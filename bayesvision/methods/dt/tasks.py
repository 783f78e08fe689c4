"""Batches of inference problems drawn from a family, told in the ways that users may tell them, and their loss."""

from typing import Any, NamedTuple

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Tensor

from bayesvision.core.roles import Family, Parametric
from bayesvision.distributions import GaussianMixture
from bayesvision.distributions.gaussian_mixture import unconstrained
from bayesvision.methods.dt.network import ComponentTransformer, posterior
from bayesvision.methods.dt.tokens import Parts, Units, revised
from bayesvision.training.seeds import generator

__all__ = ["ProblemBatch", "ProblemStream", "loss", "parametric", "units_of", "units_of_draws"]

DRAWS = (64, 512)  # minimum and maximum number of draws that tell a prior
FLAT = 1e-6  # of a variance, so that draws of latent variables that depend on one another have a volume
FEWER = 4  # times fewer problems in a step whose priors are told by draws, which cost the more
WAYS = {  # of telling a prior that the family gives by the first word, equally often
    "hyper": ("hyper", "hyper", "own", "draws"),
    "mixture": ("mixture", "mixture", "mixture", "draws"),
    "draws": ("draws", "own"),
}


class ProblemBatch(NamedTuple):
    """Problems as the network takes them.

    Attributes:
        way: how the priors are told: by `hyper`, by the Gaussian `mixture`, by `draws`, or by the mixture that the
            network itself makes of them (`own`).
        units: of each prior.
        hyper, mixture, draws: what tells the priors; None where it is not that.
        x, y: observations.
        target: the unconstrained latent variables.
    """

    way: str
    units: Units
    hyper: Float[Tensor, "batch hyper"] | None
    mixture: Parts | None
    draws: Float[Tensor, "batch n latents"] | None
    x: Float[Tensor, "batch rows features"]
    y: Float[Tensor, "batch rows"]
    target: Float[Tensor, "batch latents"]


def parametric(family: Family) -> Parametric:
    """The family, known to have a parametric kind of priors."""
    assert isinstance(family, Parametric)
    return family


def units_of_draws(draws: Float[Tensor, "*batch n latents"]) -> Units:
    """Mean and covariance of unconstrained draws."""
    mean = draws.mean(-2)
    apart = draws - mean.unsqueeze(-2)
    covariance = apart.mT @ apart / (draws.shape[-2] - 1)
    least = covariance.diagonal(dim1=-2, dim2=-1).clamp(min=1e-18) * FLAT
    return Units(mean, torch.linalg.cholesky(covariance + torch.diag_embed(least)))


def units_of(family: Family, problem: Any) -> Units:
    """Mean and covariance of the unconstrained latent variables under each prior."""
    if problem.hyper is not None:
        loc, scale = (v.to(problem.hyper.dtype) for v in parametric(family).moments(problem.hyper.double()))
        return Units(loc, torch.diag_embed(scale))
    if problem.draws is not None:
        return units_of_draws(unconstrained(problem.draws, family.supports))
    return Parts(*problem.mixture).moments()


class ProblemStream:
    """The endless stream of problems of one run: micro-batch j of step i is a pure function of (seed, i, j)."""

    def __init__(self, family: Family, components: int, observations: int, train: Any) -> None:
        self.family, self.components, self.observations, self.train = family, components, observations, train
        self.device = train.execution.pick_device()
        probe: Any = family.sample(1, 1, generator=generator("cpu", train.seed))
        self.ways = next(ways for name, ways in WAYS.items() if getattr(probe, name) is not None)

    def sizes(self, step: int) -> tuple[str, int, int]:
        """How the priors of a step are told, by how many draws if by draws, and the number of observations."""
        rng = generator("cpu", self.train.seed, step, 1 << 32)
        way, draws, rows = torch.rand(3, generator=rng, dtype=torch.float64).tolist()
        count = int(DRAWS[0] * (DRAWS[1] / DRAWS[0]) ** draws)
        return self.ways[int(way * len(self.ways))], count, min(self.observations, int((self.observations + 1) ** rows))

    def batch(self, step: int, micro_batch: int) -> ProblemBatch:
        """The problems of one micro-batch."""
        way, count, rows = self.sizes(step)
        rng = generator(self.device, self.train.seed, step, micro_batch)
        size = self.train.batch // self.train.accumulate
        size = max(1, size // FEWER) if way == "draws" or self.ways is WAYS["draws"] else size
        problem: Any = self.family.sample(size, max(1, rows), generator=rng)
        units, hyper, mixture, draws = units_of(self.family, problem), problem.hyper, None, None
        if way == "draws" or problem.draws is not None:
            draws, hyper = self._draws(problem, count, rng), None
            units = units_of_draws(draws)
        elif problem.mixture is not None:
            mixture = Parts(*problem.mixture).filled(self.components)
        target = unconstrained(problem.theta, self.family.supports)
        return ProblemBatch(way, units, hyper, mixture, draws, problem.x, problem.y, target)

    def _draws(self, problem: Any, count: int, rng: torch.Generator) -> Tensor:
        """Unconstrained draws from each prior."""
        if problem.hyper is not None:
            return unconstrained(parametric(self.family).draws(problem.hyper, count, rng), self.family.supports)
        if problem.draws is not None:
            return unconstrained(problem.draws[:, :count], self.family.supports)
        logits, loc, tril = problem.mixture
        return GaussianMixture(logits, loc, tril).sample((count,), rng).movedim(0, -2)


def loss(network: ComponentTransformer, family: Family, batch: ProblemBatch) -> Float[Tensor, ""]:
    """-log q(f(theta) | prior) - log q(f(theta) | y, prior), averaged over the batch (eq. 5)."""
    units, target = batch.units, batch.target
    if batch.hyper is not None:
        tokens = network.of_hyper(batch.hyper)
    elif batch.mixture is not None:
        tokens = network.of_mixture(units.numbers(batch.mixture))
    else:
        assert batch.draws is not None
        tokens = network.of_draws(units.standardized(batch.draws))
    before = revised(units.copies(network.components), network.read(tokens).float())
    total = -_log_density(before, target).mean()
    prior = batch.mixture
    if batch.way == "own":  # the same prior again, as the mixture that the network takes it for
        prior = before.detach()
        tokens = network.of_mixture(units.numbers(prior))
    after = posterior(network, family, units, prior, tokens, batch.x, batch.y)
    return total - _log_density(after, target).mean()


def _log_density(parts: Parts, u: Float[Tensor, "batch latents"]) -> Float[Tensor, " batch"]:
    law = td.MultivariateNormal(parts.loc, scale_tril=parts.scale_tril, validate_args=False)
    return (parts.logits.log_softmax(-1) + law.log_prob(u.unsqueeze(-2))).logsumexp(-1)
