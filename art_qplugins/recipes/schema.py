"""Recipes: the one set of settings that TOML, the command line and Python build. Frozen, and checked as a whole.

This module defines the keys of a recipe. :mod:`~art_qplugins.recipes.checks` checks that its parts fit together.
:mod:`~art_qplugins.recipes.load` makes a recipe from tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from art_qplugins.attacks.catalogue import current_id
from art_qplugins.defences.decay import WEIGHT_DECAY
from art_qplugins.quantizers import Quantizer
from art_qplugins.quantizers.registry import switched_on

__all__ = [
    "AttackSettings",
    "Budget",
    "ClaimSettings",
    "GivenModel",
    "ModelSettings",
    "Quantization",
    "Recipe",
    "Settings",
]


def _number(value: Any) -> Any:
    """eps may be written as a fraction, the way papers do: "8/255"."""
    if isinstance(value, str):
        try:
            return float(Fraction(value))
        except (ValueError, ZeroDivisionError, OverflowError):
            raise ValueError(f'{value!r} is not a number; write e.g. 0.1 or "8/255"') from None
    return value


def _accuracy(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not 0 <= value <= 1:
        raise ValueError(f"give an accuracy in [0, 1], e.g. {value / 100:g}")
    return value


AttackId = Annotated[str, AfterValidator(current_id)]
Eps = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
Bits = Annotated[int, Field(ge=1, le=16)]
# Names end up in file names and in ids.
Name = Annotated[str, Field(min_length=1, max_length=80)]


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number belongs. Python would take them as 1 and 0."""
        several = value if isinstance(value, list) else [value]
        if any(isinstance(v, bool) for v in several) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false only switch something on or off; give a value")
        return value


class Data(Settings):
    """Which images are attacked: ``limit`` images of the test split, each class in proportion; None for all.

    :param given: the images come from Python and are not loaded by name.
    """

    name: str
    limit: Annotated[int, Field(ge=1)] | None = None
    seed: int = 0
    given: bool = False


class ThreatSettings(Settings):
    norm: Literal["Linf", "L2", "L1", "L0"] = "Linf"
    eps: Annotated[list[Eps], Field(min_length=1)]


class ClaimSettings(Settings):
    """The number under test: the accuracy under this attack at this eps. The diagnosis tries to refute it.

    :param accuracy: the claimed accuracy in [0, 1], if it differs from the accuracy under the attack here.
    """

    attack: AttackId
    eps: Eps
    accuracy: Annotated[float, BeforeValidator(_accuracy)] | None = None


