"""Deployed models of a recipe: files, networks without a gradient, and the twins whose gradients they get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from art_qplugins.checkpoint import load_checkpoint
from art_qplugins.data import Dataset
from art_qplugins.deployment.arguments import TWIN_QUERIES
from art_qplugins.deployment.classifier import DeployedClassifier
from art_qplugins.deployment.distil import distil
from art_qplugins.deployment.files import is_file, open_deployed
from art_qplugins.deployment.module import Answering
from art_qplugins.errors import at
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.recipes.factory import make_endpoint, make_module
from art_qplugins.recipes.model import ModelSettings

__all__ = ["is_deployed", "make_deployed", "with_gradient"]


def is_deployed(settings: ModelSettings) -> bool:
    """Whether a model is asked as it is deployed, and gets its gradient from elsewhere."""
    if settings.factory is None:
        return settings.endpoint is not None
    return is_file(settings.factory) or settings.labels_only or settings.twin is not None


def make_deployed(settings: ModelSettings, data: Dataset) -> DeployedClassifier:
    """The file or the module of a model, as an estimator for the images of ``data``.

    It has the gradient of its twin where a function makes that; :func:`with_gradient` gives it any other.

    :raises InputError: where the file, its runtime or the module cannot be had, or it does not take these images.
    """
    classes = data.nb_classes if settings.abstain is None else max(data.nb_classes, settings.abstain + 1)
    where = f"model {settings.name}"
    with at(where):
        predict: object
        if settings.endpoint is not None:
            predict = make_endpoint(settings.endpoint, settings.ask, data, classes, labels_only=settings.labels_only)
        elif is_file(str(settings.factory)):
            given = {} if settings.inputs is None else settings.inputs.model_dump(exclude_none=True)
            predict = open_deployed(str(settings.factory), inputs=given, input_shape=data.shape, nb_classes=classes)[0]
        else:
            predict = _module(str(settings.factory), settings.checkpoint)
        twin = _module(settings.twin, settings.twin_checkpoint) if settings.twin and ":" in settings.twin else None
        return DeployedClassifier(
            predict, data.shape, classes, twin=twin, labels_only=settings.labels_only, abstain=settings.abstain
        )


def with_gradient(
    estimator: QuantizedClassifier,
    settings: ModelSettings,
    models: Mapping[str, nn.Module],
    data: Dataset,
    *,
    seed: int,
) -> QuantizedClassifier:
    """The estimator of a deployed model with the gradient of its twin, and of a network distilled from its answers without one.

    :param models: all models that may be its twin, by name.
    :param data: images around which it is asked where it has no twin.
    """
    module = estimator.model
    if not isinstance(module, Answering) or module.twin is not None:
        return estimator
    with at(f"model {settings.name}"):
        if settings.twin is not None:
            module = module.with_twin(models[settings.twin])
        elif settings.factory is not None or settings.endpoint is not None:
            few: dict[str, Any] = {} if settings.endpoint is None else {"queries": min(5000, TWIN_QUERIES * len(data))}
            module = distil(module, data.x(), seed=seed, **few)
        return DeployedClassifier(
            module, estimator.input_shape, estimator.nb_classes, loss=estimator._loss, abstain=estimator.abstain
        )


def _module(name: str, checkpoint: str | None) -> nn.Module:
    module = make_module(name)
    if checkpoint is not None:
        load_checkpoint(checkpoint, module)
    return module.eval()
