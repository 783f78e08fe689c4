"""`TablePFN`: tables as they come, orders that do not matter, and what is refused."""

import numpy as np
import pandas as pd
import pytest
import torch

import bayesvision as bv
from bayesvision.distributions import Categorical
from bayesvision.training.seeds import generator
from priors import BayesianLinear, StructuralTables

TRAIN = bv.Train(steps=20, batch=2, lr=3e-3, optimizer="muon", execution=bv.Execution(device="cpu"))
SMALL = {"columns": 6, "context": 32, "width": 16, "layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def numeric():
    return bv.TablePFN(**SMALL, components=4, train=TRAIN).fit(StructuralTables((1, 4)))


@pytest.fixture(scope="module")
def classes():
    return bv.TablePFN(**SMALL, classes=4, train=TRAIN).fit(StructuralTables((1, 4), classes=4))


def people(n, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "age": rng.integers(18, 80, n).astype(float),
            "city": rng.choice(["Rome", "Oslo", "Lima"], n),
            "since": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, n), "D"),
            "same": 1.0,
        }
    )
    frame.loc[rng.random(n) < 0.2, "age"] = np.nan
    frame.loc[rng.random(n) < 0.2, "city"] = None
    y = frame["age"].fillna(40) / 10 + (frame["city"] == "Oslo") * 3 + 0.1 * rng.standard_normal(n)
    return frame, y


def test_a_frame_of_numbers_text_dates_and_holes(numeric):
    frame, y = people(40)
    new = people(9, seed=1)[0]
    new.loc[0, "city"] = "Quito"  # a city that was never seen is a missing one
    post = numeric.condition(frame, y)
    kinds = {c.name: c.kind for c in post.columns.columns}
    assert kinds == {"age": "number", "city": "category", "since": "date", "same": "dropped"}
    law = post.predict(new)
    assert law.mean.shape == (9,) and law.mean.dtype == torch.float64
    assert torch.isfinite(torch.stack([law.mean, law.stddev])).all()
    without = new.copy()
    without.loc[0, "city"] = None
    assert torch.equal(post.predict(without).mean, law.mean)


def test_a_linear_target_is_found_by_the_process(numeric):
    prior = BayesianLinear(3, noise=1e-4)
    task = prior.sample(20, 60, generator=generator("cpu", 5))
    x, y = task.x.double(), task.y.double()
    law = numeric.condition(x[:, :40], y[:, :40]).predict(x[:, 40:])
    truth = y[:, 40:]
    error = (law.mean - truth).square().mean(-1) / truth.var(-1)
    assert error.median() < 0.01


def test_the_order_of_rows_and_columns_does_not_matter(numeric):
    x = torch.randn(30, 4, generator=generator("cpu", 1), dtype=torch.float64)
    y, new = x[:, 0] - x[:, 2].square(), torch.randn(5, 4, generator=generator("cpu", 2), dtype=torch.float64)
    rows, columns = torch.randperm(30, generator=generator("cpu", 3)), torch.tensor([2, 0, 3, 1])
    said = numeric.condition(x, y).predict(new)
    again = numeric.condition(x[rows][:, columns], y[rows]).predict(new[:, columns])
    torch.testing.assert_close(again.mean, said.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again.stddev, said.stddev, rtol=1e-3, atol=1e-4)


def test_units_of_the_target_and_of_columns_do_not_matter(numeric):
    x = torch.randn(30, 2, generator=generator("cpu", 1), dtype=torch.float64)
    y = x[:, 0].sin()
    said, other = numeric.condition(x, y).predict(x), numeric.condition(1e3 * x + 7, 1e9 * y - 1e9).predict(1e3 * x + 7)
    torch.testing.assert_close((other.mean + 1e9) / 1e9, said.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other.stddev / 1e9, said.stddev, rtol=1e-3, atol=1e-5)