class Quantization(Settings):
    """The arguments of :func:`art_qplugins.quantize`. ``options`` are those of the quantizer that ``activation`` names."""

    activation: str | None = None
    options: dict[str, Any] = {}
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

    @model_serializer(mode="wrap")
    def _without_keys_of_other_packages(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out two keys without values, so that hashes in checkpoint names are the same as before they existed."""
        table: dict[str, Any] = handler(self)
        unused = [key for key in ("activation", "options") if not table.get(key)]
        return {key: value for key, value in table.items() if key not in unused}

    @property
    def quantizers(self) -> list[Quantizer]:
        """The quantizers that it switches on, see :func:`~art_qplugins.quantizers.registry.switched_on`."""
        return switched_on(self.model_dump())

    @property
    def random(self) -> bool:
        return any(row.random for row in self.quantizers)


class Training(Settings):
    """The arguments of :func:`art_qplugins.train`."""

    epochs: Annotated[int, Field(ge=0)] = 20
    batch_size: Annotated[int, Field(ge=1)] = 64
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = WEIGHT_DECAY
    decay_norm_and_bias: bool = True


class Choice(Settings):
    """A registered name with options."""

    name: str
    options: dict[str, Any] = {}


class GivenModel(Settings):
    """The facts that a recipe needs about an ART estimator from Python."""

    estimator: str  # its class
    stochastic: bool
    quantized: bool  # it has activation quantizers


class ModelSettings(Settings):
    """One model: trained here, made by a function of the user (``factory``), or given from Python.

    ``base`` starts from the trained weights of an earlier model (with epochs = 0: quantization after training).
    """

    name: Name
    role: Literal["subject", "substitute"] = "subject"  # a substitute is only a source of transfer attacks
    architecture: Choice = Choice(name="convnet")
    base: str | None = None
    quantize: Quantization | None = None
    defences: list[Choice] = []
    train: Training = Training()
    draws: Annotated[int, Field(ge=1)] = 8  # members of the ensemble, where activations are stochastic
    checkpoint: str | None = None  # weights to load instead of training
    unverified_checkpoint: bool = False  # take weights without a description of their model
    factory: str | None = None  # "package.module:function" that returns the network
    given: GivenModel | None = None
    claim: ClaimSettings | None = None  # in place of the recipe's
    seed: int | None = None  # of the training and of a random model's first draws; None takes the recipe's
    replicate_of: str | None = None  # models with the same name here differ only in their seeds

    @property
    def trained(self) -> bool:
        """Whether its network is built here."""
        return self.factory is None and self.given is None

    @property
    def stochastic(self) -> bool | None:
        """Whether it is random; ``None`` where only its network can tell."""
        if self.given is not None:
            return self.given.stochastic
        return None if self.factory else self.quantize is not None and self.quantize.random


class AttackSettings(Settings):
    """One attack on every model (or on ``models``), at every eps (or at ``eps``), crafted on the model or on ``source``."""

    id: AttackId
    options: dict[str, Any] = {}
    source: str | None = None
    models: list[str] | None = None
    eps: list[Eps] | None = None
    suite: str | None = None  # its suite


class TransferSettings(Settings):
    """One attack crafted on each of ``models`` (or on all) and scored on each of them, also on the source itself."""

    attack: AttackId
    options: dict[str, Any] = {}
    models: list[str] | None = None
    eps: list[Eps] | None = None


class Budget(Settings):
    """The budget of the attacks on one model, in passes through its network per image of the whole set.

    A cell that may exceed the remaining budget is skipped. Claimed cells are exempt, because they are tested.

    :param gradients: backward passes.
    :param queries: forward passes, including those of gradients.
    """

    gradients: Annotated[float, Field(ge=0)] | None = None
    queries: Annotated[float, Field(ge=0)] | None = None


class Diagnosis(Settings):
    """How far the diagnosis of a claim goes.

    :param level: 0 to 3. By default it is 2, and 3 if level 2 found something.
    :param budget: gradient evaluations per image that it may spend beyond the claimed attack.
    """

    level: Annotated[int, Field(ge=0, le=3)] | None = None
    budget: Annotated[float, Field(ge=0)] | None = None


class Recipe(Settings):
    """Everything that decides the numbers of a run.

    :param strategy: ``"matrix"`` runs every attack on every image, for tables. ``"cascade"`` runs cheap attacks first, and
        each next one on images that are still robust, for the worst case.
    :param grid: score the images also as rounded to this many levels.
    :param suite_notes: what its suites leave out or do otherwise than their papers, written when they are expanded.
    """

    name: Name
    title: str = ""
    seed: int = 0
    batch_size: Annotated[int, Field(ge=1)] = 250  # images in one batch of an attack
    shard: Annotated[int, Field(ge=1)] | None = None  # images per shard; None for batch_size
    threads: Annotated[int, Field(ge=1)] | None = None  # threads of torch on the CPU; None for torch's default
    data: Data
    threat: ThreatSettings
    claim: ClaimSettings | None = None
    diagnose: bool = True
    diagnosis: Diagnosis = Diagnosis()
    strategy: Literal["matrix", "cascade"] = "matrix"
    budget: Budget = Budget()
    grid: Annotated[int, Field(ge=2, le=65536)] | None = None
    transfer: TransferSettings | None = None
    models: Annotated[list[ModelSettings], Field(min_length=1)]
    attacks: Annotated[list[AttackSettings], Field(min_length=1)]
    suite_notes: list[str] = []

    def attacked(self, attack: AttackSettings) -> list[ModelSettings]:
        """The models that an attack is scored on. A transfer attack is not scored on its source."""
        return [
            m
            for m in self.models_under_test
            if (attack.models is None or m.name in attack.models) and m.name != attack.source
        ]

    @property
    def models_under_test(self) -> list[ModelSettings]:
        """All models except the substitutes."""
        return [m for m in self.models if m.role == "subject"]

    def transfers(self) -> list[tuple[ModelSettings, ModelSettings]]:
        """(source, target) of the transfer matrix, including its diagonal. It is empty without a transfer table."""
        if self.transfer is None:
            return []
        chosen = [m for m in self.models if self.transfer.models is None or m.name in self.transfer.models]
        return [(source, target) for source in chosen for target in chosen if target.role == "subject"]

    def eps_of(self, attack: AttackSettings | TransferSettings) -> Sequence[float]:
        """Every eps of an attack."""
        return attack.eps if attack.eps is not None else self.threat.eps

    def claim_of(self, model: ModelSettings) -> tuple[ClaimSettings, AttackSettings] | None:
        """The claim about a model, and the claimed attack: the first white-box attack with its id."""
        claim = model.claim or self.claim
        if claim is None:
            return None
        return claim, next(
            a
            for a in self.attacks
            if a.id == claim.attack and a.source is None and model in self.attacked(a) and claim.eps in self.eps_of(a)
        )

    def claims_alone(self) -> Recipe:
        """The same recipe with only the claimed attacks."""
        found = [(m, claim) for m in self.models_under_test if (claim := self.claim_of(m)) is not None]
        attacks = [
            attack.model_copy(update={"models": [model.name], "eps": [claim.eps]}) for model, (claim, attack) in found
        ]
        return self.model_copy(update={"attacks": attacks, "suite_notes": [], "transfer": None, "diagnose": True})
