"""One tiny instance of every method; the laws of `test_contract.py` hold for each of them."""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch

from bayesvision import (
    DKM,
    GP,
    LCPFN,
    MCMC,
    MDBM,
    PFN,
    SSVI,
    BayesCap,
    Data,
    DistributionTransformer,
    Execution,
    MetricScale,
    ParticleFilter,
    TablePFN,
    Train,
)
from bayesvision.training.seeds import generator
from priors import BayesianLinear, LearningCurves, LinearGaussian, RandomNetwork, RealisticLearningCurves, programs

FEATURES, ROWS, QUERIES = 2, 12, 7
CONDITIONABLE, STORABLE, JOINT, LATENT = "conditionable", "storable", "joint", "latent"
TRAIN = Train(steps=30, batch=16, lr=1e-2, execution=Execution(device="cpu"))
LINE = BayesianLinear(FEATURES, noise=0.05)


LINEAR = partial(torch.nn.Linear, dtype=torch.float32)
CONV = partial(torch.nn.Conv1d, dtype=torch.float32)


@dataclass(frozen=True)
class Instance:
    """A recipe, the prior that it is fitted to (None if it learns from data alone), and the roles of its posterior."""

    name: str
    method: Any
    roles: frozenset[str]
    prior: Any = None
    classes: int | None = None
    features: int = FEATURES
    smooth: bool = True
    net: Any = None  # that its files do not hold

    @property
    def far(self) -> torch.Tensor:
        """Queries at the end of what may be asked."""
        return torch.tensor([[1e6, -1e6], [1e12, 1e12], [1e15, 0.0]])

    def fit(self, x: Any, y: Any) -> Any:
        """The posterior given the rows (x, y), from scratch."""
        if self.prior is None:
            return self.method.fit(Data(x, y))
        return self.method.fit(self.prior).condition(x, y)

    def learn(self, x: Any, y: Any) -> Any:
        """The same, with what was learned from the prior remembered."""
        return self.fit(x, y) if self.prior is None else base(self).condition(x, y)

    def rows(self, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of one data set, in float64."""
        source = torch.Generator().manual_seed(seed)
        task = (self.prior or LINE).sample(1, count, generator=source)
        return task.x[0].double(), task.y[0] if self.classes else task.y[0].double()


@dataclass(frozen=True)
class CurveInstance(Instance):
    """A method for learning curves: rows are epochs, which occur once each, and y has the units of `scale`."""

    features: int = 1
    horizon: float = 100.0
    scale: MetricScale | None = None

    @property
    def far(self) -> torch.Tensor:
        return self.horizon * torch.tensor([[1e-9], [0.999], [1.0]])

    def fit(self, x: Any, y: Any) -> Any:
        return self.method.fit(self.prior).with_metric(self.horizon, self.scale).condition(x, y)

    def learn(self, x: Any, y: Any) -> Any:
        return base(self).with_metric(self.horizon, self.scale).condition(x, y)

    def rows(self, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        task = self.prior.sample(1, 100, generator=torch.Generator().manual_seed(7))
        first = {1: 0, 3: 40, 2: 70}[seed]
        x, y = task.x[0, first : first + count].double(), task.y[0, first : first + count].double()
        if self.scale is not None or hasattr(self.prior, "bounds"):
            y = y.clamp(0, 1)  # the noise of a prior may pass the bounds of a metric
        return x * self.horizon / 100, y if self.scale is None else self.scale.transform.inv(y)


@dataclass(frozen=True)
class CapInstance(Instance):
    """The learned part of a `BayesCap`, whose inputs are what the network said."""

    features: int = 1

    @property
    def far(self) -> torch.Tensor:
        return torch.tensor([[1e6], [1e12], [1e15]])

    def fit(self, x: Any, y: Any) -> Any:
        return super().fit(x, y).cap

    def rows(self, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = super().rows(count, seed)
        return x[:, :1], y


@dataclass(frozen=True)
class LabelInstance(Instance):
    """A method for classes that learns from data alone."""

    def rows(self, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        task = RandomNetwork(FEATURES, classes=self.classes).sample(1, count, generator=generator("cpu", seed))
        return task.x[0].double(), task.y[0]


@dataclass(frozen=True)
class ImageInstance(LabelInstance):
    """A method for classes of images [1, 4, 5], which are as bright as their class is high."""

    @property
    def far(self) -> torch.Tensor:
        return torch.tensor([1e6, -1e12, 1e15, 0.0]).view(-1, 1, 1, 1).expand(-1, 1, 4, 5)

    def rows(self, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        source = generator("cpu", seed)
        y = torch.randint(0, self.classes or 2, (count,), generator=source)
        x = torch.randn(count, 1, 4, 5, generator=source, dtype=torch.float64)
        return x + y.view(-1, 1, 1, 1) * torch.linspace(0, 2, 5, dtype=torch.float64), y


@dataclass(frozen=True)
class DiscreteInstance(Instance):
    """A method for variables with levels, all of one row: x are their numbers, y what they are.

    `prior` holds the rows that it learns from.
    """

    features: int = 1
    smooth: bool = False

    @property
    def far(self) -> torch.Tensor:
        return torch.tensor([[0.0], [float(len(ORDER) - 1)]])

    def rows(self, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        first = {1: 0, 2: 12, 3: 19}[seed]
        places = ORDER[first : first + count]
        return places.unsqueeze(-1).double(), ROW[places]


class Frozen(torch.nn.Module):
    """A small network whose weights are always the same."""

    def __init__(self, outputs: int | None) -> None:
        super().__init__()
        source = generator("cpu", 0)
        self.input_layer = torch.nn.Parameter(torch.randn(FEATURES, 6, generator=source, dtype=torch.float32))
        self.output_layer = torch.nn.Parameter(torch.randn(6, outputs or 1, generator=source, dtype=torch.float32))
        self.outputs = outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (torch.tanh(x @ self.input_layer) + 0.1 * x @ self.input_layer) @ self.output_layer
        return y if self.outputs else y.squeeze(-1)


def first_column(x: torch.Tensor) -> torch.Tensor:
    """The simplest network."""
    return x[..., 0]


class Shared(torch.nn.Module):
    """A chain of layers and a number of its own; all weights are always the same."""

    def __init__(self, *layers: torch.nn.Module) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(*layers)
        self.gain = torch.nn.Parameter(torch.ones((), dtype=torch.float32))
        for number, value in enumerate(self.parameters()):
            draw = torch.randn(value.shape, generator=generator("cpu", 9, number), dtype=torch.float32)
            value.data = draw / value[0].numel() ** 0.5 if value.ndim > 1 else 1 + 0.1 * draw

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * self.body(x)


def mlp(inputs: int, outputs: int) -> torch.nn.Module:
    return Shared(LINEAR(inputs, 12), torch.nn.Tanh(), LINEAR(12, outputs))


def convolutions(outputs: int) -> torch.nn.Module:
    """Along the columns of a row."""
    first = (torch.nn.Unflatten(1, (1, FEATURES)), CONV(1, 6, 2, padding=1), torch.nn.Tanh())
    return Shared(*first, CONV(6, 4, 2), torch.nn.Tanh(), torch.nn.Flatten(), LINEAR(8, outputs))


def wrapped() -> torch.nn.Module:
    """Layers inside others, norms and numbers of its own."""
    return Shared(mlp(FEATURES, 8), torch.nn.LayerNorm(8, dtype=torch.float32), torch.nn.Tanh(), mlp(8, 2))


@lru_cache
def base(instance: Instance) -> Any:
    """What was learned from the prior, once a run."""
    return instance.method.fit(instance.prior)


@lru_cache
def seen(instance: Instance) -> Any:
    """The posterior given twelve rows, once a run."""
    return instance.learn(*instance.rows(ROWS, seed=1))


def network(**fields: Any) -> PFN:
    return PFN(features=FEATURES, context=32, width=16, layers=2, heads=2, bars=20, train=TRAIN, **fields)


MCMC_LINE = MCMC(programs.model(LINE), warmup=30, draws=40, chains=1)
CURVES = LCPFN(
    rows=(50, 100),
    width=16,
    layers=2,
    heads=2,
    components=4,
    train=Train(steps=30, batch=2, lr=1e-2, execution=Execution(device="cpu")),
)
TABLES = {"columns": 4, "context": 32, "width": 16, "layers": 1, "heads": 2, "train": TRAIN}
SPARSE = {"density": 0.6, "draws": 4, "interval": 10, "train": TRAIN}
KEPT, EXACT = frozenset({STORABLE, LATENT}), frozenset({CONDITIONABLE, STORABLE, JOINT})
CAP = {"reads": ("output", "input"), "width": 8, "depth": 1, "train": TRAIN}
ORDER = torch.randperm(28, generator=generator("cpu", 5))  # of 32 variables with three levels
SHADE = 0.75 * torch.rand(60, 1, generator=generator("cpu", 6), dtype=torch.float64)
GRAIN = 0.25 * torch.rand(60, 32, generator=generator("cpu", 7), dtype=torch.float64)
LEVELS = (3 * (SHADE + GRAIN) ** 1.5).long()
PICTURES = Data(LEVELS.reshape(60, 1, 4, 8) / 2, LEVELS[:, 0])
PICTURE = {"shape": (1, 4, 8), "classes": 3, "grey": 3, "train": TRAIN}
ROW = LEVELS[0]
INSTANCES = (
    Instance("pfn", network(), frozenset({CONDITIONABLE, STORABLE}), LINE),
    Instance("pfn-standardize", network(standardize=True), frozenset({CONDITIONABLE, STORABLE}), LINE),
    Instance(
        "pfn-classes", network(classes=3), frozenset({CONDITIONABLE, STORABLE}), RandomNetwork(FEATURES, classes=3), 3
    ),
    Instance("tables", TablePFN(components=3, **TABLES), frozenset({CONDITIONABLE, STORABLE}), LINE),
    Instance(
        "tables-classes",
        TablePFN(classes=3, **TABLES),
        frozenset({CONDITIONABLE, STORABLE}),
        RandomNetwork(FEATURES, classes=3),
        3,
    ),
    CurveInstance("lcpfn", CURVES, frozenset({CONDITIONABLE, STORABLE}), LearningCurves()),
    CurveInstance("lcpfn-bounds", CURVES, frozenset({CONDITIONABLE, STORABLE}), RealisticLearningCurves()),
    CurveInstance(
        "lcpfn-scale",
        CURVES,
        frozenset({CONDITIONABLE, STORABLE}),
        LearningCurves(),
        horizon=350.0,
        scale=MetricScale(0, 50, 0, 10, minimize=True),
    ),
    Instance(
        "dt",
        DistributionTransformer(components=3, width=16, layers=1, heads=2, train=TRAIN),
        frozenset({CONDITIONABLE, STORABLE, LATENT}),
        LinearGaussian(FEATURES),
    ),
    Instance(
        "particle-filter",
        ParticleFilter(particles=300),
        frozenset({CONDITIONABLE, LATENT}),
        LinearGaussian(FEATURES, noise=1.0),
    ),
    DiscreteInstance("mdbm", MDBM(hidden=(4,), levels=3, train=TRAIN), frozenset({CONDITIONABLE, STORABLE}), LEVELS, 3),
    DiscreteInstance(
        "mdbm-images", MDBM.images(hidden=(), **PICTURE), frozenset({CONDITIONABLE, STORABLE}), PICTURES, 3
    ),
    DiscreteInstance(
        "mdbm-conv", MDBM.images(hidden=(3, 4), **PICTURE), frozenset({CONDITIONABLE, STORABLE}), PICTURES, 3
    ),
    Instance("ssvi", SSVI(mlp(FEATURES, 1), **SPARSE), KEPT, net=mlp(FEATURES, 1)),
    Instance("ssvi-wrapped", SSVI(wrapped(), noise="output", **SPARSE), KEPT, net=wrapped()),
    Instance("ssvi-conv", SSVI(convolutions(1), **SPARSE), KEPT, net=convolutions(1)),
    LabelInstance("ssvi-classes", SSVI(mlp(FEATURES, 3), classes=3, **SPARSE), KEPT, classes=3, net=mlp(FEATURES, 3)),
    Instance("dkm", DKM(layers=1, inducing=8, train=TRAIN), frozenset({CONDITIONABLE, STORABLE, JOINT})),
    Instance(
        "dkm-full", DKM(layers=2, inducing=None, kernel="rbf", train=TRAIN), frozenset({CONDITIONABLE, STORABLE, JOINT})
    ),
    LabelInstance(
        "dkm-classes", DKM(layers=1, inducing=8, classes=3, draws=50, train=TRAIN), frozenset({STORABLE}), classes=3
    ),
    Instance(
        "dkm-noise",
        DKM(layers=1, inducing=8, heteroscedastic=True, train=TRAIN),
        frozenset({CONDITIONABLE, STORABLE, JOINT}),
    ),
    ImageInstance(
        "dkm-conv",
        DKM.conv(shape=(1, 4, 5), classes=3, inducing=(4, 5), ridge=0.1, draws=50, train=TRAIN),
        frozenset({STORABLE}),
        classes=3,
    ),
    Instance("gp", GP(restarts=0, steps=20), EXACT),
    Instance("gp-nngp", GP(kernel="nngp", restarts=0, steps=20), EXACT),
    Instance("mcmc", MCMC_LINE, frozenset({LATENT})),
    Instance("bayescap", BayesCap(Frozen(None), **CAP), frozenset()),
    Instance("bayescap-gaussian", BayesCap(Frozen(None), "gaussian", **CAP), frozenset()),
    Instance("bayescap-student", BayesCap(Frozen(None), "student", residual=True, **CAP), frozenset()),
    Instance("bayescap-members", BayesCap(Frozen(None), "laplace", members=2, **CAP), frozenset()),
    LabelInstance("bayescap-classes", BayesCap(Frozen(3), classes=3, **CAP), frozenset(), classes=3),
    CapInstance("cap", BayesCap(first_column, width=8, train=TRAIN), frozenset({STORABLE})),
)


def playing(role: str) -> list[Instance]:
    """The instances that declare `role`."""
    return [i for i in INSTANCES if role in i.roles]
