"""`Cap`: the learned part of a `BayesCap`, data alone."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from bayesvision.core.modules import split_state
from bayesvision.core.recipes import build, describe, to_json
from bayesvision.core.roles import Exported, Following, Posterior
from bayesvision.distributions import Categorical, Mixture, Predictive
from bayesvision.distributions.base import reshaped
from bayesvision.methods.bayescap.calibration import Conformal, constant_law, legacy_loss
from bayesvision.methods.bayescap.dataset import OutputDataset, OutputSpec
from bayesvision.methods.bayescap.heads import ScaleHead, TemperatureHead
from bayesvision.methods.bayescap.networks import MLP, ConvNet, fitting_width
from bayesvision.training.loop import minimize
from bayesvision.training.seeds import generator, seeded
from bayesvision.training.train import Train

__all__ = ["Cap"]

WIDEST, UNKNOWN = {"maps": 64, "vectors": 128}, 32  # widths: at most, and around a callable whose size nobody knows
SAMPLE = 200_000  # numbers that constants are fitted to
QUANTILES, LEAST_DETAIL = (0.05, 0.5, 0.95), 1e-3  # of what tells strange maps
PLACES = 1_000_000  # of a map that its quantiles are taken over, at most
LOOKS = 1000  # training examples that tell what is in distribution


class Cap(Posterior):
    """The learned part: the distribution of y given what was read from the frozen network, outputs first.

    It is data alone, so it can be saved; `BayesCap(net).wrap(cap)` puts it around the network again.

    Attributes:
        method: the recipe, without the network.
        metadata: the number of parameters and what training cost.
    """

    centre: Tensor
    spread: Tensor
    typical: Tensor
    whitener: Tensor
    networks: Any  # a ModuleList of ConvNet or MLP

    def __init__(self, method: Any, kind: OutputSpec, frozen: int | None) -> None:
        super().__init__()
        self.method, self.kind, self.metadata = method, kind, {"frozen parameters": frozen}
        channels = 1 if method.shared else kind.channels
        self.head: Any = TemperatureHead() if method.classes else ScaleHead(method.family, channels, kind.axis)
        outputs = self.head.outputs * (1 if method.classes else channels) + kind.channels * method.residual
        net, scale = (ConvNet if kind.form == "maps" else MLP), WIDEST[kind.form]

        def make(width: int) -> nn.Module:
            return net(kind.inputs, outputs, width, method.depth, method.dropout)

        known = UNKNOWN if frozen is None else fitting_width(make, frozen // (4 * method.members), scale)
        width = known if method.width is None else method.width
        with seeded(method.train.seed):
            self.networks = nn.ModuleList(make(width) for _ in range(method.members))
        signs = len(QUANTILES) * (1 + kind.inputs) if kind.form == "maps" else self.networks[0].output_layer.in_features
        shape = (kind.inputs, *(1 for _ in range(-kind.axis - 1)))
        for name, value in {"centre": torch.zeros(shape), "spread": torch.ones(shape)}.items():
            self.register_buffer(name, value.float())
        self.register_buffer("typical", torch.zeros(signs, dtype=torch.float32))
        self.register_buffer("whitener", torch.eye(signs, dtype=torch.float32))
        self.conformal = Conformal()
        self.metadata["parameters"] = sum(p.numel() for p in self.networks.parameters())

    def learn(self, pairs: OutputDataset, log: Following) -> None:
        """Fit constants first, then each network from there."""
        method, source = self.method, generator("cpu", self.method.train.seed, 1 << 40)
        self._start(self._sample(pairs, source), pairs)
        costs = []
        for k, network in enumerate(self.networks):
            train = replace(method.train, seed=method.train.seed + k)
            folder = train.execution.checkpoint_dir
            if folder is not None and method.members > 1:
                train = replace(train, execution=replace(train.execution, checkpoint_dir=f"{folder}/{k}"))
            device = train.execution.pick_device()
            self.to(device)

            def batch(step: int, part: int, train: Train = train, device: Any = device) -> tuple[Tensor, Tensor]:
                size = train.batch // train.accumulate
                reads, y = pairs.draw(size, method.crop, generator("cpu", train.seed, step, part))
                return reads.to(device), y.to(device)

            recipe = {"method": describe(method), "member": k, "examples": pairs.digest}
            costs.append(minimize(network, self._loss, batch, train, recipe, log))
        self.metadata |= {"examples": len(pairs), "seconds": round(sum(c["seconds"] for c in costs), 1)}
        self._look(pairs)
        self.requires_grad_(False).eval()

    def _sample(self, pairs: OutputDataset, source: Generator) -> tuple[Tensor, Tensor]:
        """Examples, or crops of maps, that hold about 200,000 numbers: all examples once where these are fewer."""
        if self.kind.form == "maps":
            size = self.kind.channels * min(self.method.crop**2, pairs[0][1][0].numel())
            return pairs.draw(min(4096, max(8, SAMPLE // size)), self.method.crop, source)
        count = min(len(pairs), max(8, SAMPLE // max(1, pairs[0][1].numel())))
        chosen = [pairs[int(k)] for k in torch.randperm(len(pairs), generator=source)[:count]]
        return torch.stack([reads for reads, _ in chosen]), torch.stack([y for _, y in chosen])

    @torch.no_grad()
    def _start(self, sample: tuple[Tensor, Tensor], pairs: OutputDataset) -> None:
        """The units of what is read, and the constant distribution that the networks start from."""
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
            return legacy_loss(law, y)
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
        """Distribution of y given what was read, [*batch, channels] or [batch, channels, height, width], outputs first.

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
        """The distribution that the outputs of the networks stand for."""
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
    def _look(self, pairs: OutputDataset) -> None:
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

    def export(self) -> Exported:
        """Weights and constants; what is known of the cap, and the kind of outputs."""
        return Exported(*split_state(self), {"metadata": self.metadata, "kind": to_json(self.kind)})

    @classmethod
    def restore(cls, method: Any, tensors: dict[str, Tensor], header: dict[str, Any]) -> "Cap":
        """The cap that `export` described."""
        metadata = header["metadata"]
        cap = cls(method, build(OutputSpec, header["kind"]), metadata["frozen parameters"])
        cap.conformal.resize(tensors["conformal.scores"])
        cap.to(tensors["centre"].dtype)
        cap.load_state_dict({k: v.view_as(cap.state_dict()[k]) for k, v in tensors.items()})
        cap.metadata = metadata
        return cap.requires_grad_(False).eval()
