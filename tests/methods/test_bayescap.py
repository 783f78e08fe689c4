"""`BayesCap`: the frozen network stays what it is, the exact loss finds the truth, and bad input is told."""

import copy
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from checks import rejected
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bayesvision as bv
from bayesvision import BayesCap, Data, Execution, Train
from bayesvision.distributions import Categorical, GeneralizedNormal, Mixture, Normal, StudentT

FAMILIES = ("generalized", "gaussian", "laplace", "student")
QUICK = Train(steps=60, batch=16, lr=3e-3, execution=Execution(device="cpu"))


class Blur(nn.Module):
    """A tiny convolutional network with batch normalisation."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 24, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.last = nn.Conv2d(24, channels, 3, padding=1)

    def forward(self, x):
        return x + 0.1 * self.last(torch.relu(self.norm(self.first(x))))


class Short(Blur):
    """The same without its last layer."""

    def forward(self, x):
        return self.first(x)[:, :2]


FRESH = {}  # more of the images and targets, for what would be learned by heart from a few


def draws(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def region(x):
    """Where the noise is wide (above zero), far from the border of it where it is far from zero."""
    return nn.functional.avg_pool2d(x[:, :1], 5, 1, 2).expand_as(x) * 5


@pytest.fixture(scope="module")
def maps():
    """A network, images, and targets whose noise is three times as wide in some regions."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Blur().eval()
    x = draws(1, 240, 2, 24, 20)
    with torch.no_grad():
        y = net(x)
    y = y + torch.where(region(x) > 0, 0.3, 0.1) * draws(2, *y.shape)
    FRESH["maps"] = x[24:], y[24:]
    return net, x[:24], y[:24]


@pytest.fixture(scope="module")
def fitted(maps):
    net, (x, y) = maps[0], FRESH["maps"]
    recipe = BayesCap(
        net, reads=("output", "input"), crop=16, width=32, train=Train(400, 8, 5e-3, execution=Execution(device="cpu"))
    )
    return recipe.fit(DataLoader(TensorDataset(x[8:], y[8:]), 50), calibrate=Data(x[:8], y[:8]))


def everything(net):
    return {k: v.clone() for k, v in net.state_dict().items()}, [m.training for m in net.modules()]


# The frozen network


@pytest.mark.parametrize("training", [False, True])
def test_the_network_is_left_as_it_was(maps, training):
    net, x, y = copy.deepcopy(maps[0]).train(training), *maps[1:]
    tensors, modes = everything(net)
    grads = [p.requires_grad for p in net.parameters()]
    post = BayesCap(net, crop=8, train=QUICK).fit(Data(x, y))
    post.predict(x), post.to(torch.float64), post.requires_grad_(False)
    now, modes_now = everything(net)
    assert modes_now == modes and [p.requires_grad for p in net.parameters()] == grads
    assert all(torch.equal(tensors[k], now[k]) and tensors[k].dtype == now[k].dtype for k in tensors)
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mean_is_the_networks_answer_bit_for_bit(maps, family):
    net, x, y = maps
    post = BayesCap(net, family=family, crop=8, width=8, train=QUICK).fit(Data(x, y))
    with torch.no_grad():
        law, answer = post.predict(x), net(x)
    assert torch.equal(law.mean, answer) and law.batch_shape == answer.shape
    kinds = {"generalized": GeneralizedNormal, "gaussian": Normal, "laplace": GeneralizedNormal, "student": StudentT}
    assert type(law) is kinds[family]
    assert family != "laplace" or (law.beta == 1).all()


def test_a_residual_starts_at_the_answer_and_mends_it(maps):
    net, x, y = maps
    start = BayesCap(
        net, residual=True, crop=8, width=8, train=Train(1, 4, 1e-12, execution=Execution(device="cpu"))
    ).fit(Data(x, y))
    with torch.no_grad():
        torch.testing.assert_close(start.predict(x).mean, net(x), rtol=0, atol=1e-6)
        moved = BayesCap(
            net, residual=True, crop=16, width=8, train=Train(200, 8, 5e-3, execution=Execution(device="cpu"))
        )
        post = moved.fit(Data(x, y + 0.5))
        assert (post.predict(x).mean - net(x)).mean() == pytest.approx(0.5, abs=0.05)


