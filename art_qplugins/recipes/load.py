"""Recipes from TOML files and from tables. A file may include others, see :func:`read_tables`, and have profiles.

Every error is one :class:`InputError` line that names the place in the recipe and, for a wrong name, its neighbour.
"""

from __future__ import annotations

import copy
import os
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from art_qplugins.deployment.arguments import TWIN_QUERIES
from art_qplugins.deployment.files import is_file
from art_qplugins.domains import TEXT, Either, ListOf
from art_qplugins.errors import InputError, at, did_you_mean, one_line, shown
from art_qplugins.files import as_path, is_exported, printable, read_text
from art_qplugins.recipes.checks import check_recipe
from art_qplugins.recipes.merge import choose, merged, with_defaults
from art_qplugins.recipes.schema import Recipe
from art_qplugins.recipes.suites import expand_suites
from art_qplugins.recipes.sweep import axes, expand_sweep, put
from art_qplugins.recipes.values import Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "change",
    "load_recipe",
    "parse_recipe",
    "read_tables",
    "shipped_recipes",
    "tables_about",
    "tables_about_endpoint",
    "whole_tables",
]

_SHIPPED = Path(__file__).parent
#: The size of the largest recipe in bytes. One of 5,000 models has less than 1 MiB.
_LARGEST = 2**26
#: The files that one recipe may be made of.
_MOST_FILES = 100
#: The deepest nesting of tables and lists. No recipe needs half of it.
_DEEPEST = 20
_HINT = "give the path of a TOML file"
#: Images of an endpoint with a number of queries, whatever that number is: so that a larger one goes on with the same images.
#: Some queries go before the first attack.
_LIMIT, _QUERIES_FIRST = 50, 50
_INCLUDE = Either(TEXT, ListOf(TEXT, least=1))


def load_recipe(path: Path, changes: Sequence[str] = (), profiles: Sequence[str] = ()) -> tuple[Recipe, dict[str, Any]]:
    """A checked recipe from a TOML file, and its tables as written: with what it includes, under these profiles.

    :param changes: see :func:`change`. They come after the profiles.
    """
    given = change(read_tables(path, profiles), changes)
    return parse_recipe(given, where=str(path)), given


def shipped_recipes() -> dict[str, str]:
    """The titles of the recipes that come with this package, by name."""
    return {
        path.stem: tomllib.loads(path.read_text(encoding="utf-8"))["title"] for path in sorted(_SHIPPED.glob("*.toml"))
    }


def read_tables(path: Path, profiles: Sequence[str] = ()) -> dict[str, Any]:
    """The tables of a TOML file over those that it includes, under these profiles, unchecked.

    ``include = "base.toml"``, or a list of several, is read first. It is a path from the folder of the file that includes it,
    or the name of a recipe that comes with this package. See :func:`~art_qplugins.recipes.merge.merged`.

    :param path: path of a file, or the name of a recipe that comes with this package.
    :param profiles: see :func:`~art_qplugins.recipes.merge.choose`.
    """
    path = as_path(path, hint=_HINT)
    tables = _file_tables(_place(path, str(path)), (), [])
    with at(printable(path)):
        return choose(tables, profiles)


def whole_tables(given: Mapping[str, Any], profiles: Sequence[str] = ()) -> dict[str, Any]:
    """The same for tables from Python. Paths that they include are from the current folder."""
    return choose(_with_included(given, "recipe", Path(), (), []), profiles)


def _place(path: Path, name: str) -> Path:
    """The file at ``path``, or the recipe of this name that comes with this package.

    :raises InputError: where there is neither.
    """
    if not os.path.isfile(path) and name in shipped_recipes():
        return _SHIPPED / f"{name}.toml"
    if not os.path.lexists(path):  # which is also false where the name is too long
        near = [str(p) for p in sorted(path.parent.glob("*.toml"))] if os.path.isdir(path.parent) else []
        hint = did_you_mean(str(path), [*near, *shipped_recipes()])
        more = "" if hint.endswith("?") else f", or {_HINT}"
        raise InputError(f"{printable(path)}: no such recipe{hint}{more}")
    return path


