"""What trains a deep kernel machine: its bound, and the rows in the units that it learns in."""

import math
import os
import warnings
from typing import Any

import numpy as np
import scipy.cluster.vq
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesvision.core.recipes import describe
from bayesvision.core.roles import Following
from bayesvision.methods.dkm.outputs import GaussianOutput, SoftmaxOutput
from bayesvision.training.batches import Augment, Examples, Minibatches
from bayesvision.training.examples import Scales
from bayesvision.training.loop import minimize
from bayesvision.training.train import Train

__all__ = ["Learned", "Rows", "centres", "learn", "penalties", "stiffness"]

STIFF = 1e3  # the largest nu whose layers learn in units of W itself


def penalties(nu: float | tuple[float, ...], layers: int) -> tuple[float, ...]:
    """nu of each layer.

    Raises:
        ValueError: not positive, or not as many as layers.
    """
    values = nu if isinstance(nu, tuple) else (nu,) * layers
    if len(values) != layers:
        raise ValueError(f"nu must be one number, or one for each of {layers} layers, got {len(values)}")
    if not all(value > 0 for value in values):
        raise ValueError(f"nu must be positive, or inf for the infinitely wide network, got {nu!r}")
    return values


def stiffness(nu: tuple[float, ...]) -> tuple[float, ...]:
    """What the parameters of each layer are divided by, so that gradients of large penalties leave room for others."""
    return tuple(1.0 if math.isinf(value) else max(1.0, value / STIFF) ** 0.5 for value in nu)


class Learned(nn.Module):
    """A machine and its output layer, and what training minimises.

    Attributes:
        batched: whether training sees parts of the rows.
    """

    def __init__(self, machine: Any, output: GaussianOutput | SoftmaxOutput, nu: tuple[float, ...]) -> None:
        super().__init__()
        self.machine, self.output = machine, output
        finite = [0.0 if math.isinf(value) else value for value in nu]  # those layers do not move
        self.register_buffer("nu", torch.tensor(finite, dtype=torch.float64), persistent=False)
        self.batched = output.weights is not None

    def loss(self, model: Any, batch: tuple[Tensor, Tensor, int]) -> Tensor:
        """-(bound of log p(y) - sum nu KL) over the rows, of which `batch` holds a part."""
        x, y, count = batch
        seen = model.machine(x)
        told = model.output.batch_bound(seen, y, len(x) / count) if self.batched else model.output.bound(seen, y)
        return -told / len(x) + (self.nu * seen.penalty).sum() / count


class Rows:
    """Examples in float64 and in the units of learning: inputs, and targets [n, outputs] or labels [n].

    Args:
        labels: whether targets are labels.
    """

    def __init__(self, examples: Examples, units: Scales, labels: bool, train: Train) -> None:
        self.examples, self.labels = examples, labels
        self.device = train.execution.pick_device()
        self.units = Scales(*(value if value is None else value.double().to(self.device) for value in units))

    def __len__(self) -> int:
        return len(self.examples)

    def standard(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets in the units of learning."""
        units: Any = self.units
        x = (x.to(self.device).double() - units.x_loc) / units.x_scale
        if self.labels:
            return x, y.to(self.device)
        y = (y.to(self.device).double() - units.y_loc) / units.y_scale
        return x, y.unsqueeze(-1) if y.ndim == 1 else y

    def take(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """The rows at these places."""
        x, y = self.examples.take(places)
        return self.standard(x, y)


def learn(method: Any, model: Learned, rows: Rows, log: Following, augment: Augment | None = None) -> dict[str, Any]:
    """Train `model` by the recipe `method`, and return what it cost.

    Raises:
        ValueError: a `train.start`, several processes, or numbers that became too large.
    """
    train, count = method.train, len(rows)
    parts = Minibatches(rows.examples, train, rows.device, augment)
    if train.start is not None:
        raise ValueError("start must be left out: a deep kernel machine starts from its data, not from another machine")
    if model.batched and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("the output layer learns by natural gradients on one process; train it without torchrun")
    whole = rows.take(torch.arange(count)) if count <= train.batch and augment is None else None

    def batch(step: int, part: int) -> tuple[Tensor, Tensor, int]:
        x, y = rows.standard(*parts(step, part)) if whole is None else whole
        return x, y, count

    recipe = {"method": describe(method), "examples": rows.examples.digest}
    model.to(rows.device)
    cost = minimize(model, model.loss, batch, train, recipe, log, {"rows of data": count})
    if not all(torch.isfinite(value).all() for value in model.state_dict().values()):
        raise ValueError(f"the machine is not finite after training; lower lr={train.lr:g}")
    return cost


def centres(values: Float[Tensor, "n columns"], count: int, seed: int) -> Float[Tensor, "centres columns"]:
    """Centres of the rows by k-means++; the rows themselves, each once, if they are no more than `count`."""
    alone = values.unique(dim=0)
    if len(alone) <= count:
        return alone
    start = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a cluster without rows, which stays where it was
        found, _ = scipy.cluster.vq.kmeans2(values.cpu().numpy(), count, minit="++", rng=start, missing="warn", iter=5)
    return torch.from_numpy(found).to(values)