def test_it_is_small_by_default():
    net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 3, 1))
    x = draws(0, 4, 3, 12, 12)
    for members in (1, 2):
        post = BayesCap(net, members=members, train=Train(1, 2, execution=Execution(device="cpu"))).fit(Data(x, x))
        assert post.cap.metadata["parameters"] <= post.cap.metadata["frozen parameters"] / 4
        assert post.cap.metadata["parameters"] > post.cap.metadata["frozen parameters"] / 8


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_and_layouts(maps, kind):
    net, x, y = copy.deepcopy(maps[0]).to(kind).to(memory_format=torch.channels_last), *maps[1:]
    given = x.to(memory_format=torch.channels_last).to(torch.promote_types(kind, torch.float32))
    post = BayesCap(net, crop=8, width=8, train=QUICK).fit(Data(given, y))
    law = post.predict(given)
    with torch.no_grad():
        assert torch.equal(law.mean.to(kind), net(given.to(kind)))
    assert law.mean.dtype == torch.promote_types(kind, torch.float32) and torch.isfinite(law.stddev).all()


def test_a_callable_that_returns_numpy(maps):
    net, x, y = maps

    def remote(images):
        with torch.no_grad():
            return net(torch.as_tensor(images)).numpy()

    post = BayesCap(remote, reads=("output", "input"), crop=8, train=QUICK).fit([(x.numpy(), y.numpy())])
    law = post.predict(x.numpy())
    assert np.array_equal(law.mean.numpy(), remote(x)) and post.cap.metadata["frozen parameters"] is None
    torch.testing.assert_close(post.predict(x).stddev, law.stddev)


def test_named_features_are_read(maps):
    net, x, y = maps
    recipe = BayesCap(net, reads=("output", "norm", "input"), crop=8, width=8, train=QUICK)
    assert recipe.fit(Data(x, y)).cap.kind.inputs == 2 + 24 + 2
    with rejected("reads must name"):
        BayesCap(net, reads=("output", "nothing")).fit(Data(x, y))
    with rejected("reads must start with 'output'"):
        BayesCap(net, reads=("input",)).fit(Data(x, y))


# What is learned


def test_the_spread_is_found(maps, fitted):
    """Noise of 0.3 and 0.1: within 15 % away from the borders, and the intervals hold what they say."""
    x = maps[1]
    law = fitted.predict(x)
    place = region(x)
    assert law.stddev[place > 1].median().item() == pytest.approx(0.3, rel=0.15)
    assert law.stddev[place < -1].median().item() == pytest.approx(0.1, rel=0.15)
    fresh = law.mean + torch.where(place > 0, 0.3, 0.1) * draws(3, *x.shape)
    assert bv.metrics.coverage(law, fresh).item() == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_and_numbers(family):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 2))
    x = draws(4, 600, 3)
    with torch.no_grad():
        y = net(x) + torch.where(x[:, :1] > 0, 0.5, 0.1) * draws(5, 600, 2)
    post = BayesCap(
        net, family, ("output", "input"), width=32, train=Train(500, 64, 5e-3, execution=Execution(device="cpu"))
    ).fit(Data(x, y))
    right, left = (post.predict(x).stddev[side].median().item() for side in (x[:, 0] > 0.3, x[:, 0] < -0.3))
    assert right > 3 * left
    alone = BayesCap(lambda x: net(x)[..., 0].detach(), train=QUICK).fit(Data(x, y[:, 0]))
    assert alone.predict(x).batch_shape == (600,)
    batched = alone.predict(x.view(2, 300, 3))
    torch.testing.assert_close(batched.stddev.flatten(), alone.predict(x).stddev)


def test_the_legacy_loss_forgets_the_shape_and_triples_the_variance():
    """Constants alone, fitted to a million normal errors: beta 0.6842 and 3.34 times the variance; exact, 2 and 1."""
    from bayesvision.methods.bayescap.calibration import legacy_loss

    r = draws(6, 1_000_000).double()
    found = {}
    for name, start in {"legacy": legacy_loss, "exact": lambda law, y: -law.log_prob(y).mean()}.items():
        log_alpha, beta = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        leaves = [log_alpha.requires_grad_(), beta.requires_grad_()]
        solver = torch.optim.LBFGS(leaves, max_iter=100, line_search_fn="strong_wolfe", tolerance_change=1e-12)

        def closure(leaves=leaves, solver=solver, start=start):
            solver.zero_grad()
            cost = start(GeneralizedNormal(torch.zeros((), dtype=torch.float64), leaves[0].exp(), leaves[1]), r)
            cost.backward()
            return cost

        solver.step(closure)
        with torch.no_grad():
            law = GeneralizedNormal(torch.zeros((), dtype=torch.float64), log_alpha.exp(), beta)
            found[name] = (beta.item(), law.variance.item())
    assert found["legacy"] == (pytest.approx(0.6842, abs=0.002), pytest.approx(3.34, abs=0.04))
    assert found["exact"] == (pytest.approx(2, abs=0.02), pytest.approx(1, abs=0.01))


