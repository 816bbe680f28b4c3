"""Sweeps: expands the tables of a recipe so that every variant is a model. It works on plain tables.

    [sweep]
    "models.dq.quantize.activation_bits" = [2, 3, 4, 8]
    seed = [0, 1, 2]

gives ``dq-activation_bits=2-seed=0`` and so on. A model whose base is swept is swept too. Names that refer to a swept
model are replaced by the names of its variants.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from art_qplugins.domains import FINITE
from art_qplugins.errors import InputError, at, did_you_mean, shown
from art_qplugins.recipes.facts import idle

__all__ = ["MAX_MODELS", "axes", "expand_sweep", "put"]

#: A recipe with more models than this is probably a mistake.
MAX_MODELS = 200

Tables = dict[str, Any]
#: The values of a variant by the paths of the swept axes.
Point = dict[str, Any]


@dataclass(frozen=True)
class _Variant:
    table: Tables
    point: Point


def axes(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of each swept path; empty where there is no sweep.

    :raises InputError: where it is no table, or a path is there twice.
    """
    found: dict[str, Any] = {}
    for path, values in _flat(given.get("sweep", {})):
        if path in found:
            raise InputError(f"sweep.{path}: it is there twice, as one key and as tables; remove one")
        found[path] = values
    return found


def expand_sweep(given: Tables) -> Tables:
    """``given`` with its ``[sweep]`` expanded; ``given`` itself where it has none.

    ``threat.eps`` (or ``eps``) sets the values of eps; of several threats it is e.g. ``threat.L2.eps``. ``seed`` trains every model once for each seed, to which a seed of its own is added. These models are
    replicates of one another. Any other path begins with ``models.NAME`` and makes variants of that model.

    :raises InputError: where a path does not exist or changes nothing, values are not a list, or there are too many
        models.
    """
    if "sweep" not in given:
        return given
    swept = axes(given)
    if not swept:
        raise InputError("sweep: it is empty; name a setting and its values, e.g. seed = [0, 1, 2], or leave it out")
    result = copy.deepcopy({k: v for k, v in given.items() if k != "sweep"})
    for path, values in swept.items():
        with at(f"sweep.{path}"):
            _check_values(path, values)
    for path in [p for p in swept if p == "eps" or (p.startswith("threat.") and p.endswith(".eps"))]:
        with at(f"sweep.{path}"):
            put(result, ["threat", *path.removeprefix("threat.").split(".")], swept.pop(path))
    models = result.get("models")
    if not isinstance(models, list) or not all(isinstance(m, dict) and _text(m.get("name")) for m in models):
        return result  # later checks of the recipe report the error
    _check_paths(swept, [m["name"] for m in models])
    variants = _variants(models, swept)
    _check_effect(variants)
    result["models"] = [v.table for each in variants.values() for v in each]
    _resolve(result, variants)
    return result


def put(tables: Tables, path: Sequence[str], value: Any) -> None:
    """Set ``tables[a][b]... = value``. The path enters a list of tables by name or position. Missing tables are added.

    :raises InputError: where the path does not exist.
    """
    *parents, last = path
    table: Any = tables
    for part in parents:
        table = _named_in(table, part) if isinstance(table, list) else table.setdefault(part, {})
        if not isinstance(table, (dict, list)):
            raise InputError(f"{shown(part)} is a value, not a table")
    if isinstance(table, list):
        raise InputError(
            f"name one of the list and a key of it, e.g. {'.'.join([*parents, *_example(table, last)])}=value"
        )
    table[last] = value


def _example(tables: Sequence[Any], last: str) -> list[str]:
    """The end of a path into a list, for one that ends in a name or in a key."""
    names = _names(tables)
    return [last, "KEY"] if last in names or not any(names) else [next(filter(None, names)), last]


def _named_in(tables: Sequence[Any], part: str) -> Any:
    """The table with this name, id, norm or position."""
    if part.isdecimal() and len(part) < 6 and int(part) < len(tables):
        return tables[int(part)]
    names = _names(tables)
    found = [table for table, name in zip(tables, names, strict=True) if name == part]
    if not found:
        raise InputError(f"there is no {shown(part)}{did_you_mean(part, [*names, *map(str, range(len(tables)))])}")
    if len(found) > 1:
        positions = [i for i, name in enumerate(names) if name == part]
        raise InputError(f"{len(found)} are called {shown(part)}; write its position, one of {shown(positions)}")
    return found[0]


def _names(tables: Sequence[Any]) -> list[str]:
    return [_text(t.get("name", t.get("id", t.get("norm")))) if isinstance(t, dict) else "" for t in tables]


def _text(value: Any) -> str:
    """A name. What is none is refused later, by the recipe's checks."""
    return value if isinstance(value, str) else ""


