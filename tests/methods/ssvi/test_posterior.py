"""What a sparse network knows: predictions, cost, the compact module and files."""

import copy
import math
from dataclasses import replace

import pytest
import scipy.stats
import torch
from sparse_nets import CPU, QUICK, draws, net, rows
from torch import nn

import bayesvision as bv
from bayesvision import SSVI, Data, Train
from bayesvision.methods.ssvi.network import layers_of
from bayesvision.training.seeds import seeded

# --- predictions


def test_component_k_is_the_same_draw_in_every_row(fitted):
    post, x, _ = fitted
    parts = post.predict(x).component_distribution.loc
    for k in (0, 5):
        torch.testing.assert_close(post.compact(draw=k)(x.float()).double(), parts[:, k], rtol=1e-4, atol=1e-5)
    alone = torch.cat([post.predict(x[k : k + 1]).component_distribution.loc for k in range(4)])
    torch.testing.assert_close(alone, parts[:4], rtol=1e-5, atol=1e-6)


def test_variances_add_up(fitted):
    post, x, _ = fitted
    law = post.predict(x)
    torch.testing.assert_close(law.epistemic_variance + law.aleatoric_variance, law.variance)
    assert (law.epistemic_variance > 0).all()


def test_draws_are_those_of_the_normals(fitted):
    # False alarms: a Kolmogorov-Smirnov test of about 1,500 numbers with p < 1e-6.
    post, _, _ = fitted
    found = []
    for k in range(60):
        weights = post._drawn(k)
        for name, part in layers_of(post.model).items():
            found.append((weights[f"{name}.mu"] - part.mu) / part.sigma)
    z = torch.cat(found).double()
    assert scipy.stats.kstest(z.numpy(), "norm").pvalue > 1e-6
    assert scipy.stats.kstest(2 * z.numpy(), "norm").pvalue < 1e-6


def test_mutual_information_of_members():
    logits = torch.log(torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]], dtype=torch.float64))
    law = bv.distributions.Categorical.of_members(logits)
    each = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert float(law.mutual_information) == pytest.approx(math.log(2) - each)
    assert float(law.expand((3,)).mutual_information[2]) == pytest.approx(math.log(2) - each)
    assert float(law[0].mutual_information) == pytest.approx(math.log(2) - each)
    assert law.members.batch_shape == (1, 2)
    alone = bv.distributions.Categorical(logits=logits[0])
    assert float(alone.mutual_information) == pytest.approx(0, abs=1e-12)


def test_noise_that_the_network_gives():
    x = draws(0, 600, 1)
    y = torch.where(x[:, 0] > 0, 1.0, 0.1) * draws(1, 600)
    recipe = SSVI(net(1, 32, 2), density=1.0, noise="output", train=Train(steps=800, batch=64, lr=1e-2, execution=CPU))
    law = recipe.fit(Data(x, y)).predict(torch.tensor([[-1.0], [1.0]]))
    assert law.stddev[0] < 0.3 and 0.7 < law.stddev[1] < 1.4


def test_learned_noise_and_units():
    x, y = rows(400)
    post = SSVI(net(), density=0.5, train=Train(steps=800, batch=64, lr=1e-2, execution=CPU)).fit(
        Data(x, 1e4 + 100 * y)
    )
    assert post.metadata["noise"] == pytest.approx(10, rel=0.4)
    law = post.predict(x)
    assert float((law.mean - 1e4 - 100 * y).abs().mean()) < 15
    assert float(bv.metrics.coverage(law, 1e4 + 100 * y, 0.9)) > 0.87  # mean field is wider than it need be


def test_several_outputs():
    x, _ = rows(200)
    y = torch.stack([x[:, 0], 10 * x[:, 1]], -1) + 0.1 * draws(3, 200, 2)
    post = SSVI(net(outputs=2), density=0.5, train=Train(steps=500, batch=64, lr=1e-2, execution=CPU)).fit(Data(x, y))
    law = post.predict(x)
    assert law.batch_shape == (200, 2) and post.compact()(x.float()).shape == (200, 2)
    assert float((law.mean - y).square().mean()) < 0.5
    assert len(post.metadata["noise"]) == 2