def _file_tables(path: Path, above: Sequence[Path], opened: list[Path]) -> dict[str, Any]:
    """The tables of a file over those that it includes.

    :param above: the files through which it is included.
    :param opened: every file so far.
    """
    file = Path(os.path.realpath(path))  # which says nothing of links that go round in circles
    opened.append(file)
    if file in above:
        raise InputError(f"{printable(path)}: it includes itself, through {printable(above[-1].name)}; take one out")
    if len(opened) > _MOST_FILES:
        raise InputError(f"{printable(path)}: the recipe is made of more than {_MOST_FILES} files; include fewer")
    try:
        tables = _tables(read_text(path, most=_LARGEST, hint=_HINT))
    except ValueError as error:
        raise InputError(f"{printable(path)}: not TOML: {error}") from None
    return _with_included(tables, printable(path), path.parent, (*above, file), opened)


def _with_included(
    given: Mapping[str, Any], where: str, folder: Path, above: Sequence[Path], opened: list[Path]
) -> dict[str, Any]:
    """The tables over those that they include from a folder."""
    with at(where):
        _check_depth(given)
        asked = given.get("include", ())
        if asked != () and not _INCLUDE.accepts(asked):
            raise InputError(f"include: it is {shown(asked)}; {_HINT}, or a list of different ones")
    result: dict[str, Any] = {}
    for name in [asked] if isinstance(asked, str) else asked:
        with at(f"{where}: include"):
            path = _place(folder / as_path(name, hint=_HINT), name)
        result = merged(result, _file_tables(path, above, opened))
    with at(where):
        return merged(result, {key: value for key, value in given.items() if key != "include"})


def _tables(text: str) -> dict[str, Any]:
    """The tables in TOML.

    :raises ValueError: where the text is no TOML, or has a number of too many digits or too many brackets.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def change(given: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The tables with settings changed.

    :param changes: ``"a.b=value"``; a list of named tables is entered by name, as in ``models.fp32.train.epochs=5``.
    """
    changed = copy.deepcopy(dict(given))
    done: set[str] = set()
    for one in changes:
        path = _apply(changed, one)
        if path in done:
            raise InputError(f"--set {path}: it is set twice; leave one out")
        done.add(path)
    for path in done & set(axes(changed)):
        raise InputError(f'--set {path}: the recipe sweeps it; change the values, --set "sweep.{path}=[...]"')
    return changed


def parse_recipe(given: dict[str, Any], *, where: str = "recipe") -> Recipe:
    """A checked recipe from tables, with its defaults, sweep and suites written out as models and attacks."""
    with at(where):
        _check_depth(given)
        given = expand_suites(expand_sweep(with_defaults(given)))
        try:
            recipe = Recipe.model_validate(given)
        except ValidationError as error:
            raise InputError(_first_line(error, given)) from None
        check_recipe(recipe)
    return recipe


def _check_depth(given: Any) -> None:
    """Refuse deep nesting before anything follows it."""
    pending = [(given, 0)]
    while pending:
        value, depth = pending.pop()
        if depth > _DEEPEST:
            raise InputError(f"its tables and lists are nested more than {_DEEPEST} deep; no setting is that deep")
        if isinstance(value, Mapping):
            pending += [(v, depth + 1) for v in value.values() if isinstance(v, (Mapping, list, tuple))]
        elif isinstance(value, (list, tuple)):
            pending += [(v, depth + 1) for v in value if isinstance(v, (Mapping, list, tuple))]


