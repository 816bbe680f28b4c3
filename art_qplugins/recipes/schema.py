"""Recipes: the one set of settings that TOML, the command line and Python build. Frozen, and checked as a whole.

This module defines the keys of a recipe, and :mod:`~art_qplugins.recipes.model` those of its models.
:mod:`~art_qplugins.recipes.checks` checks that its parts fit together. :mod:`~art_qplugins.recipes.load` makes a recipe from
tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, WrapValidator, model_validator

from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.data.dataset import SHARE
from art_qplugins.domains import Number, Text
from art_qplugins.errors import InputError
from art_qplugins.recipes.model import ClaimSettings, ModelSettings
from art_qplugins.recipes.values import (
    AttackId,
    Count,
    Draws,
    Flag,
    Name,
    Norm,
    NotNegative,
    Precision,
    Reference,
    Seed,
    Settings,
    SomeAttacks,
    SomeEps,
    SomeNames,
    Word,
    different,
    within,
)
from art_qplugins.threat import ANYWHERE, Threat

__all__ = [
    *("SCORE_DRAWS", "AttackSettings", "Budget", "Data", "Diagnosis", "Recipe", "ThreatSettings", "TransferSettings"),
]

#: Predictions of a random model that score an image, if nothing else is asked.
SCORE_DRAWS = 20


class Data(Settings):
    """Which images are attacked: ``limit`` images of the test split, each class in proportion; None for all.

    :param given: the images come from Python and are not loaded by name.
    :param train_limit: train on so many images of the train split, each class in proportion; None for all.
    :param validation: a fraction of the train split, or a number of its images, that no model is trained on.
    :param resize: of a folder of images or a Hugging Face data set: scale each so that its shorter side has so many pixels.
    :param crop: of the same: cut a square of so many pixels out of the middle of each.
    """

    name: Word
    limit: Count | None = None
    seed: Seed = 0
    given: Flag = False
    train_limit: Count | None = None
    validation: Annotated[float | int, within(SHARE)] | None = None
    resize: Count | None = None
    crop: Count | None = None

    @property
    def options(self) -> dict[str, int]:
        """The options of its entry in :data:`~art_qplugins.data.DATASETS` that are set."""
        return {key: value for key in ("resize", "crop") if (value := getattr(self, key)) is not None}


class ThreatSettings(Settings):
    """A norm, and the eps at which attacks run in it."""

    norm: Norm = "Linf"
    eps: SomeEps


def _one_or_several(value: Any, handler: Any) -> Any:
    """A table, or a list of tables. The place of an error is named without the branch of a union."""
    if not isinstance(value, (list, tuple)):
        return ThreatSettings.model_validate(value)
    several = TypeAdapter(list[ThreatSettings]).validate_python(value)
    different([threat.norm for threat in several])
    return several


class _Attacking(Settings):
    """Where an attack runs: on every model (or on ``models``), at every threat whose norm it has (or in ``norm``, at ``eps``).

    :param limit: only the first so many images of the fixed order. Others count as not attacked by it.
    """

    options: dict[str, Any] = {}
    models: SomeNames | None = None
    norm: Norm | None = None
    eps: SomeEps | None = None
    limit: Count | None = None


class AttackSettings(_Attacking):
    """One attack, crafted on the model or on ``source``.

    :param reference: the number of a paper for the accuracy of the model under it, or a table by eps.
    """

    id: AttackId
    source: Name | None = None
    reference: Reference | None = None
    suite: Name | None = None  # its suite

    @property
    def crafted(self) -> str:
        """The key of its reference in the table of a model: its id, with its source, and whether no eps limits it."""
        key = f"{self.id} at any eps" if self.corruption else self.id
        return key if self.source is None else f"{key} from {self.source}"

    @property
    def corruption(self) -> bool:
        """Whether no eps limits it."""
        return ATTACKS[self.id].corruption(self.options)

    @property
    def claimable(self) -> bool:
        """Whether its accuracy can be claimed: that of a white-box attack on all images."""
        return self.source is None and self.limit is None and not self.corruption


class TransferSettings(_Attacking):
    """One attack crafted on each of ``models`` (or on all) and scored on each of them, also on the source itself."""

    attack: AttackId

    def crafted_on(self, source: str | None) -> AttackSettings:
        """The attack as it is crafted on one of the models."""
        return AttackSettings(id=self.attack, source=source, **self.model_dump(exclude={"attack", "models"}))


class Budget(Settings):
    """The budget of the attacks on one model, in passes through its network per image of the whole set.

    A cell that may exceed the remaining budget is skipped. Claimed cells are exempt, because they are tested.

    :param gradients: backward passes.
    :param queries: forward passes, including those of gradients.
    """

    gradients: NotNegative | None = None
    queries: NotNegative | None = None


class Diagnosis(Settings):
    """How far the diagnosis of a claim goes.

    :param level: 0 to 3. By default it is 2, and 3 if level 2 found something.
    :param budget: gradient evaluations per image that it may spend beyond the claimed attack.
    :param queries: forward passes per image that it may spend with the claimed attack, 20,000 by default. Each draw of a
        random model counts.
    """

    level: Annotated[int, within(Number(0, 3, whole=True))] | None = None
    budget: NotNegative | None = None
    queries: NotNegative | None = None


class Recipe(Settings):
    """Everything that decides the numbers of a run.

    :param strategy: ``"matrix"`` runs every attack on every image, for tables. ``"cascade"`` runs cheap attacks first, and
        each next one on images that are still robust, for the worst case.
    :param order: the attacks that a cascade begins with, e.g. those that ``artq tune`` prints.
    :param audit: at each eps, run AutoAttack ``standard`` on so many of the images that stand in the end, drawn at random. It
        tells what full AutoAttack would leave, with an interval.
    :param grid: score the images also as rounded to this many levels.
    :param score_draws: predictions of a random model, each with fresh noise, that score an image. As many others choose
        the worst attack. What is left after k tries needs at least k.
    :param sensitivity: measure operator norms of layers, and how far so many images of each attack move what layers read.
    :param information: measure what the codes of stochastic models tell of so many images, clean, attacked and with random noise.
    :param suite_notes: what its suites leave out or do otherwise than their papers, written when they are expanded.
    """

    name: Name
    title: Annotated[str, within(Text(least=0))] = ""
    seed: Seed = 0
    batch_size: Count = 250  # images in one batch of an attack
    shard: Count | None = None  # images per shard; None for batch_size
    threads: Annotated[int, within(Number(1, 1024, whole=True))] | None = (
        None  # threads of torch on the CPU; None for torch's default
    )
    accelerator: Literal["auto", "cpu", "gpu"] = (
        "auto"  # where models are trained and attacked; auto: a GPU if there is one
    )
    devices: Annotated[int, within(Number(1, 4096, whole=True))] = 1  # processes that train a model together
    precision: Precision | None = None  # of the training of models that name none
    data: Data
    threat: Annotated[ThreatSettings | list[ThreatSettings], WrapValidator(_one_or_several)]
    claim: ClaimSettings | None = None
    diagnose: Flag = True
    diagnosis: Diagnosis = Diagnosis()
    strategy: Literal["matrix", "cascade"] = "matrix"
    order: SomeAttacks | None = None
    budget: Budget = Budget()
    audit: Count | None = None
    grid: Annotated[int, within(Number(2, 65536, whole=True))] | None = None
    score_draws: Draws = SCORE_DRAWS
    sensitivity: Count | None = None
    information: Count | None = None
    transfer: TransferSettings | None = None
    models: Annotated[list[ModelSettings], Field(min_length=1)]
    attacks: Annotated[list[AttackSettings], Field(min_length=1)]
    suite_notes: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _with_precision(cls, value: Any) -> Any:
        """Write the precision into the tables of the models that are trained here."""
        models = value.get("models") if isinstance(value, Mapping) and value.get("precision") else None
        if not isinstance(models, list) or not all(isinstance(model, Mapping) for model in models):
            return value
        elsewhere = ("factory", "endpoint", "given", "members", "checkpoint")
        filled = [
            model
            if any(model.get(key) for key in elsewhere) or not isinstance(model.get("train", {}), Mapping)
            else {**model, "train": {"precision": value["precision"], **model.get("train", {})}}
            for model in models
        ]
        return {**value, "models": filled}

    def attacked(self, attack: AttackSettings) -> list[ModelSettings]:
        """The models that an attack is scored on. A transfer attack is not scored on its source."""
        chosen = None if attack.models is None else set(attack.models)
        return [m for m in self.models_under_test if (chosen is None or m.name in chosen) and m.name != attack.source]

    @property
    def models_under_test(self) -> list[ModelSettings]:
        """All models except the substitutes."""
        return [m for m in self.models if m.role == "subject"]

    def transfers(self) -> list[tuple[ModelSettings, ModelSettings]]:
        """(source, target) of the transfer matrix, including its diagonal. It is empty without a transfer table."""
        if self.transfer is None:
            return []
        names = None if self.transfer.models is None else set(self.transfer.models)
        chosen = [m for m in self.models if names is None or m.name in names]
        return [(source, target) for source in chosen for target in chosen if target.role == "subject"]

    @property
    def threats(self) -> list[ThreatSettings]:
        """The norms of the recipe, each with its eps."""
        return self.threat if isinstance(self.threat, list) else [self.threat]

    def threats_of(self, attack: AttackSettings) -> list[Threat]:
        """Every threat at which an attack runs. That of a corruption allows all images.

        :raises InputError: where the recipe has none for it, or it does not say in which norm its eps are.
        """
        row, known = ATTACKS[attack.id], self.threats
        if attack.corruption:
            if attack.norm is not None or attack.eps is not None:
                raise InputError("no eps limits it with these options; leave norm and eps out")
            return [ANYWHERE]
        if attack.norm is not None:
            chosen = [threat for threat in known if threat.norm == attack.norm]
            if not chosen and attack.eps is None:
                raise InputError(f"the recipe has no eps in {attack.norm}; give eps too")
            several = attack.eps or chosen[0].eps
            return [Threat(attack.norm, eps) for eps in several]
        if len(known) == 1 or row.refused:  # checks say that it does not have the norm
            fitting = known
        elif not (fitting := [threat for threat in known if threat.norm in row.norms]):
            norms = " and ".join(threat.norm for threat in known)
            raise InputError(
                f"it has {', '.join(row.norms)}, and the recipe's threats are in {norms}; give norm and eps"
            )
        if attack.eps is not None and len(fitting) > 1:
            norms = " or ".join(threat.norm for threat in fitting)
            raise InputError(f"its eps may be in {norms}; give norm too")
        return [Threat(threat.norm, eps) for threat in fitting for eps in attack.eps or threat.eps]

    def runs_on(self, model: ModelSettings) -> list[tuple[AttackSettings, Threat]]:
        """The attacks on a model, also those of the transfer matrix, at each of their threats."""
        attacks = [attack for attack in self.attacks if any(m is model for m in self.attacked(attack))]
        if self.transfer is not None:
            sources = [source.name for source, target in self.transfers() if target is model]
            attacks += [self.transfer.crafted_on(None if name == model.name else name) for name in sources]
        return [(attack, threat) for attack in attacks for threat in self.threats_of(attack)]

    def claims(self) -> dict[str, tuple[ClaimSettings, AttackSettings]]:
        """By model, the claim about it with its norm, and the claimed attack: the first white-box attack that fits.

        :raises InputError: where an attack fits in two norms.
        """
        asked = {m.name: claim for m in self.models_under_test if (claim := m.claim or self.claim) is not None}
        found: dict[str, tuple[ClaimSettings, AttackSettings]] = {}
        for attack in self.attacks if asked else ():
            if not attack.claimable:
                continue
            threats = self.threats_of(attack)
            for model in self.attacked(attack):
                claim = asked.get(model.name)
                if claim is None or claim.attack != attack.id:
                    continue
                for norm in (t.norm for t in threats if t.eps == claim.eps and claim.norm in (None, t.norm)):
                    first, _ = found.setdefault(model.name, (claim.model_copy(update={"norm": norm}), attack))
                    if first.norm != norm:
                        raise InputError(
                            f"{self.place_of_claim(model)}: {claim.attack} runs at eps {claim.eps:g} in {first.norm} and in "
                            f"{norm}; give norm too"
                        )
        return {name: found[name] for name in asked if name in found}

    def place_of_claim(self, model: ModelSettings) -> str:
        """The table with the claim about a model."""
        return "claim" if model.claim is None else f"models.{model.name}.claim"

    def claims_alone(self) -> Recipe:
        """The same recipe with only the claimed attacks."""
        attacks = [
            attack.model_copy(update={"models": [name], "norm": claim.norm, "eps": [claim.eps]})
            for name, (claim, attack) in self.claims().items()
        ]
        return self.model_copy(update={"attacks": attacks, "suite_notes": [], "transfer": None, "diagnose": True})