def test_labels_are_texts_or_truth_values(classes):
    frame, y = people(40)
    named = np.where(y > y.median(), "high", "low")
    post = classes.condition(frame, named)
    law = post.predict(people(6, seed=2)[0])
    assert isinstance(law, Categorical) and post.labels == ("high", "low")
    assert law.class_probs.shape == (6, 2)
    torch.testing.assert_close(law.class_probs.sum(-1), torch.ones(6, dtype=law.class_probs.dtype))
    truth = classes.condition(frame, y > y.median())
    assert truth.labels == ("False", "True")


@pytest.mark.parametrize("kind", ["numeric", "classes"])
def test_a_file_brings_back_the_columns_the_labels_and_the_bits(kind, request, tmp_path):
    frame, y = people(30)
    y = y if kind == "numeric" else np.where(y > y.median(), "high", "low")
    post = request.getfixturevalue(kind).condition(frame, y)
    bv.save(post, tmp_path / "t.safetensors")
    again = bv.load(tmp_path / "t.safetensors")
    assert again.columns == post.columns and again.labels == post.labels
    new = people(5, seed=3)[0]
    said, found = post.predict(new), again.predict(new)
    if kind == "numeric":
        assert torch.equal(said.mean, found.mean) and torch.equal(said.stddev, found.stddev)
    else:
        assert torch.equal(said.class_probs, found.class_probs)


def test_training_in_parts_gives_the_bits_of_training_at_once(tmp_path):
    fields = dict(SMALL, train=bv.Train(steps=6, batch=2, optimizer="muon", execution=bv.Execution(device="cpu")))
    whole = bv.TablePFN(**fields).fit(StructuralTables((1, 4)))

    class Stop:
        def log(self, metrics, step):
            if step == 4:
                raise KeyboardInterrupt

    execution = bv.Execution(device="cpu", checkpoint_dir=str(tmp_path), save_every=2)
    fields["train"] = bv.Train(steps=6, batch=2, optimizer="muon", execution=execution)
    with pytest.raises(KeyboardInterrupt):
        bv.TablePFN(**fields).fit(StructuralTables((1, 4)), Stop())
    resumed = bv.TablePFN(**fields).fit(StructuralTables((1, 4)))
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([[0.0], [1.0]], [1.0, 1.0], "constant|differ|one value"),
        ([[0.0], [float("inf")]], [1.0, 2.0], "infinite|finite"),
        ([[0.0], [1.0]], [1.0, 2.0, 3.0], "2|shape"),
        ([[0.0], [1.0]], ["a", "b"], "classes"),
        ([[0.0]], [1.0], "at least 2 rows"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(numeric, x, y, words):
    with pytest.raises(ValueError, match=words):
        numeric.condition(np.array(x), np.array(y))


@pytest.mark.parametrize("fields", [{"columns": 0}, {"width": 10, "heads": 4}, {"classes": 1}, {"context": 0}])
def test_a_field_out_of_range_is_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        bv.TablePFN(**fields)


def test_more_classes_than_the_network_has_are_refused(classes):
    with pytest.raises(ValueError, match="classes"):
        classes.condition(np.arange(12.0)[:, None], np.arange(12) % 6)


def test_a_prior_with_more_columns_than_the_network_is_refused():
    with pytest.raises(ValueError, match=r"columns=2 .* 5 columns"):
        bv.TablePFN(**{**SMALL, "columns": 2}, train=TRAIN).fit(BayesianLinear(5))


def test_the_shipped_network_is_sharp_and_calibrated_on_linear_tables():
    network = bv.pretrained("pfn-table")
    task = BayesianLinear(6, noise=0.01).sample(30, 60, generator=generator("cpu", 8))
    x, y = task.x.double(), task.y.double()
    law, truth = network.condition(x[:, :40], y[:, :40]).predict(x[:, 40:]), y[:, 40:]
    assert ((law.mean - truth).square().mean(-1) / truth.var(-1)).median() < 0.05
    low, high = law.interval(0.9)
    inside = ((low < truth) & (truth < high)).double().mean(-1)
    assert abs(inside.mean() - 0.9) < 4 * inside.std() / 30**0.5 + 0.02
