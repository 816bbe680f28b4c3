"""Whether a checkpoint belongs to the model that a recipe gives it to. Its description decides, in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from torch import nn

from art_qplugins.checkpoint import read_description
from art_qplugins.data import Dataset
from art_qplugins.defences import DEFENCES
from art_qplugins.errors import InputError, shown
from art_qplugins.files import printable
from art_qplugins.quantizers import QUANTIZERS
from art_qplugins.quantizers.maps import record_maps
from art_qplugins.quantizers.registry import weight_keys
from art_qplugins.quantizers.stored import restore_stored_maps
from art_qplugins.recipes.architectures import architecture
from art_qplugins.recipes.model import ModelSettings

__all__ = ["check_checkpoint", "check_stored", "remember_maps", "weight_maps_of"]

#: The settings that say which network the weights belong to, and how they were made what they are.
_IDENTITY = ("architecture", "normalize", "quantize", "defences")
#: Keys of a ``quantize`` table that belong to no quantizer.
_OF_ACTIVATIONS = ("activation", "activation_function", "options", "ranges", "calibration", "also", "functional")


def check_checkpoint(settings: ModelSettings) -> None:
    """Check the checkpoint of a model as far as its description tells. No weight is read, and nothing is built.

    :raises InputError: where the file is missing, or it belongs to another model.
    """
    if settings.checkpoint is not None and settings.factory is None:
        check_stored(settings, read_description(settings.checkpoint))


def check_stored(settings: ModelSettings, description: Mapping[str, Any], data: Dataset | None = None) -> None:
    """Refuse a checkpoint that was made for another model.

    :param description: as :func:`~art_qplugins.checkpoint.load_checkpoint` gives it.
    :param data: the images that the model is for.
    :raises InputError: which names the first difference. Without a description the recipe has to say
        ``unverified_checkpoint = true``, and the weights must not need a map.
    """
    where = f"models.{settings.name}.checkpoint: {printable(settings.checkpoint or '')}"
    stored = description.get("model")
    if not isinstance(stored, Mapping):
        if not settings.unverified_checkpoint:
            raise InputError(
                f"{where} has no description beside it that names its model; if the weights are those of this model, "
                "set unverified_checkpoint = true"
            )
        if weight_maps_of(settings.model_dump()["quantize"]) is not None:
            raise InputError(
                f"{where} does not say that its weights were quantized as this model's are; load it as a model of its "
                "own, and start this one from it with base = NAME and train.epochs = 0"
            )
        return
    facts = {} if data is None else {"input_shape": list(data.shape), "nb_classes": data.nb_classes}
    here = {key: value for key, value in facts.items() if key in description}
    there = {key: description[key] for key in here}
    here, there = here | _identity(settings), there | _stored_identity(stored)
    for key in there | here:
        one, other = (shown(side[key]) if key in side else "not set" for side in (there, here))
        if one != other:
            raise InputError(
                f"{where} belongs to another model ({key} is {one} there and {other} here); give this model its "
                "settings, or load it as another model and use that one as base"
            )


def _stored_identity(stored: Mapping[str, Any]) -> dict[str, Any]:
    try:
        known = {key: stored[key] for key in _IDENTITY if key in stored}
        return _identity(ModelSettings.model_validate({"name": "stored", **known}))
    except (ValidationError, InputError):  # a network that this version or this machine does not know
        return {key: stored.get(key) for key in _IDENTITY}


def _identity(settings: ModelSettings) -> dict[str, Any]:
    """The settings that decide, by their place in the recipe, with defaults written out."""
    choice = settings.architecture
    found: dict[str, Any] = {"architecture": choice.name}
    options = architecture(choice.name).resolve(choice.options)
    found |= {f"architecture.options.{key}": value for key, value in options.items()}
    if choice.members > 1:
        found["architecture.members"] = choice.members
    if settings.normalize is not None:
        found |= {f"normalize.{key}": value for key, value in settings.normalize}
    if settings.quantize is not None:
        table = settings.quantize.model_dump()
        found |= {f"quantize.{key}": table[key] for row in settings.quantize.quantizers for key in row.keys}
        changed = settings.quantize.model_dump(exclude_defaults=True)
        found |= {f"quantize.{key}": table[key] for key in _OF_ACTIVATIONS if key in changed}
    found |= {f"defences.{one.name}": DEFENCES[one.name].resolve(one.options) for one in settings.defences}
    return found


def remember_maps(module: nn.Module, description: Mapping[str, Any]) -> None:
    """Record the maps of the loaded weights. Checkpoints of earlier versions do not name the maps of their base.

    :raises InputError: where the description is odd.
    """
    try:
        if "weight_maps" in description:
            restore_stored_maps(module, description["weight_maps"])
        elif (table := _described_maps(description)) is not None:
            record_maps(module, table)
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        raise InputError(
            "the description of a checkpoint has weight_maps that fit no network; delete it and the weights to train again"
        ) from None


def _described_maps(description: Mapping[str, Any]) -> dict[str, Any] | None:
    stored = description.get("model")
    return weight_maps_of(stored.get("quantize")) if isinstance(stored, dict) else None


def weight_maps_of(table: Any) -> dict[str, Any] | None:
    """The part of a ``quantize`` table about weights; ``None`` where it has none."""
    if not isinstance(table, dict) or not any(
        row.place == "weight" and row.is_on(table) for row in QUANTIZERS.values()
    ):
        return None
    return {key: value for key, value in table.items() if key in weight_keys()}
