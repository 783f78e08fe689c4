"""`SSVI`: a Bayesian neural network of which a fixed share of weights is kept, from the first step on."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch

from bayesvision.core.checks import check_count
from bayesvision.core.modules import outside_inference_mode
from bayesvision.core.recipes import NOT_STORED, convert_fields, describe
from bayesvision.core.roles import Following
from bayesvision.methods.ssvi.learning import Learner
from bayesvision.methods.ssvi.model import Model
from bayesvision.methods.ssvi.network import Initial, signature, sparsified, trainable
from bayesvision.methods.ssvi.posterior import SSVIPosterior
from bayesvision.methods.ssvi.selection import Allocation, Criterion
from bayesvision.training.batches import Augment, Minibatches
from bayesvision.training.examples import Inputs, read, scales
from bayesvision.training.loop import minimize
from bayesvision.training.train import Train

__all__ = ["SSVI", "SSVIPosterior"]

LOOKS = 256  # examples on which the network is tried
FRACTIONS = ("exchange", "until", "beta_warmup")


@dataclass(frozen=True)
class SSVI:
    """Sparse subspace variational inference (arXiv 2402.11025): a Bayesian network that is sparse from the first step.

    q(theta) = prod over kept i of N(mu_i, sigma_i^2), and exactly zero elsewhere. Each layer keeps a fixed number of
    weights; which ones is learned. Training minimises, over the kept set S, mu and sigma (eq. 5),

        E_q[-log p(D | theta)] + beta KL(q_S || N(0, prior_std^2)),

    and every `interval` steps lets the weights go that are least by `criterion`, for those with the largest gradients
    of the loss in their means. Between these exchanges, each of which computes the gradient densely, linear layers hold
    and multiply nothing that is not kept. Outputs or weights are drawn for each example (`SparseLayer`).

    Example:
        >>> post = bv.SSVI(net, density=0.05, classes=10).fit(train_loader)
        >>> post.predict(x).probs, post.density, post.compact()

    Args:
        net: a torch module, which is left as it was; its Linear, Conv1d and Conv2d layers become sparse and Bayesian,
            biases Bayesian and all kept. All else is trained as it is, and what is frozen stays. It takes [n, *input]
            and gives [n, classes], or for numbers [n] or [n, outputs].
        density: share of the weights that are kept.
        draws: of the weights, in a prediction.
        classes: of a classifier; None for numbers.
        noise: standard deviation of numbers around the network's output, in the units of the targets: `learned`, one
            for each output; or `output`, exp(s / 2) of a second half of outputs s; or a number.
        beta: weight of the KL; 1 is the evidence lower bound.
        beta_warmup: share of the training over which beta rises from zero.
        prior_std: of the prior of every kept weight; None for sqrt(2 / inputs that an output keeps on average), and 1
            for biases, so that the prior of functions depends neither on width nor on density.
        initial_std: standard deviations at the start, as a fraction of the layer's weights.
        criterion: of what goes (`bayesvision.methods.ssvi.selection.score`).
        exponent: l of the criteria `exponential` and `exponential_snr`.
        allocation: of the density over layers: `erk`, or `uniform` with a dense first layer.
        exchange: share of the kept weights that is exchanged at first; it falls to zero along a cosine.
        interval: steps between exchanges.
        until: share of the training after which the kept set stays.
        micro_batches: batches over which gradients are added up for an exchange.
        initial: `random` places, with the weights of `net` there, enlarged so that outputs keep their size; or
            `trained`: the largest weights of a network that was trained before, as they are.
        standardize: bring targets, and the columns of a table, to mean 0 and standard deviation 1 first; None for
            doing so unless `initial` is `trained`.
        train: how to train; `train.batch` counts examples.

    Raises:
        ValueError: a field is out of range.
    """

    net: Any = field(default=None, metadata=NOT_STORED)
    density: float = 0.1
    draws: int = 32
    classes: int | None = None
    noise: float | Literal["learned", "output"] = "learned"
    beta: float = 1.0
    beta_warmup: float = 0.0
    prior_std: float | None = None
    initial_std: float = 0.01
    criterion: Criterion = "snr"
    exponent: float = 1.0
    allocation: Allocation = "erk"
    exchange: float = 0.3
    interval: int = 100
    until: float = 0.75
    micro_batches: int = 4
    initial: Initial = "random"
    standardize: bool | None = None
    train: Train = field(default_factory=lambda: Train(steps=5_000, batch=128, lr=2e-3))

    def __post_init__(self) -> None:
        convert_fields(self)
        for name in ("draws", "interval", "micro_batches"):
            check_count(name, getattr(self, name))
        if self.classes is not None:
            check_count("classes", self.classes, 2)
        if not 0 < self.density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {self.density!r}")
        for name in FRACTIONS:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)!r}")
        for name in ("prior_std", "initial_std", "exponent"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"beta must be 0 or more, got {self.beta!r}")
        if isinstance(self.noise, float) and not 0 < self.noise < math.inf:
            raise ValueError(f"noise must be a positive number, 'learned' or 'output', got {self.noise!r}")
        if self.classes is not None and self.noise != "learned":
            raise ValueError("noise is that of numbers; leave it out with classes")
        if self.train.execution.sharding == "fsdp":
            raise ValueError("weights are exchanged between steps and cannot be sharded; say sharding='ddp'")

    @classmethod
    def paper(cls, net: Any, density: float = 0.1, **fields: Any) -> Self:
        """The recipe of the paper's code: a tempered KL, 0.01 of it, that rises over the first half of the training.

        prior_std = 0.005, `uniform` density, gradient descent at the rate 0.01 with momentum 0.9 over 20,000 steps.
        Fields that are given take the place of these.
        """
        train = Train(steps=20_000, batch=128, lr=0.01, warmup=0.0, optimizer="sgd")
        paper = {"beta": 0.01, "beta_warmup": 0.5, "prior_std": 0.005, "allocation": "uniform", "train": train}
        return cls(net, density, **(paper | fields))

    @outside_inference_mode
    def fit(self, source: Any, log: Following = None, augment: Augment | None = None) -> SSVIPosterior:
        """Train on the examples of `source`, which is read once and kept.

        Args:
            source: Data(x, y), a map-style Dataset, or a loader of batches (x, y).
            augment: `augment(x, generator)` changes a batch of inputs in training, as a pure function of both.

        Raises:
            TypeError: `net` or `source` is none.
            ValueError: layers that cannot be sparse, targets that do not fit the network's outputs, constant targets,
                labels that are not 0, ..., classes - 1, or numbers that are not finite.
            FloatingPointError: the loss became NaN or infinite.
        """
        names = trainable(self.net)
        seen = read(source, self.train.seed, self.classes, Model.reads_tokens(self.net))
        model = self.untrained(self.net, seen.inputs, names)
        device = self.train.execution.pick_device()
        if self.standardize or (self.standardize is None and self.initial == "random"):
            model.take(scales(seen.examples, seen.inputs, numbers=not self.classes))
        model.to(device)
        batches = Minibatches(seen.examples, self.train, device, augment)
        model.prepare(*(value.to(device) for value in seen.examples.take(torch.arange(min(len(seen.examples), LOOKS)))))
        seen.check_scale()
        method, known = replace(self, net=None), signature(self.net)
        learner = Learner(method, model, batches)
        recipe = {"method": describe(method), "network": known, "examples": seen.examples.digest}
        cost = minimize(model, learner.loss, learner.batch, self.train, recipe, log, between=learner.between)
        metadata = {**cost, "examples": batches.num_data, "noise": model.noise_of()}
        return SSVIPosterior(method, model, metadata, names, known)

    def untrained(self, net: Any, inputs: Inputs, names: list[str]) -> Model:
        """The sparse network before training, with the layers `names` sparse."""
        settings = (self.density, self.allocation, self.initial, self.initial_std, self.train.seed)
        return Model(sparsified(net, names, *settings), self.classes, self.noise, inputs)