def _first_line(error: ValidationError, given: Any) -> str:
    first = error.errors(include_url=False)[0]
    if not first["loc"]:  # an error of the recipe as a whole: its message names the place
        return str(first["ctx"]["error"])
    path, model = "", Recipe
    for part in first["loc"][:-1]:
        model, given = _enter(model, part), _step(given, part)
        named = isinstance(part, int) and isinstance(given, dict)
        name = given.get("name", given.get("id", given.get("norm", part))) if named else part
        path += f"{one_line(name, 80) if isinstance(name, str) else shown(name)}."
    last = one_line(str(first["loc"][-1]), 80)
    if first["type"] == "value_error":  # the words of a domain, which say what the value is
        return f"{path}{last}: {first['ctx']['error']}"
    if first["type"] == "extra_forbidden":
        return f"{path}{last}: unknown key{did_you_mean(last, model.model_fields)}"
    message = first["msg"][0].lower() + first["msg"][1:]
    value = "" if first["type"] == "missing" else f" (it is {shown(first['input'])})"
    return f"{path}{last}: {message}{value}"


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


def _apply(given: dict[str, Any], change: str) -> str:
    """Change one setting in place, and return its path."""
    path, equals, text = change.partition("=")
    parts = [part.strip() for part in path.split(".")]
    if not equals or not all(parts):
        raise InputError(f"--set {change}: write it as --set a.b=value, e.g. --set data.limit=50")
    path = ".".join(parts)
    with at(f"--set {path}"):
        if parts[0] in ("include", "profiles"):
            raise InputError("files and profiles are merged before it; change the settings that come of them")
        value = _value(text)
        if parts[0] == "sweep" and len(parts) > 1:  # a path of its own, whether it is written as one key or as tables
            given["sweep"] = axes(given) | {".".join(parts[1:]): value}
        else:
            put(given, parts, value)
    return path


def _value(text: str) -> Any:
    """A value in TOML. What is none is text, which needs no quotes then."""
    try:
        found = _tables(f"value = {text}")
    except tomllib.TOMLDecodeError:
        if not text.isprintable():
            raise InputError(f"{shown(text)} is no TOML and has more than one line; give one value") from None
        return text
    except ValueError as error:
        raise InputError(f"{error}; give one value") from None
    if more := [key for key in found if key != "value"]:
        raise InputError(f"it sets {shown(more[0])} too; give one value, and another --set for each other setting")
    return found["value"]


def tables_about(
    model: str,
    checkpoint: Path | None,
    data: str,
    norm: str,
    eps: str,
    attack: str,
    claimed: float | None,
    abstain: int | None = None,
    **deployed: Any,
) -> dict[str, Any]:
    """The recipe of a claim about one module.

    :param model: ``"package.module:function"``, or a file of ``torch.export`` or of a deployed model, whose name it gets.
    :param abstain: the output with which it rejects an image.
    :param deployed: ``twin``, ``twin_checkpoint`` and ``labels_only``, where they are given.
    """
    name = Path(model).stem if is_file(model) or is_exported(model) else model
    named: dict[str, Any] = {"name": name, "factory": model, **({"checkpoint": str(checkpoint)} if checkpoint else {})}
    named |= {} if abstain is None else {"abstain": abstain}
    named |= {key: str(value) if isinstance(value, Path) else value for key, value in deployed.items() if value}
    return {
        "name": name,
        "data": {"name": data, "limit": 200},
        "threat": {"norm": norm, "eps": [eps]},
        "claim": {"attack": attack, "eps": eps, "accuracy": claimed},
        "models": [named],
        "attacks": [{"id": attack}],
    }


def tables_about_endpoint(endpoint: str, ask: Mapping[str, Any], limit: int | None, **about: Any) -> dict[str, Any]:
    """The recipe of a claim about a model that only answers. What it may be asked is divided among the images.

    :param endpoint: ``"package.module:predict"``.
    :param ask: see :class:`~art_qplugins.recipes.model.Ask`; what is ``None`` is left out.
    :param limit: number of images.
    :param about: the rest of what :func:`tables_about` takes.
    """
    tables = tables_about(endpoint, **about)
    (model,) = tables["models"]
    model["endpoint"] = model.pop("factory")
    model["ask"] = {key: value for key, value in ask.items() if value is not None}
    if (queries := ask.get("queries")) is not None:
        limit = limit or _LIMIT
        left = queries - _QUERIES_FIRST - TWIN_QUERIES * limit
        tables["data"]["limit"] = limit
        tables["diagnosis"] = {"queries": max(1, left // limit)}
    return tables
