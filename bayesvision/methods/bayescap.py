"""`BayesCap`: uncertainty around a frozen network, whose answers stay what they are."""

import copy
import warnings
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from bayesvision.calibration import Conformal, constant_law, released_loss, scale_factor
from bayesvision.core import (
    Data,
    Log,
    Posterior,
    as_tensor,
    check_count,
    check_inputs,
    check_targets,
    columns_of,
)
from bayesvision.distributions import Categorical, Mixture, Predictive
from bayesvision.distributions.base import reshaped
from bayesvision.frozen import Frozen, stacked
from bayesvision.heads import Family, SpreadHead, TemperedHead
from bayesvision.networks import MLP, ConvNet, fitting_width
from bayesvision.pairs import Pairs, batches_of
from bayesvision.training import Train, generator, minimize, seeded

__all__ = ["BayesCap", "BayesCapPosterior", "Cap"]

WIDEST, UNKNOWN = {"maps": 64, "vectors": 128}, 32  # widths: at most, and around a callable whose size nobody knows
SAMPLE = 200_000  # numbers that constants are fitted to
BLOCK = 1024  # rows that calibration asks about in one go
QUANTILES, LEAST_DETAIL = (0.05, 0.5, 0.95), 1e-3  # of what tells strange maps
PLACES = 1_000_000  # of a map that its quantiles are taken over, at most
LOOKS = 1000  # training examples that tell what is in distribution


@dataclass(frozen=True)
class BayesCap:
    """Uncertainty around a frozen network (Bayesian Identity Cap, Upadhyay et al. 2022, arXiv 2207.06873).

    A small network, the cap, reads the frozen output yhat and gives the law of y around it: by default a generalised
    normal p(y) = beta / (2 alpha Gamma(1/beta)) exp(-(|y - yhat| / alpha)^beta) of every number (eq. 3). It minimises
    the exact -log p(y); its mean is yhat itself, bit for bit. The paper's first term |mu - yhat|^2 is then zero.

    Args:
        net: a torch module, or any callable that returns a tensor or an array. Its outputs are maps [batch, channels,
            height, width], vectors [*batch, channels] or numbers [*batch].
        family: of the law: `generalized`, `gaussian`, `laplace` or `student`.
        reads: what the cap reads: "output", and if wanted "input" and the names of submodules of `net`, each brought to
            the outputs' size.
        shared: one scale for all channels, in place of one for each.
        residual: let the cap move the mean too, from yhat on.
        classes: of a classifier whose logits `net` returns; the prediction is a `Categorical` then, in the order of the
            logits (`bayesvision.heads.TemperedHead`).
        members: caps of an ensemble, combined to a `Mixture`.
        dropout: rate in the cap; above 0 a prediction is a mixture of `draws` passes.
        draws: passes of a prediction with dropout.
        width: of the cap; None for the greatest (up to 64, of vectors 128) with a quarter of the frozen parameters.
        depth: residual blocks of the cap.
        crop: side of the squares that maps are cut to in training.
        loss: `exact`, or `legacy`, which is wrong (`bayesvision.calibration.released_loss`).
        train: how to train; `train.batch` counts examples.

    Raises:
        ValueError: a field is out of range.
    """

    net: Any = None
    family: Family = "generalized"
    reads: tuple[str, ...] | list[str] = ("output",)
    shared: bool = False
    residual: bool = False
    classes: int | None = None
    members: int = 1
    dropout: float = 0.0
    draws: int = 8
    width: int | None = None
    depth: int = 3
    crop: int = 64
    loss: Literal["exact", "legacy"] = "exact"
    train: Train = field(default_factory=lambda: Train(steps=1000, batch=16, lr=3e-3))

    def __post_init__(self) -> None:
        object.__setattr__(self, "reads", tuple(self.reads))  # a file holds a list, and recipes are compared
        for name in ("members", "draws", "depth", "crop"):
            check_count(name, getattr(self, name), 2 if name == "crop" else 1)
        for name in ("width", "classes"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), 2)
        SpreadHead(self.family, 1, -1)  # refuses an unknown family
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout!r}")
        if self.loss not in ("exact", "legacy"):
            raise ValueError(f"loss must be exact or legacy, got {self.loss!r}")
        if self.loss == "legacy" and (self.family != "generalized" or self.classes):
            raise ValueError("loss='legacy' is one of the generalised normal; leave family and classes as they are")
        if self.classes and (self.residual or self.shared or self.family != "generalized"):
            raise ValueError(
                "classes have one scale and keep their order; leave family, shared and residual as they are"
            )
        if self.loss == "legacy":
            warnings.warn(
                "loss='legacy' is the released code's, kept to compare with: it drives beta to 0.684 whatever the "
                "data, and the variance of normal errors to 3.34 times what it is",
                stacklevel=3,
            )

    def fit(self, source: Any, calibrate: Any = None, log: Log | None = None) -> "BayesCapPosterior":
        """Train a cap on what the network says about the inputs of `source`, which is asked once.

        Args:
            source: a loader of batches (x, y), or Data(x, y).
            calibrate: the same of held-out examples, for `BayesCapPosterior.calibrate`.

        Raises:
            TypeError: `source` is neither.
            ValueError: no batches, targets of another shape than the outputs, values that are not finite, constant
                targets, or `reads` names what `net` does not have.
        """
        frozen = Frozen(self.net, self.reads)
        pairs, kind = _ask(frozen, source, self.classes)
        cap = Cap(replace(self, net=None), kind, frozen.parameters_count)
        cap.learn(pairs, log)
        posterior = BayesCapPosterior(frozen, cap)
        return posterior if calibrate is None else posterior.calibrate(calibrate)

    def wrap(self, cap: "Cap") -> "BayesCapPosterior":
        """The posterior of a cap that was saved, around `net` again.

        Raises:
            ValueError: the cap reads something else than this recipe.
        """
        if cap.method.reads != self.reads:
            raise ValueError(f"cap was trained to read {cap.method.reads}; say BayesCap(net, reads={cap.method.reads})")
        return BayesCapPosterior(Frozen(self.net, self.reads), cap)