def test_the_legacy_loss_warns_and_does_so_in_a_cap(maps):
    net, x, y = maps
    with pytest.warns(UserWarning, match=r"0\.684"):
        recipe = BayesCap(
            net,
            loss="legacy",
            family="generalized",
            crop=16,
            width=8,
            train=Train(300, 8, 1e-2, execution=Execution(device="cpu")),
        )
    law = recipe.fit(Data(x, y)).predict(x)
    assert law.beta.median().item() == pytest.approx(0.684, abs=0.1)
    assert bv.metrics.coverage(law, y) > 0.93  # too wide


def test_members_and_draws_are_mixtures(maps):
    net, x, y = maps
    for fields in ({"members": 3}, {"dropout": 0.2, "draws": 4}):
        post = BayesCap(net, crop=8, width=8, train=QUICK, **fields).fit(Data(x, y), calibrate=Data(x, y))
        law = post.predict(x)
        parts = law.component_distribution
        assert isinstance(law, Mixture) and parts.batch_shape[-1] == fields.get("members", 4)
        total = parts.variance.mean(-1) + parts.mean.var(-1, correction=0)
        torch.testing.assert_close(law.variance, total)
        assert (parts.stddev[..., 0] != parts.stddev[..., 1]).any()
        assert torch.equal(law.stddev, post.predict(x).stddev)


def test_a_shared_scale_is_one_for_all_channels(maps):
    net, x, y = maps
    post = BayesCap(net, shared=True, crop=8, width=8, train=QUICK).fit(Data(x, y))
    spread = post.predict(x).stddev
    assert torch.equal(spread[:, 0], spread[:, 1])


def test_sequences_of_vectors():
    x = draws(9, 200, 5, 3)
    y = x + 0.1 * draws(10, *x.shape)
    post = BayesCap(lambda x: x, train=QUICK).fit(Data(x, y), calibrate=Data(x, y))
    law = post.predict(x[:4])
    assert law.batch_shape == (4, 5, 3) and post.ood_score(x[:4]).shape == (4, 5)
    assert post.interval(x)[0].shape == x.shape
    assert 0.5 < post.ood_score(x).mean() < 2


def test_rows_do_not_depend_on_each_other(maps):
    net, x, y = maps
    for fields in ({"dropout": 0.3, "draws": 3}, {"members": 2}):
        post = BayesCap(net, crop=8, width=8, train=QUICK, **fields).fit(Data(x, y))
        torch.testing.assert_close(post.predict(x).stddev[2:3], post.predict(x[2:3]).stddev)


def test_one_row_is_enough_to_start():
    post = BayesCap(lambda x: x[:, 0], train=QUICK).fit(Data([[1.0, 2.0]], [1.5]))
    assert torch.isfinite(post.predict([[0.0, 0.0], [1.0, 2.0]]).stddev).all()


def test_a_compiled_network_is_left_as_it_was(maps):
    net, x, y = copy.deepcopy(maps[0]).train(), *maps[1:]
    before = everything(net)
    BayesCap(torch.compile(net), reads=("output", "norm"), crop=8, width=8, train=QUICK).fit(Data(x, y))
    after = everything(net)
    assert all(torch.equal(before[0][k], after[0][k]) for k in before[0]) and before[1] == after[1]


@pytest.mark.parametrize(("family", "end"), [("generalized", 1.9), ("student", 50.0)])
def test_a_tail_that_starts_at_its_end_still_learns(family, end):
    from bayesvision.methods.bayescap.heads import ScaleHead

    head = ScaleHead(family, 1, -1)
    head.tail.fill_(end)
    for start in (-3.0, 0.0, 10.0):
        raw = torch.tensor([[0.0, start]], requires_grad=True)
        (slope,) = torch.autograd.grad(head(raw, torch.zeros(1, 1)).log_prob(torch.tensor([[0.5]])).sum(), raw)
        assert torch.isfinite(slope).all() and slope[0, 1] != 0
    law = head(torch.zeros(1, 2), torch.zeros(1, 1))
    tail = law.beta if family == "generalized" else law.df
    torch.testing.assert_close(tail, head.tail.expand_as(tail), rtol=1e-4, atol=0)


