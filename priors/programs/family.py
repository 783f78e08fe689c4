"""`ProgramFamily`: the latent variables of any pyro program, with priors that are chosen at run time."""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Generator, Tensor
from torch.distributions import constraints

from priors.checks import check_counts
from priors.draws import Draws
from priors.families.problem import MixtureParameters, Problem, Seen, random_factors
from priors.programs.prior import PyroPrior

__all__ = ["ProgramFamily"]

POOL = 4_096  # draws of the program's own prior that tell its mean and deviation
TOLD = 512  # draws that tell a prior
WIDTHS = (0.2, 1.5)  # of Gaussian priors, in deviations of the program's own
EDGE = 1e-7  # from 0 and 1, where floating-point numbers end
SUPPORTS = (  # of pyro's sites, and what they are called here
    (constraints.unit_interval, "unit"),
    (constraints.positive, "positive"),
    (constraints.nonnegative, "positive"),
    (constraints.real, "real"),
)


class _Site(NamedTuple):
    """A latent variable of the program: its name, the shape of an event, and its support."""

    name: str
    shape: torch.Size
    support: str


@dataclass(frozen=True)
class ProgramFamily:
    """What a pyro program draws outside every plate, as latent variables in the order of the program.

    Half the problems have the program's own prior; the others mixtures of Gaussians of the unconstrained latent
    variables, centred on draws of it, from which the program goes on. So afterwards another prior may be given::

        post = bv.DistributionTransformer().fit(ProgramFamily(PyroPrior(program)))
        post.condition(x, y).latent          # under the program's own prior

    Args:
        prior: the program; what it returns must be its sites "x" and "y", y normal or Bernoulli, and nothing else may
            be drawn inside a plate.
        components: maximum number of Gaussians of a prior.

    Raises:
        ValueError: a program of another form.
    """

    prior: PyroPrior
    components: int = 3

    hyperparameters = 0
    reading = None

    def __post_init__(self) -> None:
        check_counts(components=self.components)
        self._sites  # noqa: B018 (refuses programs of another form now, not in the middle of a training)

    @functools.cached_property
    def _probe(self) -> Any:
        return self.prior.trace(2, 3, Generator().manual_seed(0), {})

    @functools.cached_property
    def _sites(self) -> tuple[_Site, ...]:
        """The latent variables; a `ValueError` where the program has another form."""
        self.prior.sample(2, 3, generator=Generator().manual_seed(0))
        nodes: dict[str, Any] = {n: s for n, s in self._probe.nodes.items() if s["type"] == "sample"}
        if "y" not in nodes or not isinstance(nodes["y"]["fn"], td.Normal | td.Bernoulli):
            raise ValueError('the program must have a site "y" that is normal or Bernoulli')
        sites = []
        for name, site in nodes.items():
            plates = [p for p in site["cond_indep_stack"] if p.name != "_data_sets"]
            if name in ("x", "y") or type(site["fn"]).__name__ == "_Subsample":
                continue
            if plates:
                raise ValueError(f"the program draws {name!r} inside a plate, where only x and y may be drawn")
            event = site["value"].shape[site["value"].ndim - site["fn"].event_dim :]
            sites.append(_Site(name, torch.Size(event), _support(name, site["fn"])))
        if not sites:
            raise ValueError("the program must draw something outside every plate")
        return tuple(sites)

    @property
    def latents(self) -> int:
        """Number of latent numbers."""
        return len(self.supports)

    @functools.cached_property
    def features(self) -> int:
        """Columns of x."""
        return self._probe.nodes["_RETURN"]["value"][0].shape[-1]

    @property
    def inputs(self) -> int:
        """Columns of a design as the network sees it."""
        return self.features

    @property
    def supports(self) -> tuple[str, ...]:
        """Kinds of the latent numbers."""
        return tuple(site.support for site in self._sites for _ in range(site.shape.numel()))

    @functools.cached_property
    def _deviation(self) -> Float[Tensor, " latents"]:
        """Of the unconstrained latent variables under the program's own prior."""
        return self._unconstrained(self.own(POOL, Generator().manual_seed(0))).std(0).clamp(min=1e-6)

    def _theta(self, batch: int, rows: int, generator: Generator) -> tuple[Float[Tensor, "batch latents"], Any]:
        """A batch of the program's own latent variables, and the task drawn with them."""
        task = self.prior.sample(batch, rows, generator=generator)
        assert task.theta is not None
        flat = [task.theta[site.name].reshape(batch, -1).float() for site in self._sites]
        return torch.cat(flat, -1), task

    def _given(self, theta: Float[Tensor, "batch latents"]) -> dict[str, Tensor]:
        """The sites of a run with a batch axis that have these values."""
        lone = (1,) * self.prior.max_plate_nesting
        parts = theta.split([site.shape.numel() for site in self._sites], -1)
        return {
            site.name: part.reshape(len(theta), *lone, *site.shape)
            for site, part in zip(self._sites, parts, strict=True)
        }

    def sample(self, batch: int, rows: int, *, generator: Generator) -> Problem:
        """Draw `batch` problems with `rows` observations each."""
        check_counts(batch=batch, rows=rows)
        draws = Draws(batch, generator)
        pool, _ = self._theta(POOL, 1, generator)
        own = draws.happens(1, p=0.5)
        mixture = self._mixture(pool[draws.integers(high=POOL)], draws)
        drawn = self._constrained(mixture.draws(1 + TOLD, generator))
        told = torch.where(own.unsqueeze(-1), pool[draws.integers(1 + TOLD, high=POOL)], drawn)
        theta = told[:, 0]
        x, y = self.prior.trace(batch, rows, generator, self._given(theta)).nodes["_RETURN"]["value"]
        return Problem(x.expand(batch, *x.shape[-2:]), y, theta, self, draws=told[:, 1:])

    def own(self, count: int, generator: Generator) -> Float[Tensor, "count latents"]:
        """Draws of theta from the program's own prior."""
        return self._theta(count, 1, generator)[0]

    def _mixture(self, centres: Float[Tensor, "batch latents"], draws: Draws) -> MixtureParameters:
        k, d = self.components, self.latents
        deviation = self._deviation.to(centres)
        tril = random_factors(draws, k, d)
        low, high = WIDTHS
        tril = deviation.unsqueeze(-1) * tril * draws.log_uniform(k, 1, 1, low=low, high=high)
        used = torch.arange(k, device=centres.device) <= draws.integers(1, high=k)
        apart = draws.uniform(1, 1, high=2.0) * deviation * draws.normal(k, d)
        loc = self._unconstrained(centres).unsqueeze(-2) + apart
        return MixtureParameters(draws.normal(k).where(used, -torch.inf), loc, tril)

    def _unconstrained(self, theta: Tensor) -> Tensor:
        kinds = self.supports
        columns = [_FORWARD[kind](theta[..., i]) for i, kind in enumerate(kinds)]
        return torch.stack(columns, -1)

    def _constrained(self, u: Tensor) -> Tensor:
        return torch.stack([_BACKWARD[kind](u[..., i]) for i, kind in enumerate(self.supports)], -1)

    def prior_of(self, problem: Problem) -> Float[Tensor, "batch draws latents"]:
        """The priors of a batch, as draws."""
        assert problem.draws is not None
        return problem.draws

    def relative(self, x: Tensor, y: Tensor, loc: Tensor, tril: Tensor) -> tuple[Tensor, Tensor]:
        """Observations as they are, since nothing is known of them."""
        shape = torch.broadcast_shapes(y.shape[:-1], loc.shape[:-1])
        return x.expand(*shape, *x.shape[-2:]), y.expand(*shape, y.shape[-1])

    def log_likelihood(
        self, theta: Float[Tensor, "*draws latents"], x: Float[Tensor, "*#draws rows features"], y: Tensor
    ) -> Float[Tensor, "*draws rows"]:
        """Log density of every observation."""
        return self.observed(theta, x).log_prob(y)

    def observed(
        self, theta: Float[Tensor, "*draws latents"], x: Float[Tensor, "*#draws rows features"], seen: Seen = None
    ) -> td.Distribution:
        """What the program's site "y" is given theta and x, [*draws, rows]."""
        shape = torch.broadcast_shapes(theta.shape[:-1], x.shape[:-2])
        rows, count = x.shape[-2], math.prod(shape)
        flat = theta.expand(*shape, theta.shape[-1]).reshape(count, -1)
        design = x.expand(*shape, *x.shape[-2:]).reshape(count, rows, -1)
        given = self._given(flat)
        if "x" in self._probe.nodes:
            vector = self._probe.nodes["x"]["fn"].event_dim == 0
            given["x"] = design.squeeze(-1) if vector else design
        law = self.prior.trace(count, rows, Generator().manual_seed(0), given).nodes["y"]["fn"]

        def shaped(value: Tensor) -> Tensor:
            return value.expand(count, rows).reshape(*shape, rows)

        if isinstance(law, td.Normal):
            return td.Normal(shaped(law.loc), shaped(law.scale), validate_args=False)
        return td.Bernoulli(probs=shaped(law.probs), validate_args=False)


def _support(name: str, law: Any) -> str:
    found = (
        None if law.support.is_discrete else getattr(law.support, "base_constraint", law.support)
    )  # of an independent one
    for constraint, kind in SUPPORTS:
        if found is constraint:
            return kind
    bounds = (getattr(found, "lower_bound", None), getattr(found, "upper_bound", None))
    if bounds == (0.0, None):
        return "positive"
    if bounds == (0.0, 1.0):
        return "unit"
    raise ValueError(f"the site {name!r} must be real, positive or between 0 and 1, got the support {law.support}")


_FORWARD: dict[str, Any] = {
    "real": lambda value: value,
    "positive": lambda value: value.clamp(min=1e-30).log(),
    "unit": lambda value: value.clamp(EDGE, 1 - EDGE).logit(),
}
_BACKWARD: dict[str, Any] = {"real": lambda value: value, "positive": torch.exp, "unit": torch.sigmoid}
