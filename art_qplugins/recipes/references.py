"""Checks the references of a recipe: each is the number of a paper for the accuracy of one model in one cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from art_qplugins.domains import eps_number
from art_qplugins.errors import InputError, did_you_mean, shown
from art_qplugins.recipes.model import ModelSettings
from art_qplugins.recipes.schema import AttackSettings, Recipe
from art_qplugins.recipes.values import reference_at
from art_qplugins.threat import Threat

__all__ = ["check_references"]

_Run = tuple[AttackSettings, Threat]


def check_references(recipe: Recipe) -> None:
    """:raises InputError: where a reference is of no cell, or may be of several."""
    for model in recipe.models:
        if model.reference:
            _check_model(recipe, model)
    for attack in recipe.attacks:
        if attack.reference is not None:
            where = f"attacks.{attack.id}.reference"
            _one_model(where, recipe.attacked(attack))
            _check(where, attack.reference, [(attack, threat) for threat in recipe.threats_of(attack)])
    if recipe.claim is not None and recipe.claim.reference is not None:
        _one_model("claim.reference", [model for model in recipe.models_under_test if model.claim is None])


def _check_model(recipe: Recipe, model: ModelSettings) -> None:
    where = f"models.{model.name}.reference"
    if model.role == "substitute":
        raise InputError(f"{where}: {model.name!r} is a substitute, which is not attacked; leave it out")
    runs: dict[str, list[_Run]] = {}
    for attack, threat in recipe.runs_on(model):
        runs.setdefault(attack.crafted, []).append((attack, threat))
    for key, reference in model.reference.items():
        if key == "clean":
            if isinstance(reference, Mapping):
                raise InputError(f"{where}.clean: it is a table, and clean images have no eps; give one number")
        elif key not in runs:
            raise InputError(
                f"{where}: {shown(key)} is not among the attacks on it{did_you_mean(key, ['clean', *runs])}"
            )
        else:
            _check(f"{where}.{key}", reference, runs[key])


def _one_model(where: str, models: Sequence[ModelSettings]) -> None:
    """Seeds of one model share a number."""
    names = dict.fromkeys(model.replicate_of or model.name for model in models)
    if len(names) > 1:
        raise InputError(
            f"{where}: it is one number of a paper, and there are {len(names)} models; write it in the table of its model, "
            f"[models.reference]"
        )


def _check(where: str, reference: float | Mapping[str, float], runs: Sequence[_Run]) -> None:
    """Whether each number is of one cell.

    :param runs: the cells that it may be of.
    """
    several = (
        "write references beside attacks with models = [...]" if len({id(attack) for attack, _ in runs}) > 1 else ""
    )
    if not isinstance(reference, Mapping):
        if len(runs) > 1:
            at = shown([threat.eps for _, threat in runs])
            raise InputError(
                f"{where}: it is one number, and the attack runs at {at}; {several or 'give a table by eps'}"
            )
        return
    if runs[0][0].corruption:
        raise InputError(f"{where}: it is a table, and no eps limits the attack; give one number")
    for key in reference:
        eps = eps_number(key)
        fits = [threat for _, threat in runs if reference_at({key: 0.0}, threat.eps) is not None]
        if not fits:
            at = shown([threat.eps for _, threat in runs])
            raise InputError(f"{where}: it has eps {eps:g}, and the attack runs at {at}")
        if len(fits) > 1:
            norms = " and ".join(dict.fromkeys(threat.norm for threat in fits))
            raise InputError(
                f"{where}: the attack runs {len(fits)} times at eps {eps:g}, in {norms}; "
                f"{several or 'give each norm an attack of its own'}"
            )
