"""What users hand in: every kind of numbers is taken, and what is wrong is refused by name, whatever the method."""

import re

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import (
    CONDITIONABLE,
    FEATURES,
    INSTANCES,
    ROWS,
    CapInstance,
    CurveInstance,
    DiscreteInstance,
    ImageInstance,
    seen,
)

from bayesvision.core.checks import check_classes, check_inputs, check_prior, check_targets, columns_of
from bayesvision.core.data import Data
from bayesvision.core.roles import Prior
from bayesvision.methods.pfn.pfn import PFN
from priors import BayesianLinear

NAMES = ["a", "b"]
CHECKS = settings(max_examples=30, deadline=None, derandomize=True)
BAD_NUMBERS = st.sampled_from([float("nan"), float("inf"), -float("inf"), 1.1e30, -1e300])


# bad curves are in test_lcpfn.py, and what a network said is no table
# networks for tables take text and NaN: tests/methods/tables
OTHER = CurveInstance | CapInstance | DiscreteInstance | ImageInstance  # whose rows are no rows of numbers
TABLES = [i for i in INSTANCES if not isinstance(i, OTHER) and "tables" not in i.name]


def each(instances):
    return pytest.mark.parametrize("instance", instances, ids=lambda i: i.name)


def truth(law):
    return law.class_probs if hasattr(law, "class_probs") else law.mean


def frame(x, names=NAMES):
    return pandas.DataFrame(np.asarray(x), columns=names)


# Every kind of input


@each(TABLES)
def test_kinds_of_inputs_agree_and_the_output_has_their_dtype(instance):
    x, y = instance.rows(ROWS, seed=1)
    posterior = instance.learn(x.float(), y if instance.classes else y.float())
    x = instance.rows(5, seed=4)[0].float()
    expected = truth(posterior.predict(x))
    assert expected.dtype == torch.float32
    read_only = x.numpy().copy()
    read_only.setflags(write=False)
    strided = np.asfortranarray(x.numpy())[::-1][::-1]
    kinds = [x.numpy(), read_only, strided, x.numpy().astype(">f4"), frame(x), x.clone().requires_grad_()]
    for other in kinds:
        found = truth(posterior.predict(other))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-6)
    for other in (x.double(), x.double().numpy(), x.tolist(), x.numpy().astype(np.longdouble), frame(x).astype(object)):
        found = truth(posterior.predict(other))
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=1e-5)
    assert truth(posterior.predict(x.half())).dtype == torch.float32
    assert truth(posterior.predict(torch.ones(3, FEATURES, dtype=torch.int32))).dtype == torch.float64


@each(TABLES)
def test_kinds_of_targets_agree(instance):
    (x, y), q = instance.rows(ROWS, seed=1), instance.rows(5, seed=4)[0]
    expected = truth(seen(instance).predict(q))
    for target in (y.numpy(), y.tolist(), pandas.Series(y.numpy(), index=range(7, 7 + ROWS)), frame(y, ["y"])):
        assert torch.equal(truth(instance.learn(x, target).predict(q)), expected)


@each(TABLES)
def test_columns_of_a_frame(instance):
    (x, y), q = instance.rows(ROWS, seed=1), instance.rows(5, seed=4)[0]
    posterior = instance.learn(frame(x), y)
    expected = truth(posterior.predict(q))
    assert torch.equal(truth(posterior.predict(frame(q))), expected)
    assert torch.equal(truth(posterior.predict(frame(q)[["b", "a"]])), expected)  # put right
    for wrong, word in (
        (frame(q, ["a", "c"]), "c"),
        (frame(q)[["a"]], "b"),
        (frame(q).assign(id=1.0), "id"),
        (frame(q, ["a", "a"]), "same name"),
    ):
        with pytest.raises(ValueError, match=rf"(?s)^x .*{word}"):
            posterior.predict(wrong)
    if CONDITIONABLE in instance.roles:
        again = posterior.condition(frame(x)[["b", "a"]].iloc[:4], y[:4])
        assert torch.equal(truth(again.predict(q)), truth(posterior.condition(x[:4], y[:4]).predict(q)))
        with pytest.raises(ValueError, match=r"^x "):
            posterior.condition(frame(x, ["a", "c"]), y)


