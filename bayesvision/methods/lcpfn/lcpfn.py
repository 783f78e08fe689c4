"""`LCPFN`: a learning-curve prior becomes a network that extrapolates curves."""

import math
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesvision.core.checks import check_count, check_horizon, check_inputs, check_prior, check_targets
from bayesvision.core.context import KVCache
from bayesvision.core.data import output_dtype
from bayesvision.core.modules import outside_inference_mode, share, split_state
from bayesvision.core.recipes import convert_fields, describe, to_json
from bayesvision.core.roles import Conditionable, Exported, Following
from bayesvision.distributions import Mixture, TruncatedTransformed, within
from bayesvision.distributions.metric import MetricScale
from bayesvision.methods.lcpfn.checks import batch_axes, check_values
from bayesvision.methods.lcpfn.network import PrefixTransformer
from bayesvision.methods.lcpfn.tasks import TaskStream, loss
from bayesvision.methods.lcpfn.tokens import FEATURES, QUERIES, START, UNIT, _questions, _tokens
from bayesvision.nn.heads import MixtureHead
from bayesvision.training.loop import minimize
from bayesvision.training.seeds import seeded
from bayesvision.training.train import Train

__all__ = ["LCPFN", "LCPFNPosterior"]

SPAN = 100.0  # epochs of the network, which the horizon of a run is rescaled to
CHUNK = 65_536  # epochs, times the batch, that predict asks for in one pass: bounds its memory


@dataclass(frozen=True)
class LCPFN:
    """Learning-curve extrapolation with a prior-data fitted network (Adriaensen et al. 2023, arXiv 2310.20447).

    Minimises -E log q(y_t' | y_1, ..., y_n) over curves drawn from a prior, over all cut-offs n and random epochs t' of
    each at once: the context is causal, so one pass over a curve serves all its prefixes, and a new epoch of a running
    curve costs one token. A token holds the epoch, the value, and the value's differences to running means of those
    before it, on a scale that resolves small ones; the answer is a mixture of normals around the last value
    (`bayesvision.nn.heads.MixtureHead`), since bars of fixed width cannot follow curves with next to no noise.

    Example:
        >>> bv.pretrained("lcpfn").condition(range(1, 11), accuracy).predict(100).probability_above(0.9)

    Args:
        rows: minimum and maximum number of rows of a training curve, drawn log-uniformly for each step; the largest is
            also the most rows to condition on.
        width, layers, heads: size of the transformer.
        readers: residual blocks that read a prediction from the state of a prefix.
        components: normals of the predictive mixture.
        targets: epochs predicted from each prefix in training.
        train: how to train; `train.batch` counts curves of full length, and shorter ones come in larger batches.

    Raises:
        ValueError: a field is out of range.
    """

    rows: tuple[int, int] = (100, 100)
    width: int = 128
    layers: int = 6
    heads: int = 4
    readers: int = 2
    components: int = 10
    targets: int = 3
    train: Train = field(default_factory=Train)

    def __post_init__(self) -> None:
        convert_fields(self)
        for name in ("width", "layers", "heads", "readers", "components", "targets"):
            check_count(name, getattr(self, name))
        for value in self.rows:
            check_count("rows", value, 2)
        if self.rows[0] > self.rows[1]:
            raise ValueError(f"rows must be a pair (least, most), got {self.rows!r}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")

    @outside_inference_mode
    def fit(self, source: Any, log: Following = None) -> "LCPFNPosterior":
        """Train on curves drawn from the prior `source`; the result has seen no curve.

        Raises:
            ValueError: the prior draws other shapes than one feature.
            TypeError: `source` is not a prior.
        """
        stream = TaskStream(self, check_prior(source))
        posterior = self.untrained()
        posterior.bounds = getattr(source, "bounds", None)
        recipe = {"method": describe(self), "prior": describe(source)}
        cost = minimize(posterior, loss, stream.batch, self.train, recipe, log, {"curves": stream.curves()})
        size = sum(p.numel() for p in posterior.network.parameters())
        posterior.metadata = {"prior": describe(source), "parameters": size, **cost}
        return posterior.requires_grad_(False)

    def untrained(self) -> "LCPFNPosterior":
        """A posterior with initial weights."""
        head = MixtureHead(self.components, UNIT)
        with seeded(self.train.seed):
            network = PrefixTransformer(
                FEATURES, QUERIES, head.outputs, self.width, self.layers, self.heads, self.readers
            )
        nn.init.zeros_(network.output.weight)
        network.output.bias.data.copy_(head.bias())
        return LCPFNPosterior(self, network, head)


