"""Odd values and odd recipes for fuzzing: Hypothesis strategies that ``fuzz.py`` and the tests share.

A case is a valid input and a list of edits, all in JSON. Values are expressions, see :mod:`fuzzing.values`.

    edited(BASES["small"], [["set", ["seed"], "nan"]])    # the tables of a recipe
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from art_qplugins.attacks import ATTACKS
from art_qplugins.recipes import model, schema
from art_qplugins.recipes.load import read_tables
from fuzzing.values import NUMBERS, TEXTS, near, odd, toml, value_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Tables = dict[str, Any]
Case = dict[str, Any]
Edit = list[Any]

_WIDTH = {"name": "convnet", "options": {"width": 2}}
_SMALL: Tables = {
    "name": "small",
    "data": {"name": "digits", "limit": 10},
    "threat": {"norm": "Linf", "eps": [0.1]},
    "models": [
        {"name": "fp32", "architecture": _WIDTH, "train": {"epochs": 1}},
        {"name": "other", "base": "fp32", "architecture": _WIDTH, "train": {"epochs": 0}},
    ],
    "attacks": [{"id": "art:pgd", "options": {"max_iter": 5}}],
}
_RICH = """
name = "rich"
title = "t"
seed = 1
batch_size = 20
shard = 10
threads = 1
grid = 256
strategy = "cascade"
data = { name = "digits", limit = 20, seed = 1 }
threat = { norm = "Linf", eps = [0.05, "8/255"] }
budget = { gradients = 100.0, queries = 500.0 }
transfer = { attack = "art:fgsm", models = ["fp32", "dq"] }
attacks = [{ id = "art:fgsm" }, { id = "art:pgd", source = "sub", models = ["dq"], eps = [0.05] }]
[[models]]
name = "fp32"
train = { epochs = 1, batch_size = 64, learning_rate = 0.05, weight_decay = 5e-4 }
[[models]]
name = "dq"
quantize = { activation_bits = 2, clip = 6.0 }
defences = [{ name = "orthogonality", options = { beta = 2e-3 } }]
[[models]]
name = "mu"
base = "fp32"
quantize = { weight_bits = 3, mu = 255.0, mu_layers = 2 }
train = { epochs = 0 }
[[models]]
name = "sq"
seed = 3
draws = 4
quantize = { activation_bits = 2, alpha = 2.0 }
defences = [{ name = "bin-spacing" }]
[[models]]
name = "sub"
role = "substitute"
"""
#: Valid recipes, which together have every key.
BASES: dict[str, Tables] = {
    "small": _SMALL,
    "claimed": {
        **_SMALL,
        "claim": {"attack": "art:pgd", "eps": 0.1, "accuracy": 0.5},
        "diagnosis": {"level": 1, "budget": 50.0},
    },
    "rich": tomllib.loads(_RICH),
    "digits": read_tables(Path("digits")),
    "suite": {
        **_SMALL,
        "models": [{"name": "dq", "quantize": {"activation_bits": 2}}],
        "attacks": [{"suite": "dq"}, {"id": "art:fgsm"}],
    },
    "swept": {**_SMALL, "sweep": {"models.fp32.train.learning_rate": [0.01, 0.1], "seed": [0, 1]}},
}

#: The settings that a table has, by the key that holds it; those of the recipe under "".
_TABLES = {
    "": schema.Recipe,
    "data": schema.Data,
    "threat": schema.ThreatSettings,
    "claim": model.ClaimSettings,
    "quantize": model.Quantization,
    "train": model.Training,
    "models": model.ModelSettings,
    "attacks": schema.AttackSettings,
    "transfer": schema.TransferSettings,
    "budget": schema.Budget,
    "diagnosis": schema.Diagnosis,
    "architecture": model.Choice,
    "defences": model.Choice,
}
#: The attacks that can be chosen, with their norms and their options.
CHOSEN = {name: row for name, row in ATTACKS.items() if row.norms}


def paths(tables: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path to a value, from above."""
    pairs = tables.items() if isinstance(tables, dict) else enumerate(tables) if isinstance(tables, list) else ()
    for key, value in pairs:
        yield (*before, key)
        yield from paths(value, (*before, key))


def _keys(path: tuple[Any, ...]) -> list[str]:
    """The keys that a table at this path may have, by the schema."""
    named = next((part for part in reversed(path) if isinstance(part, str)), "")
    return [*_TABLES[named].model_fields] if named in _TABLES else []


