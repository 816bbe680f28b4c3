"""Builds the models of a recipe: trains or loads them, and wraps them as ART estimators."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from art_qplugins._version import __version__
from art_qplugins.checkpoint import load_checkpoint, read_description, save_checkpoint
from art_qplugins.data import Dataset
from art_qplugins.errors import at
from art_qplugins.estimators import QuantizedClassifier, SQEnsembleClassifier
from art_qplugins.files import short_name
from art_qplugins.fingerprint import code_fingerprint, fingerprint
from art_qplugins.models.ensemble import trained_network
from art_qplugins.quantizers import bake
from art_qplugins.quantizers.stored import stored_maps
from art_qplugins.recipes.architectures import is_own
from art_qplugins.recipes.deployed import make_deployed, with_gradient
from art_qplugins.recipes.exported import exported
from art_qplugins.recipes.factory import make_estimator
from art_qplugins.recipes.facts import ENSEMBLE_KEYS, draws_noise
from art_qplugins.recipes.model import ModelSettings
from art_qplugins.recipes.networks import blank, first_weights, loaded, seed_of, training_defences, untrained
from art_qplugins.recipes.packages import packages_of_model
from art_qplugins.recipes.schema import Recipe
from art_qplugins.recipes.stored import remember_maps
from art_qplugins.training.engine import train
from art_qplugins.training.progress import TrainingProgress
from art_qplugins.training.ranks import rank

__all__ = [
    "build_estimators",
    "build_model",
    "build_models",
    "estimator_for",
    "is_stored",
    "stored_at",
    "training_curves",
    "with_factories",
]

#: Settings that do not enter the key of a trained model. base and seed enter it in another form.
_NOT_TRAINING = {
    *("name", "role", "claim", "checkpoint", "unverified_checkpoint", "base", "seed", "replicate_of"),
    *("members", "random", "factory", "endpoint", "ask", "given", "abstain", "baseline", "reference", *ENSEMBLE_KEYS),
    *("twin", "twin_checkpoint", "labels_only", "inputs", "export"),
}

#: What training runs through, from the images to the stored weights, beside torch and other packages.
TRAINING_CODE = (
    "data/dataset.py",
    "data/rows.py",
    "defences",
    "guard.py",
    "information.py",
    "models",
    "quantizers",
    "recipes/architectures.py",
    "recipes/build.py",
    "recipes/networks.py",
    "threat.py",
    "training",
)

#: What a description keeps of each epoch.
_TOLD = (
    *("epoch", "loss", "learning_rate", "validation_accuracy", "robust_validation_accuracy", "images_per_second"),
    "measured",
)

OnTraining = Callable[[str, TrainingProgress], None]  # the name of the model, and how far it is


def build_estimators(
    recipe: Recipe,
    data: Dataset,
    checkpoints: Path,
    *,
    device: torch.device,
    given: Mapping[str, QuantizedClassifier] | None = None,
    validation: Dataset | None = None,
    progress: OnTraining | None = None,
) -> dict[str, QuantizedClassifier]:
    """Every model of the recipe as an ART estimator: trained here, made by its factory, or given.

    :param data: the images to train on. If no model is trained, they may be any.
    :param validation: images to validate on.
    """
    ready = with_factories(recipe, data, given)
    made = {name: trained_network(estimator.model) for name, estimator in ready.items()}
    modules = build_models(
        recipe, data, checkpoints, device=device, made=made, validation=validation, progress=progress
    )
    estimators = dict[str, QuantizedClassifier]()
    for m in recipe.models:
        if m.export is not None and m.base is not None:
            estimators[m.name] = exported(m, estimators[m.base], checkpoints)
        else:
            estimators[m.name] = ready.get(m.name) or estimator_for(m, modules[m.name], data)
    return {
        m.name: with_gradient(estimators[m.name], m, modules, data, checkpoints, seed=seed_of(recipe, m))
        for m in recipe.models
    }


def with_factories(
    recipe: Recipe, data: Dataset, given: Mapping[str, QuantizedClassifier] | None = None
) -> dict[str, QuantizedClassifier]:
    """``given``, and the models of factories and endpoints that are not in it yet.

    :param data: images of any split, which the models are tried with.
    :raises InputError: where a factory cannot be called, an endpoint does not answer, or a network cannot take the images.
    """
    ready = dict(given or {})
    for settings in recipe.models:
        if settings.export is not None or settings.name in ready:
            continue
        if settings.deployed:
            ready[settings.name] = make_deployed(settings, data)
        elif settings.factory is not None:
            ready[settings.name] = make_estimator(settings.factory, settings.checkpoint, data, abstain=settings.abstain)
    return ready


def build_models(
    recipe: Recipe,
    data: Dataset,
    checkpoints: Path,
    *,
    device: torch.device,
    made: Mapping[str, nn.Module] | None = None,
    validation: Dataset | None = None,
    progress: OnTraining | None = None,
) -> dict[str, nn.Module]:
    """Every model of the recipe, in order. A model with a checkpoint is loaded, other models are trained and stored.

    :param data: the train split.
    :param checkpoints: the folder; a file's name ends in a hash of everything that shapes the training, its code included.
    :param made: modules that are not built here, by name.
    """
    models: dict[str, nn.Module] = dict(made or {})
    for settings in recipe.models:
        if settings.export is not None and settings.base is not None:
            models[settings.name] = models[settings.base]
        elif settings.name not in models:
            models[settings.name] = build_model(
                recipe,
                settings,
                data,
                checkpoints,
                models,
                device=device,
                validation=validation,
                progress=progress,
            )
    return models


def build_model(
    recipe: Recipe,
    settings: ModelSettings,
    data: Dataset,
    checkpoints: Path,
    models: Mapping[str, nn.Module],
    *,
    device: torch.device,
    validation: Dataset | None = None,
    progress: OnTraining | None = None,
) -> nn.Module:
    """One model: with the weights of its checkpoint, or as it was stored in ``checkpoints``, or trained and stored there.

    A mixture has the weights of its members, and nothing of its own to train or to store.

    :param models: its parents by name, and any others.
    """
    if settings.members is not None:
        module = untrained(settings, data, seed_of(recipe, settings), models)
    elif settings.checkpoint is not None:
        module = loaded(settings, data, seed_of(recipe, settings))
    else:
        module = blank(settings, data, seed_of(recipe, settings))
        path = stored_at(recipe, settings, data, checkpoints, models)
        if is_stored(path):
            remember_maps(module, load_checkpoint(path, module))
        else:
            state = path.with_name(f"{path.stem}-state.safetensors")
            module, curve = _train(recipe, settings, (data, validation), models, device, state, progress)
            if rank() == 0:
                about = {"weight_maps": stored_maps(module), "training": curve}
                save_checkpoint(path, module, _description(settings, data) | about)
                state.unlink(missing_ok=True)
    return module.to(device).eval()


def stored_at(
    recipe: Recipe, settings: ModelSettings, data: Dataset, checkpoints: Path, models: Mapping[str, nn.Module]
) -> Path:
    """The file of a model without a checkpoint. Its name ends in a hash of everything that shapes the training."""
    return checkpoints / f"{short_name(settings.name)}-{_key(recipe, settings, data, models)}.safetensors"


def is_stored(path: Path) -> bool:
    """The description is written last, so an interrupted training has none and starts again."""
    return path.with_suffix(".json").exists()


def training_curves(
    recipe: Recipe, data: Dataset, checkpoints: Path, models: Mapping[str, nn.Module]
) -> dict[str, list[dict[str, Any]]]:
    """By model, what the description beside its weights tells of each epoch. It is not checked.

    :param models: all models of the recipe, as :func:`build_models` gives them.
    """
    found: dict[str, Any] = {}
    for settings in recipe.models:
        if settings.trained:
            path = settings.checkpoint or stored_at(recipe, settings, data, checkpoints, models)
            found[settings.name] = read_description(path).get("training")
    return {name: curve for name, curve in found.items() if isinstance(curve, list) and curve}


def estimator_for(settings: ModelSettings, module: nn.Module, data: Dataset) -> QuantizedClassifier:
    """The ART estimator of a trained module. Its noise and its quantizers choose the class, see :data:`QUANTIZERS`."""
    rows, random = [] if settings.quantize is None else settings.quantize.quantizers, draws_noise(settings.model_dump())
    row = next((row for row in rows if row.estimator and (row.random or not random)), None)
    family: Callable[..., QuantizedClassifier] = SQEnsembleClassifier if random else QuantizedClassifier
    family = family if row is None else row.load_estimator()
    ensemble: dict[str, Any] = {}
    if random:
        ensemble = {"draws": settings.draws, **({"options": settings.ensemble} if settings.ensemble else {})}
    device_type = str(next(module.parameters()).device)
    loss = nn.CrossEntropyLoss()
    return family(module, loss, data.shape, data.nb_classes, device_type=device_type, **ensemble)


def _train(
    recipe: Recipe,
    settings: ModelSettings,
    images: tuple[Dataset, Dataset | None],
    models: Mapping[str, nn.Module],
    device: torch.device,
    state: Path,
    progress: OnTraining | None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The trained network, and what was told of its epochs.

    :param images: those to train on, and those to validate on.
    :param state: what an interrupted training leaves behind and goes on from.
    """
    data, validation = images
    module = untrained(settings, data, seed_of(recipe, settings), models)
    curve: list[dict[str, Any]] = []

    def tell(told: TrainingProgress) -> None:
        if told.ends_epoch:
            facts = dataclasses.asdict(told)
            curve.append({name: facts[name] for name in _TOLD})
        if progress is not None:
            progress(settings.name, told)

    if settings.train.epochs > 0:
        with at(f"models.{settings.name}.train"):
            train(
                module.to(device),
                data,
                training_defences(settings),
                **settings.train.arguments(),
                validation=validation,
                devices=recipe.devices,
                seed=seed_of(recipe, settings),
                state=state,
                progress=tell,
            )
    return bake(module), curve


def _key(recipe: Recipe, settings: ModelSettings, data: Dataset, models: Mapping[str, nn.Module]) -> str:
    shaping = settings.model_dump(mode="json", exclude=_NOT_TRAINING)
    base = None if settings.base is None else fingerprint(models[settings.base])
    content = [shaping, base, data.sha256, seed_of(recipe, settings), __version__, torch.__version__, _training_code()]
    content += [str(plugin) for plugin in packages_of_model(recipe, settings)]
    if is_own(settings.architecture.name):
        content.append(first_weights(settings.architecture, data, seed_of(recipe, settings)))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


@functools.cache
def _training_code() -> str:
    return code_fingerprint(TRAINING_CODE)


def _description(settings: ModelSettings, data: Dataset) -> dict[str, Any]:
    return {
        "model": settings.model_dump(mode="json"),
        "input_shape": list(data.shape),
        "nb_classes": data.nb_classes,
        "data": {"name": data.name, "split": data.split, "sha256": data.sha256},
        "art_qplugins": __version__,
        "training_code": _training_code(),
        "torch": torch.__version__,
    }
