"""Plans the cells of a recipe. A diagnosis adds further cells that depend on their results."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from art_qplugins import diagnostics
from art_qplugins.evaluation.cell import CellSpec, images_key
from art_qplugins.recipes.build import describe
from art_qplugins.recipes.schema import AttackSettings, ClaimSettings, ModelSettings, Recipe

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


def plan(recipe: Recipe) -> tuple[list[ModelUnderTest], list[CellSpec]]:
    """Every cell of a recipe: first the clean ones, then its attacks, then the transfer matrix."""
    claims = recipe.claims()
    models = [_model_under_test(recipe, model, claims.get(model.name)) for model in recipe.models_under_test]
    cells = [model.clean for model in models]
    for attack in recipe.attacks:
        for model in recipe.attacked(attack):
            cells += [_cell(recipe, attack, model, eps) for eps in recipe.eps_of(attack)]
    if recipe.transfer is not None:
        same = AttackSettings(id=recipe.transfer.attack, options=recipe.transfer.options)
        for source, target in recipe.transfers():
            crafted = same.model_copy(update={"source": source.name})
            cells += [_cell(recipe, crafted, target, eps) for eps in recipe.eps_of(recipe.transfer)]
    return models, distinct(cells)


def _model_under_test(
    recipe: Recipe, model: ModelSettings, claimed: tuple[ClaimSettings, AttackSettings] | None
) -> ModelUnderTest:
    claim, accuracy = None, None
    if claimed is not None:
        asked, attack = claimed
        claim, accuracy = _cell(recipe, attack, model, asked.eps), asked.accuracy
    clean = diagnostics.clean_cell(
        model.name, norm=recipe.threat.norm, seed=recipe.seed, eps=claim.eps if claim else None
    )
    return ModelUnderTest(model.name, describe(model), clean, claim, accuracy)


def _cell(recipe: Recipe, attack: AttackSettings, model: ModelSettings, eps: float) -> CellSpec:
    return CellSpec(
        model=model.name,
        source=attack.source or model.name,
        attack=attack.id,
        norm=recipe.threat.norm,
        eps=eps,
        seed=recipe.seed,
        options=attack.options,
    )


def distinct(cells: Iterable[CellSpec]) -> list[CellSpec]:
    """The first cell of every group of cells that differ only in their role."""
    seen: dict[Any, CellSpec] = {}
    for cell in cells:
        seen.setdefault((cell.model, cell.rows, images_key(cell)), cell)
    return list(seen.values())