def _at(tables: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        tables = tables[part]
    return tables


def eps_for(norm: str) -> str:
    return {"Linf": "0.1", "L2": "0.5", "L1": "5.0", "L0": "5"}[norm]


_PATHS = {name: [*paths(tables)] for name, tables in BASES.items()}


_OTHER_KEYS = [*model.ModelSettings.model_fields, *schema.Recipe.model_fields]
_NO_TOML = ["[" * 9000, "{" * 999, "9" * 5000, "1\nseed=3"]


@st.composite
def attacks(draw: st.DrawFn, names: tuple[str, ...] = tuple(CHOSEN)) -> Edit:
    """One attack in place of all, with one or two odd options."""
    name = draw(st.sampled_from(names))
    row = CHOSEN[name]
    options = {}
    for option in draw(st.lists(st.sampled_from([*row.options] or ["max_iter"]), min_size=1, max_size=2, unique=True)):
        options[option] = draw(
            st.one_of(st.sampled_from(near(row.options[option].default)), st.sampled_from(NUMBERS), odd())
            if option in row.options
            else odd()
        )
    norm = draw(st.sampled_from(row.norms))
    return ["attack", name, norm, eps_for(norm), options]


@st.composite
def edits(draw: st.DrawFn, base: str) -> Edit:
    """One edit of a recipe."""
    tables = BASES[base]
    every = _PATHS[base]
    path = draw(st.sampled_from(every))
    kind = draw(
        st.sampled_from(
            ("set", "set", "new", "new", "new", "attack", "attack", "drop", "twice", "rename", "swap", "sweep")
        )
    )
    if kind == "attack":
        return draw(attacks())
    if kind == "sweep":
        target = draw(st.sampled_from(["seed", "eps", "threat.eps", *(".".join(_names(tables, p)) for p in every)]))
        return ["set", ["sweep", target], f"[{', '.join(draw(st.lists(odd(), min_size=0, max_size=3)))}]"]
    if kind == "new":
        holders = [(), *(p for p in every if isinstance(_at(tables, p), dict) and _keys(p))]
        holder = draw(st.sampled_from(holders))
        return ["set", [*holder, draw(st.sampled_from(_keys(holder)))], draw(odd())]
    if kind == "rename":
        return [kind, [*path], draw(st.one_of(st.sampled_from(TEXTS), odd()))]
    if kind == "swap":
        return [kind, [*path], [*draw(st.sampled_from(every))]]
    likely = st.sampled_from(near(_at(tables, path)))
    if kind in ("drop", "twice"):
        return [kind, [*path]]
    return ["set", [*path], draw(st.one_of(likely, likely, odd()))]


def _names(tables: Any, path: tuple[Any, ...]) -> Iterator[str]:
    """The parts of a path as ``--set`` and ``[sweep]`` have it."""
    for i, part in enumerate(path):
        here = _at(tables, path[: i + 1])
        named = here.get("name", here.get("id", part)) if isinstance(here, dict) and isinstance(part, int) else part
        yield str(named)


@st.composite
def recipes(draw: st.DrawFn) -> Case:
    """A valid recipe with one to three edits, mostly one: the first that is refused hides the others."""
    base = draw(st.sampled_from([*BASES]))
    most = draw(st.sampled_from((1, 1, 1, 2, 3)))
    return {"base": base, "edits": draw(st.lists(edits(base), min_size=1, max_size=most, unique_by=repr))}


@st.composite
def changes(draw: st.DrawFn) -> Case:
    """``--set``, mostly once: of a key with a likely value, or of any path with any text, which need not be TOML."""
    base = draw(st.sampled_from([*BASES]))
    several = []
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        path = draw(st.sampled_from(_PATHS[base]))
        target = ".".join(_names(BASES[base], path))
        likely = st.sampled_from(near(_at(BASES[base], path))).map(as_text)
        if draw(st.booleans()):
            several.append(["--set", f"{target}={draw(st.one_of(likely, odd().map(as_text)))}"])
            continue
        more = draw(st.sampled_from(["", *_OTHER_KEYS, "nope", "0", "x" * 3000]))
        text = draw(st.one_of(odd().map(as_text), st.text(max_size=20), st.sampled_from(_NO_TOML)))
        separator = draw(st.sampled_from(["=", "=", "=", "=", "", "==", " = "]))
        several.append(["--set", target + (more and f".{more}") + separator + text])
    return {"base": base, "edits": several}


def as_text(expression: str) -> str:
    """The value in TOML, or as it is where TOML has no such value."""
    try:
        return toml(value_of(expression))
    except TypeError:
        return expression


def edited(tables: Tables, several: list[Edit]) -> Tables:
    """The tables after the edits. An edit whose path is gone changes nothing."""
    tables = copy.deepcopy(tables)
    for kind, *rest in several:
        try:
            _EDITS[kind](tables, *rest)
        except (KeyError, IndexError, TypeError, AttributeError):
            continue
    return tables


def _set(tables: Any, path: list[Any], expression: str) -> None:
    *above, last = path
    for part in above:
        tables = tables.setdefault(part, {}) if isinstance(tables, dict) else tables[part]
    tables[last] = value_of(expression)


def _drop(tables: Any, path: list[Any]) -> None:
    del _at(tables, tuple(path[:-1]))[path[-1]]


def _twice(tables: Any, path: list[Any]) -> None:
    holder = _at(tables, tuple(path[:-1]))
    if isinstance(holder, list):
        holder.append(copy.deepcopy(holder[path[-1]]))
    else:
        holder[path[-1]] = [holder[path[-1]]] * 2


def _rename(tables: Any, path: list[Any], expression: str) -> None:
    holder = _at(tables, tuple(path[:-1]))
    holder[str(value_of(expression))] = holder.pop(path[-1])


def _swap(tables: Any, one: list[Any], other: list[Any]) -> None:
    value = copy.deepcopy(_at(tables, tuple(other)))
    _at(tables, tuple(one[:-1]))[one[-1]] = value


def _attack(tables: Any, name: str, norm: str, eps: str, options: dict[str, str]) -> None:
    tables["threat"] = {"norm": norm, "eps": [value_of(eps)]}
    tables["attacks"] = [{"id": name, "options": {key: value_of(e) for key, e in options.items()}}]
    if "claim" in tables:
        tables["claim"] = {"attack": name, "eps": value_of(eps)}


_EDITS = {"set": _set, "drop": _drop, "twice": _twice, "rename": _rename, "swap": _swap, "attack": _attack}


def as_recipe(tables: Tables) -> str:
    """The text of a recipe. Values that TOML has not are texts in it."""
    lines = []
    for key, value in tables.items():
        try:
            lines.append(f"{toml(str(key))} = {toml(value)}")
        except TypeError:
            lines.append(f"{toml(str(key))} = {toml(repr(value))}")
    return "\n".join(lines) + "\n"
