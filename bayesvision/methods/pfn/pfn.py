"""`PFN`: a prior becomes a network that does Bayesian inference in one forward pass."""

import math
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from bayesvision.core.checks import check_classes, check_count, check_inputs, check_prior, check_targets, columns_of
from bayesvision.core.context import Cache, KVCache
from bayesvision.core.data import output_dtype
from bayesvision.core.modules import outside_inference_mode, share, split_state
from bayesvision.core.recipes import convert_fields, describe
from bayesvision.core.roles import Conditionable, Exported, Following
from bayesvision.core.standardize import Standardization
from bayesvision.distributions import Bar, Categorical, Mixture
from bayesvision.methods.pfn.tasks import TaskStream, context_inputs, network_targets
from bayesvision.nn.heads import BarHead, CategoricalHead
from bayesvision.nn.set_transformer import SetTransformer
from bayesvision.training.loop import minimize
from bayesvision.training.seeds import seeded
from bayesvision.training.train import Train

__all__ = ["PFN", "PFNPosterior"]

CHUNK = 2048  # queries of one forward pass in predict, times the batch: bounds its memory


@dataclass(frozen=True)
class PFN:
    """Prior-data fitted network (Mueller et al. 2022, arXiv 2112.10510).

    Minimises the expected negative log-likelihood -E log q(y' | x', x, y) over data sets drawn from a prior (eq. 3),
    whose minimiser is the posterior predictive. Every step has one split: no context with probability 0.1, otherwise n
    rows with n log-uniform up to `context`, followed by max(n, 16) queries; short data sets come in larger batches (up
    to 8 times `batch`), so that steps cost about the same. The paper's split, n of a fixed N with weight 1 / (N - n),
    hardly ever shows a small context: at equal time its gap to the exact posterior was 3.1 nats after one row and this
    one's 0.03.

    The order of rows does not matter. That of columns should not, but does a little, since the network has not seen
    enough tasks to forget it; `PFNPosterior.predict_averaged` takes the average over orders.

    Example:
        >>> post = bv.PFN(features=2, train=bv.Train(steps=2_000)).fit(prior)
        >>> post.condition(x, y).predict(new).interval(0.9)

    Args:
        features: maximum number of columns; with fewer, the rest is zero and the others are scaled by features / used.
        classes: None for regression, otherwise the maximum number of classes.
        context: maximum number of context rows.
        width, layers, heads: size of the transformer.
        bars: bars of the predictive distribution in regression.
        standardize: give columns and target mean 0 and standard deviation 1 by context statistics first. Leave it off
            when the prior's own units matter.
        train: how to train.

    Raises:
        ValueError: a field is out of range.
    """

    features: int = 1
    classes: int | None = None
    context: int = 128
    width: int = 128
    layers: int = 4
    heads: int = 4
    bars: int = 500
    standardize: bool = False
    train: Train = field(default_factory=Train)

    def __post_init__(self) -> None:
        convert_fields(self)
        for name in ("features", "context", "width", "layers", "heads"):
            check_count(name, getattr(self, name))
        check_count("bars", self.bars, 2)
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        if self.classes is not None and not 2 <= self.classes <= 10:
            raise ValueError(f"classes must be None or 2 to 10, got {self.classes}")

    @outside_inference_mode
    def fit(self, source: Any, log: Following = None) -> "PFNPosterior":
        """Train on data sets drawn from the prior `source`; the result has seen no data.

        Raises:
            ValueError: the prior draws more columns or other classes than this network takes, or wrong shapes.
            TypeError: `source` is not a prior.
        """
        stream = TaskStream(self, check_prior(source))
        posterior = self.untrained(stream.borders() if self.classes is None else None)
        recipe = {"method": describe(self), "prior": describe(source)}
        cost = minimize(posterior, _loss, stream.batch, self.train, recipe, log, {"tasks": stream.tasks()})
        size = sum(p.numel() for p in posterior.network.parameters())
        posterior.metadata = {"prior": describe(source), "parameters": size, **cost}
        return posterior.requires_grad_(False)

    def standardization(self, x: Float[Tensor, "*batch n features"], y: Shaped[Tensor, "*batch n"]) -> Standardization:
        """Standardization of a context: the identity without `standardize`, and for class labels."""
        return Standardization.of(x, y if self.classes is None else None, self.standardize)

    def untrained(self, borders: Float[Tensor, " edges"] | None = None) -> "PFNPosterior":
        """A posterior with initial weights; `borders` are those of its bars, needed in regression.

        Raises:
            ValueError: regression without borders.
        """
        if self.classes is not None:
            head = CategoricalHead(self.classes)
        elif borders is not None:
            head = BarHead(borders)
        else:
            raise ValueError("borders must be given in regression")
        with seeded(self.train.seed):
            network = SetTransformer(
                self.features, self.classes or 1, head.outputs, self.width, self.layers, self.heads
            )
        return PFNPosterior(self, network, head)