def test_classes_keep_their_order():
    """Labels that contradict the logits in half of the plane: confidence falls there, and the best class stays."""
    x = draws(7, 1500, 2)
    logits = torch.stack([4 * x[:, 0], -4 * x[:, 0], torch.zeros(1500)], -1)
    y = torch.where(x[:, 0] > 0, 0, 1)
    noisy = (x[:, 1] > 0) & (draws(8, 1500) > 0)
    y = torch.where(noisy, 1 - y, y)

    def net(x):
        return torch.stack([4 * x[:, 0], -4 * x[:, 0], torch.zeros(len(x))], -1)

    recipe = BayesCap(
        net, reads=("output", "input"), classes=3, train=Train(400, 64, 5e-3, execution=Execution(device="cpu"))
    )
    post = recipe.fit(Data(x[:1000], y[:1000]), calibrate=Data(x[1000:], y[1000:]))
    law = post.predict(x)
    assert isinstance(law, Categorical) and (law.mode == logits.argmax(-1)).all()
    sure = law.class_probs.amax(-1)
    assert sure[x[:, 1] > 0.3].mean() < sure[x[:, 1] < -0.3].mean() - 0.1
    frozen = Categorical(logits=logits)
    assert bv.metrics.nll(law, y) < bv.metrics.nll(frozen, y) - 0.2
    with rejected("one logit for each of 4 classes"):
        BayesCap(net, classes=4, train=QUICK).fit(Data(x, y))


# Calibration


def test_one_number_mends_the_scale(maps, fitted):
    net, x, y = maps
    with torch.no_grad():
        wider = net(x) + 3 * (y - net(x))
    again = fitted.calibrate(Data(x, wider))
    ratio = again.predict(x).stddev / fitted.predict(x).stddev
    torch.testing.assert_close(ratio, ratio.mean().expand(ratio.shape), rtol=1e-4, atol=0)
    assert ratio.mean().item() == pytest.approx(3, rel=0.1)
    assert torch.equal(again.predict(x).mean, fitted.predict(x).mean)


def test_conformal_intervals_hold_by_counting():
    """n + 1 exchangeable examples: for each one left out, the others' interval covers it in at least 90 % of them."""
    from bayesvision.methods.bayescap.calibration import Conformal

    source = np.random.default_rng(0)
    groups = [
        torch.as_tensor(abs(source.standard_t(3, size=source.integers(1, 6))) * source.gamma(2)) for _ in range(60)
    ]
    inside = []
    for k, group in enumerate(groups):
        conformal = Conformal()
        conformal.keep(groups[:k] + groups[k + 1 :])
        inside.append(float((group <= conformal.quantile(0.9) + 1e-9).double().mean()))
    assert 0.9 <= np.mean(inside) < 0.95
    few = Conformal()
    few.keep(groups[:8])
    with rejected("needs at least 9 held-out examples"):
        few.quantile(0.9)
    few.keep(groups[:9])
    assert few.quantile(0.9) == pytest.approx(max(float(g.max()) for g in groups[:9]))
    many, scores = Conformal(), [torch.as_tensor(source.uniform(size=3000)) for _ in range(20)]
    many.keep(scores)
    exact = float(torch.cat(scores).sort().values[math.ceil(0.9 * 21 / 20 * 60_000) - 1])
    assert len(many.scores) == 10_000 and exact - 2e-5 <= many.quantile(0.9) < exact + 0.001  # float32: 1e-6 of mass


def test_intervals_need_calibration(maps, fitted):
    net, x, y = maps
    with rejected("needs held-out examples"):
        BayesCap(net, crop=8, train=QUICK).fit(Data(x, y)).interval(x)
    with rejected("needs at least 9 held-out"):
        fitted.interval(x, 0.9)  # there were 8
    lower, upper = fitted.interval(x, 0.8)
    assert ((y > lower) & (y < upper)).float().mean() > 0.78


