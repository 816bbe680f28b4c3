"""Recipes: the one set of settings that TOML, the command line and Python build. Frozen, and checked as a whole.

Every error is one :class:`InputError` line that names the place in the recipe and, for a wrong name, its neighbour.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from art_qplugins.attacks.registry import ATTACKS
from art_qplugins.data import DATASETS
from art_qplugins.defences import DEFENCES
from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.models import MODELS

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


Eps = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
Bits = Annotated[int, Field(ge=1, le=16)]
# Names end up in file names and in ids.
Name = Annotated[str, Field(min_length=1, max_length=80)]


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


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

    attack: str
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
    architecture: Choice = Choice(name="convnet")
    base: str | None = None
    quantize: Quantization | None = None
    defences: list[Choice] = []
    train: Training = Training()
    draws: Annotated[int, Field(ge=1)] = 8  # members of the ensemble, where activations are stochastic
    checkpoint: str | None = None  # weights to take in place of training
    claim: ClaimSettings | None = None  # in place of the recipe's

    @property
    def stochastic(self) -> bool:
        return self.quantize is not None and self.quantize.alpha is not None


class AttackSettings(Settings):
    """One attack on every model (or on ``models``), at every eps (or at ``eps``), crafted on the model or on ``source``."""

    id: str
    options: dict[str, Any] = {}
    source: str | None = None
    models: list[str] | None = None
    eps: list[Eps] | None = None


class Recipe(Settings):
    name: Name
    title: str = ""
    seed: int = 0
    batch_size: Annotated[int, Field(ge=1)] = 250  # images in one batch of an attack
    threads: Annotated[int, Field(ge=1)] | None = None  # of torch on the CPU; None leaves torch's choice
    data: Data
    threat: ThreatSettings
    claim: ClaimSettings | None = None
    diagnose: bool = True
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
            claim = model.claim or self.claim
            if claim is not None:
                self._check_claim(model, claim)
        for attack in self.attacks:
            self._check_attack(attack, names)
        return self

    def _check_attack(self, attack: AttackSettings, names: Sequence[str]) -> None:
        where = f"attacks.{attack.id}"
        with _at(where):
            entry = ATTACKS[attack.id]
            entry.resolve(attack.options)
        if self.threat.norm not in entry.norms:
            raise InputError(f"{where}: it has no norm {self.threat.norm}; it has {', '.join(entry.norms)}")
        for name in [*(attack.models or []), *([attack.source] if attack.source else [])]:
            if name not in names:
                raise InputError(f"{where}: unknown model {name!r}{did_you_mean(name, names)}")
        for model in self.attacked(attack):
            if entry.models == ("deterministic" if model.stochastic else "stochastic"):
                kind = "stochastic" if model.stochastic else "deterministic"
                other = "autoattack:rand" if model.stochastic else "autoattack:standard"
                raise InputError(
                    f"{where}: {model.name!r} is {kind} and this attack is for {entry.models} models; "
                    f"set models = [...] and use {other!r} for {model.name!r}"
                )

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
            m for m in self.models if (attack.models is None or m.name in attack.models) and m.name != attack.source
        ]

    def budgets(self, attack: AttackSettings) -> list[float]:
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
    """A checked recipe from tables."""
    try:
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
    *parents, last = path.split(".")
    table: Any = given
    for part in parents:
        if isinstance(table, list):
            named = {str(i): t for i, t in enumerate(table)}
            for i, t in enumerate(table):
                named.setdefault(
                    str(t.get("name", t.get("id", i))) if isinstance(t, dict) else str(i), t
                )  # the first of several with one id
            if part not in named:
                raise InputError(f"--set {path}: there is no {part!r}{did_you_mean(part, named)}")
            table = named[part]
        else:
            table = table.setdefault(part, {})
        if not isinstance(table, (dict, list)):
            raise InputError(f"--set {path}: {part!r} is a value, not a table")
    if isinstance(table, list):
        raise InputError(f"--set {path}: name one of the list and a key of it, e.g. {path}.KEY=value")
    table[last] = value
