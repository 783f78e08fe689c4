"""The recipe for tables: levels and frames, what is filled in, and what is refused."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import bayesvision as bv
from bayesvision.methods.mdbm.coding import Coding
from bayesvision.methods.mdbm.mdbm import MDBM
from bayesvision.training.seeds import generator
from bayesvision.training.train import Execution, Train

TRAIN = {"batch": 64, "lr": 2e-2, "execution": Execution(device="cpu")}


def rows_of(count, seed):
    """Three levels; the second and third variables copy the first, nine times in ten, and the fourth is noise."""
    rng = generator("cpu", seed)
    first = torch.randint(3, (count,), generator=rng)
    keep = torch.rand(count, 2, generator=rng) < 0.9
    other = torch.randint(3, (count, 2), generator=rng)
    copies = torch.where(keep, first.unsqueeze(-1), other)
    return torch.cat([first.unsqueeze(-1), copies, torch.randint(2, (count, 1), generator=rng)], -1).double()


@pytest.fixture(scope="module")
def post():
    return MDBM(train=Train(steps=150, **TRAIN)).fit(rows_of(1_000, 1))


def test_copies_are_completed_and_noise_is_not(post):
    law = post.condition([0, 1], [2, 2]).predict([2, 3])
    assert float(law.probs[0, 2]) > 0.7 and abs(float(law.probs[1, 0]) - 0.5) < 0.1 and law.probs[1, 2] == 0
    alone = post.predict([0]).probs[0]
    torch.testing.assert_close(alone, torch.full((3,), 1 / 3).double(), rtol=0, atol=0.08)


def test_holes_are_filled_and_what_is_there_stays(post):
    rows = rows_of(200, 2)
    gaps = rows.clone()
    gaps[:, 2] = math.nan
    done = post.impute(gaps)
    assert float((done.filled[:, 2] == rows[:, 2]).double().mean()) > 0.8
    assert torch.equal(done.filled[:, [0, 1, 3]], rows[:, [0, 1, 3]])
    assert (done.chance[:, 0] == 1).all() and torch.equal(done.holes, gaps.isnan())
    assert float(-done.column(2).log_prob(rows[:, 2]).mean()) < 0.7 < math.log(3)
    assert done.certificate.converged.all()


def test_parts_equal_the_whole_in_any_order(post):
    whole = post.condition([0, 2, 3], [1, 1, 0])
    parts = post.condition([3], [0]).condition([2, 0], [1, 1])
    assert torch.equal(parts.predict([1]).probs, whole.predict([1]).probs)
    assert post.rows == 0 and whole.rows == 3 and whole.certificate.converged
    assert whole.predict([0]).probs[0, 1] == 1
    assert float(whole.elbo) < float(post.elbo)
    assert torch.equal(whole.unconditioned().predict([1]).probs, post.predict([1]).probs)


def test_batches_are_single_problems(post):
    both = post.condition([[[0]], [[1]]], [[2], [0]])
    one = post.condition([1], [0])
    torch.testing.assert_close(both.predict([2]).probs[1], one.predict([2]).probs, rtol=0, atol=1e-5)


def test_draws_keep_what_was_seen_and_agree_with_the_field(post):
    seen = post.condition([0], [1])
    draws = seen.sample((400,), sweeps=10)
    assert draws.shape == (400, 4) and (draws[:, 0] == 1).all() and torch.equal(draws, seen.sample((400,), sweeps=10))
    share = float((draws[:, 1] == 1).double().mean())
    assert share == pytest.approx(float(seen.predict([1]).probs[0, 1]), abs=0.15)
    assert seen.sample((2, 3)).shape == (2, 3, 4)


@pytest.mark.parametrize("fields", [{"objective": "variational"}, {"focal": 2.0}, {"label": 2, "balanced": True}])
def test_other_objectives_learn_too(fields):
    post = MDBM(hidden=(4,), **fields, train=Train(steps=120, **TRAIN)).fit(rows_of(500, 1))
    law = post.condition([0, 1], [2, 2]).predict([2])
    assert int(law.mode) == 2 and float(law.probs[0, 2]) > 0.5


def test_a_killed_training_goes_on_bit_for_bit(tmp_path):
    class Stop:
        def log(self, metrics, step):
            if step == 4:
                raise KeyboardInterrupt

    def method(folder=None):
        execution = Execution(device="cpu", checkpoint_dir=folder, save_every=2)
        return MDBM(hidden=(4,), train=Train(steps=6, batch=16, execution=execution))

    whole = method().fit(rows_of(50, 1))
    with pytest.raises(KeyboardInterrupt):
        method(str(tmp_path)).fit(rows_of(50, 1), Stop())
    resumed = method(str(tmp_path)).fit(rows_of(50, 1))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([0, 0], [1, 2], "twice"),
        ([9], [0], "numbers of variables"),
        ([0.5], [0], "numbers of variables"),
        ([0], [3], "levels 0 to 2 of variable 0"),
        ([3], [2], "levels 0 to 1 of variable 3"),
        ([0], [0.5], "levels 0 to 2"),
        ([0, 1], [1], "a level for each"),
        ([0], [math.nan], "finite"),
        (["colour"], [1], "list of columns"),
    ],
)
def test_what_was_not_there_cannot_be_seen(post, x, y, words):
    with pytest.raises(ValueError, match=words):
        post.condition(x, y)


def test_what_was_seen_cannot_be_seen_otherwise(post):
    seen = post.condition([0], [1])
    assert seen.condition([0], [1]).rows == 1
    with pytest.raises(ValueError, match="twice"):
        seen.condition([0], [2])


@pytest.mark.parametrize(
    "fields",
    [
        {"margin": 0.0},
        {"margin": 2.5},
        {"hidden": (0,)},
        {"levels": 0},
        {"bins": 1},
        {"states": 1},
        {"observed": (0.5, 0.2)},
        {"focal": -1.0},
    ],
)
def test_a_field_out_of_range_is_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        MDBM(**fields)


def test_levels_and_rows_that_do_not_fit_are_refused(post):
    with pytest.raises(ValueError, match="variable 0 2, and the data"):
        MDBM(levels=2).fit(rows_of(20, 1))
    with pytest.raises(ValueError, match="label must be a column"):
        MDBM(label=7).fit(rows_of(20, 1))
    with pytest.raises(ValueError, match="one more column"):
        MDBM().fit(bv.Data(rows_of(20, 1), torch.zeros(20)))
    with pytest.raises(ValueError, match="whole numbers"):
        MDBM().fit(rows_of(20, 1) + 0.5)
    with pytest.raises(ValueError, match="4 columns"):
        post.impute(rows_of(5, 1)[:, :2])
    with pytest.raises(ValueError, match="give a frame"):
        post.impute(rows_of(5, 1) + 2)


# Frames


def frame_of(count, seed):
    """A number that depends on a category, a number of few values, a date, a constant, and a category of numbers."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(3, size=count)
    return pd.DataFrame(
        {
            "kind": pd.Categorical(np.array(["red", "green", "blue"])[kind]),
            "size": 10.0 * kind + rng.normal(size=count),
            "doors": kind + 2,
            "when": pd.Timestamp("2024-01-01") + pd.to_timedelta(30 * kind + rng.integers(5, size=count), unit="D"),
            "same": "x",
            "safe": np.where(kind == 2, True, rng.random(count) < 0.5),
        },
        index=np.arange(count) + 100,
    )


