import subprocess
import sys

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from instances import INSTANCES, LATENT, QUERIES, seen

import bayesvision as bv
import priors
from bayesvision.core.roles import Sampled
from bayesvision.integrations.arviz import to_arviz, to_datatree
from priors import programs

arviz = pytest.importorskip("arviz")
pytestmark = pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")
LINEAR = priors.BayesianLinear(1, noise=0.1)
PLAIN = {i.name: i for i in INSTANCES}


def line(x, y=None):
    slope, intercept = pyro.sample("model/slope", dist.Normal(0, 1)), pyro.sample("intercept", dist.Normal(0, 1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(slope * x[:, 0] + intercept, 0.1**0.5), obs=y)


def rows(count=30):
    x = torch.linspace(-1, 1, count, dtype=torch.float64).unsqueeze(-1)
    noise = torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, 0.4 - 0.8 * x[:, 0] + 0.1**0.5 * noise


@pytest.fixture(scope="module")
def sampled():
    return bv.MCMC(line, warmup=100, draws=300, chains=2, seed=1).fit(bv.Data(*rows()))


def test_leave_one_out_is_that_of_the_closed_form(sampled):
    x, y = rows()
    exact = sum(
        LINEAR.posterior(x[kept], y[kept]).predict(x[k : k + 1]).log_prob(y[k : k + 1]).item()
        for k in range(len(x))
        if (kept := torch.arange(len(x)) != k).any()
    )
    found = arviz.loo(to_arviz(sampled))
    elpd = getattr(found, "elpd_loo", None) or found.elpd
    assert abs(elpd - exact) < 0.25  # Monte Carlo error of 600 draws is near 0.05
    whole = LINEAR.posterior(x, y).predict(x).log_prob(y).sum().item()
    assert whole - elpd > 1  # in-sample density is no leave-one-out


def test_groups_hold_what_was_drawn(sampled):
    x, y = rows()
    tree = to_datatree(sampled)
    assert isinstance(tree, xarray.DataTree)
    groups = {"posterior", "posterior_predictive", "log_likelihood", "observed_data", "constant_data", "sample_stats"}
    assert set(tree.children) == groups
    slope = tree["posterior"]["model.slope"]
    assert slope.dims == ("chain", "draw") and slope.shape == (2, 300)
    assert np.array_equal(slope.values.reshape(-1), sampled.latent["model/slope"].numpy())
    assert np.array_equal(tree["observed_data"]["y"], y) and np.array_equal(tree["constant_data"]["x"], x)
    assert tree["sample_stats"]["diverging"].shape == (2, 300)
    mean = slope.values[..., None] * x[:, 0].numpy() + tree["posterior"]["intercept"].values[..., None]
    truth = torch.distributions.Normal(torch.as_tensor(mean), 0.1**0.5).log_prob(y)
    assert np.allclose(tree["log_likelihood"]["y"], truth)
    drawn = tree["posterior_predictive"]["y"]
    assert drawn.dims == ("chain", "draw", "row")
    z = (drawn.values - mean) / 0.1**0.5  # 18,000 standard normals: 4 standard errors, rate 1e-4
    assert abs(z.mean()) < 4 / z.size**0.5 and abs(z.std() - 1) < 4 / (2 * z.size) ** 0.5
    assert tree.equals(to_datatree(sampled)) and not tree.equals(to_datatree(sampled, seed=1))


@pytest.mark.parametrize("name", ["mcmc", "ssvi", "ssvi-conv", "ssvi-classes", "dt"])
def test_arviz_runs_on_every_posterior_with_draws(name):
    instance = PLAIN[name]
    posterior = seen(instance)
    assert isinstance(posterior, Sampled)
    data = bv.Data(*instance.rows(QUERIES, seed=2)) if name.startswith("ssvi") else None
    tree = to_arviz(posterior, data, draws=200)
    table = arviz.summary(tree)
    assert len(table) >= 2 and np.isfinite(np.asarray(table["mean"], dtype=float)).all()
    if name != "mcmc":  # whose rows depend on one another
        loo = arviz.loo(tree)
        assert np.isfinite(getattr(loo, "elpd_loo", None) or loo.elpd)
    assert (
        arviz.plot_trace(tree, var_names=[next(iter(to_datatree(posterior, data)["posterior"].data_vars))]) is not None
    )


def test_every_posterior_with_a_latent_role_and_draws_is_told_alike():
    """Means of the draws are those of what the posterior says of its latent variables."""
    posterior = seen(PLAIN["dt"])
    theta = to_datatree(posterior, draws=4_000)["posterior"]["theta"].values.reshape(4_000, -1)
    latent = posterior.latent
    error = latent.stddev.numpy() / 4_000**0.5
    assert (abs(theta.mean(0) - latent.mean.numpy()) < 4 * error).all()  # rate 1e-4
    posterior = seen(PLAIN["ssvi"])
    x = PLAIN["ssvi"].rows(QUERIES, seed=2)[0]
    tree = to_datatree(posterior, bv.Data(x), draws=2_000)
    for name, law in posterior.latent.items():
        drawn = tree["posterior"][name].values.reshape(2_000, -1)
        error = law.scale.detach().numpy() / 2_000**0.5
        assert (abs(drawn.mean(0) - law.loc.detach().numpy()) < 5 * error).all()  # 40 entries, rate 3e-5
    assert "observed_data" not in tree.children and "log_likelihood" not in tree.children
    assert {i.name for i in INSTANCES if LATENT in i.roles} >= {"dt", "ssvi", "mcmc"}


def test_rows_that_depend_on_one_another_have_no_log_likelihood():
    posterior = bv.MCMC(programs.model(LINEAR), warmup=20, draws=20, chains=1).fit(bv.Data(*rows()))
    tree = to_datatree(posterior)
    assert "log_likelihood" not in tree.children and tree["posterior"]["weights"].shape == (1, 20, 1)


def test_predictions_and_posteriors_without_draws():
    x, y = rows()
    posterior = LINEAR.posterior(x, y)
    law = posterior.predict(x)
    for source, data in ((law, bv.Data(x, y)), (bv.GP(steps=10, restarts=0).fit(bv.Data(x, y)), bv.Data(x, y))):
        tree = to_datatree(source, data, draws=400)
        assert set(tree.children) >= {"posterior_predictive", "observed_data"} and "posterior" not in tree.children
        assert tree["posterior_predictive"]["y"].shape == (4, 100, len(x))
    classes = seen(PLAIN["pfn-classes"])
    x, y = PLAIN["pfn-classes"].rows(QUERIES, seed=2)
    tree = to_datatree(classes, bv.Data(x, y.numpy().astype(float)))
    assert tree["observed_data"]["y"].dtype.kind == "i"


def test_rows_that_are_text_and_targets_of_several_outputs():
    frame = pd.DataFrame({"age": [31.0, 45, 50, 62], "city": ["Oslo", "Rome", "Rome", "Oslo"]})
    post = bv.pretrained("pfn-table").condition(frame, [3.1, 4.4, 4.0, 6.3])
    tree = to_datatree(post, bv.Data(frame, [3.1, 4.4, 4.0, 6.3]), draws=40)
    assert tree["observed_data"]["y"].shape == (4,) and "constant_data" not in tree.children
    law = bv.distributions.Normal(torch.zeros(5, 2), torch.ones(5, 2))
    tree = to_datatree(law, bv.Data(torch.zeros(5, 1), torch.ones(5, 2)), draws=40)
    assert tree["observed_data"]["y"].shape == (5, 2)


def test_new_rows_of_a_process_have_no_log_likelihood():
    from priors.families import ProcessHyperparameters

    train = bv.Train(steps=3, batch=4)
    recipe = bv.DistributionTransformer(components=2, width=16, layers=1, heads=2, train=train)
    post = recipe.fit(ProcessHyperparameters())
    x = torch.linspace(0, 1, 5, dtype=torch.float64).unsqueeze(-1)
    seen = post.condition(x, torch.sin(x[:, 0]))
    for tree in (to_datatree(seen, draws=40), to_datatree(seen, bv.Data(x + 0.1, torch.sin(x[:, 0])), draws=40)):
        assert "log_likelihood" not in tree.children and "posterior" in tree.children


def test_mistakes_are_named():
    x, y = rows()
    gp = bv.GP(steps=5, restarts=0).fit(bv.Data(x, y))
    with pytest.raises(ValueError, match=r"data=Data\(x, y\)"):
        to_datatree(gp)
    with pytest.raises(ValueError, match="draws must be"):
        to_datatree(gp, bv.Data(x), draws=2)
    with pytest.raises(TypeError, match="source must be a posterior"):
        to_datatree(bv.GP())  # pyright: ignore
    with pytest.raises(TypeError, match="data must be Data"):
        to_datatree(gp, x)  # pyright: ignore
    with pytest.raises(ValueError, match="does not keep those"):
        to_datatree(seen(PLAIN["ssvi"]))
    with pytest.raises(ValueError, match="one finite value for each row"):
        to_datatree(gp, bv.Data(x, y[:3]))


def test_a_missing_package_names_its_extra():
    code = "import sys; sys.modules['arviz'] = None; import bayesvision.integrations.arviz"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "bayesvision[arviz]"' in ran.stderr
