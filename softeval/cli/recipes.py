"""Recipes: YAML files of options that combine.

A recipe names options and may `include` others, which it overrides. Recipes are given by path or,
for those that ship in `trainers/recipes/`, by name; `a+b` is a, then b over it. So a paper run is
`llama-3.2-3b+gsm8k+fuzzy`, and what is common to all 27 stands in one file.

Knows the options' names and flags, not what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from softeval.errors import UserError, suggest
from softeval.options import read_options
from softeval.trainers.config import TrainConfig


def read_recipes(names: Sequence[str]) -> dict[str, Any]:
    """The options of several recipes, later ones over earlier ones.

    Raises:
        UserError: no such recipe, no YAML, or recipes that include each other.
    """
    options: dict[str, Any] = {}
    for name in names:
        for part in [name] if _is_file(name) else name.split("+"):
            options |= _read(find_recipe(part), ())
    return options


def shipped_recipes() -> list[str]:
    """Names of the recipes inside the package."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """File of a recipe, by path or shipped name.

    Raises:
        UserError: neither.
    """
    return find_shipped(name, _folder(), "recipe")


def find_shipped(name: str, folder: Path, what: str) -> Path:
    """A YAML file, by path or by its name in a folder of the package; `what` is for messages.

    Raises:
        UserError: neither.
    """
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise UserError(f"no {what} {name}; give a YAML file or a shipped name")
    shipped = folder / f"{name}.yaml"
    if not shipped.is_file():
        known = sorted(path.stem for path in folder.glob("*.yaml"))
        raise UserError(f"no {what} {name!r}{suggest(name, known)}; shipped are {', '.join(known)}")
    return shipped


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path in above:
        raise UserError(f"recipe {path.name} includes itself; remove it from its `include`")
    content = {_field(k): v for k, v in read_options(path, "recipe").items()}
    included = content.pop("include", [])
    options: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        beside = path.parent / str(name)
        target = beside if beside.is_file() else find_recipe(str(name))
        options |= _read(target, (*above, path))
    return options | content


def _field(key: str) -> str:
    """Name of the field that a recipe's key means: its own or one of its flags, `-` for `_`."""
    name = key.replace("-", "_")
    for field, info in TrainConfig.model_fields.items():
        extra = info.json_schema_extra
        flags = extra.get("flags") if isinstance(extra, dict) else None
        if isinstance(flags, list) and "--" + name.replace("_", "-") in flags:
            return field
    return name


def _is_file(name: str) -> bool:
    """Whether the whole name, a + in it or not, is a file."""
    path = Path(name).expanduser()
    return path.suffix in (".yaml", ".yml") and path.is_file()


def _folder() -> Path:
    return Path(str(files("softeval.trainers") / "recipes"))
