"""What a run says of a model before it is trained: a line, and warnings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from art_qplugins.defences import DEFENCES
from art_qplugins.deployment.files import is_file
from art_qplugins.errors import shown
from art_qplugins.files import is_exported, printable
from art_qplugins.quantizers import Quantizer
from art_qplugins.recipes.architectures import is_own
from art_qplugins.recipes.facts import ENSEMBLE_KEYS, draws_noise
from art_qplugins.recipes.model import ModelSettings
from art_qplugins.recipes.networks import training_defences
from art_qplugins.recipes.schema import Recipe

__all__ = ["code_of_others", "describe", "training_warnings"]

#: The defence that belongs to networks with aggregation layers.
_CONVEX = "convex-aggregation"


def describe(settings: ModelSettings) -> str:
    """A one-line description of a model."""
    if settings.given is not None:
        return settings.given.estimator
    if settings.factory is not None:
        return settings.factory + _deployed(settings)
    if settings.endpoint is not None:
        return f"endpoint {settings.endpoint}{_deployed(settings)}"
    if settings.export is not None:
        return f"{settings.base} as an ONNX file, {settings.export.bias} biases, along the gradient of {settings.base}"
    if settings.members is not None:
        members = ", ".join(settings.members)
        return f"one of {members}, at random for each image" if settings.random else f"{settings.rule} of {members}"
    count = settings.architecture.members
    parts = [settings.architecture.name if count == 1 else f"ensemble of {count} {settings.architecture.name}"]
    if settings.normalize is not None:
        parts.append(f"normalized by mean {shown(settings.normalize.mean)} and std {shown(settings.normalize.std)}")
    if settings.quantize is not None:
        table = settings.model_dump(include=set(ENSEMBLE_KEYS)) | settings.quantize.model_dump()
        rows = sorted(settings.quantize.quantizers, key=lambda row: row.place)
        if settings.quantize.activation_function is not None:
            parts.append(f"{settings.quantize.activation_function} activations")
        parts += [row.line(table) + _only(row, table) for row in rows]
        if rows and rows[-1].place == "weight" and settings.train.epochs > 0 and settings.checkpoint is None:
            parts.append("trained through these maps")
    for defence in settings.defences:
        given = DEFENCES[defence.name].resolve(defence.options).items()
        options = ", ".join(f"{k} = {v if isinstance(v, str) else f'{v:g}'}" for k, v in given if v is not None)
        parts.append(f"{defence.name} ({options})" if options else defence.name)
    if draws_noise(settings.model_dump()) and not (settings.quantize and settings.quantize.random):
        parts.append(f"{settings.rule} of {settings.draws} {'fixed draws' if settings.frozen else 'draws'}")
    if settings.base is not None:
        how = "quantized after training" if settings.train.epochs == 0 else "trained on"
        parts.append(f"{how} from {settings.base}")
    return "; ".join(parts)


def _deployed(settings: ModelSettings) -> str:
    labels = ", labels alone" if settings.labels_only else ""
    distils = settings.endpoint is not None or is_file(str(settings.factory))
    twin = settings.twin or ("a network distilled from its answers" if distils else None)
    return labels + (f", along the gradient of {twin}" if twin else "")


def code_of_others(recipe: Recipe) -> list[str]:
    """The code of other people that a recipe runs because it names it, a line each. Installed packages are not among them."""
    found: dict[str, list[str]] = {}
    for model in recipe.models:
        if model.factory is not None:
            found.setdefault(f"{model.factory}, the factory", []).append(model.name)
        elif model.trained and is_own(model.architecture.name):
            found.setdefault(f"{model.architecture.name}, the architecture", []).append(model.name)
        if model.checkpoint is not None and is_exported(model.checkpoint):
            found.setdefault(f"{printable(model.checkpoint)}, the checkpoint", []).append(model.name)
    return [f"{what} of {name}" + f" and {len(more)} more" * bool(more) for what, (name, *more) in found.items()]


def _only(row: Quantizer, table: Mapping[str, Any]) -> str:
    """Which activations ``row`` quantizes, where it is not all of them."""
    layers = table["activation_layers"] if row.place == "activation" else None
    if isinstance(layers, list):
        return f", only {', '.join(layers)}"
    return "" if layers is None else ", only the last" + f" {layers}" * (layers > 1)


def training_warnings(settings: ModelSettings) -> list[str]:
    """What is wrong with how a model is trained or where its weights are from, though it can be, a line each."""
    if settings.unverified_checkpoint:
        return [f"nothing says that {printable(settings.checkpoint or '')} are weights of this model"]
    if not settings.trained or settings.checkpoint is not None or settings.train.epochs == 0:
        return []
    found = [defence.warning(settings.train.weight_decay) for defence in training_defences(settings)]
    if settings.architecture.options.get("aggregation") and not any(d.name == _CONVEX for d in settings.defences):
        found.append(
            f"nothing keeps the weights of its aggregation layers convex; add the defence {_CONVEX!r}, or leave "
            "aggregation out"
        )
    return [warning for warning in found if warning is not None]
