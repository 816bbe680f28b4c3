"""Recipes that are made of others: how the tables of two become one, and profiles. It works on plain tables.

    [profiles.small]
    data.limit = 50

    [[profiles.small.models]]
    name = "fp32"
    train.epochs = 1

Under the profile ``small`` these tables win over those of the recipe, as a file wins over those that it includes.

    [defaults]
    architecture = { name = "wrn", options = { depth = 16, widen_factor = 4 } }
    train.preset = "dq-cifar10"

are settings of every model that is built here and does not give its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from art_qplugins.domains import TEXT, ListOf, check
from art_qplugins.errors import InputError, at, did_you_mean, shown
from art_qplugins.recipes.facts import NOT_BUILT
from art_qplugins.recipes.sweep import axes

__all__ = ["choose", "merged", "with_defaults"]

#: What names the thing that a table's ``options`` belong to.
_CHOICES = ("name", "id", "attack", "activation")


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of ``base`` with the settings of ``over``, table by table.

    Models merge by name, in the order in which they appear first. Every other list replaces that of ``base`` as a whole,
    also the attacks: an attack may be there twice, so its id does not say which one is meant. ``options`` belong to the
    name beside them; under another name they begin anew. Sweeps merge by path, however it is written.
    Profiles of one name merge like recipes.

    :raises InputError: where a sweep is no table.
    """
    result = _tables(base, over)
    if isinstance(base.get("models"), list) and isinstance(over.get("models"), list):
        result["models"] = _models(base["models"], over["models"])
    if "sweep" in base and "sweep" in over:
        result["sweep"] = axes(base) | axes(over)
    if isinstance(base.get("profiles"), Mapping) and isinstance(over.get("profiles"), Mapping):
        result["profiles"] = _profiles(base["profiles"], over["profiles"])
    return result


def _profiles(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = {**base, **over}
    for name in base.keys() & over.keys():
        if isinstance(base[name], Mapping) and isinstance(over[name], Mapping):  # another is refused when it is chosen
            result[name] = merged(base[name], over[name])
    return result


def _tables(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    if any(key in over and key in base and over[key] != base[key] for key in _CHOICES):
        result.pop("options", None)
    for key, value in over.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = _tables(before, value)
        result[key] = value
    return result


def _models(base: Sequence[Any], over: Sequence[Any]) -> list[Any]:
    result = list(base)
    places = {name: i for i, name in enumerate(map(_name, base)) if name}
    for model in over:
        place = places.pop(_name(model), None)  # a second one of this name is refused later, as in one file
        if place is None:
            result.append(model)
        else:
            result[place] = _tables(result[place], model)
    return result


def _name(model: Any) -> str:
    """What has none is refused later, by the recipe's checks."""
    name = model.get("name") if isinstance(model, Mapping) else None
    return name if isinstance(name, str) else ""


def choose(given: Mapping[str, Any], profiles: Sequence[str]) -> dict[str, Any]:
    """The tables of a recipe under these profiles, each over those before it, without the table of profiles.

    Its name gets theirs, ``NAME-small``, so that its results have a folder of their own. A profile may give another name.

    :raises InputError: where there is no such profile.
    """
    known = given.get("profiles", {})
    if not isinstance(known, Mapping) or not all(isinstance(tables, Mapping) for tables in known.values()):
        raise InputError(f"profiles: it is {shown(known)}; write [profiles.NAME], and below it tables of the recipe")
    result = {key: value for key, value in given.items() if key != "profiles"}
    for name in check("profile", profiles, ListOf(TEXT)):
        if name not in known:
            raise InputError(f"there is no profile {shown(name)}{did_you_mean(name, known)}")
        with at(f"profiles.{name}"):
            for key in ("include", "profiles"):
                if key in known[name]:
                    raise InputError(f"{key}: a profile has none; write it at the top of the recipe")
            result = merged(result, known[name])
        if "name" not in known[name] and isinstance(result.get("name"), str):
            result["name"] += f"-{name}"
    return result


def with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """The tables with the settings of ``defaults`` in those of the models, without the table itself.

    A model's own settings win, key by key. ``options`` belong to the name beside them. Models that are not built here
    take none, and one with ``train.epochs = 0`` takes nothing else of ``train``.

    :raises InputError: where it is no table, or has a name.
    """
    result = {key: value for key, value in given.items() if key != "defaults"}
    if "defaults" not in given:
        return result
    defaults, models = given["defaults"], given.get("models")
    if not isinstance(defaults, Mapping):
        raise InputError(f"defaults: it is {shown(defaults)}; write [defaults], and below it settings of a model")
    if "name" in defaults:
        raise InputError("defaults.name: names are those of models; leave it out")
    if isinstance(models, list):
        result["models"] = [_with(defaults, model) if isinstance(model, Mapping) else model for model in models]
    return result


def _with(defaults: Mapping[str, Any], model: Mapping[str, Any]) -> Mapping[str, Any]:
    if any(model.get(key) for key in NOT_BUILT):
        return model
    train = model.get("train")
    if isinstance(train, Mapping) and train.get("epochs") == 0:
        defaults = {key: value for key, value in defaults.items() if key != "train"}
    return _tables(defaults, model)
