"""Recipes from TOML files and from tables.

Every error is one :class:`InputError` line that names the place in the recipe and, for a wrong name, its neighbour.
"""

from __future__ import annotations

import copy
import sys
import typing
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.recipes.checks import check_recipe
from art_qplugins.recipes.schema import Recipe, Settings
from art_qplugins.recipes.suites import expand_suites
from art_qplugins.recipes.sweep import expand_sweep, put

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["change", "load_recipe", "parse_recipe", "read_tables", "shipped_recipes", "tables_about"]

_SHIPPED = files("art_qplugins.recipes")


def load_recipe(path: Path, changes: Sequence[str] = ()) -> tuple[Recipe, dict[str, Any]]:
    """A checked recipe from a TOML file, and its tables as written.

    :param changes: see :func:`change`.
    """
    given = change(read_tables(path), changes)
    return parse_recipe(given, where=str(path)), given


def shipped_recipes() -> dict[str, str]:
    """The titles of the recipes that come with this package, by name."""
    found = sorted(p.name for p in _SHIPPED.iterdir() if p.name.endswith(".toml"))
    return {name.removesuffix(".toml"): tomllib.loads((_SHIPPED / name).read_text())["title"] for name in found}


def read_tables(path: Path) -> dict[str, Any]:
    """The tables of a TOML file, unchecked.

    :param path: path of a file, or the name of a recipe that comes with this package.
    """
    shipped = _SHIPPED / f"{path}.toml"
    by_name = path.name == str(path) and not path.is_file() and shipped.is_file()
    try:
        return tomllib.loads((shipped if by_name else path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = [str(p) for p in sorted(path.parent.glob("*.toml"))] if path.parent.is_dir() else []
        hint = did_you_mean(str(path), [*near, *shipped_recipes()])
        more = "" if hint.endswith("?") else ", or give the path of a TOML file"
        raise InputError(f"{path}: no such recipe{hint}{more}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not TOML: {error}") from None


def change(given: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The tables with settings changed.

    :param changes: ``"a.b=value"``; a list of named tables is entered by name, as in ``models.fp32.train.epochs=5``.
    """
    changed = copy.deepcopy(dict(given))
    for one in changes:
        _apply(changed, one)
    return changed


def parse_recipe(given: dict[str, Any], *, where: str = "recipe") -> Recipe:
    """A checked recipe from tables, with its sweep and its suites written out as models and attacks."""
    try:
        given = expand_suites(expand_sweep(given))
        recipe = Recipe.model_validate(given)
        check_recipe(recipe)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except ValidationError as error:
        raise InputError(f"{where}: {_first_line(error, given)}") from None
    return recipe


def _first_line(error: ValidationError, given: Any) -> str:
    first = error.errors(include_url=False)[0]
    if not first["loc"]:  # an error of the recipe as a whole: its message names the place
        return str(first["ctx"]["error"])
    path, model = "", Recipe
    for part in first["loc"][:-1]:
        model, given = _enter(model, part), _step(given, part)
        name = given.get("name", given.get("id", part)) if isinstance(part, int) and isinstance(given, dict) else part
        path += f"{name}."
    last = first["loc"][-1]
    if first["type"] == "extra_forbidden":
        return f"{path}{last}: unknown key{did_you_mean(str(last), model.model_fields)}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    shown = "" if first["type"] == "missing" else f" (it is {first['input']!r})"
    return f"{path}{last}: {message}{shown}"


def _step(given: Any, part: Any) -> Any:
    try:
        return given[part]
    except (KeyError, IndexError, TypeError):
        return {}


def _enter(model: Any, part: Any) -> Any:
    """The settings class behind a field, through lists and optionals; ``model`` itself behind an index."""
    if isinstance(part, int) or part not in getattr(model, "model_fields", {}):
        return model
    pending = [model.model_fields[part].annotation]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
        pending += typing.get_args(annotation)
    return Settings


def _apply(given: dict[str, Any], change: str) -> None:
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise InputError(f"--set {change}: write it as --set a.b=value, e.g. --set data.limit=50")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    put(given, path.split("."), value, where=f"--set {path}")


def tables_about(
    model: str, checkpoint: Path | None, data: str, norm: str, eps: str, attack: str, claimed: float | None
) -> dict[str, Any]:
    """The recipe of a claim about one module.

    :param model: ``"package.module:function"``.
    """
    named = {"name": model, "factory": model, **({"checkpoint": str(checkpoint)} if checkpoint else {})}
    return {
        "name": model,
        "data": {"name": data, "limit": 200},
        "threat": {"norm": norm, "eps": [eps]},
        "claim": {"attack": attack, "eps": eps, "accuracy": claimed},
        "models": [named],
        "attacks": [{"id": attack}],
    }
