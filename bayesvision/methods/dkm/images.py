"""`ImageDKM`: a convolutional deep kernel machine, which classifies images."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bayesvision.core.checks import check_count
from bayesvision.core.modules import outside_inference_mode
from bayesvision.core.recipes import convert_fields
from bayesvision.core.roles import Following
from bayesvision.core.standardize import statistics
from bayesvision.methods.dkm.convolution import ConvMachine
from bayesvision.methods.dkm.learning import Learned, Rows, learn, penalties, stiffness
from bayesvision.methods.dkm.machine import Objective
from bayesvision.methods.dkm.outputs import SoftmaxOutput
from bayesvision.methods.dkm.posterior import DKMClassPosterior
from bayesvision.nn.kernels import KernelName
from bayesvision.training.batches import Augment
from bayesvision.training.examples import Inputs, Scales, read
from bayesvision.training.seeds import generator
from bayesvision.training.train import Train

__all__ = ["ImageDKM"]

UNITS = 5_000  # images that tell the units
START, PLACES = 200, 160_000  # images that inducing patches start from, and their places together


@dataclass(frozen=True)
class ImageDKM:
    """A convolutional deep kernel machine of image classes (Milsom et al. 2023, arXiv 2309.09814).

    Every layer convolves its Gram matrices over patches of 3 x 3, applies the kernel, learns the Gram matrix of its
    inducing patches, and is normalised to the mean 0 and the mean diagonal 1; a block of layers halves height and width
    but for the first. Places are averaged after the last one. Channels have mean 0 and standard deviation 1, and all is
    computed in float64.

    Example:
        >>> post = bv.DKM.conv(shape=(1, 28, 28), classes=10, inducing=(16, 32, 64)).fit(train_loader)
        >>> post.predict(images).probs

    Args:
        shape: channels, height and width.
        classes: number of classes.
        inducing: number of inducing patches of each block.
        layers: of each block.
        kernel: `arccos`, `gaussian` or `rbf`.
        nu: of all layers, or of each.
        ridge: strength of stochastic kernel regularisation (Milsom et al. 2024, arXiv 2410.06171), such as 0.1, which
            draws Gram matrices around those that are learned, in training; 0 for none.
        objective: `kl`, or `taylor` for its second order.
        draws: of the processes, to predict; a tenth of them in training.
        train: how to train; `train.batch` counts images.

    Raises:
        ValueError: a field is out of range.
    """

    shape: tuple[int, int, int] = (1, 28, 28)
    classes: int = 10
    inducing: tuple[int, ...] = (16, 32, 64)
    layers: int = 1
    kernel: KernelName = "gaussian"
    nu: float | tuple[float, ...] = 1.0
    ridge: float = 0.0
    objective: Objective = "kl"
    draws: int = 1_000
    train: Train = field(default_factory=lambda: Train(steps=2_000, batch=128, lr=5e-3, max_grad_norm=10.0))

    def __post_init__(self) -> None:
        convert_fields(self)
        for name, values, least in (
            ("shape", self.shape, 1),
            ("inducing", self.inducing, 2),
            ("classes", (self.classes,), 2),
            ("layers", (self.layers,), 1),
            ("draws", (self.draws,), 1),
        ):
            for value in values:
                check_count(name, value, least)
        if not self.inducing:
            raise ValueError("inducing must hold a number of patches for each block, got none")
        if self.kernel == "linear":
            raise ValueError("kernel must be arccos, gaussian or rbf, got 'linear', which is for checks of tables")
        if not 0 <= self.ridge < math.inf:
            raise ValueError(f"ridge must be 0 or more, got {self.ridge!r}")
        penalties(self.nu, self.layers * len(self.inducing))

    @outside_inference_mode
    def fit(self, source: Any, log: Following = None, augment: Augment | None = None) -> DKMClassPosterior:
        """Learn from `Data(images, labels)`, a Dataset, or a loader of batches, which is read once and kept.

        Args:
            augment: `augment(x, generator)` changes a batch of images in training, as a pure function of both.

        Raises:
            TypeError: `source` is none of these.
            ValueError: images of another size, labels that are not 0, ..., classes - 1, numbers that are not finite, or
                a kernel that is not positive definite.
        """
        seen = read(source, self.train.seed, self.classes)
        if seen.inputs.shape != self.shape:
            advice = "; x.unsqueeze(1) adds the axis of channels" if seen.inputs.shape == self.shape[1:] else ""
            raise ValueError(f"x must hold images of the shape {self.shape}, got {seen.inputs.shape}{advice}")
        count = len(seen.examples)
        places = torch.linspace(0, count - 1, min(count, UNITS), dtype=torch.float64).round().long()
        some = seen.examples.take(places)[0].double()
        loc, scale = (v.view(-1, 1, 1) for v in statistics(some.transpose(0, 1).flatten(1), 1))
        units = Scales(loc, scale, None, None)
        rows = Rows(seen.examples, units, True, self.train)
        model = self.untrained().to(rows.device)
        chosen = torch.randperm(count, generator=generator("cpu", self.train.seed, 1 << 44))
        few = min(START, max(8, PLACES // math.prod(self.shape[1:])))
        model.machine.start(rows.take(chosen[:few])[0], self.train.seed)
        cost = learn(self, model, rows, log, augment)
        return DKMClassPosterior(self, model, units, seen.inputs, cost).to(rows.device)

    def untrained(self) -> Learned:
        """The machine before training."""
        counts = tuple(count for count in self.inducing for _ in range(self.layers))
        strides = tuple(
            2 if block and not layer else 1 for block in range(len(self.inducing)) for layer in range(self.layers)
        )
        nu = penalties(self.nu, len(counts))
        fixed = tuple(map(math.isinf, nu))
        settings = (self.ridge, self.objective, stiffness(nu))
        machine = ConvMachine(self.shape, counts, strides, self.kernel, fixed, *settings)
        return Learned(machine, SoftmaxOutput(self.classes, counts[-1], self.draws), nu)

    def rebuilt(self, tensors: dict[str, Tensor], inputs: Inputs, rows: int) -> Learned:
        """A machine whose numbers are still to come."""
        return self.untrained()
