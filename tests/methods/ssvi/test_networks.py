"""Odd networks, odd data, and what is refused."""

from dataclasses import replace

import pytest
import torch
from sparse_nets import CPU, QUICK, draws, net, rows
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import bayesvision as bv
from bayesvision import SSVI, Data, Execution, Train
from bayesvision.methods.ssvi.layers import SparseConv, SparseLinear
from bayesvision.methods.ssvi.network import dense_gradients, layers_of, sparsified
from bayesvision.training.seeds import generator, seeded

# --- odd networks and odd data


class Reads(nn.Module):
    """Uses the weight of one layer without calling it."""

    def __init__(self):
        super().__init__()
        with seeded(0):
            self.first, self.last = nn.Linear(3, 16), nn.Linear(16, 1)

    def forward(self, x):
        return self.last(torch.tanh(nn.functional.linear(x, self.first.weight, self.first.bias)))


def test_a_layer_whose_weight_is_read_is_bayesian_too():
    x, y = rows(300)
    train = Train(steps=500, batch=32, lr=1e-2, execution=CPU)
    post = SSVI(Reads(), density=1.0, train=train).fit(Data(x, y))
    assert float((post.predict(x).mean - y).square().mean().sqrt()) < 0.25
    assert float(post.latent["first.weight"].scale.mean()) < 0.3 * layers_of(post.model.network)["first"].natural_std
    gradients = dense_gradients(layers_of(post.model), [lambda: post.model(x.float()).square().mean()])
    post.model.train()
    training = dense_gradients(layers_of(post.model), [lambda: post.model(x.float()).square().mean()])
    assert float(training["network.first"].abs().max()) > 0 and float(gradients["network.last"].abs().max()) > 0


def test_frozen_layers_stay_dense_and_as_they_are(tmp_path):
    own = net()
    own[0].requires_grad_(False)
    x, y = rows()
    post = SSVI(own, density=0.5, train=QUICK).fit(Data(x, y))
    assert list(layers_of(post.model.network)) == ["2"]
    assert torch.equal(post.model.network[0].weight, own[0].weight)
    assert "0: Linear" in repr(post).split("deterministic:")[1]
    bv.save(post, tmp_path / "s.safetensors")
    loaded = bv.load(tmp_path / "s.safetensors", net=net())  # whose weights are not frozen
    assert torch.equal(loaded.predict(x).mean, post.predict(x).mean)


def test_a_trained_network_in_its_own_units_learns_its_noise():
    x, y = rows(300)
    own, big = net(), 1_000 * y
    own.load_state_dict(own.state_dict() | {"2.weight": 300 * own[2].weight.detach()})
    train = Train(steps=400, batch=64, lr=2e-3, execution=CPU)
    post = SSVI(own, density=1.0, initial="trained", train=train).fit(Data(x, big))
    law = post.predict(x)
    rmse = float((law.mean - big).square().mean().sqrt())
    assert 0.5 * rmse < post.metadata["noise"] < 2 * rmse


@pytest.mark.parametrize("own", [nn.Sequential(*net(), nn.Flatten(0)), net()])
def test_a_last_batch_axis_of_one_stays(own):
    x, y = rows()
    post = SSVI(own, density=0.5, draws=2, train=QUICK).fit(Data(x, y))
    assert post.predict(x[:1]).batch_shape == (1,)
    assert post.predict(x[:6].view(6, 1, 3)).batch_shape == (6, 1)
    assert post.compact()(x[:1].float()).shape == (1,)


def test_large_numbers_that_vary_little():
    x, y = rows(200)
    train = Train(steps=300, batch=64, lr=1e-2, execution=CPU)
    plain = SSVI(net(), density=0.6, train=train).fit(Data(x, y)).predict(x)
    moved = x + torch.tensor([1.7e9, 0.0, 0.0], dtype=torch.float64)
    law = SSVI(net(), density=0.6, train=train).fit(Data(moved, y + 1e9)).predict(moved)
    torch.testing.assert_close(law.mean - 1e9, plain.mean, rtol=0, atol=1e-2)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_networks_of_other_precisions(kind, tmp_path):
    x, y = rows()
    own = net().to(kind)
    post = SSVI(own, density=0.15, draws=2, train=QUICK).fit(Data(x.float(), y.float()))
    expected = torch.float64 if kind == torch.float64 else torch.float32
    assert post.model.kind == expected and len(post.latent["0.weight"].scale.unique()) > 3
    plain = post.compact()
    for inputs in (x, x.float()):
        torch.testing.assert_close(plain(inputs).double(), plain(x).double(), rtol=1e-3, atol=1e-4)
    bv.save(post, tmp_path / "s.safetensors")
    loaded = bv.load(tmp_path / "s.safetensors", net=net().to(kind))
    for inputs in (x, x.float()):
        assert torch.equal(loaded.predict(inputs).mean, post.predict(inputs).mean)


