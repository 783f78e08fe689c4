"""What must hold where there is an accelerator: it trains, draws the same tasks, and predicts as the CPU does."""

import pytest
import torch

import bayesvision as bv
from bayesvision.training.seeds import generator
from priors import BayesianLinear, GaussianProcessMixture, LearningCurves, StructuralTables

pytestmark = pytest.mark.skipif(not torch.accelerator.is_available(), reason="there is no accelerator")
TRAIN = {"steps": 40, "batch": 16, "lr": 3e-3}
RECIPES = {
    "pfn": (lambda train: bv.PFN(features=2, context=32, width=16, layers=2, heads=2, train=train), BayesianLinear(2)),
    "tables": (
        lambda train: bv.TablePFN(columns=4, context=32, width=16, layers=1, heads=2, train=train),
        StructuralTables((1, 4)),
    ),
    "curves": (lambda train: bv.LCPFN(rows=(10, 30), width=16, layers=2, heads=2, train=train), LearningCurves()),
}


@pytest.fixture
def device():
    return torch.accelerator.current_accelerator()


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_training_lowers_the_loss(name, precision):
    method, prior = RECIPES[name]
    losses = []

    class Log:
        def log(self, metrics, step):
            losses.append(metrics["loss"])

    posterior = method(bv.Train(**TRAIN, precision=precision)).fit(prior, Log())
    assert posterior.device.type == torch.accelerator.current_accelerator().type
    assert sum(losses[-10:]) < sum(losses[:10])


def test_sparse_layers_agree_with_the_cpu(device):
    x, y = torch.rand(200, 3, generator=generator("cpu", 0)), torch.rand(200, generator=generator("cpu", 1))
    net = torch.nn.Sequential(torch.nn.Linear(3, 300), torch.nn.ReLU(), torch.nn.Linear(300, 1))
    post = bv.SSVI(net, density=0.1, train=bv.Train(steps=250, batch=32, execution=bv.Execution(device="cpu"))).fit(
        bv.Data(x, y)
    )
    here, there = post.predict(x), post.to(device).predict(x)
    torch.testing.assert_close(there.mean.cpu(), here.mean, rtol=1e-3, atol=1e-3)
    again = bv.SSVI(net, density=0.1, train=bv.Train(steps=250, batch=32)).fit(bv.Data(x, y))
    assert next(again.parameters()).device.type == device.type


@pytest.mark.parametrize("prior", [BayesianLinear(2), GaussianProcessMixture(2), StructuralTables((2, 2))])
def test_a_batch_is_finite_and_a_function_of_the_seed(prior, device):
    first, second = (prior.sample(8, 20, generator=generator(device, 3, 5)) for _ in range(2))
    assert first.x.device.type == device.type and torch.equal(first.x.nan_to_num(), second.x.nan_to_num())
    assert torch.equal(first.y, second.y) and first.y.double().isfinite().all()


@pytest.mark.parametrize("name", ["pfn-gp", "pfn-table"])
def test_shipped_networks_predict_as_on_the_cpu(name, device):
    task = BayesianLinear(2, noise=0.05).sample(1, 60, generator=generator("cpu", 1))
    x, y, new = task.x[0, :40].double(), task.y[0, :40].double(), task.x[0, 40:].double()
    here = bv.pretrained(name).condition(x, y).predict(new)
    there = bv.pretrained(name).to(device).condition(x, y).predict(new)
    for quantity in ("mean", "stddev"):
        a, b = getattr(here, quantity), getattr(there, quantity).cpu()
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", RECIPES)
def test_a_checkpoint_moves_between_devices(name, tmp_path, device):
    method, prior = RECIPES[name]
    there = method(bv.Train(**TRAIN)).fit(prior)
    bv.save(there, tmp_path / "a.safetensors")
    here, again = bv.load(tmp_path / "a.safetensors"), bv.load(tmp_path / "a.safetensors", device=device)
    assert here.device.type == "cpu" and again.device.type == device.type
    for a, b in zip(here.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b.cpu())


def test_a_conditioned_posterior_moves(device):
    x = torch.linspace(-1, 1, 20).double().unsqueeze(-1)
    y, new = x[:, 0].sin(), torch.linspace(-0.9, 0.9, 7).double().unsqueeze(-1)
    for post in (bv.GP(restarts=0).fit(bv.Data(x, y)), bv.pretrained("pfn-table").condition(x, y)):
        here, there = post.predict(new), post.to(device).predict(new.to(device))
        torch.testing.assert_close(there.mean.cpu(), here.mean, rtol=1e-3, atol=1e-3)
