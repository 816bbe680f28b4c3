"""Plans the cells of a recipe. A diagnosis adds further cells that depend on their results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from art_qplugins import diagnostics
from art_qplugins.attacks import ATTACKS
from art_qplugins.evaluation.cell import CellSpec, images_key
from art_qplugins.recipes.describe import describe
from art_qplugins.recipes.model import ClaimSettings, ModelSettings
from art_qplugins.recipes.schema import AttackSettings, Recipe
from art_qplugins.recipes.values import reference_at
from art_qplugins.threat import Threat

__all__ = ["ModelUnderTest", "distinct", "plan"]


@dataclass(frozen=True)
class ModelUnderTest:
    """A model of a run, and the claim about it.

    :param clean: its cell without an attack.
    :param claim: the cell of the claimed attack.
    :param claimed_accuracy: the claimed number, if it differs from the accuracy of the claimed cell.
    """

    name: str
    description: str
    clean: CellSpec
    claim: CellSpec | None
    claimed_accuracy: float | None = None


def plan(recipe: Recipe, order: Sequence[int] | None = None) -> tuple[list[ModelUnderTest], list[CellSpec]]:
    """Every cell of a recipe: first the clean ones, then its attacks, then the transfer matrix.

    :param order: the positions of the images in the order of which a ``limit`` takes the first. By default it is theirs.
    """
    claims = recipe.claims()
    models = [_model_under_test(recipe, model, claims.get(model.name)) for model in recipe.models_under_test]
    cells = [model.clean for model in models]
    for attack in recipe.attacks:
        for model in recipe.attacked(attack):
            cells += _cells(recipe, attack, model, order)
    if recipe.transfer is not None:
        for source, target in recipe.transfers():
            cells += _cells(recipe, recipe.transfer.crafted_on(source.name), target, order)
    return models, distinct([*cells, *(model.claim for model in models if model.claim is not None)])


def _model_under_test(
    recipe: Recipe, model: ModelSettings, claimed: tuple[ClaimSettings, AttackSettings] | None
) -> ModelUnderTest:
    claim, accuracy, norm = None, None, str(recipe.threats[0].norm)
    if claimed is not None:
        asked, attack = claimed
        norm = asked.norm or norm
        claim, accuracy = _cell(recipe, attack, model, Threat(norm, asked.eps)), asked.accuracy
        claim = claim if asked.reference is None else replace(claim, reference=asked.reference)
    clean = diagnostics.clean_cell(model.name, norm=norm, seed=recipe.seed, eps=claim.eps if claim else None)
    clean = replace(clean, reference=reference_at(model.reference.get("clean"), 0.0))
    return ModelUnderTest(model.name, describe(model), clean, claim, accuracy)


def _cells(
    recipe: Recipe, attack: AttackSettings, model: ModelSettings, order: Sequence[int] | None
) -> Iterator[CellSpec]:
    """An attack on one model at each of its threats."""
    rows: tuple[int, ...] | None = None
    if attack.limit is not None and (order is None or attack.limit < len(order)):
        rows = tuple(range(attack.limit) if order is None else sorted(order[: attack.limit]))
    for threat in recipe.threats_of(attack):
        cell = _cell(recipe, attack, model, threat)
        yield cell if rows is None else replace(cell, rows=rows, limit=attack.limit)


def _cell(recipe: Recipe, attack: AttackSettings, model: ModelSettings, threat: Threat) -> CellSpec:
    key = attack.crafted.removesuffix(f" from {model.name}")
    return CellSpec(
        model=model.name,
        source=attack.source or model.name,
        attack=attack.id,
        role="corruption" if attack.corruption else "attack",
        norm=threat.norm,
        eps=threat.eps,
        seed=recipe.seed,
        options=ATTACKS[attack.id].at(attack.options, threat),
        reference=reference_at(model.reference.get(key, attack.reference), threat.eps),
    )


def distinct(cells: Iterable[CellSpec]) -> list[CellSpec]:
    """The first cell of every group of cells with the same id, with the reference that any of them has."""
    seen: dict[Any, CellSpec] = {}
    for cell in cells:
        key = (cell.model, cell.rows, images_key(cell))
        first = seen.setdefault(key, cell)
        if first.reference is None and cell.reference is not None:
            seen[key] = replace(first, reference=cell.reference)
    return list(seen.values())
