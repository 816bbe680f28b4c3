"""Expands ``suite = NAME`` in a recipe into the attacks for each model. It works on plain tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from art_qplugins.attacks.suites import SUITES, expand
from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.quantizers import QUANTIZERS
from art_qplugins.recipes.checks import at

__all__ = ["expand_suites"]


def expand_suites(given: dict[str, Any]) -> dict[str, Any]:
    """``suite = NAME`` written out as the attacks that it means; the same attack on several models or eps is one.

    What a suite leaves out, or does otherwise than its paper, is said in ``suite_notes``.
    """
    attacks = given.get("attacks")
    if not isinstance(attacks, list) or not any(_is_suite(a) for a in attacks):
        return given
    members: list[Any] = []
    notes: list[str] = []
    for attack in attacks:
        if _is_suite(attack):
            found, said = _expanded(given, attack)
            members += found
            notes += said
        else:
            members.append(attack)
    return given | {"attacks": members, "suite_notes": list(dict.fromkeys(notes))}


def _is_suite(attack: Any) -> bool:
    return isinstance(attack, dict) and "suite" in attack and "id" not in attack


def _expanded(given: Mapping[str, Any], attack: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """The attacks of one suite, and what is to be said of it."""
    name, where = str(attack["suite"]), f"attacks.{attack['suite']}"
    if unknown := attack.keys() - {"suite", "models", "eps"}:
        raise InputError(f"{where}: a suite has its own {min(unknown)}; give models and eps, or its attacks one by one")
    threat = given.get("threat")
    threat = threat if isinstance(threat, dict) else {}
    tables = _tables(given)
    names = [model["name"] for model in tables]
    wanted = attack.get("models") or names
    if missing := [m for m in wanted if m not in names]:
        raise InputError(f"{where}: unknown model {missing[0]!r}{did_you_mean(str(missing[0]), names)}")
    several = attack.get("eps", threat.get("eps"))
    several = several if isinstance(several, list) and several else [None]
    found: dict[str, dict[str, Any]] = {}
    left_out: dict[tuple[str, str], list[str]] = {}
    for model, eps in itertools.product([m for m in tables if m["name"] in wanted], several):
        stochastic, quantized = _kind(model)
        with at(where):
            chosen, dropped = expand(
                name, threat.get("norm", "Linf"), eps=_number(eps), stochastic=stochastic, quantized=quantized
            )
        for member, options in chosen:
            key = repr((member, sorted(options.items())))
            same = found.setdefault(key, {"id": member, "suite": name, "options": options, "models": [], "eps": []})
            for listed, one in ((same["models"], model["name"]), (same["eps"], eps)):
                listed += [] if one in listed else [one]
        for member, reason in dropped:
            models = left_out.setdefault((member, reason), [])
            models += [] if model["name"] in models else [model["name"]]
    for same in found.values():
        if same["eps"] == several:  # as it was given
            del same["eps"]
            same |= {"eps": attack["eps"]} if "eps" in attack else {}
    return list(found.values()), list(_notes(name, left_out, wanted))


def _notes(name: str, left_out: Mapping[tuple[str, str], list[str]], wanted: Sequence[str]) -> Iterator[str]:
    for (member, reason), models in left_out.items():
        where = "" if len(models) == len(wanted) else f" for {', '.join(models)}"
        yield f"suite {name} leaves out {member}{where}: {reason}"
    yield from (f"suite {name}: {line}" for line in SUITES[name].differs)


def _tables(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of the models under test, those that have a name."""
    models = given.get("models")
    tables = [m for m in models if isinstance(m, dict)] if isinstance(models, list) else []
    return [m for m in tables if isinstance(m.get("name"), str) and m.get("role") != "substitute"]


def _number(eps: Any) -> float:
    """Where it is no eps, any number does: the recipe's check says what is wrong with it."""
    try:
        found = float(Fraction(eps))
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return 1.0
    return found if found > 0 else 1.0


def _kind(model: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether a model is random, and whether its activations are quantized."""
    if isinstance(given := model.get("given"), dict):
        return bool(given.get("stochastic")), bool(given.get("quantized"))
    quantize = maps if isinstance(maps := model.get("quantize"), dict) else {}
    name = quantize.get("activation")
    named = isinstance(name, str) and name in QUANTIZERS and QUANTIZERS[name].random
    return named or quantize.get("alpha") is not None, quantize.get("activation_bits") is not None
