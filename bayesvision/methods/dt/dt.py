"""`DistributionTransformer`: a family of problems becomes a network from priors and observations to posteriors."""

from dataclasses import dataclass, field
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.core.checks import check_count, check_inputs, columns_of
from bayesvision.core.data import output_dtype
from bayesvision.core.modules import outside_inference_mode, share, split_state
from bayesvision.core.motion import Motion
from bayesvision.core.observations import check_no_design, check_observations, in_dtype, joint_batch
from bayesvision.core.recipes import convert_fields, describe
from bayesvision.core.roles import Conditionable, Draws, Exported, Family, Following
from bayesvision.core.warn import warn
from bayesvision.distributions import GaussianMixture, Predictive
from bayesvision.distributions.gaussian_mixture import unconstrained
from bayesvision.methods.dt.filtering import moved
from bayesvision.methods.dt.network import ComponentTransformer, posterior
from bayesvision.methods.dt.predictive import drawn, image
from bayesvision.methods.dt.prior import TOLD, MetaPrior, ToldPrior, packaged
from bayesvision.methods.dt.refinement import Refined, refine
from bayesvision.methods.dt.tasks import ProblemBatch, ProblemStream, loss, units_of
from bayesvision.methods.dt.tokens import revised
from bayesvision.training.loop import minimize
from bayesvision.training.seeds import generator, seeded
from bayesvision.training.train import Train

__all__ = ["DTPosterior", "DistributionTransformer"]

MARGINAL = 1_024  # draws that tell the family's own prior
META = 2_048  # priors that tell what the training saw


@dataclass(frozen=True)
class DistributionTransformer:
    """Posteriors in a forward pass, for a prior that is chosen at run time (arXiv 2502.02463).

    Minimises -E [log q(f(theta) | prior) + log q(f(theta) | y, prior)] (eq. 5) over problems drawn from a family: a
    prior, latent variables theta from it, and observations y of them; f takes logarithms of positive variables. The
    prior enters as K tokens, which attend to each other and to the observations and are read as the K components of a
    Gaussian mixture. What is known of the prior in closed form is not learned: the network works in units of the
    prior's mean and standard deviation.

    Example:
        >>> post = bv.DistributionTransformer(train=bv.Train(steps=2_000, batch=256)).fit(NormalVariance())
        >>> post.with_prior(td.InverseGamma(5.0, 7.0)).condition(y=[1.2]).latent.mean

    Args:
        components: number K of Gaussians.
        width, layers, heads: size of the transformer.
        observations: maximum number of observations of a problem in training.
        train: how to train; `train.batch` counts problems.

    Raises:
        ValueError: a field is out of range.
    """

    components: int = 5
    width: int = 64
    layers: int = 6
    heads: int = 8
    observations: int = 16
    train: Train = field(default_factory=lambda: Train(batch=256))

    def __post_init__(self) -> None:
        convert_fields(self)
        for name in ("components", "width", "layers", "heads", "observations"):
            check_count(name, getattr(self, name))
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")

    @outside_inference_mode
    def fit(self, source: Any, log: Following = None) -> "DTPosterior":
        """Train on problems drawn from the family `source`; the result has seen no observation.

        Raises:
            TypeError: `source` is not a family of inference problems.
        """
        if not isinstance(source, Family) or isinstance(source, type):
            got = f"the class {source.__name__}" if isinstance(source, type) else type(source).__name__
            raise TypeError(f"source must be a family such as priors.NormalVariance(), got {got}")
        stream = ProblemStream(source, self.components, self.observations, self.train)
        posterior = self.untrained(source)
        recipe = {"method": describe(self), "prior": describe(source)}
        drawn = {"problems": self.train.steps * self.train.batch}
        cost = minimize(posterior, _loss, stream.batch, self.train, recipe, log, drawn)
        seen = source.sample(META, 1, generator=generator("cpu", self.train.seed, 1 << 20))
        posterior.meta.remember(units_of(source, seen))
        own = source.own(MARGINAL, generator("cpu", self.train.seed, 1 << 21)).double()
        posterior.prior = ToldPrior(draws=unconstrained(own, source.supports)).to(posterior.device)
        size = sum(p.numel() for p in posterior.network.parameters())
        posterior.metadata = {"prior": describe(source), "parameters": size, **cost}
        posterior.requires_grad_(False)
        posterior.infer()
        return posterior

    def untrained(self, family: Family) -> "DTPosterior":
        """A posterior with initial weights."""
        with seeded(self.train.seed):
            network = ComponentTransformer(
                family.latents,
                family.inputs,
                family.hyperparameters,
                self.components,
                self.width,
                self.layers,
                self.heads,
            )
        return DTPosterior(self, network, family)


