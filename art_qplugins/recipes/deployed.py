"""Deployed models of a recipe: files, networks without a gradient, and the twins whose gradients they get."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from art_qplugins.checkpoint import load_checkpoint, save_checkpoint
from art_qplugins.data import Dataset
from art_qplugins.deployment.arguments import TWIN_QUERIES
from art_qplugins.deployment.classifier import DeployedClassifier
from art_qplugins.deployment.distil import Scaled, distil, small_network
from art_qplugins.deployment.files import is_file, open_deployed
from art_qplugins.deployment.module import Answering
from art_qplugins.errors import at
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.files import short_name
from art_qplugins.fingerprint import code_fingerprint
from art_qplugins.recipes.factory import make_endpoint, make_module
from art_qplugins.recipes.model import ModelSettings

__all__ = ["make_deployed", "with_gradient"]

#: What decides a network that is fitted to answers, beside torch.
_DISTILLING = ("deployment/distil.py",)


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
    folder: Path,
    *,
    seed: int,
) -> QuantizedClassifier:
    """The estimator of a deployed model with the gradient of its twin, and of a network distilled from its answers without one.

    :param models: all models that may be its twin, by name.
    :param data: images around which it is asked where it has no twin.
    :param folder: where a distilled network is stored, or is from an earlier run.
    """
    module = estimator.model
    if not isinstance(module, Answering) or module.twin is not None:
        return estimator
    with at(f"model {settings.name}"):
        if settings.twin is not None:
            module = module.with_twin(models[settings.twin])
        elif settings.factory is not None or settings.endpoint is not None:
            few: dict[str, Any] = {} if settings.endpoint is None else {"queries": min(5000, TWIN_QUERIES * len(data))}
            module = _distilled(module, settings.name, data, folder, {"seed": seed, **few})
        return DeployedClassifier(
            module, estimator.input_shape, estimator.nb_classes, loss=estimator._loss, abstain=estimator.abstain
        )


def _distilled(model: Answering, name: str, data: Dataset, folder: Path, options: dict[str, Any]) -> Answering:
    content = [model.identity, data.sha256, len(data), options, _distilling(), torch.__version__]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    path = folder / f"{short_name(name)}-twin-{key}.safetensors"
    if path.with_suffix(".json").exists():
        twin = Scaled(small_network(model.input_shape, model.nb_classes), 1.0)
        told = load_checkpoint(path, twin)
        twin.scale = float(told["scale"])
        return model.with_twin(twin.eval(), distilled_from=int(told["queries"]))
    found = distil(model, data.x(), **options)
    twin = next(part for part in found.modules() if isinstance(part, Scaled))
    save_checkpoint(path, twin, {"scale": twin.scale, "queries": found.distilled_from})
    return found


@functools.cache
def _distilling() -> str:
    return code_fingerprint(_DISTILLING)


def _module(name: str, checkpoint: str | None) -> nn.Module:
    module = make_module(name)
    if checkpoint is not None:
        load_checkpoint(checkpoint, module)
    return module.eval()
