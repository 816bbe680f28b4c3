"""Checks that the parts of a recipe fit together: names, options, norms, claims."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from art_qplugins.attacks import ATTACKS
from art_qplugins.data import entry_of
from art_qplugins.defences import DEFENCES
from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.models import MODELS
from art_qplugins.quantizers.registry import switched_on
from art_qplugins.recipes.schema import AttackSettings, ClaimSettings, ModelSettings, Recipe, TransferSettings
from art_qplugins.threat import Threat

__all__ = ["at", "check_recipe"]


@contextlib.contextmanager
def at(where: str) -> Iterator[None]:
    """Prefix an :class:`InputError` with the place in the recipe."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def check_recipe(recipe: Recipe) -> None:
    """:raises InputError: in one line that names the place."""
    if not recipe.data.given:
        entry_of(recipe.data.name)
    names = [m.name for m in recipe.models]
    for i, model in enumerate(recipe.models):
        _check_model(model, names[:i])
    if not recipe.models_under_test:
        raise InputError("models: all are substitutes, so there is nothing to attack; leave out one's role")
    for attack in recipe.attacks:
        _check_attack(recipe, attack, names)
    for model in recipe.models_under_test:
        claim = model.claim or recipe.claim
        if claim is not None:
            _check_claim(recipe, model, claim)
    if recipe.transfer is not None:
        _check_transfer(recipe, recipe.transfer, names)


def _check_model(model: ModelSettings, above: Sequence[str]) -> None:
    where = f"models.{model.name}"
    if model.name in above:
        raise InputError(f"{where}: two models have this name; rename one")
    if not model.trained:
        _check_untrained(model, where)
    if model.unverified_checkpoint and model.checkpoint is None:
        raise InputError(f"{where}.unverified_checkpoint: it has no checkpoint; give one, or leave this out")
    with at(f"{where}.architecture"):
        MODELS[model.architecture.name].resolve(model.architecture.options)
    if model.quantize is not None:
        with at(f"{where}.quantize"):
            switched_on(model.quantize.model_dump())
    for defence in model.defences:
        with at(f"{where}.defences"):
            DEFENCES[defence.name].resolve(defence.options)
    if model.base is not None and model.base not in above:
        raise InputError(f"{where}.base: no model {model.base!r} above it{did_you_mean(model.base, above)}")


def _check_untrained(model: ModelSettings, where: str) -> None:
    """A given network, or one from a factory, takes no settings for building and training."""
    kind = "factory" if model.factory is not None else "given"
    if model.factory is not None and model.given is not None:
        raise InputError(f"{where}: a model is made by its factory or given from Python, not both")
    asked = model.model_fields_set & {"architecture", "base", "quantize", "defences", "train", "draws"}
    if kind == "given":
        asked |= model.model_fields_set & {"checkpoint"}
    asked |= model.model_fields_set & {"unverified_checkpoint"}
    if asked:
        raise InputError(f"{where}.{min(asked)}: the network comes from its {kind}; leave {min(asked)} out")


def _check_attack(recipe: Recipe, attack: AttackSettings, names: Sequence[str]) -> None:
    where = f"attacks.{attack.id}"
    _check_options(recipe, where, attack.id, attack.options, recipe.eps_of(attack))
    for name in [*(attack.models or []), *([attack.source] if attack.source else [])]:
        if name not in names:
            raise InputError(f"{where}: unknown model {name!r}{did_you_mean(name, names)}")
    by_name = {m.name: m for m in recipe.models}
    for name in attack.models or []:
        if by_name[name].role == "substitute":
            raise InputError(f"{where}: {name!r} is a substitute, which is not attacked; give it as source")
    crafted_on = [by_name[attack.source]] if attack.source else recipe.attacked(attack)
    for model in crafted_on:
        _check_kind(where, attack.id, model)


def _check_options(
    recipe: Recipe, where: str, attack: str, options: Mapping[str, Any], several_eps: Sequence[float]
) -> None:
    with at(where):
        for eps in several_eps:
            ATTACKS[attack].check(options, Threat(recipe.threat.norm, eps))


def _check_kind(where: str, attack: str, model: ModelSettings) -> None:
    entry = ATTACKS[attack]
    if model.given is not None or model.stochastic is None:  # the kind of a given network is not known
        return
    if entry.models == ("deterministic" if model.stochastic else "stochastic"):
        kind = "stochastic" if model.stochastic else "deterministic"
        other = "autoattack:rand" if model.stochastic else "autoattack:standard"
        raise InputError(
            f"{where}: {model.name!r} is {kind} and this attack is for {entry.models} models; "
            f"set models = [...] and use {other!r} for {model.name!r}"
        )


def _check_transfer(recipe: Recipe, transfer: TransferSettings, names: Sequence[str]) -> None:
    _check_options(recipe, "transfer", transfer.attack, transfer.options, recipe.eps_of(transfer))
    for name in transfer.models or []:
        if name not in names:
            raise InputError(f"transfer.models: unknown model {name!r}{did_you_mean(name, names)}")
    pairs = recipe.transfers()
    if all(source is target for source, target in pairs):
        raise InputError("transfer.models: name at least two models, and at least one that is no substitute")
    for source, _ in pairs:
        _check_kind("transfer", transfer.attack, source)


def _check_claim(recipe: Recipe, model: ModelSettings, claim: ClaimSettings) -> None:
    white_box = [a for a in recipe.attacks if a.source is None and model in recipe.attacked(a)]
    where = f"models.{model.name}.claim" if model.claim else "claim"
    ids = [a.id for a in white_box]
    if claim.attack not in ids:
        raise InputError(
            f"{where}: {claim.attack!r} is not among the attacks on {model.name!r}{did_you_mean(claim.attack, ids)}"
        )
    run_at = [e for a in white_box if a.id == claim.attack for e in recipe.eps_of(a)]
    if claim.eps not in run_at:
        raise InputError(f"{where}: {claim.attack} is not run at eps {claim.eps:g}; it is at {run_at}")