def _loss(posterior: "DTPosterior", batch: ProblemBatch) -> Float[Tensor, ""]:
    return loss(posterior.network, posterior.family, batch)


class DTPosterior(Conditionable):
    """What a trained `DistributionTransformer` knows: the network, a prior, and the observations seen.

    Until `with_prior`, the prior is the family's own: theta averaged over the meta-prior.

    Attributes:
        method: the recipe.
        family: the problems that it was trained on, with their likelihood.
        metadata: the family, the number of parameters and what training cost.
        prior: the prior, as it was told.
        columns: column names of the designs, if they came as a frame.
    """

    x: Tensor | None
    y: Tensor | None
    prior: ToldPrior
    belief: ToldPrior
    meta: MetaPrior

    def __init__(self, method: DistributionTransformer, network: ComponentTransformer, family: Family) -> None:
        super().__init__()
        self.method, self.network, self.family = method, network, family
        self.metadata: dict[str, Any] = {}
        self.columns: tuple[str, ...] | None = None
        self.meta = MetaPrior(family.latents)
        for name in ("x", "y"):
            self.register_buffer(name, None, persistent=False)
        self.prior, self.belief = ToldPrior(), ToldPrior()

    # The prior

    def with_prior(self, prior: Any) -> Self:
        """The same observations under another prior; it may be one that training never saw.

        Args:
            prior: a distribution of the family's kind, a Gaussian mixture (`bayesvision.distributions.GaussianMixture`,
                or torch's multivariate normal or a mixture of them over real latent variables), or draws [n, latents].

        Raises:
            ValueError: another kind of distribution, more components than the network's, parameters that are not
                finite or positive, or too few draws.
        """
        new = share(self)
        new.prior = ToldPrior.of(prior, self.family, self.method.components).to(self.device)
        new.infer()
        far = float(new.distance().max())
        if far > 1:
            warn(
                f"this prior is {far:.1f} times as far out as nearly all priors of training were, so the posterior may "
                "be off; train on a wider meta-prior, or check it with refine()"
            )
        return new

    def distance(self) -> Float[Tensor, "*batch"]:
        """How far out the prior is, in units of what all but 1 in 1,000 priors of training stay within."""
        return self.meta.distance(self.prior.units(self.family))

    # Observations

    @property
    def rows(self) -> int:
        """Number of observations that this posterior was conditioned on."""
        return 0 if self.y is None else self.y.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.prior_token.device

    @outside_inference_mode
    def condition(self, x: Any = None, y: Any = None) -> Self:
        """A new posterior that has also seen the observations `y` [*batch, rows] with the designs `x`.

        Args:
            x: designs [*batch, rows, features]; None where observations have none, or where y is a whole reading of
                the family's sources.

        Raises:
            ValueError: wrong shapes, values that are not finite, a design where there is none, or none where there is.
        """
        new, names = share(self), columns_of(x)
        x, y = (v.to(self.device) for v in check_observations(self.family, x, y, self.columns))
        new.columns = self.columns or names
        if self.x is not None and self.y is not None:
            if x.shape[:-2] != self.x.shape[:-2]:
                raise ValueError(f"x must have the batch axes {tuple(self.x.shape[:-2])}, got {tuple(x.shape[:-2])}")
            x, y = torch.cat([self.x, x], -2), torch.cat([self.y, y], -1)
        new.x, new.y = x.detach(), y.detach()
        if new.rows > self.method.observations:
            warn(
                f"{new.rows} observations are more than the {self.method.observations} of training, so the posterior "
                "may be off; train with DistributionTransformer(observations=...), or check it with refine()"
            )
        new.infer()
        return new

    @property
    def _seen(self) -> tuple[Tensor, Tensor] | None:
        """The observations in float64."""
        return None if self.x is None or self.y is None else (self.x.double(), self.y.double())

    @torch.no_grad()
    def infer(self) -> None:
        """Let the network compute the mixture over the latent variables; without observations it is the prior."""
        units = self.prior.units(self.family)
        tokens, told = self.prior.tokens(self.network, units), self.prior.mixture
        parts = told or revised(units.copies(self.method.components), self.network.read(tokens).double())
        if self._seen is not None:
            x, y = self._seen
            batch = joint_batch(tokens.shape[:-2], y.shape[:-1])
            x, y = x.expand(*batch, *x.shape[-2:]), y.expand(*batch, y.shape[-1])
            filled = told and told.filled(self.method.components)
            parts = posterior(self.network, self.family, units, filled, tokens, x, y)
        self.belief = ToldPrior(**parts._asdict())

    def unconditioned(self) -> Self:
        """The network with the same prior, as if nothing had been observed."""
        new = share(self)
        new.x, new.y, new.columns = None, None, None
        new.infer()
        return new

    # Answers

    @property
    def latent(self) -> GaussianMixture:
        """Posterior of the latent variables; the prior before any observation."""
        assert self.belief.mixture is not None
        return GaussianMixture(*self.belief.mixture, self.family.supports)

    def predict(self, x: Any = None) -> Predictive:
        """Distribution of the next observation, noise included, at every design of `x` [*batch, rows, features].

        Of a family without designs, x is None and there is one next observation of each problem. Where observations are
        linear in the latent variables it is the exact image of `latent`, otherwise a quadrature over it: a mixture of
        normals, a `Bernoulli`, or for other noise a distribution with the family's own.

        Raises:
            ValueError: wrong shapes, values that are not finite, or a design where there is none.
        """
        latent = self.latent
        if self.family.features == 0:
            check_no_design(self.family, x)
            return image(self.family, latent, latent.loc.new_zeros(*latent.batch_shape, 1, 0))[..., 0]
        x = check_inputs(x, self.family.features, self.columns).to(self.device)
        return in_dtype(image(self.family, latent, x.double(), self._seen), output_dtype(x, self.y))

    def sampled(self, count: int, seed: int, x: Any = None) -> Draws:
        """`count` draws of the latent variables, and observations given each at `x`, or at those seen.

        Raises:
            ValueError: a batch of problems.
        """
        return drawn(self.family, self.latent, (self.x, self.y), x, count, seed)

    def refine(self, draws: int = 4_000, seed: int = 0) -> Refined:
        """Importance sampling from `latent` to the exact posterior, its weights smoothed by a Pareto tail.

        The result says by k-hat whether to trust it: below 0.7 its draws stand for the posterior (Vehtari et al. 2024,
        arXiv 1507.02646), above that it warns.

        Raises:
            ValueError: a batch of problems, a prior told by draws, whose density nobody knows, or too few draws.
            ImportError: arviz is not installed.
        """
        batch = tuple(self.latent.batch_shape)
        if batch:
            raise ValueError(f"refine takes one problem, got a batch {batch}; take them one by one")
        check_count("draws", draws, 100)
        return refine(self.family, self.latent, self.prior, self._seen, draws, seed)

    def move(self, transition: Any, noise: Any) -> Self:
        """The belief after the latent variables moved: the posterior becomes the prior of what is observed next.

        Args:
            transition: matrix F [latents, latents] of theta' = F theta + N(0, noise), which is exact for every
                component, or a function of theta [..., latents], whose moments are matched by sigma points.
            noise: covariance Q [latents, latents].

        Raises:
            ValueError: latent variables that are not real, wrong shapes, or a covariance that is not positive
                semi-definite.
        """
        latent, new = self.latent, share(self)
        motion = Motion.of(transition, noise, self.family.supports, latent.loc)
        loc, tril = moved(latent.loc, latent.scale_tril, motion)
        new.prior, new.x, new.y = ToldPrior(logits=latent.logits, loc=loc, scale_tril=tril), None, None
        new.infer()
        return new

    # Copies and files

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        exact = {name: getattr(self, name) for name in ("x", "y")}
        before = (self.device, self.network.prior_token.dtype)
        super()._apply(fn, recurse)
        for name, value in exact.items():  # what was observed stays as exact as it was
            setattr(self, name, None if value is None else value.to(self.device))
        if self.belief.mixture is not None and before != (self.device, self.network.prior_token.dtype):
            self.infer()
        return self

    def export(self) -> Exported:
        """Weights; the prior and the observations; the family, by name and fields."""
        weights, exact = split_state(self)
        seen = {name: value for name in ("x", "y") if (value := getattr(self, name)) is not None}
        told = {f"prior.{name}": value for name, value in self.prior.told().items()}
        return Exported(weights, exact | seen | told, {"metadata": self.metadata, "columns": self.columns})

    @classmethod
    def restore(
        cls, method: DistributionTransformer, tensors: dict[str, Tensor], header: dict[str, Any], family: Any = None
    ) -> "DTPosterior":
        """The posterior that `export` described; a family of the package `priors` is built from its description.

        Raises:
            ValueError: a family of somebody's own, which a file does not hold; it comes with load(path, net=family).
        """
        if family is None:
            family = packaged(header["metadata"]["prior"])
        posterior = method.untrained(family)
        posterior.prior = ToldPrior(**{n: tensors.pop(f"prior.{n}") for n in TOLD if f"prior.{n}" in tensors})
        posterior.x, posterior.y = tensors.pop("x", None), tensors.pop("y", None)
        posterior.network.to(tensors["network.norm.weight"].dtype)
        posterior.load_state_dict(tensors)
        posterior.metadata = header["metadata"]
        posterior.columns = tuple(header["columns"]) if header["columns"] else None
        posterior.requires_grad_(False).eval()
        posterior.infer()
        return posterior