@pytest.fixture(scope="module")
def table():
    return MDBM(bins=12, label="kind", train=Train(steps=200, **TRAIN)).fit(frame_of(400, 1))


def test_a_frame_is_filled_with_values_of_its_kinds(table):
    whole = frame_of(120, 2)
    rng = np.random.default_rng(3)
    hide = rng.random(whole.shape) < 0.2
    gaps = whole.astype({"doors": "float64"}).mask(hide)
    gaps["kind"] = gaps["kind"].astype(whole["kind"].dtype)
    before = gaps.copy()
    done = table.impute(gaps)
    pd.testing.assert_frame_equal(gaps, before)
    filled = done.filled
    assert list(filled.columns) == list(whole.columns) and (filled.index == whole.index).all()
    kept = [name for name in whole.columns if name != "same"]  # a column of one value tells nothing
    assert not filled[kept].isna().any().any()
    for k, name in enumerate(whole.columns):
        there = ~hide[:, k]
        assert (filled[name].astype(object)[there] == whole[name].astype(object)[there]).all(), name
    k = list(whole.columns).index("kind")
    assert (filled["kind"][hide[:, k]] == whole["kind"][hide[:, k]]).mean() > 0.9
    off = (filled["size"] - whole["size"])[hide[:, 1]]
    assert off.abs().median() < 1.5 and filled["kind"].dtype == whole["kind"].dtype
    assert (filled["when"] - whole["when"])[hide[:, 3]].abs().median() < pd.Timedelta(days=6)
    assert isinstance(done.column("size"), bv.distributions.Bar)
    assert isinstance(done.column("kind"), bv.distributions.Categorical)
    truth = torch.as_tensor(whole["size"].to_numpy(copy=True))
    rows = torch.as_tensor(hide[:, 1])
    low, high = done.column("size").interval(0.9)
    assert float(((low <= truth) & (truth <= high))[rows].double().mean()) > 0.75
    with pytest.raises(ValueError, match="one of"):
        done.column("colour")


