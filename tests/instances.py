"""One tiny instance of every method; the laws of `test_contract.py` hold for each of them."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from bayesvision import GP, MCMC, PFN, Data, Train
from priors import BayesianLinear, RandomNetwork

FEATURES, ROWS, QUERIES = 2, 12, 7
CONDITIONABLE, STORABLE, JOINT, LATENT = "conditionable", "storable", "joint", "latent"
TRAIN = Train(steps=30, batch=16, lr=1e-2, device="cpu")
LINE = BayesianLinear(FEATURES, noise=0.05)


@dataclass(frozen=True)
class Instance:
    """A recipe, the prior that it is fitted to (None if it learns from data alone), and the roles of its posterior."""

    name: str
    method: Any
    roles: frozenset[str]
    prior: Any = None
    classes: int | None = None

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


MCMC_LINE = MCMC(LINE.program(), warmup=30, draws=40, chains=1)
INSTANCES = (
    Instance("pfn", network(), frozenset({CONDITIONABLE, STORABLE}), LINE),
    Instance("pfn-standardize", network(standardize=True), frozenset({CONDITIONABLE, STORABLE}), LINE),
    Instance(
        "pfn-classes", network(classes=3), frozenset({CONDITIONABLE, STORABLE}), RandomNetwork(FEATURES, classes=3), 3
    ),
    Instance("gp", GP(restarts=0, steps=20), frozenset({CONDITIONABLE, STORABLE, JOINT})),
    Instance("mcmc", MCMC_LINE, frozenset({LATENT})),
)


def playing(role: str) -> list[Instance]:
    """The instances that declare `role`."""
    return [i for i in INSTANCES if role in i.roles]
