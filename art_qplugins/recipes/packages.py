"""The other installed packages that a recipe uses. Their versions can change its results."""

from __future__ import annotations

from collections.abc import Iterator

from art_qplugins.attacks import ATTACKS
from art_qplugins.data import entry_of
from art_qplugins.defences import DEFENCES
from art_qplugins.models import MODELS
from art_qplugins.plugins import Plugin
from art_qplugins.recipes.model import ModelSettings
from art_qplugins.recipes.schema import Recipe
from art_qplugins.registry import Entry

__all__ = ["packages_of", "packages_of_model"]


def packages_of(recipe: Recipe) -> list[Plugin]:
    """All other packages of a recipe, sorted."""
    found = {plugin for model in recipe.models for plugin in _of(_rows_of_model(model))}
    return sorted(found | set(_of(_rows(recipe))))


def packages_of_model(recipe: Recipe, model: ModelSettings) -> list[Plugin]:
    """The other packages of a model: of its architecture, quantizers and defences, and of its parents."""
    found = set(_of(_rows_of_model(model)))
    parents = [parent for parent in recipe.models if parent.name in model.parents]  # they are above it
    return sorted(found.union(*(packages_of_model(recipe, parent) for parent in parents)))


def _rows_of_model(model: ModelSettings) -> list[Entry]:
    if not model.trained:
        return []
    rows: list[Entry] = [MODELS[model.architecture.name], *(DEFENCES[defence.name] for defence in model.defences)]
    return rows + ([] if model.quantize is None else list(model.quantize.quantizers))


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