# What is wrong


@each(TABLES)
@CHECKS
@given(st.sampled_from(["x of predict", "x", "y"]), st.integers(0, ROWS - 1), st.integers(0, FEATURES - 1), BAD_NUMBERS)
def test_numbers_that_are_none(instance, place, row, column, bad):
    x, y = instance.rows(ROWS, seed=1)
    y = y.double()
    if place == "y":
        y[row] = bad
    else:
        x[row, column] = bad
    with pytest.raises(ValueError, match=rf"^{place[0]} must (be finite|hold)"):
        seen(instance).predict(x) if place == "x of predict" else instance.learn(x, y)


@each(TABLES)
@CHECKS
@given(st.lists(st.integers(0, 4), max_size=4))
def test_shapes_of_x(instance, shape):
    x = torch.rand(shape, dtype=torch.float64)
    if len(shape) >= 2 and x.numel() and shape[-1] == FEATURES:
        assert seen(instance).predict(x).batch_shape == tuple(shape[:-1])
    else:
        with pytest.raises(ValueError, match=r"^x must have"):
            seen(instance).predict(x)


@each(TABLES)
@CHECKS
@given(st.lists(st.integers(0, ROWS + 1), max_size=3).filter(lambda s: s not in ([ROWS], [ROWS, 1])))
def test_shapes_of_y(instance, shape):
    several = instance.name.startswith("dkm") and shape[:1] == [ROWS] and len(shape) == 2 and shape[1]  # it takes these
    words = r"^y is constant" if several and not instance.classes else r"^y must have one value for each row of x"
    with pytest.raises(ValueError, match=words):
        instance.learn(instance.rows(ROWS, seed=1)[0], torch.zeros(shape))


@each([i for i in TABLES if i.classes is None])
def test_constant_targets(instance):
    x, y = instance.rows(ROWS, seed=1)
    if instance.name in ("pfn", "mcmc", "dt", "particle-filter"):  # they learn no scale
        assert instance.learn(x, torch.full_like(y, 2.5)).predict(x).mean.isfinite().all()
        return
    with pytest.raises(ValueError, match=r"^y is constant \(2\.5 in all 12 rows\)"):
        instance.learn(x, torch.full_like(y, 2.5))


@each([i for i in TABLES if i.classes is not None])
@pytest.mark.parametrize("label", [-1, 3, 0.5, 1e20])
def test_labels_out_of_range(instance, label):
    x, y = instance.rows(ROWS, seed=1)
    y = y.double()
    y[3] = label
    with pytest.raises(ValueError, match=r"^y must hold (classes 0 to 2|whole class numbers), got"):
        instance.learn(x, y)