@dataclass(frozen=True)
class Kind:
    """What the outputs are, and the inputs of the network.

    Attributes:
        form: maps or vectors.
        channels: of the output.
        inputs: channels of all that is read.
        scalar: whether the output is a single number, which has no channel.
        features, columns: of inputs that are tables, with the names of a frame's columns; None for others.
        divided: whether targets of 8 bits were divided by 255; None for others.
    """

    form: Literal["maps", "vectors"]
    channels: int
    inputs: int
    scalar: bool
    features: int | None = None
    columns: tuple[str, ...] | None = None
    divided: bool | None = None

    @property
    def axis(self) -> int:
        """Of the channels."""
        return -3 if self.form == "maps" else -1


def _ask(frozen: Frozen, source: Any, classes: int | None, known: Kind | None = None) -> tuple[Pairs, Kind]:
    """Pairs of what the network says and what is right, of the kind that is `known` or that the first batch has."""
    pairs, kind = Pairs(), None if known is None else replace(known, divided=None)
    if known is not None:
        pairs.divided = known.divided
    columns = columns_of(source.x) if isinstance(source, Data) else None
    if known is not None and columns is not None:
        source = Data(check_inputs(source.x, known.features, known.columns), source.y)
    for x, y in batches_of(source):
        table = not getattr(x, "ndim", 0) > 2
        x = check_inputs(x) if table else x
        with torch.no_grad():
            parts = frozen(x)
        scalar = not classes and parts[0].ndim == (x.ndim - 1 if table else 1)
        outputs = parts[0].unsqueeze(-1) if scalar else parts[0]
        form = "maps" if outputs.ndim == 4 and not classes else "vectors"
        reads = stacked(parts, form == "maps", scalar)
        axis = -3 if form == "maps" else -1
        names = known.columns if known is not None else columns
        found = Kind(form, outputs.shape[axis], reads.shape[axis], scalar, x.shape[-1] if table else None, names)
        if kind is not None and found != kind:
            raise ValueError(f"x and net must give outputs of one kind, got {kind} and then {found}")
        kind = found
        if classes:
            pairs.add_labels(reads, y, classes)
        else:
            y = check_targets(y, x, constant=True) if table and scalar else y
            pairs.add(reads, outputs, _with_channel(y, outputs))
    assert kind is not None
    if classes and kind.channels != classes:
        raise ValueError(f"net must return one logit for each of {classes} classes, got {kind.channels}")
    return pairs, replace(kind, divided=pairs.divided)


