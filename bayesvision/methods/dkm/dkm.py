"""`DKM`: a deep kernel machine, which learns the Gram matrix of each layer in the place of its weights."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bayesvision.core.checks import check_count
from bayesvision.core.data import rows_to_fit
from bayesvision.core.modules import outside_inference_mode
from bayesvision.core.recipes import convert_fields
from bayesvision.core.roles import Following, Posterior
from bayesvision.methods.dkm.images import ImageDKM
from bayesvision.methods.dkm.learning import Learned, Rows, centres, learn, penalties, stiffness
from bayesvision.methods.dkm.machine import Machine
from bayesvision.methods.dkm.outputs import GaussianOutput, SoftmaxOutput
from bayesvision.methods.dkm.posterior import DKMClassPosterior, DKMPosterior
from bayesvision.nn.kernels import KernelName
from bayesvision.training.examples import Inputs, read, scales
from bayesvision.training.seeds import generator
from bayesvision.training.train import Train

__all__ = ["DKM"]

LARGEST = 2_000  # rows that may all be inducing points
SEEN = 10_000  # rows that inducing points are chosen from


@dataclass(frozen=True)
class DKM:
    """A deep kernel machine (Yang et al. 2023, arXiv 2108.13097): an infinitely wide deep process that learns.

    With G_0 = x x^T / columns and a kernel K of Gram matrices, it maximises over G_1, ..., G_L (eq. 19)

        log p(y | G_L) - sum_l nu_l KL(N(0, G_l) || N(0, K(G_{l-1}))),

    y = f + noise, f ~ N(0, K(G_L)). At nu = inf the Gram matrices are those of the kernel, and the machine is the
    Gaussian process of an infinitely wide network (NNGP); the less nu, the more is learned. Gram matrices are those of
    `inducing` points, which are learned, and rows follow from them (section 4).

    Columns and targets of numbers have mean 0 and standard deviation 1. All is computed in float64.

    Example:
        >>> post = bv.DKM(layers=2, inducing=100).fit(bv.Data(x, y))
        >>> post.predict(new).interval(0.9), post.drift()

    Args:
        layers: hidden layers; 0 is a sparse Gaussian process.
        inducing: number of inducing points; None takes all rows, up to 2,000, as they are.
        kernel: `arccos`, `gaussian` or `rbf` (`bayesvision.nn.kernels.GramKernel`); `linear` is for checks.
        nu: of all layers, or of each.
        classes: of a classifier; None for numbers.
        heteroscedastic: whether the logarithm of the noise of numbers is a process of the inputs, too, in place of a
            number.
        ard: whether each column has a scale of its own, which is learned.
        draws: of the processes of a classifier, to predict; a tenth of them in training.
        train: how to train; `train.batch` counts rows. No more rows than that are seen whole, and then with constant
            noise the output layer is at its optimum in every step.

    Raises:
        ValueError: a field is out of range.
    """

    layers: int = 2
    inducing: int | None = 256
    kernel: KernelName = "arccos"
    nu: float | tuple[float, ...] = 100.0
    classes: int | None = None
    heteroscedastic: bool = False
    ard: bool = True
    draws: int = 1_000
    train: Train = field(default_factory=lambda: Train(steps=500, batch=1_000, lr=2e-2, max_grad_norm=10.0))

    def __post_init__(self) -> None:
        convert_fields(self)
        check_count("layers", self.layers, 0)
        check_count("draws", self.draws)
        if self.kernel == "linear" and self.classes is not None:
            raise ValueError("kernel='linear' has nothing to learn with classes; it is for checks of numbers")
        if self.heteroscedastic and self.classes is not None:
            raise ValueError("heteroscedastic is about the noise of numbers; leave it out with classes")
        for name, least in (("inducing", 1), ("classes", 2)):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least)
        penalties(self.nu, self.layers)

    @outside_inference_mode
    def fit(self, source: Any, y: Any = None, log: Following = None) -> Posterior:
        """Learn from rows: Data(x, y), x with `y` beside it, a Dataset, or a loader of batches.

        Returns:
            A `DKMPosterior`, or with `classes` a `DKMClassPosterior`.

        Raises:
            TypeError: `source` is none of these.
            ValueError: inputs that are no rows, constant targets, labels that are not 0, ..., classes - 1, numbers that
                are not finite, too many rows for all to be inducing points, or a kernel that is not positive definite.
        """
        source, log = rows_to_fit(source, y, log)
        seen = read(source, self.train.seed, self.classes)
        if len(seen.inputs.shape) != 1:
            raise ValueError(
                f"x must be a table [rows, columns], got inputs of the shape {seen.inputs.shape}; flatten them"
            )
        seen.check_scale()
        if self.inducing is None and len(seen.examples) > LARGEST:
            raise ValueError(
                f"inducing=None takes at most {LARGEST:,} rows, got {len(seen.examples):,}; give a number of points"
            )
        units = scales(seen.examples, seen.inputs, numbers=not self.classes)
        rows = Rows(seen.examples, units, bool(self.classes), self.train)
        model = self.around(_chosen(self, rows), seen.inputs, len(rows))
        cost = learn(self, model, rows, log)
        if self.classes:
            return DKMClassPosterior(self, model, units, seen.inputs, cost).to(rows.device)
        return DKMPosterior.of(self, model, units, seen.inputs, rows, cost)

    @staticmethod
    def conv(shape: tuple[int, int, int], classes: int, **fields: Any) -> ImageDKM:
        """The recipe for images [channels, height, width], `ImageDKM(shape=shape, classes=classes, **fields)`."""
        return ImageDKM(shape=shape, classes=classes, **fields)

    def rebuilt(self, tensors: dict[str, Tensor], inputs: Inputs, rows: int) -> Learned:
        """A machine of the sizes of `tensors`, whose numbers are still to come."""
        return self.around(tensors["model.machine.inducing"], inputs, rows)

    def around(self, inducing: Tensor, inputs: Inputs, rows: int) -> Learned:
        """The machine before training, with these inducing inputs."""
        nu = penalties(self.nu, self.layers)
        bias = 0.0 if self.kernel == "linear" else 0.1
        free = self.inducing is not None and bias > 0
        fixed = tuple(map(math.isinf, nu))
        machine = Machine(inducing, self.layers, self.kernel, self.ard, fixed, free, bias, stiffness(nu))
        if self.classes:
            return Learned(machine, SoftmaxOutput(self.classes, len(inducing), self.draws), nu)
        outputs, batched = max(1, math.prod(inputs.targets)), rows > self.train.batch
        return Learned(machine, GaussianOutput(outputs, len(inducing), batched, self.heteroscedastic), nu)


def _chosen(method: DKM, rows: Rows) -> Tensor:
    """Where inducing inputs start: all rows, or centres of them (k-means++)."""
    if method.inducing is None:
        return rows.take(torch.arange(len(rows)))[0]
    source = generator("cpu", method.train.seed, 1 << 45)
    x = rows.take(torch.randperm(len(rows), generator=source)[:SEEN])[0]
    return centres(x, method.inducing, method.train.seed)