def test_half_precision_of_the_products():
    x, y = rows()
    post = SSVI(net(3, 200), density=0.1, train=replace(QUICK, precision="bfloat16")).fit(Data(x, y))
    assert post.predict(x).mean.isfinite().all()


def test_tokens_stay_whole_numbers():
    x = torch.randint(20, (200, 5), generator=generator("cpu", 0))
    y = (x == 3).any(1).long()
    with seeded(0):
        own = nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(40, 2))
    post = SSVI(own, density=0.5, classes=2, train=replace(QUICK, steps=200)).fit(Data(x, y))
    assert float(bv.metrics.accuracy(post.predict(x), y)) > 0.9
    torch.testing.assert_close(post.compact()(x), post.model(x))
    assert post.cost.total.kept > 0
    with pytest.raises(ValueError, match="whole numbers"):
        post.predict(x + 0.5)


def test_a_grouped_convolution_before_another_is_compact():
    with seeded(0):
        layers = (
            nn.Conv2d(1, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.ReLU(),
            nn.Conv2d(8, 4, 1),
            nn.Flatten(),
        )
        own = nn.Sequential(*layers, nn.Linear(16, 2))
    x = draws(0, 40, 1, 6, 6).float()
    post = SSVI(own, density=0.1, classes=2, train=QUICK).fit(Data(x, (x.sum((1, 2, 3)) > 0).long()))
    torch.testing.assert_close(post.compact()(x), post.model(x), rtol=1e-4, atol=1e-5)


def test_a_transformer_is_compact():
    with seeded(0):
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 1)
        own = nn.Sequential(encoder, nn.Flatten(), nn.Linear(24, 2))
    x = draws(0, 60, 3, 8).float()
    post = SSVI(own, density=0.3, classes=2, draws=2, train=QUICK).fit(Data(x, (x[:, 0, 0] > 0).long()))
    with torch.no_grad():
        torch.testing.assert_close(post.compact()(x), post.model(x), rtol=1e-3, atol=1e-4)


def test_a_posterior_inside_a_module_that_trains_predicts_the_same(fitted):
    post, x, _ = fitted
    said = post.predict(x).mean
    nn.ModuleList([post]).train()
    assert torch.equal(post.predict(x).mean, said)


def test_a_shuffling_loader_gives_the_same_bits_and_leaves_the_generator_alone():
    x, y = rows()
    recipe = SSVI(net(), density=0.4, draws=2, train=QUICK)
    before = torch.get_rng_state()
    posts = [recipe.fit(DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(posts[0].predict(x).mean, posts[1].predict(x).mean)


def test_a_run_of_another_network_or_other_data_is_refused(tmp_path):
    x, y = rows()
    where = replace(QUICK, execution=Execution(device="cpu", checkpoint_dir=str(tmp_path)))
    SSVI(net(), density=0.4, train=where).fit(Data(x, y))
    relu = net()
    relu[1] = nn.ReLU()
    for own, data in ((relu, Data(x, y)), (net(), Data(x, -y)), (net(), Data(x[:79], y[:79]))):
        with pytest.raises(ValueError, match="state of another recipe"):
            SSVI(own, density=0.4, train=where).fit(data)


def test_exchanges_leave_batch_norms_alone():
    x, y = rows()
    with seeded(0):
        own = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))
    post = SSVI(own, density=0.5, interval=5, train=QUICK).fit(Data(x, y))
    assert int(post.model.network[1].num_batches_tracked) == QUICK.steps