def test_strange_inputs_score_higher(maps, fitted):
    x = maps[1]
    usual, strange = fitted.ood_score(x), fitted.ood_score(5 * x)
    assert usual.shape == (24,) and 0.6 < usual.mean() < 1.5
    assert torch.isfinite(fitted.ood_score(x[..., :1])).all() and torch.isfinite(fitted.ood_score(x[..., :7, :])).all()
    assert bv.metrics.ood_auroc(usual, strange) == 1 and bv.metrics.ood_fpr95(usual, strange) == 0


# Files


def test_a_cap_is_saved_and_put_around_its_network_again(maps, fitted, tmp_path):
    net, x, _ = maps
    bv.save(fitted.cap, tmp_path / "cap.safetensors")
    again = BayesCap(net, reads=("output", "input")).wrap(bv.load(tmp_path / "cap.safetensors"))
    for name in ("mean", "stddev"):
        assert torch.equal(getattr(again.predict(x), name), getattr(fitted.predict(x), name))
    assert torch.equal(again.interval(x, 0.8)[0], fitted.interval(x, 0.8)[0])
    assert torch.equal(again.ood_score(x), fitted.ood_score(x))
    with rejected("say BayesCap"):
        BayesCap(net).wrap(fitted.cap)


def test_training_goes_on_from_its_folder(maps, tmp_path):
    net, x, y = maps
    whole = BayesCap(net, crop=8, width=8, train=QUICK).fit(Data(x, y))
    folder = Train(60, 16, 3e-3, execution=Execution(device="cpu", checkpoint_dir=str(tmp_path), save_every=20))
    BayesCap(net, crop=8, width=8, train=folder).fit(Data(x, y))
    resumed = BayesCap(net, crop=8, width=8, train=folder).fit(Data(x, y))
    assert torch.equal(whole.predict(x).stddev, resumed.predict(x).stddev)


# Bad input


def test_bad_targets(maps):
    net, x, y = maps
    recipe = BayesCap(net, crop=8, width=8, train=QUICK)
    with rejected("y must have the shape of the network's output"):
        recipe.fit(Data(x, y[:, :1]))
    bad = y.clone()
    bad[3, 0, :2, 5], bad[9] = math.nan, math.inf
    with rejected("2 other values in example 3 and 2 such examples"):
        recipe.fit(Data(x, bad))
    with rejected("y is constant"):
        recipe.fit(Data(x, torch.zeros_like(y)))
    with rejected("x must be finite"):
        recipe.fit(Data(torch.where(x > 3, math.nan, x), y))
    with rejected("the network's output must be finite"):
        BayesCap(lambda x: net(x).detach() / 0, crop=8).fit(Data(x, y))
    with rejected("y must hold the targets"):
        recipe.fit(Data(x))
    with rejected("one value for each row of x"):
        recipe.fit(Data(x, y[:5]))


def test_bad_loaders(maps):
    net, x, y = maps
    recipe = BayesCap(net, crop=8, width=8, train=QUICK)
    spent = iter([(x, y)])
    recipe.fit(spent)
    with rejected("gave no batch"):
        recipe.fit(spent)
    with rejected("pairs first"):
        recipe.fit([(x, y, y)])
    with pytest.raises(TypeError, match="Data"):
        recipe.fit(3)
    one = recipe.fit([(x[:1], y[:1])])  # a single batch of a single image
    assert torch.isfinite(one.predict(x).stddev).all() and torch.isfinite(one.ood_score(x)).all()
    with rejected("outputs of one kind"):
        BayesCap(lambda x: x).fit([(x, y), (x[:, :1], y[:, :1])])


def test_bad_networks(maps):
    x, y = maps[1:]
    with rejected("net must be a torch module or a callable"):
        BayesCap(None).fit(Data(x, y))
    with rejected("net must return one real tensor"):
        BayesCap(lambda x: (x, x)).fit(Data(x, y))
    post = BayesCap(lambda x: x, crop=8, train=QUICK).fit(Data(x, y))
    with rejected("channels on axis -3"):
        post.predict(x[:, :1])
    with rejected("add the axis of the batch"):
        post.predict(x[0])
    with rejected("did not call last"):
        BayesCap(Short(), reads=("output", "last"), crop=8).fit(Data(x, y))


