"""Targets in float64 are not rounded, whatever the inputs are: a timestamp is 1.7e9 and changes by seconds."""

import copy
import warnings

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import rejected
from instances import INSTANCES, base

import bayesvision as bv
from bayesvision import metrics
from bayesvision.distributions import Normal
from bayesvision.methods.pfn.tasks import TaskStream
from priors import BayesianLinear, Task

OFFSET = 1.7e9
X = torch.linspace(-1, 1, 24).unsqueeze(-1)  # float32
Y = torch.sin(3 * X.squeeze(-1).double()) + 0.1 * torch.randn(24, generator=torch.Generator().manual_seed(0)).double()


def line(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 3.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(OFFSET + slope * x[:, 0], noise), obs=y)


def gp(y):
    return bv.GP(restarts=0).fit(bv.Data(X, y))


def mcmc(y):
    return bv.MCMC(line, warmup=50, draws=50, chains=1).fit(bv.Data(X, y))


def pfn(y):
    return bv.pretrained("pfn-gp").condition(X, y)


def table(y):
    return bv.pretrained("pfn-table").condition(X, y)


@pytest.mark.parametrize("fit", [gp, mcmc, pfn, table])
def test_predictions_are_as_fine_as_the_targets(fit):
    far = fit(Y + OFFSET)
    law = far.predict(X)
    assert law.mean.dtype == torch.float64
    assert 0.02 < metrics.rmse(law, Y + OFFSET) < 1.0  # in float32 it would print 0.0000 or 40
    assert law.mean.diff().abs().gt(1e-9).all()
    if fit is not mcmc:
        near = fit(Y).predict(X)
        assert float(metrics.nll(law, Y + OFFSET)) == pytest.approx(float(metrics.nll(near, Y)), abs=1e-2)
        assert fit(Y.float()).predict(X).mean.dtype == torch.float32
        assert fit(Y.float()).predict(X.double()).mean.dtype == torch.float64


def test_a_process_keeps_its_rows_exact_when_it_is_moved():
    far = gp(Y + OFFSET)
    narrow = copy.deepcopy(far).to(torch.float32)
    assert torch.equal(narrow.predict(X).mean, far.predict(X).mean)
    assert torch.equal(narrow.condition(X, Y + OFFSET).predict(X).mean, far.condition(X, Y + OFFSET).predict(X).mean)


@pytest.mark.parametrize("score", [metrics.rmse, metrics.nll, metrics.crps])
def test_scores_do_not_round_the_truth(score):
    truth = Y + OFFSET
    law = Normal((truth + 30).float(), torch.full((24,), 64.0))
    exact = Normal(law.loc.double(), law.scale.double())
    assert float(score(law, truth)) == pytest.approx(float(score(exact, truth)), rel=1e-6)
    assert float(score(law, truth.numpy())) == float(score(law, truth))


def test_a_frame_column_is_scored_in_silence():
    column = pd.Series(np.linspace(0, 1, 4)).where(lambda s: s >= 0)
    column.values.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(metrics.rmse(Normal(torch.zeros(4), torch.ones(4)), column)) > 0


def test_training_standardises_before_it_narrows():
    class Far:
        def sample(self, batch, rows, *, generator):
            task = BayesianLinear().sample(batch, rows, generator=generator)
            return Task(task.x.double() + 3e9, task.y.double() + OFFSET)

    class Near:
        def sample(self, batch, rows, *, generator):
            task = BayesianLinear().sample(batch, rows, generator=generator)
            return Task(task.x.double(), task.y.double())

    method = bv.PFN(standardize=True, train=bv.Train(execution=bv.Execution(device="cpu")))
    for step in (2, 5):
        far, near = (TaskStream(method, prior()).batch(step, 0) for prior in (Far, Near))
        if TaskStream(method, Near()).sizes(step)[2] > 1:
            for a, b in zip(far, near, strict=True):
                assert a.dtype == torch.float32
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# Equal targets are refused where their standard deviation is the unit, and nowhere else


def test_equal_targets_are_data_where_no_scale_is_learnt():
    x, y = X.double(), torch.full((24,), 2.0, dtype=torch.float64)
    given = bv.GP(lengthscale=0.5, noise=0.01, variance=1.0)
    for method in (given, bv.GP(standardize=False, restarts=0)):
        law = method.fit(bv.Data(x, y)).predict(x)
        assert law.mean.sub(2).abs().max() < 0.2 and law.stddev.isfinite().all()
    more = bv.GP(restarts=0).fit(bv.Data(x, Y)).condition(x[:3], y[:3])
    assert more.predict(x).mean.isfinite().all()
    draws = bv.MCMC(line, warmup=20, draws=20, chains=1).fit(bv.Data(x, y + OFFSET))
    assert draws.predict(x).mean.sub(OFFSET + 2).abs().max() < 3
    plain = base(INSTANCES[0])
    assert not plain.method.standardize
    assert plain.condition(X[:5].expand(-1, 2), y[:5]).predict(X.expand(-1, 2)).mean.isfinite().all()


def test_equal_targets_are_refused_where_they_are_the_unit():
    y = torch.full((24,), 2.0)
    with rejected("y is constant"):
        bv.GP().fit(bv.Data(X, y))
    for name in ("pfn-gp", "pfn-table"):
        with rejected("y is constant"):
            bv.pretrained(name).condition(X, y)
