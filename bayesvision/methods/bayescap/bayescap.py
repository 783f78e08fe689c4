"""`BayesCap`: uncertainty around a frozen network, whose answers stay what they are."""

import copy
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.core.checks import check_count, check_inputs
from bayesvision.core.modules import outside_inference_mode
from bayesvision.core.recipes import NOT_STORED, convert_fields
from bayesvision.core.roles import Following, Posterior
from bayesvision.core.warn import warn
from bayesvision.distributions import Predictive
from bayesvision.methods.bayescap.calibration import scale_factor
from bayesvision.methods.bayescap.cap import SAMPLE, Cap
from bayesvision.methods.bayescap.dataset import _ask, _thinned
from bayesvision.methods.bayescap.frozen import Frozen, stacked
from bayesvision.methods.bayescap.heads import Family, ScaleHead
from bayesvision.training.seeds import seeded
from bayesvision.training.train import Train

__all__ = ["BayesCap", "BayesCapPosterior"]

BLOCK = 1024  # rows that calibration asks about in one go


@dataclass(frozen=True)
class BayesCap:
    """Uncertainty around a frozen network (Bayesian Identity Cap, Upadhyay et al. 2022, arXiv 2207.06873).

    A small network, the cap, reads the frozen output yhat and gives the distribution of y around it. It minimises the
    exact -log p(y); its mean is yhat itself, bit for bit. The paper's first term |mu - yhat|^2 is then zero. The paper
    takes the generalised normal p(y) = beta / (2 alpha Gamma(1/beta)) exp(-(|y - yhat| / alpha)^beta) of every number
    (eq. 3); the default here is Student's t, which is the sharpest on photographs and, where inputs are unlike those of
    training, is wrong by a few nats where the other is wrong by a thousand.

    Targets that lie on a grid, such as images of 8 bits, were rounded: no standard deviation is below that of rounding.

    Example:
        >>> post = bv.BayesCap(net).fit([(x, y)], calibrate=[(held, truth)])
        >>> post.predict(new).stddev, post.interval(new, 0.9)

    Args:
        net: a torch module, or any callable that returns a tensor or an array. Its outputs are maps [batch, channels,
            height, width], vectors [*batch, channels] or numbers [*batch].
        family: of the distribution: `student`, `generalized`, `laplace` or `gaussian`.
        reads: what the cap reads: "output", and if wanted "input" and the names of submodules of `net`, each brought to
            the outputs' size.
        shared: one scale for all channels, in place of one for each.
        residual: let the cap move the mean too, from yhat on.
        classes: of a classifier whose logits `net` returns; the prediction is a `Categorical` then, in the order of the
            logits (`bayesvision.methods.bayescap.heads.TemperatureHead`).
        members: caps of an ensemble, combined to a `Mixture`.
        dropout: rate in the cap; above 0 a prediction is a mixture of `draws` passes.
        draws: passes of a prediction with dropout.
        width: of the cap; None for the largest (up to 64, of vectors 128) with a quarter of the frozen parameters.
        depth: residual blocks of the cap.
        crop: side of the squares that maps are cut to in training.
        loss: `exact`, or `legacy`, which is wrong (`bayesvision.methods.bayescap.calibration.legacy_loss`).
        train: how to train; `train.batch` counts examples.

    Raises:
        ValueError: a field is out of range.
    """

    net: Any = field(default=None, metadata=NOT_STORED)
    family: Family = "student"
    reads: tuple[str, ...] = ("output",)
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
        convert_fields(self)
        for name in ("members", "draws", "depth", "crop"):
            check_count(name, getattr(self, name), 2 if name == "crop" else 1)
        for name in ("width", "classes"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), 2)
        ScaleHead(self.family, 1, -1)  # refuses an unknown family
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout!r}")
        if self.loss not in ("exact", "legacy"):
            raise ValueError(f"loss must be exact or legacy, got {self.loss!r}")
        if self.loss == "legacy" and (self.family != "generalized" or self.classes):
            raise ValueError("loss='legacy' is one of the generalised normal; say family='generalized' without classes")
        if self.classes and (self.residual or self.shared or self.family not in ("student", "generalized")):
            raise ValueError(
                "classes have one scale and keep their order; leave family, shared and residual as they are"
            )
        if self.loss == "legacy":
            warn(
                "loss='legacy' is the released code's, kept to compare with: it drives beta to 0.684 whatever the "
                "data, and the variance of normal errors to 3.34 times what it is"
            )

    @outside_inference_mode
    def fit(self, source: Any, calibrate: Any = None, log: Following = None) -> "BayesCapPosterior":
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
        with seeded(self.train.seed):  # a loader may draw its order
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
        """Distribution of the target around the network's answer, with the shape of that answer.

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
    @outside_inference_mode
    def calibrate(self, source: Any) -> Self:
        """A new posterior, calibrated on held-out examples; `self` is left as it was.

        Every scale is multiplied by the one number that makes the held-out targets most likely (of a classifier, the
        temperature). Then the errors over the predicted standard deviations are kept for `interval`.

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

        def cost(log_temperature: float) -> float:
            cap.head.log_temperature.fill_(log_temperature)
            return -float(cap._combined(raws, reads).log_prob(y.squeeze(-1) if kind.scalar else y).double().mean())

        cap.head.log_temperature.fill_(scale_factor(cost))
        if not self.method.classes:
            cap.conformal.keep(scores)
        return type(self)(self.frozen, cap)

    def interval(self, x: Any, mass: float = 0.9) -> tuple[Tensor, Tensor]:
        """Split-conformal interval mean -+ q stddev, hierarchical (Lee et al. 2023, arXiv 2306.06342, section 3).

        The standard deviation is that before `calibrate`, since its factor was fitted to the same examples as q.
        If a new example and the n of `calibrate` are exchangeable, a number drawn at random from its target lies inside
        with probability at least `mass`, whatever the errors' distribution, on average over the examples; the numbers
        within one example may depend on each other in any way.

        Raises:
            ValueError: not calibrated, a mass outside (0, 1), or too few examples for it: 1 / (n + 1) > 1 - mass.
        """
        law: Any = self.cap._predict(self._read(x), stretch=False)
        width = self.cap.conformal.quantile(mass) * law.stddev
        return law.mean - width, law.mean + width