class LCPFNPosterior(Conditionable):
    """What a trained `LCPFN` knows: the network, and the epochs of one curve, or of a batch of them, that it has seen.

    Attributes:
        method: the recipe.
        metadata: the prior, the number of parameters and what training cost.
        horizon: last epoch that can be predicted.
        scale: units of the metric; None for the prior's, in [0, 1] where larger is better.
        bounds: hard bounds of a metric without a scale, where the prior states some.
    """

    x: Tensor | None
    y: Tensor | None
    state: Tensor | None

    def __init__(self, method: LCPFN, network: PrefixTransformer, head: MixtureHead) -> None:
        super().__init__()
        self.method, self.network, self.head = method, network, head
        self.metadata: dict[str, Any] = {}
        self.horizon, self.scale = SPAN, None
        self.bounds: tuple[float, float] | None = None
        for name in ("x", "y", "state"):
            self.register_buffer(name, None, persistent=False)
        self.memory = KVCache()
        self._reads: tuple[int, ...] = ()  # rows that the network read in one pass each: rounding depends on them

    @property
    def rows(self) -> int:
        """Number of epochs that this posterior was conditioned on."""
        return 0 if self.x is None else self.x.shape[-1]

    def unconditioned(self) -> Self:
        """The network before any epochs, with the same horizon and metric; `self` is left as it was."""
        new = share(self)
        new.x, new.y, new.state, new.memory, new._reads = None, None, None, KVCache(), ()
        return new

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.prior_token.device

    def with_metric(self, horizon: float = SPAN, scale: MetricScale | None = None) -> Self:
        """The same network for runs of `horizon` epochs (or steps) of a metric in the units of `scale`.

        The network sees the epochs 100 t / horizon.

        Raises:
            ValueError: the posterior has seen epochs already, or the horizon is not positive.
        """
        if self.rows:
            raise ValueError(
                f"horizon and scale must be set before condition; this posterior has seen {self.rows} rows"
            )
        new = share(self)
        new.horizon, new.scale = check_horizon(horizon), scale
        return new

    def unbounded(self) -> Self:
        """The same network for values as its prior draws them, noise beyond the bounds of the metric included.

        Raises:
            ValueError: the posterior has a scale, which says the bounds.
        """
        if self.scale is not None:
            raise ValueError("a posterior with a scale has the scale's bounds; leave them infinite there instead")
        new = share(self)
        new.bounds = None
        return new

    @outside_inference_mode
    def condition(self, x: Any, y: Any) -> Self:
        """A new posterior that has also seen the values `y` [*batch, n] at the epochs `x` [n] or [*batch, n, 1].

        Leading axes are batches of curves. Epochs may come in any order and with gaps; those after the last one seen
        cost one token each, and an earlier one makes the network read the curve again.

        Raises:
            ValueError: wrong shapes, values that are not finite or outside the bounds of the metric, epochs outside
                (0, horizon] or repeated, or more rows than the network was trained for.
        """
        x, y = self._check_curve(x, y)
        new, later = share(self), x
        if self.x is not None and self.y is not None:
            x, y = torch.cat([self.x, x], -1), torch.cat([self.y, y], -1)
        order = x.argsort(dim=-1, stable=True)
        x, y = x.gather(-1, order), y.gather(-1, order)
        new.x, new.y = x, y
        if (x.diff(dim=-1) == 0).any():
            twice = x[..., 1:][x.diff(dim=-1) == 0][0].item()
            raise ValueError(f"x must hold every epoch once, got {twice:g} twice; keep its latest value, or their mean")
        most = self.method.rows[1]
        if new.rows > most:
            raise ValueError(
                f"the curve has {new.rows} rows and this network was trained for at most {most}; "
                f"keep every {math.ceil(new.rows / most)}th epoch, or their means"
            )
        grows = self.x is not None and bool((later.amin(-1) > self.x[..., -1]).all())
        new._remember(self.rows if grows else 0)
        return new

    def _check_curve(self, x: Any, y: Any) -> tuple[Tensor, Tensor]:
        """Epochs [*batch, n] in float64, and values as the user gave them."""
        x = self._check_epochs(x)
        y = torch.as_tensor(y) if isinstance(y, range) else y
        shape = getattr(y, "shape", ())
        if len(shape) > x.ndim - 1 and x.ndim == 2:  # one column of epochs for many curves
            x = x.expand(*shape[:-1], *x.shape)
        y = check_targets(y, x, constant=True)
        if self.x is not None and x.shape[:-2] != self.x.shape[:-1]:
            raise ValueError(f"x must have the batch axes {tuple(self.x.shape[:-1])}, got {tuple(x.shape[:-2])}")
        check_values(y, self.scale, self._bounds)
        return x.double().squeeze(-1).detach(), y.detach()

    @property
    def _bounds(self) -> tuple[float, float] | None:
        """Hard bounds of the metric, if there are any."""
        return self.bounds if self.scale is None else (self.scale.lower, self.scale.upper)

    def _check_epochs(self, x: Any) -> Float[Tensor, "*batch n 1"]:
        x = check_inputs(x, 1).to(self.device)
        bad = (x <= 0) | (x > self.horizon)
        if bad.any():
            raise ValueError(
                f"x must hold epochs above 0 and up to the horizon {self.horizon:g}, got {x[bad][0].item():g}; "
                "count epochs from 1, or say posterior.with_metric(horizon=...) first"
            )
        return x

    @torch.no_grad()
    def _remember(self, known: int) -> None:
        """Let the network read the rows that come after the `known` first ones, whose keys and values are there."""
        assert self.x is not None and self.y is not None
        kind = self.network.prior_token.dtype
        tokens = _tokens(self._inner_epochs(self.x), self._inner_values(self.y))[..., known:, :].to(kind)
        states, cache = self.network.encode(tokens, self.memory.cache if known else ())
        self.memory.store(cache)
        self.state = states[..., -1, :]
        self._reads = (*(self._reads if known else ()), self.rows - known)

    def _inner_epochs(self, x: Tensor) -> Tensor:
        return x * (SPAN / self.horizon)

    def _inner_values(self, y: Tensor) -> Tensor:
        return y.double() if self.scale is None else self.scale.normalize(y)

    def predict(self, x: Any) -> Mixture | TruncatedTransformed:
        """Predictive distribution of the metric, noise included, at the epochs `x`; in float64 where x or values are.

        `x` is one epoch, a vector of them, or [*batch, m, 1] with batch axes that broadcast with the curves'.

        Raises:
            ValueError: wrong shapes, or epochs that are not finite or outside (0, horizon].
        """
        x = torch.as_tensor(x) if isinstance(x, range | int | float) else x
        alone = getattr(x, "ndim", 1) == 0
        x = self._check_epochs(x.reshape(1) if alone else x)
        kind, wide = self.network.prior_token.dtype, output_dtype(x, self.y)
        seen_x, seen_y, state = self._last()
        batch = batch_axes(x.squeeze(-1), seen_x)
        t, last = (self._inner_epochs(v.double()).expand(*batch, -1) for v in (x.squeeze(-1), seen_x))
        questions = _questions(t, last).to(kind)
        chunk = max(1, CHUNK // max(1, math.prod(batch)))
        raw = torch.cat([self.network.read(state, part) for part in questions.split(chunk, -2)], -2).to(wide)
        loc = self._inner_values(seen_y).expand(*batch, -1).to(wide)
        return self._law(raw[..., 0, :], loc[..., 0]) if alone else self._law(raw, loc)

    def forecasts(self, x: Any, y: Any, at: Any) -> Mixture | TruncatedTransformed:
        """Predictions [*batch, n + 1, m] at the epochs `at` [m] from every prefix of a curve, the empty one first.

        One pass over the curve gives what `condition(x[:k], y[:k]).predict(at)` says for k = 0, ..., n. The posterior
        must not have seen anything yet.

        Raises:
            ValueError: as in `condition` and `predict`, or epochs that do not increase.
        """
        if self.rows:
            raise ValueError(f"forecasts start from an empty posterior, and this one has seen {self.rows} rows")
        x, y = self._check_curve(x, y)
        if not (x.diff(dim=-1) > 0).all():
            raise ValueError("x must increase from epoch to epoch; sort the rows by epoch first")
        asked = self._check_epochs(at)
        kind, wide = self.network.prior_token.dtype, output_dtype(asked, y)
        t, values = self._inner_epochs(x), self._inner_values(y)
        states, _ = self.network.encode(_tokens(t, values).to(kind))
        last_t, last_y = (torch.cat([torch.full_like(v[..., :1], START), v], -1).unsqueeze(-1) for v in (t, values))
        later = self._inner_epochs(asked.double().squeeze(-1)).expand(*last_t.shape[:-1], -1)
        raw = self.network.read(states.unsqueeze(-2), _questions(later, last_t).to(kind)).to(wide)
        return self._law(raw, last_y.expand(later.shape).to(wide))

    def _law(self, raw: Tensor, loc: Tensor) -> Mixture | TruncatedTransformed:
        law = self.head(raw, loc)
        if self.scale is not None:
            return self.scale.law(law)
        return within(law, *self.bounds) if self.bounds else law

    def _last(self) -> tuple[Tensor, Tensor, Tensor]:
        """Epoch and value [*batch, 1] of the last row, in the user's units, and the state [*batch, 1, width]."""
        if self.x is not None and self.y is not None and self.state is not None:
            return self.x[..., -1:], self.y[..., -1:], self.state.unsqueeze(-2)
        blank = torch.full((1,), START, dtype=torch.float64, device=self.device)
        nothing = self.network.prior_token.new_zeros(0, FEATURES)
        value = blank if self.scale is None else self.scale.transform.inv(blank)
        return blank * (self.horizon / SPAN), value, self.network.encode(nothing)[0]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        x, y, before = self.x, self.y, (self.device, self.network.prior_token.dtype)
        super()._apply(fn, recurse)
        if x is not None and y is not None:  # the rows stay exact
            self.x, self.y = x.to(self.device), y.to(self.device)
            if before != (self.device, self.network.prior_token.dtype):
                self._remember(0)
        return self

    def export(self) -> Exported:
        """Weights and the curve seen; what is known of the network, and the units."""
        weights, exact = split_state(self)
        if self.x is not None and self.y is not None:
            exact |= {"x": self.x, "y": self.y}
        scale = None if self.scale is None else to_json(self.scale)
        known = {"metadata": self.metadata, "horizon": self.horizon, "reads": self._reads, "scale": scale}
        known["bounds"] = self.bounds
        return Exported(weights, exact, known)

    @classmethod
    def restore(cls, method: LCPFN, tensors: dict[str, Tensor], header: dict[str, Any]) -> "LCPFNPosterior":
        """The posterior that `export` described."""
        posterior, weights = method.untrained(), {k: v for k, v in tensors.items() if k not in ("x", "y")}
        posterior.to(weights["network.norm.weight"].dtype).load_state_dict(weights)
        posterior.metadata = header["metadata"]
        posterior.bounds = tuple(header["bounds"]) if header.get("bounds") else None
        posterior.requires_grad_(False).eval()
        given = {k: v for k, v in (header["scale"] or {}).items() if v is not None}
        posterior = posterior.with_metric(header["horizon"], MetricScale(**given) if header["scale"] else None)
        first = 0
        for count in header["reads"]:  # in the same passes as before, for the same bits
            part = slice(first, first := first + count)
            posterior = posterior.condition(tensors["x"][..., part].unsqueeze(-1), tensors["y"][..., part])
        return posterior