def _loss(posterior: "PFNPosterior", batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Float[Tensor, ""]:
    x, y, query, answers = batch
    return -posterior.head(posterior.network(x, y, query).float()).log_prob(answers).mean()


class PFNPosterior(Conditionable):
    """What a trained `PFN` knows: the network, and the rows that it was conditioned on, if any.

    Attributes:
        method: the recipe.
        metadata: the prior, the number of parameters and what training cost.
    """

    x: Tensor | None
    y: Tensor | None

    def __init__(self, method: PFN, network: SetTransformer, head: BarHead | CategoricalHead) -> None:
        super().__init__()
        self.method, self.network, self.head = method, network, head
        self.metadata: dict[str, Any] = {}
        self.columns: tuple[str, ...] | None = None
        self.register_buffer("x", None, persistent=False)
        self.register_buffer("y", None, persistent=False)
        self.memory = KVCache()

    @property
    def rows(self) -> int:
        """Number of rows that this posterior was conditioned on."""
        return 0 if self.x is None else self.x.shape[-2]

    @outside_inference_mode
    def condition(self, x: Any, y: Any) -> Self:
        """A new posterior that has also seen the rows (x, y); leading axes of x and y are batches of data sets.

        Raises:
            ValueError: wrong shapes, values that are not finite, a constant target where the network standardises it,
                or more columns or rows than the network was trained for.
        """
        method, names = self.method, columns_of(x)
        x = check_inputs(x, None if self.x is None else self.x.shape[-1], self.columns).to(self.device)
        if self.x is not None and x.shape[:-2] != self.x.shape[:-2]:
            raise ValueError(f"x must have the batch axes {tuple(self.x.shape[:-2])}, got {tuple(x.shape[:-2])}")
        x, y = x.double(), self._targets(y, x)
        if self.x is not None and self.y is not None:
            x, y = torch.cat([self.x, x], -2), torch.cat([self.y, y], -1)
        self._check_size(x)
        if method.standardize and method.classes is None and x.shape[-2] == 1:
            raise ValueError("x must have at least 2 rows, got 1: this network standardises, and one row has no scale")
        new = share(self)
        new.columns = self.columns or names
        new.x, new.y = x.detach(), y.detach()
        new._remember()
        return new

    def _targets(self, y: Any, x: Tensor) -> Shaped[Tensor, "*batch rows"]:
        """Classes, or numbers in the precision that they have."""
        if self.method.classes is not None:
            return check_classes(y, x, self.method.classes)
        return check_targets(y, x, seen=self.y, constant=not self.method.standardize)

    def unconditioned(self) -> Self:
        """The network alone, as it was before any rows; `self` is left as it was."""
        new = share(self)
        new.x, new.y, new.columns, new.memory = None, None, None, KVCache()
        return new

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.prior_token.device

    def _check_size(self, x: Tensor) -> None:
        if x.shape[-1] > self.method.features:
            raise ValueError(
                f"x has {x.shape[-1]} columns and this network was trained for at most {self.method.features}; "
                "choose fewer columns, or train a PFN with more features"
            )
        if x.shape[-2] > self.method.context:
            raise ValueError(
                f"the context has {x.shape[-2]} rows and this network was trained for at most {self.method.context}; "
                "condition on a subsample, or train a PFN with a larger context"
            )

    @torch.no_grad()
    def _remember(self) -> None:
        assert self.x is not None and self.y is not None
        y = self.y if self.method.classes else self.y.double()
        scaler = self.method.standardization(self.x, y)
        kind = self.network.prior_token.dtype
        inputs = context_inputs(self.x, self.x, scaler, self.method.features).to(kind)
        cache = self.network.encode(inputs, network_targets(y, scaler, self.method.classes).to(kind))
        self.memory.store(cache)

    def predict(self, x: Any) -> Bar | Categorical:
        """Posterior predictive of every row of `x`; the prior predictive before `condition`.

        It is in float64 where `x` or the targets seen are. The batch axes of `x` broadcast with those of the context.

        Raises:
            ValueError: wrong shapes, values that are not finite, or more columns than the network was trained for.
        """
        seen = self.x
        x = check_inputs(x, None if seen is None else seen.shape[-1], self.columns).to(self.device)
        kind, wide = self.network.prior_token.dtype, output_dtype(x, self.y)
        x = x.double()
        if seen is None:
            self._check_size(x[..., :1, :])
            seen = x[..., :0, :].detach()
        try:
            x = x.expand(*torch.broadcast_shapes(x.shape[:-2], seen.shape[:-2]), *x.shape[-2:])
        except RuntimeError:
            raise ValueError(
                f"x must have batch axes that broadcast with the context's {tuple(seen.shape[:-2])}, "
                f"got {tuple(x.shape[:-2])}"
            ) from None
        scaler = self.method.standardization(seen, seen[..., 0] if self.y is None else self.y.double())
        inputs = context_inputs(x, seen, scaler, self.method.features).to(kind)
        cache = self._cache(inputs)
        chunk = max(1, CHUNK // max(1, math.prod(x.shape[:-2])))
        raw = torch.cat([self.network.decode(part, cache).to(wide) for part in inputs.split(chunk, -2)], -2)
        if isinstance(self.head, CategoricalHead):
            return self.head(raw)
        return self.head(raw, scaler.y_loc.to(wide), scaler.y_scale.to(wide))

    def predict_averaged(self, x: Any, orders: int = 8, seed: int = 0) -> Mixture | Categorical:
        """Equal mixture of the predictions under `orders` random orders of the columns, the given one among them.

        The prior does not know the order of columns but the network was not made blind to it, so each order is another
        approximation of the same posterior.

        Raises:
            ValueError: as in `predict`, or `orders` is no positive whole number.
        """
        check_count("orders", orders)
        seen = self.x
        x = check_inputs(x, None if seen is None else seen.shape[-1], self.columns).to(self.device)
        rng = torch.Generator().manual_seed(seed)
        columns = [torch.arange(x.shape[-1]), *(torch.randperm(x.shape[-1], generator=rng) for _ in range(orders - 1))]
        bare: Self = self.unconditioned()
        if seen is not None and self.y is not None:
            context = torch.stack([seen[..., order] for order in columns])
            bare = bare.condition(context, self.y.expand(context.shape[:-1]))
        lead = x.ndim if seen is None else max(x.ndim, seen.ndim)  # batch axes stay where they are
        x = x.reshape(*(1 for _ in range(lead - x.ndim)), *x.shape)
        law = bare.predict(torch.stack([x[..., order] for order in columns]))
        if isinstance(law, Categorical):
            return Categorical.of_members(law.logits)
        parts = (value.expand(law.batch_shape).movedim(0, -1) for value in (law.loc, law.scale))
        return Mixture.of(Bar(law.logits.movedim(0, -2), law.borders, *parts, validate_args=False))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        x, y, before = self.x, self.y, self.network.prior_token
        before = before.device, before.dtype
        super()._apply(fn, recurse)
        if x is not None and y is not None:  # the rows stay exact: a rounded offset would move every prediction
            self.x, self.y = x.to(self.device), y.to(self.device)
            if before != (self.device, self.network.prior_token.dtype):
                self._remember()
        return self

    def export(self) -> Exported:
        """Weights, borders and context; what is known of the network."""
        weights, exact = split_state(self)
        if self.x is not None and self.y is not None:
            exact |= {"x": self.x, "y": self.y}
        return Exported(weights, exact, {"metadata": self.metadata, "columns": self.columns})

    @classmethod
    def restore(cls, method: PFN, tensors: dict[str, Tensor], header: dict[str, Any]) -> "PFNPosterior":
        """The posterior that `export` described."""
        weights = {k: v for k, v in tensors.items() if k not in ("x", "y")}
        posterior = method.untrained(weights["head.borders"] if method.classes is None else None)
        posterior.to(weights["network.norm.weight"].dtype).load_state_dict(weights)
        posterior.metadata = header["metadata"]
        posterior.requires_grad_(False).eval()
        if "x" in tensors:
            posterior = posterior.condition(tensors["x"], tensors["y"])
        posterior.columns = tuple(header["columns"]) if header["columns"] else None
        return posterior

    def _cache(self, inputs: Tensor) -> Cache:
        if not self.memory.layers:
            empty = inputs[..., :0, :]
            return self.network.encode(empty, empty.new_zeros(*empty.shape[:-1], self.method.classes or 1))
        return self.memory.cache
