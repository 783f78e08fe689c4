"""Recipes as TOML files: a prior, a method and its training, each a section of named fields."""

import importlib
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from bayesvision.core.recipes import build

__all__ = ["Recipe", "build_prior", "construct", "read_recipe"]

METHODS = {  # section of a recipe -> method whose fields it holds
    "pfn": "PFN",
    "lcpfn": "LCPFN",
    "table": "TablePFN",
    "dt": "DistributionTransformer",
}


class Recipe(NamedTuple):
    """What a TOML file says: a prior, and the fields of the method, of its training and of the training's execution."""

    prior: Any
    section: str  # of the method
    method: dict[str, Any]
    train: dict[str, Any]
    execution: dict[str, Any]

    def build(self, **execution: Any) -> Any:
        """The method; fields of its execution may be given here.

        Raises:
            ValueError: fields that it does not have, or values that it refuses.
        """
        bv = importlib.import_module("bayesvision")
        where = construct(bv.Execution, {**self.execution, **execution}, "[execution]")
        train = construct(bv.Train, {**self.train, "execution": where}, "[train]")
        return construct(getattr(bv, METHODS[self.section]), {**self.method, "train": train}, f"[{self.section}]")


def read_recipe(path: Path, priors: ModuleType) -> Recipe:
    """The recipe in a TOML file, with a prior of the package `priors`.

    Raises:
        ValueError: not TOML, other sections than those of a recipe, or an unknown prior.
    """
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    sections = {"prior", "train", "execution", *METHODS}
    chosen = [name for name in METHODS if name in recipe]
    if "prior" not in recipe or set(recipe) - sections or len(chosen) > 1:
        raise ValueError(
            f"{path}: a recipe has the sections [prior], [pfn], [lcpfn], [table] or [dt], [train] and [execution], "
            f"got {', '.join(recipe) or 'none'}"
        )
    for name in sections & set(recipe):
        if not isinstance(recipe[name], dict):
            raise ValueError(f"{path}: {name} must be a section [{name}], got {recipe[name]!r}")
    method = chosen[0] if chosen else "pfn"
    train, execution = _split(recipe.get("train", {}))
    execution |= recipe.get("execution", {})
    if {"checkpoint_dir", "folder"} & {*execution, *train}:
        raise ValueError(f"{path}: a recipe must not name a folder; the training state is kept beside --out")
    return Recipe(build_prior(recipe["prior"], priors), method, recipe.get(method, {}), train, execution)


def _split(train: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of the training, and those that release 0.1 kept among them and that belong to its execution."""
    execution_fields = importlib.import_module("bayesvision").Execution.__dataclass_fields__
    former = importlib.import_module("bayesvision.training.train").FORMER
    new = {former.get(name, name): value for name, value in train.items()}
    execution = {name: value for name, value in new.items() if name in execution_fields}
    return {name: value for name, value in new.items() if name not in execution}, execution


def build_prior(fields: dict[str, Any], priors: ModuleType) -> Any:
    """A prior of the package `priors` from its description: {"name": its class, its fields}.

    Raises:
        ValueError: no prior of this name, fields that it does not have, or values that it refuses.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"[prior] must be a table with a name, got {fields!r}")
    fields = dict(fields)
    name = fields.pop("name", None)
    prior = getattr(priors, name, None) if isinstance(name, str) else None  # by a name of an earlier release too
    if not _is_prior(prior):
        known = sorted(n for n, value in vars(priors).items() if _is_prior(value))
        raise ValueError(f"[prior] needs a name, one of {', '.join(known)}; got {name!r}")

    def nested(value: Any) -> Any:
        if isinstance(value, dict):
            return build_prior(value, priors)
        return tuple(nested(v) for v in value) if isinstance(value, list) else value

    return construct(prior, {k: nested(v) for k, v in fields.items()}, f"[prior] {name}")


def _is_prior(value: Any) -> bool:
    return isinstance(value, type) and "sample" in vars(value)


def construct(cls: Any, fields: dict[str, Any], where: str) -> Any:
    """A dataclass from named fields; what it refuses is said to be in the section `where`.

    Raises:
        ValueError: fields that it does not have, or values that it refuses.
    """
    try:
        return build(cls, fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