def test_values_of_a_frame_condition(table):
    seen = table.condition(["kind", "doors"], ["blue", 4])
    assert int(seen.predict(["safe"]).mode) == table.coding.columns.kept[-1].levels.index("True")
    number = table.coding.law(1, seen.predict(["size"]).probs)
    alone = table.coding.law(1, table.predict(["size"]).probs)
    assert (
        float(alone.mean) == pytest.approx(10, abs=1.5) and float(number.mean) > 13
    )  # in truth 20: couplings are bounded
    with pytest.raises(ValueError, match=r"values of column 'kind' .*red"):
        table.condition(["kind"], ["violet"])
    with pytest.raises(ValueError, match="one value for each"):
        table.condition(["kind"], ["red", "blue"])
    with pytest.raises(ValueError, match="among"):
        table.condition(["colour"], ["red"])


def test_a_new_category_is_left_and_said(table):
    frame = frame_of(5, 4).astype({"kind": object})
    frame.loc[100, "kind"] = "violet"
    frame.loc[101, "size"] = np.nan
    with pytest.warns(UserWarning, match=r"'kind': 1 cells, such as 'violet'"):
        done = table.impute(frame)
    assert done.filled.loc[100, "kind"] == "violet" and not done.holes[0].any()
    assert not np.isnan(done.filled.loc[101, "size"])


def test_frames_are_read_by_name_and_survive_a_file(table, tmp_path):
    frame = frame_of(20, 5).astype({"kind": object})
    frame.iloc[3, 0] = None
    bv.save(table, tmp_path / "t.safetensors")
    loaded = bv.load(tmp_path / "t.safetensors")
    again = loaded.impute(frame[frame.columns[::-1]])
    assert torch.equal(again.probs, table.impute(frame).probs)
    assert again.filled.columns.tolist() == frame.columns[::-1].tolist()
    with pytest.raises(ValueError, match="lacks the columns size"):
        table.impute(frame.drop(columns="size"))
    with pytest.raises(ValueError, match="must be a frame"):
        table.impute(torch.zeros(3, 5))


def test_columns_that_cannot_be_read_are_named():
    frame = frame_of(30, 1)
    frame["size"] = frame["size"].mask(frame.index == 105, np.inf)
    with pytest.raises(ValueError, match="'size' must hold finite"):
        MDBM().fit(frame)
    with pytest.raises(ValueError, match="no column is left"):
        MDBM().fit(frame[["same"]])
    with pytest.raises(ValueError, match="label must be a column"):
        MDBM(label="colour").fit(frame_of(30, 1))
    with pytest.raises(ValueError, match="kind of 'size'"):
        MDBM(kinds=(("size", "colour"),)).fit(frame_of(30, 1))


def test_columns_keep_their_types():
    when = pd.Series(pd.date_range("2024", periods=40, tz="Europe/Berlin"))
    frame = pd.DataFrame(
        {
            "whole": pd.array([1, 2, None, 4] * 10, dtype="Int64"),
            "text": pd.array(["x", None, "y", "x"] * 10, dtype="string"),
            "level": pd.Categorical(["u", "v", None, "u"] * 10),
            "when": when.where(np.arange(40) % 3 > 0).array,
            3: [True, None, False, True] * 10,
        },
        index=[0] * 40,
    )
    done = MDBM(train=Train(steps=3, **TRAIN)).fit(frame).impute(frame)
    assert not done.filled.isna().any().any() and list(done.filled.columns) == list(frame.columns)
    assert done.filled.dtypes[["whole", "text", "level", "when"]].equals(
        frame.dtypes[["whole", "text", "level", "when"]]
    )
    assert set(done.filled[3]) == {True, False}


def test_nothing_to_learn_from_and_nothing_to_fill():
    with pytest.raises(ValueError, match="at least one level"):
        MDBM().fit(np.full((5, 3), np.nan))
    with pytest.raises(ValueError, match="no column is left"):
        MDBM().fit(pd.DataFrame({"a": [], "b": []}))
    post = MDBM(train=Train(steps=3, **TRAIN)).fit(frame_of(20, 1))
    with pytest.raises(ValueError, match="at least one row"):
        post.impute(frame_of(20, 1).iloc[:0])
    row = pd.DataFrame({name: [None] for name in frame_of(20, 1).columns})
    assert not post.impute(row).filled.drop(columns="same").isna().any().any()  # nothing is known of it


def test_few_numbers_are_levels_and_many_are_bins():
    coding = Coding.of(frame_of(300, 1), 12, {})
    assert coding.values[2] == (2.0, 3.0, 4.0) and coding.values[1] is None
    assert len(coding.borders[1]) == 13 and coding.levels[2] == 3 and coding.ordered == (False, True, True, True, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codes = coding.encode(frame_of(300, 1))
    counts = torch.bincount(codes[:, 1].long(), minlength=12)
    assert counts.min() > 15  # bins hold about the same
