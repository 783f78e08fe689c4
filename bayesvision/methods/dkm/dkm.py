"""`DKM`: a deep kernel machine, which learns the Gram matrix of each layer in the place of its weights."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.cluster.vq
import torch
from torch import Tensor, nn

from bayesvision.core.checks import check_count
from bayesvision.core.modules import outside_inference_mode
from bayesvision.core.recipes import convert_fields, describe
from bayesvision.core.roles import Log, Posterior
from bayesvision.methods.dkm.kernels import KernelName
from bayesvision.methods.dkm.machine import Machine
from bayesvision.methods.dkm.outputs import GaussianOutput, SoftmaxOutput
from bayesvision.methods.dkm.posterior import DKMClassPosterior, DKMPosterior
from bayesvision.training.batches import Examples, Minibatches
from bayesvision.training.examples import Scales, read, scales
from bayesvision.training.loop import minimize
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
        kernel: `arccos`, `gaussian` or `rbf` (`bayesvision.methods.dkm.kernels.GramKernel`); `linear` is for checks.
        nu: of all layers, or of each.
        classes: of a classifier; None for numbers.
        ard: whether each column has a scale of its own, which is learned.
        draws: of the processes of a classifier, to predict.
        train: how to train; `train.batch` counts rows, and with no more rows than that of numbers the bound is exact in
            the output layer.

    Raises:
        ValueError: a field is out of range.
    """

    layers: int = 2
    inducing: int | None = 256
    kernel: KernelName = "arccos"
    nu: float | tuple[float, ...] = 100.0
    classes: int | None = None
    ard: bool = True
    draws: int = 1_000
    train: Train = field(default_factory=lambda: Train(steps=500, batch=1_000, lr=2e-2, max_grad_norm=10.0))

    def __post_init__(self) -> None:
        convert_fields(self)
        check_count("layers", self.layers, 0)
        check_count("draws", self.draws)
        for name, least in (("inducing", 1), ("classes", 2)):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least)
        if isinstance(self.nu, tuple) and len(self.nu) != self.layers:
            raise ValueError(f"nu must be one number, or one for each of {self.layers} layers, got {len(self.nu)}")
        if not all(value > 0 for value in self.penalties):
            raise ValueError(f"nu must be positive, or inf for the infinitely wide network, got {self.nu!r}")

    @property
    def penalties(self) -> tuple[float, ...]:
        """nu of each layer."""
        return self.nu if isinstance(self.nu, tuple) else (self.nu,) * self.layers

    @outside_inference_mode
    def fit(self, source: Any, log: Log | None = None) -> Posterior:
        """Learn from rows (x, y): a table, a Dataset, or a loader of batches.

        Returns:
            A `DKMPosterior`, or with `classes` a `DKMClassPosterior`.

        Raises:
            TypeError: `source` is none of these.
            ValueError: inputs that are no rows, constant targets, labels that are not 0, ..., classes - 1, numbers that
                are not finite, too many rows for all to be inducing points, or a kernel that is not positive definite.
        """
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
        standard = _standardised(seen.examples, units, bool(self.classes))
        batches = Minibatches(standard, self.train, self.train.execution.pick_device())
        model = self.untrained(_chosen(self, standard), max(1, math.prod(seen.inputs.targets)), batches.num_data)
        model.to(batches.device)
        count = batches.num_data
        whole = None if model.batched else tuple(v.to(batches.device) for v in standard.take(torch.arange(count)))

        def batch(step: int, part: int) -> tuple[Tensor, Tensor, int]:
            x, y = batches(step, part) if whole is None else whole
            return x, y, count

        recipe = {"method": describe(self), "examples": seen.examples.digest}
        cost = minimize(model, model.loss, batch, self.train, recipe, log, {"rows of data": count})
        kind: Any = DKMClassPosterior if self.classes else DKMPosterior
        return kind.of(self, model, units, seen.inputs, standard, cost)

    def untrained(self, inducing: Tensor, outputs: int, rows: int) -> "Learned":
        """The machine before training, with these inducing inputs."""
        fixed = tuple(math.isinf(value) for value in self.penalties)
        bias = 0.0 if self.kernel == "linear" else 0.1
        free = self.inducing is not None and bias > 0
        machine = Machine(inducing, self.layers, self.kernel, self.ard, fixed, free, bias)
        if self.classes:
            output: Any = SoftmaxOutput(self.classes, len(inducing), self.draws)
        else:
            output = GaussianOutput(outputs, len(inducing), rows > self.train.batch)
        return Learned(machine, output, tuple(0.0 if math.isinf(value) else value for value in self.penalties))


class Learned(nn.Module):
    """A machine and its output layer, and what training minimises.

    Attributes:
        batched: whether training sees parts of the rows.
    """

    def __init__(self, machine: Machine, output: Any, nu: tuple[float, ...]) -> None:
        super().__init__()
        self.machine, self.output = machine, output
        self.register_buffer("nu", torch.tensor(nu, dtype=torch.float64), persistent=False)
        self.batched = isinstance(output, SoftmaxOutput) or output.mean is not None

    def loss(self, model: Any, batch: tuple[Tensor, Tensor, int]) -> Tensor:
        """-(bound of log p(y) - sum nu KL) over the rows."""
        x, y, count = batch
        seen = model.machine(x)
        told = model.output.batch_bound(seen, y, len(x) / count) if self.batched else model.output.bound(seen, y)
        return -told / len(x) + (self.nu * seen.kl).sum() / count


def _standardised(examples: Examples, units: Scales, labels: bool) -> Examples:
    """Rows in float64 and in the units of learning, targets [n, outputs] or labels [n]."""
    found = Examples()
    for places in torch.arange(len(examples)).split(4096):
        x, y = examples.take(places)
        x = (x.double() - units.x_loc) / units.x_scale  # pyright: ignore[reportOperatorIssue]
        if not labels:
            y = (y.double() - units.y_loc) / units.y_scale  # pyright: ignore[reportOperatorIssue]
            y = y.unsqueeze(-1) if y.ndim == 1 else y
        found.add(x, y)
    return found


def _chosen(method: DKM, examples: Examples) -> Tensor:
    """Where inducing inputs start: all rows, or centres of them (k-means++)."""
    rows = torch.arange(len(examples))
    if method.inducing is None:
        return examples.take(rows)[0]
    source = generator("cpu", method.train.seed, 1 << 45)
    rows = torch.randperm(len(examples), generator=source)[:SEEN]
    x = examples.take(rows)[0]
    count = min(method.inducing, len(x))
    if count == len(x):
        return x
    start = np.random.default_rng(method.train.seed)
    centres, _ = scipy.cluster.vq.kmeans2(x.numpy(), count, minit="++", rng=start, missing="warn", iter=5)
    return torch.from_numpy(centres)