@pytest.mark.parametrize(("scale", "floor"), [(1.0, 1 / (255 * 12**0.5)), (255.0, 12**-0.5)])
def test_targets_of_eight_bits_have_a_floor(scale, floor):
    x = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    y = (255 * x).round().to(torch.uint8)
    with pytest.warns(UserWarning, match="8 bits"):
        post = BayesCap(lambda x: scale * x, crop=8, train=QUICK).fit(Data(x, y))
    assert post.predict(x).stddev.min().item() >= floor * (1 - 1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"family": "cauchy"}, "family must be one of"),
        ({"dropout": 1.0}, "dropout"),
        ({"members": 0}, "members"),
        ({"crop": 1}, "crop"),
        ({"loss": "wrong"}, "loss"),
        ({"loss": "legacy", "family": "gaussian"}, "say family"),
        ({"classes": 1}, "classes"),
        ({"classes": 3, "residual": True}, "keep their order"),
    ],
)
def test_bad_recipes(fields, message):
    with rejected(message):
        BayesCap(lambda x: x, **fields)


def test_large_pairs_go_to_a_file_and_say_the_same(maps):
    from bayesvision.methods.bayescap.dataset import OutputDataset

    _, x, y = maps
    small, large = OutputDataset(), OutputDataset(large=5000)
    for pairs in (small, large):
        for k in range(0, 24, 6):
            pairs.add_outputs(x[k : k + 6], x[k : k + 6], y[k : k + 6])
    assert large.file is not None and small.file is None and len(large) == len(small) == 24
    for k in (0, 7, 23):
        assert all(torch.equal(a, b) for a, b in zip(small[k], large[k], strict=True))
    drawn = [p.draw(5, 8, torch.Generator().manual_seed(0)) for p in (small, large)]
    assert torch.equal(drawn[0][0], drawn[1][0]) and drawn[0][0].shape == (5, 2, 8, 8)


def test_no_warning_without_a_reason(maps):
    net, x, y = maps
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BayesCap(net, crop=8, width=8, train=QUICK).fit(Data(x, y), calibrate=Data(x, y)).interval(x)


# Inputs unlike those of training, and targets that were rounded


def test_the_default_law_is_not_far_off_where_inputs_have_moved():
    """Errors of 1e-4 on one side and 0.1 on the other; then they are 0.05 everywhere, as with noise on the input."""
    x = draws(0, 2000, 1)
    size = torch.where(x > 0, 0.1, 1e-4)
    recipe = BayesCap(nn.Identity(), reads=("output",), width=16, depth=1, train=Train(400, 64, 5e-3))
    y, moved = x + size * draws(1, 2000, 1), x + 0.05 * draws(2, 2000, 1)
    clean, shifted = {}, {}
    for family in ("student", "generalized"):
        post = replace(recipe, family=family).fit(Data(x[:1000], y[:1000]))
        clean[family] = float(bv.metrics.nll(post.predict(x[1000:]), y[1000:]))
        shifted[family] = float(bv.metrics.nll(post.predict(x[1000:]), moved[1000:]))
    assert recipe.family == "student"
    assert clean["student"] < clean["generalized"] + 0.15
    assert shifted["student"] < 6 and shifted["student"] < shifted["generalized"] - 0.5


@pytest.mark.parametrize(
    ("values", "step"),
    [
        (torch.randint(0, 256, (5000,), generator=torch.Generator().manual_seed(0)) / 255, 1 / 255),
        (torch.randint(0, 256, (5000,), generator=torch.Generator().manual_seed(0)) / 127.5 - 1, 2 / 255),
        (torch.randint(-40, 90, (5000,), generator=torch.Generator().manual_seed(0)).float(), 1.0),
        (torch.randn(5000, generator=torch.Generator().manual_seed(0)), 0.0),
        (torch.randn(5000, generator=torch.Generator().manual_seed(0)).mul(1e-6), 0.0),
        (torch.randint(0, 2, (5000,), generator=torch.Generator().manual_seed(0)).float(), 0.0),
        (torch.rand(40, generator=torch.Generator().manual_seed(0)).repeat(200), 0.0),
    ],
)
def test_a_grid_of_targets_is_found(values, step):
    post = BayesCap(nn.Identity(), width=8, depth=1, train=Train(1, 2, execution=Execution(device="cpu"))).fit(
        Data(values.unsqueeze(-1) + draws(9, len(values), 1), values.unsqueeze(-1) + 0 * draws(9, len(values), 1))
    )
    assert float(post.cap.head.floor) == pytest.approx(step / 12**0.5, rel=1e-3, abs=1e-12)
