"""``suite = NAME`` in a recipe's attacks, written out as the attacks that it means for each model. Plain tables only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from art_qplugins.attacks.suites import expand
from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.quantizers import QUANTIZERS
from art_qplugins.recipes.checks import at

__all__ = ["expand_suites"]


def expand_suites(given: dict[str, Any]) -> dict[str, Any]:
    """``suite = NAME`` written out as the attacks that it means for each model; the same attack on several is one."""
    attacks = given.get("attacks")
    if not isinstance(attacks, list) or not any(
        isinstance(a, dict) and "suite" in a and "id" not in a for a in attacks
    ):
        return given
    return given | {"attacks": [one for a in attacks for one in _members(given, a)]}


def _members(given: Mapping[str, Any], attack: Any) -> list[Any]:
    if not isinstance(attack, dict) or "suite" not in attack or "id" in attack:
        return [attack]
    name, where = str(attack["suite"]), f"attacks.{attack['suite']}"
    if unknown := attack.keys() - {"suite", "models", "eps"}:
        raise InputError(f"{where}: a suite has its own {min(unknown)}; give models and eps, or its attacks one by one")
    threat = given.get("threat")
    norm = threat.get("norm", "Linf") if isinstance(threat, dict) else "Linf"
    models = given.get("models")
    named = (
        [m for m in models if isinstance(m, dict) and isinstance(m.get("name"), str)]
        if isinstance(models, list)
        else []
    )
    tables = [m for m in named if m.get("role") != "substitute"]
    wanted = attack.get("models") or [m.get("name") for m in tables]
    found: dict[str, dict[str, Any]] = {}
    for model in tables:
        if model.get("name") not in wanted:
            continue
        stochastic, quantized = _kind(model)
        with at(where):
            members, _ = expand(name, norm, stochastic=stochastic, quantized=quantized)
        for member, options in members:
            same = found.setdefault(repr((member, sorted(options.items()))), {"id": member, "models": []})
            same |= {"suite": name, "options": dict(options)} | ({"eps": attack["eps"]} if "eps" in attack else {})
            same["models"].append(model["name"])
    if missing := [m for m in wanted if m not in [t.get("name") for t in tables]]:
        raise InputError(
            f"{where}: unknown model {missing[0]!r}{did_you_mean(str(missing[0]), [str(t.get('name')) for t in tables])}"
        )
    return list(found.values())


def _kind(model: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether a model draws at random, and whether its activations are quantized."""
    if isinstance(given := model.get("given"), dict):
        return bool(given.get("stochastic")), bool(given.get("quantized"))
    quantize = maps if isinstance(maps := model.get("quantize"), dict) else {}
    name = quantize.get("activation")
    named = isinstance(name, str) and name in QUANTIZERS and QUANTIZERS[name].random
    return named or quantize.get("alpha") is not None, quantize.get("activation_bits") is not None