def _flat(sweep: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten nested tables into dotted paths. TOML parses an unquoted dotted key as nested tables."""
    if not isinstance(sweep, Mapping):
        raise InputError(
            f"sweep{prefix and '.' + prefix}: it is {shown(sweep)}; give a list of values, e.g. seed = [0, 1, 2]"
        )
    for key, value in sweep.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from _flat(value, path)
        else:
            yield path, value


def _check_values(path: str, values: Any) -> None:
    if not isinstance(values, list) or not values:
        raise InputError(f"it is {shown(values)}; give a list of values, e.g. [2, 3, 4]")
    seen: set[Any] = set()
    for value in values:
        if isinstance(value, (dict, list)):
            raise InputError(f"{shown(value)} is no single value; sweep one setting at a time")
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not FINITE.accepts(value):
            raise InputError(f"{shown(value)} is no finite number")
        if path == "seed" and (isinstance(value, bool) or not isinstance(value, int)):
            raise InputError(f"{shown(value)} is no whole number")
        if _frozen(value) in seen:
            raise InputError(f"{shown(value)} is there twice; remove one")
        seen.add(_frozen(value))


def _check_paths(axes: Mapping[str, Any], names: Sequence[str]) -> None:
    for path in axes:
        parts = path.split(".")
        if path == "seed":
            continue
        if parts[0] != "models" or len(parts) < 3:
            raise InputError(
                f"sweep.{path}: sweep seed, threat.eps or a setting of a model, "
                f'e.g. "models.{names[0]}.quantize.activation_bits"'
            )
        if parts[1] not in names:
            raise InputError(f"sweep.{path}: there is no model {shown(parts[1])}{did_you_mean(parts[1], names)}")
        if parts[2:] in (["name"], ["replicate_of"]):
            raise InputError(f"sweep.{path}: a name changes nothing of a model; sweep another setting")
        if parts[2:] == ["seed"] and "seed" in axes:
            raise InputError(f"sweep.{path}: seed is swept for all models already; leave one out")


def _variants(models: Sequence[Tables], axes: Mapping[str, Sequence[Any]]) -> dict[str, list[_Variant]]:
    """The variants of every model, by its name in the recipe. Parents come before the models that are made of them."""
    result: dict[str, list[_Variant]] = {}
    swept: dict[str, list[str]] = {}
    total = 0
    for model in models:
        name = model["name"]
        inherited = dict.fromkeys(a for parent in _parents(model) for a in swept.get(parent, []) if a != "seed")
        own = [path for path in axes if path.split(".")[:2] == ["models", name]]
        paths = [*inherited, *own]
        if "seed" in axes and _seeded(model, swept):
            paths.append("seed")
        count = 1
        for path in paths:
            count *= len(axes[path])
        total += count
        if total > MAX_MODELS:
            raise InputError(f"sweep: it makes more than {MAX_MODELS} models ({count} of {name!r}); sweep fewer values")
        swept[name] = paths
        points = [dict(zip(paths, values, strict=True)) for values in itertools.product(*(axes[p] for p in paths))]
        result[name] = [_Variant(_table(model, point, result), point) for point in points]
    return result


def _parents(model: Tables) -> list[str]:
    """The models that it is made of: its members or its base."""
    members = model.get("members")
    return [_text(name) for name in (members if isinstance(members, list) else [model.get("base")])]


def _check_effect(variants: Mapping[str, Sequence[_Variant]]) -> None:
    """Refuse variants that differ in nothing but their names, and a swept setting that has no effect."""
    for name, each in variants.items():
        seen: dict[Any, _Variant] = {}
        for variant in each:
            without = {k: v for k, v in variant.table.items() if k not in ("name", "replicate_of")}
            other = seen.setdefault(_frozen(without), variant)
            if other is not variant:
                path = next(p for p, value in variant.point.items() if _frozen(other.point[p]) != _frozen(value))
                one, two = shown(other.table["name"]), shown(variant.table["name"])
                raise InputError(f"sweep.{path}: it changes nothing; {one} and {two} are the same model")
            reasons = idle(variant.table)
            for path in variant.point:
                _, owner, *setting = (*path.split("."), "")
                for i in range(1, len(setting)):
                    if owner == name and (reason := reasons.get(".".join(setting[:i]))):
                        raise InputError(f"sweep.{path}: it changes nothing, because {reason}")


def _frozen(value: Any) -> Any:
    """A value that can be a key. Equal tables give equal keys. 2 and 2.0 are equal, 1 and true are not."""
    if isinstance(value, dict):
        return frozenset((key, _frozen(v)) for key, v in value.items())
    return tuple(map(_frozen, value)) if isinstance(value, list) else (isinstance(value, bool), value)


def _seeded(model: Tables, swept: Mapping[str, Sequence[str]]) -> bool:
    """Whether another seed makes another model. It does not if the weights are given, or come from unswept parents."""
    if model.get("checkpoint") is not None:
        return False
    train, members = model.get("train"), model.get("members")
    file = model.get("export") is not None
    untrained = file or members is not None or (isinstance(train, dict) and train.get("epochs") == 0)
    made = members is not None or model.get("base") is not None
    return not (untrained and made and all("seed" not in swept.get(name, ["seed"]) for name in _parents(model)))


def _table(model: Tables, point: Point, above: Mapping[str, Sequence[_Variant]]) -> Tables:
    table = copy.deepcopy(model)
    for path, value in point.items():
        key = path.split(".")
        if path == "seed":
            own = table.get("seed")
            table["seed"] = value + own if isinstance(own, int) else value
            table["replicate_of"] = _named(model["name"], {k: v for k, v in point.items() if k != "seed"})
        elif key[1] == model["name"]:
            with at(f"sweep.{path}"):
                put({"models": [table]}, ["models", "0", *key[2:]], value)

    def variant(name: Any) -> Any:
        """The variant of a parent that has the same values."""
        made = above.get(_text(name), ())
        return next((one.table["name"] for one in made if _agree(one.point, point)), name)

    if model.get("base") is not None and table["base"] == model["base"]:
        table["base"] = variant(table["base"])
    if isinstance(table.get("members"), list):
        table["members"] = [variant(name) for name in table["members"]]
    table["name"] = _named(model["name"], point)
    return table


def _named(name: str, point: Point) -> str:
    """``dq-activation_bits=2-seed=0``: the last part of each path, and more parts if names would be equal."""
    for path, value in point.items():
        words = path.split(".")
        short = next(
            ".".join(words[-n:])
            for n in range(1, len(words) + 1)
            if sum(p.split(".")[-n:] == words[-n:] for p in point) == 1
        )
        exact = isinstance(value, float) and float(f"{value:g}") == value
        name += f"-{short}={value:g}" if exact else f"-{short}={value}"
    return name


def _agree(one: Point, other: Point) -> bool:
    return all(_frozen(other[path]) == _frozen(value) for path, value in one.items() if path in other)


def _resolve(tables: Tables, variants: Mapping[str, Sequence[_Variant]]) -> None:
    """Replace names of swept models in attacks, references and the transfer matrix by the names of their variants."""
    for each in variants.values():
        for variant in each:
            if isinstance(reference := variant.table.get("reference"), dict):
                variant.table["reference"] = dict(_references(reference, variant.point, variants))

    def names(given: Sequence[Any]) -> list[Any]:
        return [
            n
            for name in given
            for n in (
                [v.table["name"] for v in variants[name]] if isinstance(name, str) and name in variants else [name]
            )
        ]

    transfer = tables.get("transfer")
    if isinstance(transfer, dict) and isinstance(transfer.get("models"), list):
        transfer["models"] = names(transfer["models"])
    attacks = tables.get("attacks")
    if not isinstance(attacks, list):
        return
    result: list[Any] = []
    for attack in attacks:
        if not isinstance(attack, dict):
            result.append(attack)
            continue
        attack = dict(attack)
        source = _text(attack.get("source"))
        if source in variants and len(variants[source]) > 1:
            result += list(_by_source(attack, variants))
            continue
        if source in variants:
            attack["source"] = variants[source][0].table["name"]
        if isinstance(attack.get("models"), list):
            attack["models"] = names(attack["models"])
        result.append(attack)
    tables["attacks"] = result


def _references(
    reference: Tables, point: Point, variants: Mapping[str, Sequence[_Variant]]
) -> Iterator[tuple[str, Any]]:
    """The references of a variant. An attack from a swept source comes from the variants of it that agree."""
    for key, value in reference.items():
        attack, _, source = str(key).partition(" from ")
        made = [v.table["name"] for v in variants.get(source, ()) if _agree(v.point, point)]
        yield from ((f"{attack} from {name}", value) for name in made) if made else [(key, value)]


def _by_source(attack: Tables, variants: Mapping[str, Sequence[_Variant]]) -> Iterator[Tables]:
    """One attack for each variant of the source, on the models that agree with it on common swept axes."""
    source = attack["source"]
    wanted = attack["models"] if isinstance(attack.get("models"), list) else list(variants)
    for made in variants[source]:
        targets = [
            v.table["name"]
            for name, each in variants.items()
            for v in each
            if name != source
            and v.table.get("role") != "substitute"
            and (name in wanted or v.table["name"] in wanted)
            and _agree(made.point, v.point)
        ]
        unknown = [
            w for w in wanted if w not in variants and all(w != v.table["name"] for e in variants.values() for v in e)
        ]
        yield attack | {"source": made.table["name"], "models": [*targets, *unknown]}
