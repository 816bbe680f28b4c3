"""A trained model of a recipe as a file, and whether ONNX Runtime answers from it as the model does."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from art_qplugins.data import Dataset
from art_qplugins.defences.crafting import pgd
from art_qplugins.deployment.export import Exported, export
from art_qplugins.deployment.files import open_deployed
from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.estimators.deployed import as_module, deployed
from art_qplugins.guard import evaluating
from art_qplugins.metrics import wilson_interval
from art_qplugins.models.ensemble import trained_network
from art_qplugins.recipes.build import build_model, estimator_for, is_stored, stored_at, with_factories
from art_qplugins.recipes.schema import Recipe
from art_qplugins.runner.prepare import Images

__all__ = ["Agreement", "export_model", "labels_agree"]

#: Images on which answers are compared where the recipe has no limit of its own.
_IMAGES = 500
#: Of the images of PGD, where the recipe has no threat in Linf.
_EPS = 8 / 255


@dataclass(frozen=True)
class Agreement:
    """On how many of the test images two models give the same label.

    :ivar interval: of the share, 95 % (Wilson).
    """

    agreeing: int
    images: int

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.agreeing, self.images)


def export_model(
    recipe: Recipe,
    name: str,
    path: Path,
    *,
    run: Path,
    images: Images,
    to: Literal["onnx", "pt2", "torchao"],
    bias: Literal["int", "float"],
) -> tuple[Exported, dict[str, Agreement]]:
    """Write the model ``name`` of a recipe to ``path``, and compare answers, on clean images and on those of PGD.

    :param run: the folder of a run, with its checkpoints.
    :return: the file; and how often labels agree, see :func:`labels_agree`.
    :raises InputError: where there is no such model, or it is not trained yet.
    """
    test = images.split(recipe, "test")
    estimator = _estimator(recipe, name, run, images, test)
    made = export(estimator, path, to=to, bias=bias)
    shown = test.take(min(recipe.data.limit or _IMAGES, len(test)), seed=recipe.data.seed)
    found = labels_agree(estimator, made, shown.x(), in_runtime=to == "onnx")
    eps = next((eps for threat in recipe.threats if threat.norm == "Linf" for eps in threat.eps), _EPS)
    for what, agreement in labels_agree(
        estimator, made, _crafted(estimator, shown, eps), in_runtime=to == "onnx"
    ).items():
        found[f"{what} on PGD's images at Linf {eps:.3g}"] = agreement
    return made, found


def _crafted(estimator: QuantizedClassifier, data: Dataset, eps: float) -> Tensor:
    module, random = as_module(estimator), torch.Generator().manual_seed(0)
    parts = zip(data.x().split(100), data.y().split(100), strict=True)
    with evaluating(module):
        found = [
            pgd(module, x, y, eps=eps, steps=10, step_size=eps / 4, start="uniform", generator=random) for x, y in parts
        ]
    return torch.cat(found)


def labels_agree(
    estimator: QuantizedClassifier, made: Exported, x: Tensor, *, in_runtime: bool
) -> dict[str, Agreement]:
    """How often labels agree: those of an estimator, of the torch form of its file, and of the file in ONNX Runtime, in pairs.

    Of a random model, the file is compared with its own members alone.

    :param x: (N, C, H, W) in [0, 1].
    """
    with torch.no_grad():
        twin = torch.cat([made.module(part) for part in x.split(100)]).argmax(1).numpy()
    labels = {} if made.draws else {"the model": deployed(estimator).predict(x.numpy()).argmax(1)}
    labels["its torch form"] = twin
    if in_runtime:
        file = open_deployed(made.path, input_shape=estimator.input_shape)[0]
        labels["ONNX Runtime"] = np.concatenate([file(part.numpy()) for part in x.split(100)]).argmax(1)
    pairs = itertools.combinations(labels, 2)
    return {f"{one} and {two}": Agreement(int((labels[one] == labels[two]).sum()), len(x)) for one, two in pairs}


def _estimator(recipe: Recipe, name: str, run: Path, images: Images, test: Dataset) -> QuantizedClassifier:
    settings = {model.name: model for model in recipe.models}
    if name not in settings:
        raise InputError(f"--model: recipe {recipe.name!r} has no model {name!r}{did_you_mean(name, settings)}")
    wanted, missing = [], [name]
    while missing:
        one = missing.pop()
        wanted.append(one)
        missing += [parent for parent in settings[one].parents if parent not in wanted]
    models = [model for model in recipe.models if model.name in wanted]
    data = images.training(recipe)[0] if any(model.trained for model in models) else test
    ready = with_factories(recipe.model_copy(update={"models": models}), test)
    modules = {one: trained_network(estimator.model) for one, estimator in ready.items()}
    for model in models:
        if model.name in modules:
            continue
        if model.trained and model.checkpoint is None:
            stored = stored_at(recipe, model, data, run / "checkpoints", modules)
            if not is_stored(stored):
                raise InputError(
                    f"--model: {model.name!r} is not trained yet in {str(run)!r}; run artq train first, or give --out FOLDER"
                )
        modules[model.name] = build_model(recipe, model, data, run / "checkpoints", modules, device=torch.device("cpu"))
    return ready.get(name) or estimator_for(settings[name], modules[name], data)
