"""Recipes: frozen dataclasses whose fields have plain types, kept in files as JSON."""

import dataclasses
import math
import re
import types
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

__all__ = ["build", "convert_fields", "describe", "to_json"]

Recipe = TypeVar("Recipe")
NOT_STORED = {"stored": False}  # metadata of a field that decides no number, and so is kept in no file


def convert_fields(recipe: Any) -> None:
    """Bring the fields of a new dataclass to their annotated types: NumPy and torch numbers, lists for tuples.

    To be called first in `__post_init__`, so that a recipe that was made can be saved.

    Raises:
        ValueError: a field of another type; the message names the field, what it may be, and what it is.
    """
    hints = get_type_hints(type(recipe))
    for field in dataclasses.fields(recipe):
        value, hint = getattr(recipe, field.name), hints[field.name]
        try:
            object.__setattr__(recipe, field.name, _converted(value, hint))
        except TypeError:
            raise ValueError(
                f"{field.name} must be {_words(hint)}, got {value!r} of the type {type(value).__name__}"
            ) from None


def _converted(value: Any, hint: Any) -> Any:
    """`value` as the annotated type; a TypeError if it is of another."""
    origin, options = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _first_fit(value, options)
    value = _scalar(value)
    if hint in (bool, int, float, str, type(None)):
        return _plain(value, hint)
    if origin is Literal:
        if any(type(value) is type(option) and value == option for option in options):
            return value
        raise TypeError
    if origin is tuple:
        return _tuple(value, options)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and not isinstance(value, hint):
        raise TypeError
    return value


def _scalar(value: Any) -> Any:
    """A number of NumPy or torch as one of Python; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _first_fit(value: Any, options: tuple[Any, ...]) -> Any:
    for option in sorted(options, key=lambda o: o is float):  # a whole number stays one where both are allowed
        try:
            return _converted(value, option)
        except TypeError:
            continue
    raise TypeError


def _plain(value: Any, hint: Any) -> Any:
    """A bool, int, float, str or None; no text for a number, and no truth value for one."""
    if hint is type(None):
        fits = value is None
    elif hint is bool:
        fits = isinstance(value, bool)
    elif hint is str:
        fits = isinstance(value, str)
    else:
        fits = isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    if not fits:
        raise TypeError
    return value if value is None else cast(Any, hint)(value)


def _tuple(value: Any, options: tuple[Any, ...]) -> tuple[Any, ...]:
    value = value.tolist() if hasattr(value, "tolist") else value  # an array or a tensor
    if not isinstance(value, list | tuple):
        raise TypeError
    if len(options) == 2 and options[1] is Ellipsis:
        return tuple(_converted(v, options[0]) for v in value)
    if len(options) != len(value):
        raise TypeError
    return tuple(_converted(v, option) for v, option in zip(value, options, strict=True))


def _words(hint: Any) -> str:
    """An annotation in words."""
    plain = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", type(None): "None"}
    if hint in plain:
        return plain[hint]
    options = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(o) for o in options))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, options))
    if get_origin(hint) is tuple:
        if options[-1] is Ellipsis:
            return f"a tuple, each entry {_words(options[0])}"
        return f"a tuple of {len(options)} entries: {', '.join(map(_words, options))}"
    return getattr(hint, "__name__", str(hint))


def describe(value: Any) -> Any:
    """A recipe or a prior as JSON: a dataclass as {"name": its class, its fields}, what is not data as its repr."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"name": type(value).__name__, **{f.name: describe(getattr(value, f.name)) for f in _stored(value)}}
    if isinstance(value, list | tuple):
        return [describe(v) for v in value]
    value = _scalar(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))  # an address would differ from run to run


def to_json(recipe: Any) -> dict[str, Any]:
    """The fields of a recipe as JSON data, from which `build` makes an equal one; infinities become text."""
    return {f.name: _json(getattr(recipe, f.name)) for f in _stored(recipe)}


def _json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_json(value)
    if isinstance(value, list | tuple):
        return [_json(v) for v in value]
    value = _scalar(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _fitted(value: Any, hint: Any) -> Any:
    """JSON data as the annotated type, lists as tuples and names of infinities as numbers; as it is if it does not fit.

    The recipe refuses that by name.
    """
    for read in (value, _numbers(value)):
        try:
            return _converted(read, hint)
        except TypeError:
            continue
    return value


def _numbers(value: Any) -> Any:
    """JSON data with infinities in place of their names."""
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    return float(value) if value in ("inf", "-inf") else value


def _stored(recipe: Any) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(recipe) if f.metadata.get("stored", True)]


def build(cls: type[Recipe], fields: dict[str, Any]) -> Recipe:
    """The recipe of class `cls` that `to_json` described; nested recipes are built by their annotations.

    A number that is None was an infinite bound in a file of version 0.1, and takes the field's default, which is that
    bound.

    Raises:
        ValueError: fields that the class does not have, or values that it refuses.
        TypeError: a field that has no default is missing.
    """
    hints, given = get_type_hints(cls), {}
    known = [f.name for f in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}; its fields are {', '.join(known)}")
    for name, value in fields.items():
        if value is None and hints[name] is float:
            continue
        nested: Any = next((h for h in (hints[name], *get_args(hints[name])) if dataclasses.is_dataclass(h)), None)
        if nested and isinstance(value, dict):
            given[name] = build(nested, value)
            continue
        given[name] = _fitted(value, hints[name])
    return cls(**given)
