"""The other code that a recipe uses: installed packages, and the user's own architectures. Their versions can change its results."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from art_qplugins.attacks import ATTACKS
from art_qplugins.data import entry_of
from art_qplugins.defences import DEFENCES
from art_qplugins.errors import InputError
from art_qplugins.plugins import Plugin, version
from art_qplugins.recipes.architectures import architecture, is_own
from art_qplugins.recipes.model import ModelSettings
from art_qplugins.recipes.schema import Recipe
from art_qplugins.recipes.user_code import code_of
from art_qplugins.registry import Entry

__all__ = ["installed", "packages_of", "packages_of_model"]


def packages_of(recipe: Recipe) -> list[Plugin]:
    """All other packages of a recipe, sorted."""
    found = {plugin for model in recipe.models for plugin in _of_model(model)}
    return sorted(found | set(_of(_rows(recipe))))


def packages_of_model(recipe: Recipe, model: ModelSettings) -> list[Plugin]:
    """The other packages of a model: of its architecture, quantizers and defences, and of its parents."""
    found = set(_of_model(model))
    parents = [parent for parent in recipe.models if parent.name in model.parents]  # they are above it
    return sorted(found.union(*(packages_of_model(recipe, parent) for parent in parents)))


def installed(plugin: Plugin) -> str | None:
    """The version of a package, or of the user's code, as it is here; ``None`` where it is missing."""
    if ":" not in plugin.package:
        return version(plugin.package)
    with contextlib.suppress(InputError):
        return code_of(plugin.package).version
    return None


def _of_model(model: ModelSettings) -> Iterator[Plugin]:
    if not model.trained:
        return
    if is_own(model.architecture.name):
        yield code_of(model.architecture.name)
    rows: list[Entry] = [architecture(model.architecture.name), *(DEFENCES[defence.name] for defence in model.defences)]
    yield from _of(rows + ([] if model.quantize is None else list(model.quantize.quantizers)))


def _rows(recipe: Recipe) -> Iterator[Entry]:
    if not recipe.data.given:
        yield entry_of(recipe.data.name)
    attacks = [attack.id for attack in recipe.attacks] + ([recipe.transfer.attack] if recipe.transfer else [])
    for attack in attacks:
        yield ATTACKS[attack]
        if (library := ATTACKS[attack].library) is not None:
            yield library


def _of(rows: Iterator[Entry] | list[Entry]) -> Iterator[Plugin]:
    return (row.plugin for row in rows if row.plugin is not None)