# --- networks


def test_the_network_itself_is_left_as_it_was(fitted):
    x, y = rows()
    own = net()
    before = copy.deepcopy(own.state_dict())
    SSVI(own, density=0.4, train=QUICK).fit(Data(x, y))
    assert all(torch.equal(v, before[k]) for k, v in own.state_dict().items())
    assert all(p.requires_grad for p in own.parameters()) and own.training


class Deep(nn.Module):
    """Layers in lists and inside others, a norm, a parameter of its own, and one layer called by itself."""

    def __init__(self):
        super().__init__()
        with seeded(3):
            self.first = nn.Linear(3, 16)
            self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU()) for _ in range(2))
            self.normal = nn.BatchNorm1d(16)
            self.gain = nn.Parameter(torch.ones(1))
            self.last = nn.Linear(16, 1)
        self.frozen = nn.Parameter(torch.tensor(0.5), requires_grad=False)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.gain * self.last(self.normal(x)) + self.frozen


def test_everything_else_stays_deterministic_and_is_listed():
    x, y = rows()
    post = SSVI(Deep(), density=0.5, train=QUICK).fit(Data(x, y))
    text = repr(post)
    assert list(layers_of(post.model.network)) == ["first", "blocks.0.1", "blocks.1.1", "last"]
    sparse, rest = text.split("deterministic:")
    assert "blocks.1.1: SparseLinear" in sparse and "normal: BatchNorm1d" in rest and "statistics" in rest
    assert "blocks.0.0: LayerNorm" in rest and "net: Deep" in rest
    assert float(post.model.network.gain) != 1.0 and float(post.model.network.frozen) == 0.5


def test_a_transformer_is_trained_where_it_calls_its_layers():
    with seeded(0):
        encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        own = nn.Sequential(encoder, nn.Flatten(), nn.Linear(24, 2))
    x = draws(0, 60, 3, 8).float()
    y = (x[:, 0, 0] > 0).long()
    post = SSVI(own, density=0.5, classes=2, draws=4, train=QUICK).fit(Data(x, y))
    assert list(layers_of(post.model.network)) == ["0.linear1", "0.linear2", "2"]
    with torch.no_grad():
        fast = post.predict(x).probs
    assert not torch.equal(fast, post.predict(x[:, [1, 0, 2]]).probs)
    assert "self_attn" in repr(post).split("deterministic:")[1]


def test_a_trained_network_keeps_its_largest_weights():
    own = net()
    post = SSVI(own, density=0.4, initial="trained", train=replace(QUICK, steps=1, lr=1e-9)).fit(Data(*rows()))
    for name, part in layers_of(post.model.network).items():
        dense = own[int(name)].weight.detach()
        kept = part.weight != 0
        torch.testing.assert_close(part.weight[kept], dense[kept], rtol=0, atol=1e-6)
        assert len(part.index) == part.size or dense[~kept].abs().max() <= dense.abs().median() * 2
    assert not post.model.x_loc.ndim and float(post.model.y_loc) == 0


def test_density_and_cost(fitted):
    post, _, _ = fitted
    kept = [len(v.index) for v in layers_of(post.model.network).values()]
    assert post.density.overall == pytest.approx(sum(kept) / (96 + 32))
    cost = post.cost
    assert cost.total.macs == sum(kept) and cost.total.dense_macs == 128
    assert cost.total.dense_weights == 128 and [v.kept for v in cost.layers] == kept
    big = SSVI(net(200, 300), density=0.05, train=replace(QUICK, steps=1)).fit(Data(draws(0, 9, 200), draws(1, 9)))
    first = big.cost.layers[0]
    assert first.kernel == "compressed rows" and first.done_macs == first.macs
    share = first.kept / first.dense_weights
    assert first.training_bytes < 4 * share * first.dense_training_bytes


def test_cost_of_a_convolution_counts_its_places():
    own = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    x = draws(0, 40, 1, 4, 4).float()
    post = SSVI(own, density=0.5, classes=2, train=replace(QUICK, steps=2)).fit(Data(x, (x.sum((1, 2, 3)) > 0).long()))
    first = post.cost.layers[0]
    assert first.dense_macs == 16 * 36 and first.macs == 16 * first.kept
    assert first.kernel == "masked dense" and first.done_macs == first.dense_macs
    assert post.cost.fewer_macs == post.cost.total.dense_macs / post.cost.total.macs