@each(TABLES)
@pytest.mark.parametrize(
    "x",
    [
        [["1.5", "2"]],
        frame([["1.5", "2"]]),
        frame([[1.5, "red"]]),
        "text",
        {"a": 1},
        None,
        [[1.0, 2.0], [1.0]],
        [[10**400, 1]],
        np.ones((2, 2), complex),
        np.array([["2020-01-01", "2020-01-02"]], "datetime64[D]"),
        torch.eye(2).to_sparse(),
        [torch.ones(2, requires_grad=True)] * 2,
        3.0,
        [],
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_is_not_a_table_of_numbers(instance, x):
    with pytest.raises(ValueError, match=r"^x must"):
        seen(instance).predict(x)
    with pytest.raises(ValueError, match=r"^y must"):
        instance.learn(torch.rand(2, FEATURES), "text")


@each([i for i in TABLES if CONDITIONABLE in i.roles])
def test_conditioning_on_other_columns(instance):
    with pytest.raises(ValueError, match=rf"^x must have {FEATURES} columns as seen before, got 1"):
        seen(instance).condition(torch.rand(3, 1), torch.tensor([0, 1, 2]))


@each([i for i in INSTANCES if i.prior is None])
def test_sources_that_are_no_data(instance):
    with pytest.raises(TypeError, match="source"):
        instance.method.fit(BayesianLinear())
    with pytest.raises(ValueError, match=r"^y must"):
        instance.method.fit(Data(torch.rand(5, 2)))


class WithoutGenerator:
    def sample(self, batch, rows):
        return None


@pytest.mark.parametrize(
    "source",
    [
        BayesianLinear,
        Data([1.0], [1.0]),
        pandas.DataFrame({"a": [1.0]}),
        torch.distributions.Normal(0, 1),
        WithoutGenerator(),
        "prior",
        None,
    ],
    ids=lambda s: type(s).__name__,
)
def test_sources_that_are_no_prior(source):
    with pytest.raises(TypeError, match="source"):
        PFN().fit(source)
    with pytest.raises(TypeError, match=r"^source must be a prior, an object with a method sample\(batch, rows"):
        check_prior(source)


def test_a_prior_is_known_by_its_structure():
    prior = BayesianLinear()
    assert check_prior(prior) is prior
    assert isinstance(prior, Prior)


# The checks themselves


def test_check_inputs_reports_the_place():
    x = torch.zeros(2, 3, 4)
    x[1, 2, 0] = float("nan")
    with pytest.raises(ValueError, match=re.escape("got nan at index [1, 2, 0] (1 such values); drop or impute")):
        check_inputs(x)
    assert check_inputs([1.0, 2.0]).shape == (2, 1)  # a vector is one feature
    assert columns_of([1.0]) is None
    assert columns_of(pandas.DataFrame({1: [0.0]})) == ("1",)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_infinities_in_half_precision(kind):
    with pytest.raises(ValueError, match=r"^x must be finite"):
        check_inputs(torch.full((2, 1), float("inf"), dtype=kind))


def test_constant_targets_count_what_was_seen():
    x = torch.rand(2, 1)
    same, seen_before = torch.tensor([3.0, 3.0]), torch.tensor([1.0])
    with pytest.raises(ValueError, match="y is constant"):
        check_targets(same, x)
    assert torch.equal(check_targets(same, x, seen=seen_before), same)
    with pytest.raises(ValueError, match=r"y is constant \(3 in all 3 rows\)"):
        check_targets(same, x, seen=same[:1])
    assert check_targets(same[:1], x[:1]).shape == (1,)  # one row is no constant
    both = torch.tensor([[1.0, 2.0], [5.0, 5.0]])
    with pytest.raises(ValueError, match=r"y is constant \(5 in all 2 rows\)"):
        check_targets(both, x.expand(2, 2, 1))


def test_classes_come_as_any_kind_of_numbers():
    x = torch.rand(3, 1)
    for y in ([0, 2, 1], [0.0, 2.0, 1.0], np.array([0, 2, 1], np.uint8), torch.tensor([[0], [2], [1]])):
        found = check_classes(y, x, 3)
        assert found.tolist() == [0, 2, 1]
        assert found.dtype == torch.int64
    assert check_classes([True, False, True], x, 2).tolist() == [1, 0, 1]


@each([i for i in TABLES if i.classes is None])
@pytest.mark.parametrize("labels", ["truth", "text", "tensor"])
def test_labels_given_as_numbers_name_the_classifier(instance, labels):
    x, y = instance.rows(ROWS, seed=1)
    given = {"truth": (y > 0).numpy(), "text": np.where(y > 0, "yes", "no"), "tensor": y > 0}[labels]
    with pytest.raises(ValueError, match="pfn-classes"):
        instance.learn(x, given)
