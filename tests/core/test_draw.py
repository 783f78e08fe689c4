"""What priors may return, and what they are told when they return something else."""

from collections import namedtuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import rejected

import bayesvision as bv
from bayesvision.core.checks import draw
from bayesvision.training.seeds import generator
from priors import BayesianLinear, LearningCurves, PriorMixture, Task
from priors.programs.prior import PyroPrior

TRAIN = bv.Train(steps=2, batch=2, execution=bv.Execution(device="cpu"))
SMALL = bv.PFN(features=2, width=16, layers=1, heads=2, bars=10, context=8, train=TRAIN)


class Returning:
    """A prior whose draws are changed before they are returned."""

    def __init__(self, change, prior=None):
        self.change, self.prior = change, prior or BayesianLinear()

    def sample(self, batch, rows, *, generator):
        task = self.prior.sample(batch, rows, generator=generator)
        return self.change(task.x, task.y)


@pytest.mark.parametrize("change", [lambda x, y: (x, y), lambda x, y: [x, y], namedtuple("Mine", "x y"), Task])
def test_a_plain_tuple_is_taken_and_trains_the_same_bits(change):
    whole = SMALL.fit(BayesianLinear())
    other = SMALL.fit(Returning(change))
    assert all(torch.equal(v, other.network.state_dict()[k]) for k, v in whole.network.state_dict().items())
    curves = bv.LCPFN(rows=(10, 12), width=16, layers=1, heads=2, components=2, train=TRAIN)
    assert curves.fit(Returning(change, LearningCurves())).metadata["curves"] > 0
    tables = bv.TablePFN(columns=2, context=8, width=16, layers=1, heads=2, train=TRAIN)
    assert tables.fit(Returning(change)).metadata["tasks"] > 0
    mixed = PriorMixture((Returning(change), BayesianLinear(2)))
    assert mixed.sample(5, 4, generator=generator("cpu", 0)).x.shape == (5, 4, 2)
    pit = bv.metrics.simulation_based_calibration(whole.condition, Returning(change), tasks=2, rows=4)
    assert pit.shape == (2,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: x, "Returning must return an object with the tensors x and y.*got Tensor"),
        (lambda x, y: (x, y, 0), "tuple of both, got tuple"),
        (lambda x, y: {"x": x, "y": y}, "got dict"),
        (lambda x, y: (x.numpy(), y), "got tuple"),
        (lambda x, y: (x[..., 0], y), r"must draw x \[3, 4, features\] and y \[3, 4\], got \[3, 4\] and \[3, 4\]"),
        (lambda x, y: (x, y[:, :2]), r"got \[3, 4, 1\] and \[3, 2\]"),
        (lambda x, y: (x, y / 0), r"Returning drew y\[0, 0\] = -?(inf|nan) in the batch \(7, 1\)"),
    ],
)
def test_other_draws_are_refused_by_name(change, message):
    with rejected(message):
        draw(Returning(change), 3, 4, generator("cpu", 0), (7, 1))


def test_a_program_may_have_a_fixed_grid():
    def program(rows):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        x = torch.linspace(0, 1, rows).unsqueeze(-1)
        with pyro.plate("rows", rows):
            y = pyro.sample("y", dist.Normal(slope * x[:, 0], 0.1))
        return x, y

    task = PyroPrior(program).sample(3, 6, generator=generator("cpu", 0))
    assert task.x.shape == (3, 6, 1) and torch.equal(task.x[0], task.x[2])
    assert not torch.equal(task.y[0], task.y[2])
    assert SMALL.fit(PyroPrior(program)).predict(task.x[0]).mean.shape == (6,)