# --- compact


@pytest.mark.parametrize("kind", ["mlp", "conv", "deep", "single"])
def test_the_compact_module_says_the_same(kind):
    x = draws(0, 60, 3).float()
    own, fields = net(width=200), {}
    if kind == "conv":
        x = draws(0, 60, 2, 6, 6).float()
        own = nn.Sequential(
            nn.Conv2d(2, 12, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 8, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8, 1),
        )
    elif kind == "deep":
        own = Deep()
    elif kind == "single":
        own = nn.Linear(3, 1)
    y = x.flatten(1)[:, 0] + 0.1 * draws(1, 60).float()
    post = SSVI(own, density=0.1, draws=3, train=QUICK, **fields).fit(Data(x, y))
    plain = post.compact()
    assert not any("Sparse" in type(m).__name__ for m in plain.modules())
    with torch.no_grad():
        model = post.model
        torch.testing.assert_close(plain(x), model.y_loc + model.y_scale * model(x).squeeze(-1), rtol=1e-4, atol=1e-5)
    again = copy.deepcopy(plain)
    assert torch.equal(again(x), plain(x))


def test_dead_units_are_sliced_away():
    with seeded(0):
        own = nn.Sequential(nn.Linear(20, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 2))
    x = draws(0, 60, 20).float()
    post = SSVI(own, density=0.02, classes=2, train=QUICK).fit(Data(x, (x[:, 0] > 0).long()))
    plain = post.compact().network
    parts = [m for m in plain.modules() if hasattr(m, "shape") or isinstance(m, nn.Linear)]
    widths = [m.shape[0] if hasattr(m, "shape") else m.out_features for m in parts]
    assert widths[0] < 300 and widths[1] < 300 and widths[2] == 2
    numbers = sum(v.numel() for v in [*plain.parameters(), *plain.buffers()])
    assert numbers < 0.3 * sum(p.numel() for p in own.parameters())


class Halves(nn.Module):
    """A chain that is also called in parts, so that its units cannot be sliced away."""

    def __init__(self):
        super().__init__()
        with seeded(0):
            self.chain = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 1))

    def forward(self, x):
        return self.chain(x) + self.chain[0](x).mean(-1, keepdim=True)


def test_a_chain_that_is_called_in_parts_stays_whole():
    x, y = rows()
    post = SSVI(Halves(), density=0.2, train=QUICK).fit(Data(x, y))
    with torch.no_grad():
        expected = post.model.y_loc + post.model.y_scale * post.model(x.float()).squeeze(-1)
        torch.testing.assert_close(post.compact()(x.float()), expected, rtol=1e-4, atol=1e-5)


# --- files


def test_saved_without_the_network_and_loaded_around_it(fitted, tmp_path):
    post, x, _ = fitted
    bv.save(post, tmp_path / "s.safetensors")
    loaded = bv.load(tmp_path / "s.safetensors", net=net())
    assert torch.equal(loaded.predict(x).mean, post.predict(x).mean)
    assert repr(loaded) == repr(post) and loaded.metadata == post.metadata and loaded.density == post.density
    with pytest.raises(ValueError, match="net=net"):
        bv.load(tmp_path / "s.safetensors")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 2)),
            r"2: Linear\(in_features=32, out_features=1.* has 2: Linear\(in_features=32, out_features=2",
        ),
        (nn.Sequential(nn.Linear(3, 32), nn.Linear(32, 1)), r"1: Tanh.* has 1: Linear"),
        (nn.Sequential(nn.Conv1d(3, 32, 1), nn.Tanh(), nn.Linear(32, 1)), "0: Linear.* has 0: Conv1d"),
        (
            nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1), nn.LayerNorm(1)),
            "nothing where this one has 3: LayerNorm",
        ),
    ],
)
def test_another_network_is_refused_by_its_first_difference(fitted, tmp_path, other, words):
    bv.save(fitted[0], tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match=words):
        bv.load(tmp_path / "s.safetensors", net=other)