def _with_channel(y: Any, outputs: Tensor) -> Any:
    y = as_tensor("y", y)
    return y.unsqueeze(-1) if y.shape == outputs.shape[:-1] and outputs.shape[-1] == 1 else y


def _thinned(tensors: list[Tensor], kind: Kind, classes: int | None, count: int, source: Generator) -> list[Tensor]:
    """About `count` of the places, the same of all tensors, each as an example of its own."""
    if classes:
        return tensors
    if kind.form == "maps":  # [1, channels, height, width] to [places, channels, 1, 1]
        tensors = [v.flatten(2)[0].T[..., None, None] for v in tensors]
    else:
        tensors = [v.flatten(0, -2) for v in tensors]
    size = max(8, count // kind.channels)
    chosen = torch.randperm(len(tensors[0]), generator=source)[:size].to(tensors[0].device)
    return [v[chosen] for v in tensors]


class Cap(Posterior):
    """The learned part: the law of y given what was read from the frozen network, outputs first.

    It is data alone, so it can be saved; `BayesCap(net).wrap(cap)` puts it around the network again.

    Attributes:
        method: the recipe, without the network.
        card: the number of parameters and what training cost.
    """

    centre: Tensor
    spread: Tensor
    typical: Tensor
    whitener: Tensor
    networks: Any  # a ModuleList of ConvNet or MLP

    def __init__(self, method: BayesCap, kind: Kind, frozen: int | None) -> None:
        super().__init__()
        self.method, self.kind, self.card = method, kind, {"frozen parameters": frozen}
        channels = 1 if method.shared else kind.channels
        self.head: Any = TemperedHead() if method.classes else SpreadHead(method.family, channels, kind.axis)
        outputs = self.head.outputs * (1 if method.classes else channels) + kind.channels * method.residual
        net, scale = (ConvNet if kind.form == "maps" else MLP), WIDEST[kind.form]

        def make(width: int) -> nn.Module:
            return net(kind.inputs, outputs, width, method.depth, method.dropout)

        known = UNKNOWN if frozen is None else fitting_width(make, frozen // (4 * method.members), scale)
        width = known if method.width is None else method.width
        with seeded(method.train.seed):
            self.networks = nn.ModuleList(make(width) for _ in range(method.members))
        signs = len(QUANTILES) * (1 + kind.inputs) if kind.form == "maps" else self.networks[0].outward.in_features
        shape = (kind.inputs, *(1 for _ in range(-kind.axis - 1)))
        for name, value in {"centre": torch.zeros(shape), "spread": torch.ones(shape)}.items():
            self.register_buffer(name, value.float())
        self.register_buffer("typical", torch.zeros(signs, dtype=torch.float32))
        self.register_buffer("whitener", torch.eye(signs, dtype=torch.float32))
        self.conformal = Conformal()
        self.card["parameters"] = sum(p.numel() for p in self.networks.parameters())

    def learn(self, pairs: Pairs, log: Log | None) -> None:
        """Fit constants first, then each network from there."""
        method, source = self.method, generator("cpu", self.method.train.seed, 1 << 40)
        self._start(self._sample(pairs, source), pairs)
        costs = []
        for k, network in enumerate(self.networks):
            train = replace(method.train, seed=method.train.seed + k)
            if train.folder is not None and method.members > 1:
                train = replace(train, folder=f"{train.folder}/{k}")
            device = train.pick_device()
            self.to(device)

            def batch(step: int, part: int, train: Train = train, device: Any = device) -> tuple[Tensor, Tensor]:
                size = train.batch // train.accumulate
                reads, y = pairs.draw(size, method.crop, generator("cpu", train.seed, step, part))
                return reads.to(device), y.to(device)

            recipe = {"method": asdict(method), "member": k}
            costs.append(minimize(network, self._loss, batch, train, recipe, log))
        self.card |= {"examples": len(pairs), "seconds": round(sum(c["seconds"] for c in costs), 1)}
        self._look(pairs)
        self.requires_grad_(False).eval()

    def _sample(self, pairs: Pairs, source: Generator) -> tuple[Tensor, Tensor]:
        """Examples, or crops of maps, that hold about 200,000 numbers: all examples once where these are fewer."""
        if self.kind.form == "maps":
            size = self.kind.channels * min(self.method.crop**2, pairs[0][1][0].numel())
            return pairs.draw(min(4096, max(8, SAMPLE // size)), self.method.crop, source)
        count = min(len(pairs), max(8, SAMPLE // max(1, pairs[0][1].numel())))
        chosen = [pairs[int(k)] for k in torch.randperm(len(pairs), generator=source)[:count]]
        return torch.stack([reads for reads, _ in chosen]), torch.stack([y for _, y in chosen])

    @torch.no_grad()
    def _start(self, sample: tuple[Tensor, Tensor], pairs: Pairs) -> None:
        """The units of what is read, and the constant law that the networks start from."""
        reads, y = sample
        axis = self.kind.axis % reads.ndim
        rest = [a for a in range(reads.ndim) if a != axis]
        self.centre.copy_(reads.mean(rest).view_as(self.centre))
        self.spread.copy_(reads.std(rest, correction=0).clamp(min=1e-6).view_as(self.spread))
        if self.method.classes:
            return
        if pairs.low == pairs.high and (len(pairs) > 1 or y.numel() > self.kind.channels):
            where = f"all {len(pairs)} rows" if self.kind.features else "every place of all examples"
            raise ValueError(
                f"y is constant ({pairs.low:g} in {where}); there is no error to learn from, so check that "
                "this is the target"
            )
        self.head.floor.fill_(pairs.floor)
        residual = (y - reads.narrow(axis, 0, self.kind.channels)).movedim(axis, 0).reshape(self.kind.channels, -1)
        groups = residual.reshape(1, -1) if self.method.shared else residual
        least = max(pairs.floor, 1e-6 * float(y.std(correction=0)), 1e-12)
        laws = [constant_law(group, self.method.family, least) for group in groups]
        self.head.log_scale.copy_(torch.tensor([log_scale for log_scale, _ in laws]).view_as(self.head.log_scale))
        self.head.tail.copy_(torch.tensor([tail for _, tail in laws]).view_as(self.head.tail))

    def _loss(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
        reads, y = batch
        law = self._law(network(self._standard(reads)).float(), reads)
        if self.method.loss == "legacy":
            return released_loss(law, y)
        return -law.log_prob(y).mean()

    def _standard(self, reads: Tensor) -> Tensor:
        return (reads - self.centre) / self.spread

    def _law(self, raw: Tensor, reads: Tensor, stretch: bool = True) -> Any:
        axis, channels = self.kind.axis, self.kind.channels
        loc = reads.narrow(axis, 0, channels)
        if self.method.residual:
            raw, move = raw.split([raw.shape[axis] - channels, channels], axis)
            loc = loc + self.spread[:channels].to(move) * move
        return self.head(raw, loc, stretch)

    def predict(self, x: Float[Tensor, "*rest"]) -> Predictive:
        """Law of y given what was read, [*batch, channels] or [batch, channels, height, width], outputs first.

        With several members or draws it is their equal mixture, whose variance is E[var] + Var[mean].

        Raises:
            ValueError: other channels than in training.
        """
        return self._predict(x)

    def _predict(self, x: Tensor, stretch: bool = True) -> Any:
        axis = self.kind.axis
        wrong = x.ndim != 4 if self.kind.form == "maps" else x.ndim < 1
        if wrong or x.shape[axis] != self.kind.inputs:
            raise ValueError(f"x must have {self.kind.inputs} channels on axis {axis}, got the shape {tuple(x.shape)}")
        return self._combined(self.raws(x), x, stretch)

    def _combined(self, raws: list[Tensor], x: Tensor, stretch: bool = True) -> Any:
        """The law that the outputs of the networks stand for."""
        wide = torch.promote_types(x.dtype, torch.float32)
        laws = [self._law(raw.to(wide), x.to(wide), stretch) for raw in raws]
        if self.method.classes:
            return laws[0] if len(laws) == 1 else Categorical.of_members(torch.stack([law.logits for law in laws]))
        laws = [reshaped(law, lambda v: v.squeeze(-1)) for law in laws] if self.kind.scalar else laws
        if len(laws) == 1:
            return laws[0]
        names = list(laws[0].arg_constraints)
        parts = [torch.stack([getattr(law, name) for law in laws], -1) for name in names]
        return Mixture.of(type(laws[0])(*parts, validate_args=False))

    def raws(self, x: Tensor) -> list[Tensor]:
        """Outputs of each network, or of each pass with dropout."""
        standard, method = self._standard(x.to(self.centre.dtype)), self.method
        if not method.dropout:
            return [network(standard) for network in self.networks]
        with seeded(method.train.seed):  # the same draws for all inputs
            return [n.read(n.hidden(standard, "all"), standard) for n in self.networks for _ in range(method.draws)]

    def signature(self, x: Tensor) -> Float[Tensor, "*batch entries"]:
        """What tells strange examples: of vectors the last hidden state.

        Of maps the logarithms of three quantiles, over the places of each, of the predicted standard deviation and of
        the diagonal detail (a - b - c + d) / 2 of all 2 x 2 blocks of each channel that was read: in photographs some
        places are always smooth, and noise leaves none.
        """
        standard = self._standard(x.to(self.centre.dtype))
        if self.kind.form == "vectors":
            return self.networks[0].hidden(standard)
        law = self._law(self.networks[0](standard).float(), x.float(), stretch=False)
        spread = law.stddev.mean(1, keepdim=True) / self.spread.mean()
        whole = nn.functional.pad(standard, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2), mode="replicate")
        a, b, c, d = (whole[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
        levels = torch.tensor(QUANTILES, device=x.device)
        found = []
        for value in (spread, (a - b - c + d).abs() / 2):
            flat = value.float().flatten(2)
            flat = flat[..., :: -(-flat.shape[-1] // PLACES)]  # quantile takes no more than 16 million
            found.append(flat.quantile(levels, -1).movedim(0, -1).flatten(1))
        return (torch.cat(found, -1) + LEAST_DETAIL).log().to(standard.dtype)

    @torch.no_grad()
    def _look(self, pairs: Pairs) -> None:
        """Mean and covariance of the signatures of training examples, for `ood_score`."""
        places = torch.linspace(0, len(pairs) - 1, min(len(pairs), LOOKS), dtype=torch.float64).round().long().tolist()
        device = self.centre.device
        signs = torch.cat([self.signature(pairs[k][0].to(device).unsqueeze(0)) for k in places]).double().flatten(0, -2)
        centred = signs - signs.mean(0)
        covariance = centred.T @ centred / max(1, len(signs) - 1)
        share = min(1.0, signs.shape[-1] / len(signs))  # of the diagonal: few examples know few directions
        covariance = share * covariance.diagonal().diag() + (1 - share) * covariance
        values, vectors = torch.linalg.eigh(covariance)
        least = (1e-2 * values.mean()).clamp(min=1e-12)  # directions that hardly vary are not trusted
        self.typical.copy_(signs.mean(0))
        whitener = vectors / (values + least).sqrt()
        usual = (centred @ whitener).square().mean().sqrt().clamp(min=1e-6)
        self.whitener.copy_(whitener / usual)

    def unusual(self, x: Tensor) -> Float[Tensor, "*batch"]:
        """Root mean square of the whitened signature: about 1 for examples like those of training."""
        white = (self.signature(x) - self.typical) @ self.whitener
        return white.square().mean(-1).sqrt()

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights and constants; the recipe, the card and the kind of outputs."""
        recipe = asdict(self.method)
        recipe.pop("net")
        recipe["train"]["folder"] = None  # where a run kept its state is no part of what it computed
        header = {"method": "BayesCap", "recipe": recipe, "card": self.card, "kind": asdict(self.kind)}
        tensors = dict(self.state_dict())
        flat = {
            k: v.flatten() for k, v in tensors.items() if not k.startswith("networks.")
        }  # constants are never rounded
        return tensors | flat, header

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> "Cap":
        """The cap that `export` described."""
        recipe: dict[str, Any] = {**header["recipe"], "train": Train(**header["recipe"]["train"])}
        card = header["card"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a legacy loss, which was said when it was trained
            columns = header["kind"]["columns"]
            kind = Kind(**{**header["kind"], "columns": None if columns is None else tuple(columns)})
            cap = cls(BayesCap(**recipe), kind, card["frozen parameters"])
        cap.conformal.resize(tensors["conformal.scores"])
        cap.to(tensors["centre"].dtype)
        cap.load_state_dict({k: v.view_as(cap.state_dict()[k]) for k, v in tensors.items()})
        cap.card = card
        return cap.requires_grad_(False).eval()


class BayesCapPosterior(Posterior):
    """A frozen network and the cap around it.

    Attributes:
        method: the recipe, without the network.
        frozen: the network, as it is asked.
        cap: the learned part, which can be saved.
    """

    def __init__(self, frozen: Frozen, cap: Cap) -> None:
        super().__init__()
        self.method, self.frozen, self.cap = cap.method, frozen, cap

    def _read(self, x: Any) -> Tensor:
        """What the cap reads, in the type of `x` where that is a floating-point one."""
        kind = self.cap.kind
        if kind.features is not None:
            x = check_inputs(x, kind.features, kind.columns)
        reads = stacked(self.frozen(x), kind.form == "maps", kind.scalar)
        if not torch.isfinite(reads).all():
            raise ValueError(
                f"net's output must be finite, got {int((~reads.isfinite()).sum())} NaN or infinite values"
            )
        given = (x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))).dtype
        wide = torch.promote_types(given, torch.float32) if given.is_floating_point else reads.dtype
        return reads.to(self.cap.centre.device, wide)

    def predict(self, x: Any) -> Predictive:
        """Law of the target around the network's answer, with the shape of that answer.

        `mean` is the frozen network's answer, bit for bit (in the type of `x`, where that is narrower), unless the
        recipe has a residual.

        Raises:
            ValueError: values that are not finite, or inputs for which the network's outputs have other channels.
        """
        return self.cap.predict(self._read(x))

    def ood_score(self, x: Any) -> Float[Tensor, "*batch"]:
        """How unlike the training examples each input is: about 1 for those, more for stranger ones.

        The Mahalanobis distance (Lee et al. 2018, arXiv 1807.03888, eq. 2), over the square root of its dimension, of
        `Cap.signature` from its mean over training examples.
        """
        return self.cap.unusual(self._read(x))

    @torch.no_grad()
    def calibrate(self, source: Any) -> Self:
        """A new posterior, calibrated on held-out examples; `self` is left as it was.

        The scale of every law is multiplied by the one number that makes the held-out targets most likely (of a
        classifier, the temperature). Then the errors over the predicted standard deviations are kept for `interval`.

        Raises:
            TypeError, ValueError: as in `BayesCap.fit`.
        """
        pairs, kind = _ask(self.frozen, source, self.method.classes, self.cap.kind)
        cap, device, scores, kept = copy.deepcopy(self.cap), self.cap.centre.device, [], []
        step = BLOCK if pairs[0][0].ndim == 1 else 1
        places = torch.Generator().manual_seed(self.method.train.seed)
        for first in range(0, len(pairs), step):
            block = [pairs[k] for k in range(first, min(first + step, len(pairs)))]
            reads, y = (torch.stack(parts).to(device) for parts in zip(*block, strict=True))
            raws = cap.raws(reads)
            if not self.method.classes:
                law = cap._combined(raws, reads, stretch=False)
                error = ((y.squeeze(-1) if kind.scalar else y) - law.mean).abs() / law.stddev
                scores += list(error.reshape(len(block), -1).cpu())
            count = SAMPLE * len(block) // len(pairs)
            kept.append(_thinned([*raws, reads, y], kind, self.method.classes, count, places))
        *raws, reads, y = (torch.cat(parts) for parts in zip(*kept, strict=True))

        def cost(log_factor: float) -> float:
            cap.head.log_factor.fill_(log_factor)
            return -float(cap._combined(raws, reads).log_prob(y.squeeze(-1) if kind.scalar else y).double().mean())

        cap.head.log_factor.fill_(scale_factor(cost))
        if not self.method.classes:
            cap.conformal.keep(scores)
        return type(self)(self.frozen, cap)

    def interval(self, x: Any, mass: float = 0.9) -> tuple[Tensor, Tensor]:
        """Split-conformal interval mean -+ q stddev, hierarchical (Lee et al. 2023, arXiv 2306.06342, section 3).

        The standard deviation is that before `calibrate`, since its factor was fitted to the same examples as q.
        If a new example and the n of `calibrate` are exchangeable, a number drawn at random from its target lies inside
        with probability at least `mass`, whatever the law of the errors, on average over the examples; the numbers
        within one example may depend on each other in any way.

        Raises:
            ValueError: not calibrated, a mass outside (0, 1), or too few examples for it: 1 / (n + 1) > 1 - mass.
        """
        law: Any = self.cap._predict(self._read(x), stretch=False)
        width = self.cap.conformal.quantile(mass) * law.stddev
        return law.mean - width, law.mean + width
