"""Recipes: a field holds its annotated type or refuses what it is given, and what was kept comes back."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest
import torch
from checks import rejected, unchecked
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import INSTANCES

import bayesvision as bv
from bayesvision.core.recipes import NOT_STORED, build, convert_fields, describe, to_json


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5

    def __post_init__(self) -> None:
        convert_fields(self)


@dataclass(frozen=True)
class Outer:
    """A field of every type that recipes have."""

    count: int = 1
    scale: float = 1.0
    flag: bool = False
    name: str = "a"
    kernel: Literal["rbf", "linear"] = "rbf"
    maybe: int | None = None
    scales: float | tuple[float, ...] | None = None
    pair: tuple[int, int] = (1, 2)
    names: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)
    other: Inner | None = None
    program: Any = None
    place: str = field(default="here", metadata=NOT_STORED)

    def __post_init__(self) -> None:
        convert_fields(self)


CONVERTED = [
    ("count", np.int64(3), 3),
    ("count", torch.tensor(3), 3),
    ("count", np.array(3), 3),
    ("scale", 3, 3.0),
    ("scale", np.float32(0.5), 0.5),
    ("scale", np.int8(2), 2.0),
    ("scale", torch.tensor(0.5), 0.5),
    ("flag", np.bool_(True), True),
    ("flag", torch.tensor(True), True),
    ("name", np.str_("b"), "b"),
    ("kernel", np.str_("linear"), "linear"),
    ("maybe", np.uint8(3), 3),
    ("maybe", None, None),
    ("scales", np.float64(0.3), 0.3),
    ("scales", torch.tensor(0.5), 0.5),
    ("scales", [0.3, 1], (0.3, 1.0)),
    ("scales", np.array([0.25, 0.5], np.float32), (0.25, 0.5)),
    ("scales", torch.tensor([0.25, 0.5]), (0.25, 0.5)),
    ("pair", [np.int64(1), 5], (1, 5)),
    ("names", ["a", np.str_("b")], ("a", "b")),
]


@pytest.mark.parametrize(("name", "given", "held"), CONVERTED, ids=lambda v: str(v))
def test_numbers_of_every_kind_become_those_of_python(name, given, held):
    recipe = Outer(**{name: given})
    found = getattr(recipe, name)
    assert found == held and type(found) is type(held)
    if isinstance(held, tuple):
        assert [type(v) for v in found] == [type(v) for v in held]
    assert build(Outer, json.loads(json.dumps(to_json(recipe)))) == recipe


REFUSED = [
    ("count", 1.5, "a whole number, got 1.5 of the type float"),
    ("count", 2.0, "a whole number, got 2.0 of the type float"),
    ("count", True, "a whole number, got True of the type bool"),
    ("count", np.bool_(True), "a whole number, got .* of the type bool"),
    ("count", "3", "a whole number, got '3' of the type str"),
    ("count", None, "a whole number, got None of the type NoneType"),
    ("count", [3], r"a whole number, got \[3\] of the type list"),
    ("scale", "0.5", "a number, got '0.5' of the type str"),
    ("scale", 1j, "a number, got 1j of the type complex"),
    ("scale", False, "a number, got False of the type bool"),
    ("flag", "false", "True or False, got 'false' of the type str"),
    ("flag", 0, "True or False, got 0 of the type int"),
    ("name", 3, "a text, got 3 of the type int"),
    ("kernel", "cubic", "one of rbf, linear, got 'cubic' of the type str"),
    ("kernel", 1, "one of rbf, linear, got 1"),
    ("maybe", "many", "a whole number or None, got 'many' of the type str"),
    ("scales", ["a"], r"a number or a tuple, each entry a number or None, got \['a'\] of the type list"),
    ("scales", np.ones((2, 2)), "a number or a tuple, .*, got .* of the type ndarray"),
    ("pair", (1, 2, 3), "a tuple of 2 entries: a whole number, a whole number, got"),
    ("pair", 3, ".* of the type int"),
    ("names", "ab", "a tuple, each entry a text, got 'ab' of the type str"),
    ("inner", {"rate": 1.0}, "Inner, got .* of the type dict"),
    ("other", 3, "Inner or None, got 3 of the type int"),
]


@pytest.mark.parametrize(("name", "given", "words"), REFUSED, ids=lambda v: str(v))
def test_other_types_are_refused_by_name(name, given, words):
    with pytest.raises(ValueError, match=rf"(?s)^{name} must be {words}"):
        Outer(**{name: given})


def test_what_is_no_data_is_left_alone():
    array = np.zeros(())
    for program in (print, array, [1]):
        assert Outer(program=program).program is program


def some_of(hint: Any) -> list[Any]:
    """Values that NumPy, torch or a TOML file may hold where `hint` is expected, right and wrong."""
    numbers = [np.float32(0.5), np.float64(2.0), np.int64(8), np.bool_(True), torch.tensor(8), torch.tensor(0.5)]
    return [*numbers, "false", "8", [8, 16], [0.3, 0.5], np.array([0.3, 0.5]), None, 8, 0.5, True]


METHODS = {type(i.method).__name__: i.method for i in INSTANCES}
FIELDS = [(n, f.name) for n, m in METHODS.items() for f in dataclasses.fields(m) if f.name not in ("net", "program")]


@pytest.mark.parametrize(("method", "name"), FIELDS, ids=lambda v: str(v))
def test_a_recipe_that_can_be_made_can_be_kept(method, name):
    """Every method, every field, every kind of value: a ValueError that names the field, or plain data."""
    for value in some_of(name):
        try:
            with unchecked():
                recipe = dataclasses.replace(METHODS[method], **{name: value})
        except ValueError as error:
            assert name in str(error), (name, value, str(error))
            continue
        stored = json.loads(json.dumps(to_json(recipe) | {"program": None}))
        assert type(getattr(recipe, name)) in (bool, int, float, str, tuple, type(None)), (name, value)
        if method != "MCMC":
            stored.pop("program")
            again = build(type(recipe), stored)
            assert to_json(again) == to_json(recipe)


@pytest.mark.parametrize("kind", [bv.Train, bv.Execution])
def test_training_takes_the_same_care(kind):
    for f in dataclasses.fields(kind):
        if f.name == "execution":
            continue
        for value in some_of(f.type):
            try:
                with unchecked():
                    recipe = kind(**{f.name: value})
            except ValueError as error:
                assert f.name in str(error) or "batch" in str(error), (f.name, value, str(error))
            else:
                json.dumps(to_json(recipe))


# Recipe <-> JSON


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.text(),
    st.lists(st.floats(allow_nan=False, allow_infinity=False)),
)
def test_what_was_kept_comes_back(count, scale, flag, name, scales):
    recipe = Outer(count, scale, flag, name, maybe=count, scales=tuple(scales), inner=Inner(scale), other=Inner(2.0))
    stored = json.loads(json.dumps(to_json(recipe)))
    assert "place" not in stored  # it decides no number
    assert build(Outer, stored) == recipe


def test_infinite_bounds_come_back():
    for scale in (bv.MetricScale(0, soft_upper=4, minimize=True), bv.MetricScale(0, 1)):
        stored = to_json(scale)
        assert math.inf not in stored.values()
        assert build(bv.MetricScale, json.loads(json.dumps(stored))) == scale


def test_build_names_what_does_not_fit():
    with rejected("Outer has no field depth, size; its fields are count, scale, "):
        build(Outer, {"depth": 1, "size": 2})
    with rejected("Inner has no field speed"):
        build(Outer, {"other": {"speed": 1.0}})
    with rejected("count must be a whole number"):
        build(Outer, {"count": "many"})


def test_describe_has_no_addresses_and_is_json():
    class Plain:
        pass

    found = describe(bv.PFN(classes=2))
    assert (found["name"], found["classes"], found["train"]["name"]) == ("PFN", 2, "Train")
    assert describe((1, None, "a", np.float64(0.5), torch.tensor(2))) == [1, None, "a", 0.5, 2]
    assert describe(Plain()) == describe(Plain())
    assert "Plain" in describe(Plain())


@dataclass(frozen=True)
class Penalised:
    penalty: float | tuple[float, ...] = 1.0
    name: str = "plain"

    def __post_init__(self):
        convert_fields(self)


@pytest.mark.parametrize("penalty", [math.inf, (1.0, math.inf), (-math.inf,)])
def test_infinities_that_are_no_default_come_back(penalty):
    recipe = Penalised(penalty, name="inf")
    stored = json.loads(json.dumps(to_json(recipe), allow_nan=False))
    assert build(Penalised, stored) == recipe
