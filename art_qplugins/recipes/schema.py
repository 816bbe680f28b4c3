"""Recipes: the one set of settings that TOML, the command line and Python build. Frozen, and checked as a whole.

Every error is one :class:`InputError` line that names the place in the recipe and, for a wrong name, its neighbour.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from art_qplugins.attacks.catalogue import ATTACKS, current_id
from art_qplugins.data import DATASETS
from art_qplugins.defences import DEFENCES
from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.models import MODELS
from art_qplugins.recipes.sweep import expand_sweep, put

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Recipe", "load_recipe", "parse_recipe"]


def _number(value: Any) -> Any:
    """eps may be written as a fraction, the way papers do: "8/255"."""
    if isinstance(value, str):
        try:
            return float(Fraction(value))
        except (ValueError, ZeroDivisionError, OverflowError):
            raise ValueError(f'{value!r} is not a number; write e.g. 0.1 or "8/255"') from None
    return value


Eps = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
Bits = Annotated[int, Field(ge=1, le=16)]
# Names end up in file names and in ids.
Name = Annotated[str, Field(min_length=1, max_length=80)]
AttackId = Annotated[str, AfterValidator(current_id)]

#: Options of attacks that count something: none of it is no attack.
_COUNTS = ("max_iter", "n_queries", "eot_iter", "nb_restarts")


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python counts with truth values; a recipe that does is mistaken."""
        several = value if isinstance(value, list) else [value]
        if any(isinstance(v, bool) for v in several) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false belong where something is switched on or off; give a value")
        return value


class Data(Settings):
    """Which images are attacked. ``limit`` images of the test split, each class in proportion; None for all."""

    name: str
    limit: Annotated[int, Field(ge=1)] | None = None
    seed: int = 0


class ThreatSettings(Settings):
    norm: Literal["Linf", "L2", "L1", "L0"] = "Linf"
    eps: Annotated[list[Eps], Field(min_length=1)]


class ClaimSettings(Settings):
    """The number under test: what this attack leaves at this eps. The diagnostics try to refute it."""

    attack: AttackId
    eps: Eps


class Quantization(Settings):
    """The arguments of :func:`art_qplugins.quantize`."""

    activation_bits: Bits | None = None
    weight_bits: Bits | None = None
    clip: Annotated[float, Field(gt=0)] = 6.0
    mu: Annotated[float, Field(gt=0)] | None = None
    alpha: Annotated[float, Field(ge=1)] | None = None
    mu_layers: Annotated[int, Field(ge=1)] = 1
    mu_normalize: bool = False
    symmetric: bool = True
    granularity: Literal["per_channel", "per_tensor"] = "per_channel"
    narrow_range: bool = True


class Training(Settings):
    epochs: Annotated[int, Field(ge=0)] = 20
    batch_size: Annotated[int, Field(ge=1)] = 64
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 5e-3


class Choice(Settings):
    """A registered name with options."""

    name: str
    options: dict[str, Any] = {}


class ModelSettings(Settings):
    """One model. ``base`` starts from the trained weights of an earlier model (with epochs = 0: post-training)."""

    name: Name
    role: Literal["subject", "substitute"] = "subject"  # a substitute is a source of attacks; nobody attacks it
    architecture: Choice = Choice(name="convnet")
    base: str | None = None
    quantize: Quantization | None = None
    defences: list[Choice] = []
    train: Training = Training()
    draws: Annotated[int, Field(ge=1)] = 8  # members of the ensemble, where activations are stochastic
    checkpoint: str | None = None  # weights to take in place of training
    claim: ClaimSettings | None = None  # in place of the recipe's
    seed: int | None = None  # of the training and of a random model's first draws; None takes the recipe's
    replicate_of: str | None = None  # models with the same name here differ by their seeds alone

    @property
    def stochastic(self) -> bool:
        return self.quantize is not None and self.quantize.alpha is not None


class AttackSettings(Settings):
    """One attack on every model (or on ``models``), at every eps (or at ``eps``), crafted on the model or on ``source``."""

    id: AttackId
    options: dict[str, Any] = {}
    source: str | None = None
    models: list[str] | None = None
    eps: list[Eps] | None = None
    suite: str | None = None  # the suite that it came from


class TransferSettings(Settings):
    """One attack crafted on each of ``models`` (or on all) and put to every other one, and to the one itself."""

    attack: AttackId
    options: dict[str, Any] = {}
    models: list[str] | None = None
    eps: list[Eps] | None = None


class Budget(Settings):
    """What the attacks on one model may cost, per image of the whole set, in passes through its network.

    A cell that may exceed what is left is skipped; claims are exempt, since without them there is nothing to test.

    :param gradients: backward passes. :param queries: forward passes, those of gradients included.
    """

    gradients: Annotated[float, Field(ge=0)] | None = None
    queries: Annotated[float, Field(ge=0)] | None = None