def test_one_of_several_targets_is_constant():
    x, y = rows(20)
    with pytest.raises(ValueError, match="y is constant"):
        SSVI(net(outputs=2), train=QUICK).fit(Data(x, torch.stack([y, torch.ones(20)], -1)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.utils.spectral_norm(nn.Linear(3, 1)), "has hooks"),
        (lambda: nn.utils.weight_norm(nn.Linear(3, 1)), "has hooks"),
        (lambda: nn.Linear(3, 1, dtype=torch.complex64), "complex64"),
        (lambda: nn.Linear(3, 1, device="meta"), "meta device"),
        (lambda: nn.Linear(3, 1).requires_grad_(False), "only frozen ones"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_layers_that_cannot_be_sparse(make, words):
    with pytest.raises(ValueError, match=words):
        SSVI(make(), density=0.5, train=QUICK).fit(Data(*rows()))


# --- what is refused


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"density": 0.0}, r"density must lie in \(0, 1\]"),
        ({"density": 1.5}, "density"),
        ({"draws": 0}, "draws"),
        ({"classes": 1}, "classes"),
        ({"noise": -1.0}, "noise must be a positive number"),
        ({"noise": "output", "classes": 3}, "leave it out with classes"),
        ({"beta": -1.0}, "beta"),
        ({"prior_std": 0.0}, "prior_std"),
        ({"until": 1.5}, "until"),
        ({"train": Train(execution=Execution(sharding="fsdp"))}, "ddp"),
    ],
)
def test_bad_recipes(fields, words):
    with pytest.raises(ValueError, match=words):
        SSVI(net(), **fields)


def shared():
    own = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 1))
    own[2].weight = own[0].weight
    return own


def twice():
    one = nn.Linear(3, 3)
    return nn.Sequential(one, one, nn.Linear(3, 1))


@pytest.mark.parametrize(
    ("own", "error", "words"),
    [
        (shared(), ValueError, r"0\.weight is 2\.weight too"),
        (twice(), ValueError, r"0\.weight is 1\.weight too"),
        (nn.Sequential(nn.LayerNorm(3), nn.ReLU()), ValueError, "Linear, Conv1d or Conv2d layer .* got LayerNorm"),
        (nn.Sequential(nn.LazyLinear(3)), ValueError, "lazy"),
        (lambda x: x, TypeError, "torch module"),
        (nn.Linear(4, 1), ValueError, r"net must take inputs of the shape \(80, 3\)"),
        (nn.Linear(3, 2), ValueError, r"net must give 1 numbers an example"),
    ],
)
def test_bad_networks(own, error, words):
    with pytest.raises(error, match=words):
        SSVI(own, density=0.5, train=QUICK).fit(Data(*rows()))


class Endless(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (Endless(), ValueError, "wrap it in a DataLoader"),
        (5, TypeError, "Data\\(x, y\\), a Dataset or a loader"),
        ([], ValueError, "no batch"),
        ([torch.zeros(3, 3)], ValueError, r"batches \(x, y\)"),
        ([(torch.zeros(3, 3), torch.zeros(4))], ValueError, "one value for each row"),
        ([(torch.full((3, 3), torch.nan), torch.zeros(3))], ValueError, "x must be finite .* example 0"),
        ([(torch.zeros(3, 3), torch.arange(3.0)), (torch.zeros(3, 4), torch.arange(3.0))], ValueError, "one shape"),
    ],
)
def test_bad_sources(source, error, words):
    with pytest.raises(error, match=words):
        SSVI(net(), train=QUICK).fit(source)


def test_labels_out_of_range_are_refused():
    x, _ = rows(20)
    with pytest.raises(ValueError, match="classes 0 to 2"):
        SSVI(net(outputs=3), classes=3, train=QUICK).fit(Data(x, torch.arange(20) % 4))


def test_a_layer_too_small_for_the_density_keeps_one_weight_of_every_output():
    post = SSVI(net(), density=1e-6, train=QUICK).fit(Data(*rows()))
    assert {k: len(v.index) for k, v in layers_of(post.model.network).items()} == {"0": 32, "2": 1}


def test_layers_of_these_classes_alone_become_sparse():
    sparse = sparsified(net(), ["0", "2"], 0.5, "erk", "random", 0.1, 0)
    assert {type(v) for v in layers_of(sparse).values()} == {SparseLinear}
    assert isinstance(sparsified(nn.Conv2d(1, 2, 3), [""], 0.5, "erk", "random", 0.1, 0), SparseConv)