class Recipe(Settings):
    """``strategy``: "matrix" runs every attack on every image, for tables; "cascade" runs cheap attacks first and goes on
    with the images that still stand, for the worst case. ``grid``: judge the images also as rounded to this many levels.
    """

    name: Name
    title: str = ""
    seed: int = 0
    batch_size: Annotated[int, Field(ge=1)] = 250  # images in one batch of an attack
    shard: Annotated[int, Field(ge=1)] | None = None  # images that are worked on in one piece; None for batch_size
    threads: Annotated[int, Field(ge=1)] | None = None  # of torch on the CPU; None leaves torch's choice
    data: Data
    threat: ThreatSettings
    claim: ClaimSettings | None = None
    diagnose: bool = True
    strategy: Literal["matrix", "cascade"] = "matrix"
    budget: Budget = Budget()
    grid: Annotated[int, Field(ge=2, le=65536)] | None = None
    transfer: TransferSettings | None = None
    models: Annotated[list[ModelSettings], Field(min_length=1)]
    attacks: Annotated[list[AttackSettings], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_exist(self) -> Recipe:
        known_data = self.data.name if self.data.name.startswith(("folder:", "npz:")) else DATASETS[self.data.name].name
        assert known_data
        names = [m.name for m in self.models]
        for i, model in enumerate(self.models):
            where = f"models.{model.name}"
            if model.name in names[:i]:
                raise InputError(f"{where}: two models have this name; rename one")
            with _at(f"{where}.architecture"):
                MODELS[model.architecture.name].resolve(model.architecture.options)
            for defence in model.defences:
                with _at(f"{where}.defences"):
                    DEFENCES[defence.name].resolve(defence.options)
            if model.base is not None and model.base not in names[:i]:
                raise InputError(f"{where}.base: no model {model.base!r} above it{did_you_mean(model.base, names[:i])}")
        if not self.subjects:
            raise InputError("models: all are substitutes, so there is nothing to attack; leave out one's role")
        for attack in self.attacks:
            self._check_attack(attack, names)
        for model in self.subjects:
            claim = model.claim or self.claim
            if claim is not None:
                self._check_claim(model, claim)
        if self.transfer is not None:
            self._check_transfer(self.transfer, names)
        return self

    def _check_attack(self, attack: AttackSettings, names: Sequence[str]) -> None:
        where = f"attacks.{attack.id}"
        self._check_options(where, attack.id, attack.options)
        for name in [*(attack.models or []), *([attack.source] if attack.source else [])]:
            if name not in names:
                raise InputError(f"{where}: unknown model {name!r}{did_you_mean(name, names)}")
        by_name = {m.name: m for m in self.models}
        for name in attack.models or []:
            if by_name[name].role == "substitute":
                raise InputError(f"{where}: {name!r} is a substitute, which nobody attacks; give it as source")
        crafted_on = [by_name[attack.source]] if attack.source else self.attacked(attack)
        for model in crafted_on:
            self._check_kind(where, attack.id, model)

    def _check_options(self, where: str, attack: str, options: Mapping[str, Any]) -> None:
        with _at(where):
            entry = ATTACKS[attack]
            resolved = entry.resolve(options)
        for name in _COUNTS:
            if resolved.get(name) is not None and resolved[name] < 1:
                raise InputError(f"{where}.options.{name}: it is {resolved[name]!r}; give 1 or more")
        if self.threat.norm not in entry.norms:
            raise InputError(f"{where}: it has no norm {self.threat.norm}; it has {', '.join(entry.norms)}")

    def _check_kind(self, where: str, attack: str, model: ModelSettings) -> None:
        entry = ATTACKS[attack]
        if entry.models == ("deterministic" if model.stochastic else "stochastic"):
            kind = "stochastic" if model.stochastic else "deterministic"
            other = "autoattack:rand" if model.stochastic else "autoattack:standard"
            raise InputError(
                f"{where}: {model.name!r} is {kind} and this attack is for {entry.models} models; "
                f"set models = [...] and use {other!r} for {model.name!r}"
            )

    def _check_transfer(self, transfer: TransferSettings, names: Sequence[str]) -> None:
        self._check_options("transfer", transfer.attack, transfer.options)
        for name in transfer.models or []:
            if name not in names:
                raise InputError(f"transfer.models: unknown model {name!r}{did_you_mean(name, names)}")
        pairs = self.transfers()
        if all(source is target for source, target in pairs):
            raise InputError("transfer.models: name two models or more, one of them no substitute")
        for source, _ in pairs:
            self._check_kind("transfer", transfer.attack, source)

    def _check_claim(self, model: ModelSettings, claim: ClaimSettings) -> None:
        white_box = [a for a in self.attacks if a.source is None and model in self.attacked(a)]
        where = f"models.{model.name}.claim" if model.claim else "claim"
        ids = [a.id for a in white_box]
        if claim.attack not in ids:
            raise InputError(
                f"{where}: {claim.attack!r} is not among the attacks on {model.name!r}{did_you_mean(claim.attack, ids)}"
            )
        budgets = [e for a in white_box if a.id == claim.attack for e in self.budgets(a)]
        if claim.eps not in budgets:
            raise InputError(f"{where}: {claim.attack} is not run at eps {claim.eps:g}; it is at {budgets}")

    def attacked(self, attack: AttackSettings) -> list[ModelSettings]:
        """The models that an attack is run on; never the one that it is crafted on, if that is another."""
        return [
            m for m in self.subjects if (attack.models is None or m.name in attack.models) and m.name != attack.source
        ]

    @property
    def subjects(self) -> list[ModelSettings]:
        """The models under test: all but the substitutes."""
        return [m for m in self.models if m.role == "subject"]

    def transfers(self) -> list[tuple[ModelSettings, ModelSettings]]:
        """(source, target) of the transfer matrix, its diagonal included; empty where none is asked for."""
        if self.transfer is None:
            return []
        chosen = [m for m in self.models if self.transfer.models is None or m.name in self.transfer.models]
        return [(source, target) for source in chosen for target in chosen if target.role == "subject"]

    def budgets(self, attack: AttackSettings | TransferSettings) -> list[float]:
        return attack.eps if attack.eps is not None else self.threat.eps


class _at:
    """Prefix an :class:`InputError` with the place in the recipe."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, InputError):
            raise InputError(f"{self.where}: {error}") from None


def load_recipe(path: Path, changes: Sequence[str] = ()) -> tuple[Recipe, dict[str, Any]]:
    """A checked recipe from a TOML file, and the tables as given.

    :param changes: ``"a.b=value"``; a list of named tables is entered by name, as in ``models.fp32.train.epochs=5``.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = [str(p) for p in sorted(path.parent.glob("*.toml"))] if path.parent.is_dir() else []
        hint = did_you_mean(str(path), near) if near else "; give the path of a TOML file"
        raise InputError(f"{path}: no such recipe{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not TOML: {error}") from None
    for change in changes:
        _apply(given, change)
    return parse_recipe(given, where=str(path)), given


def parse_recipe(given: dict[str, Any], *, where: str = "recipe") -> Recipe:
    """A checked recipe from tables, with its sweep and its suites written out as models and attacks."""
    try:
        given = _expand_suites(expand_sweep(given))
        return Recipe.model_validate(given)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except ValidationError as error:
        raise InputError(f"{where}: {_first_line(error, given)}") from None


def _first_line(error: ValidationError, given: Any) -> str:
    first = error.errors(include_url=False)[0]
    if not first["loc"]:  # the recipe as a whole: the message says where
        return str(first["ctx"]["error"])
    path, model = "", Recipe
    for part in first["loc"][:-1]:
        model, given = _enter(model, part), _step(given, part)
        name = given.get("name", given.get("id", part)) if isinstance(part, int) and isinstance(given, dict) else part
        path += f"{name}."
    last = first["loc"][-1]
    if first["type"] == "extra_forbidden":
        return f"{path}{last}: unknown key{did_you_mean(str(last), model.model_fields)}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    shown = "" if first["type"] == "missing" else f" (it is {first['input']!r})"
    return f"{path}{last}: {message}{shown}"


def _step(given: Any, part: Any) -> Any:
    try:
        return given[part]
    except (KeyError, IndexError, TypeError):
        return {}


def _enter(model: Any, part: Any) -> Any:
    """The settings class behind a field, through lists and optionals; ``model`` itself behind an index."""
    if isinstance(part, int) or part not in getattr(model, "model_fields", {}):
        return model
    pending = [model.model_fields[part].annotation]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
        pending += typing.get_args(annotation)
    return Settings


def _apply(given: dict[str, Any], change: str) -> None:
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise InputError(f"--set {change}: write it as --set a.b=value, e.g. --set data.limit=50")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    put(given, path.split("."), value, where=f"--set {path}")


def _expand_suites(given: dict[str, Any]) -> dict[str, Any]:
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
    from art_qplugins.attacks.suites import expand

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
        quantize = given_maps if isinstance(given_maps := model.get("quantize"), dict) else {}
        with _at(where):
            stochastic, quantized = quantize.get("alpha") is not None, quantize.get("activation_bits") is not None
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
