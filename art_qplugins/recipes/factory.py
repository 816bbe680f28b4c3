"""A network of the user that is ready: made by ``package.module:function``, in a file, or behind a function that answers.

It is asked once, with two images, before anything is computed.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn

from art_qplugins.checkpoint import load_checkpoint
from art_qplugins.data import Dataset
from art_qplugins.deployment.endpoint import TWICE, Endpoint
from art_qplugins.deployment.files import is_file, open_deployed
from art_qplugins.deployment.module import Answering, answering_of
from art_qplugins.deployment.predictors import as_predict
from art_qplugins.errors import InputError, at, shown
from art_qplugins.estimators import Deployed, QuantizedClassifier, SQEnsembleClassifier
from art_qplugins.estimators.adapted import adapted
from art_qplugins.estimators.deployed import as_module
from art_qplugins.estimators.devices import device_type_of
from art_qplugins.files import is_exported
from art_qplugins.foreign import foreign
from art_qplugins.guard import isolated, restoring, takes_modes
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.models.mixture import Mixture
from art_qplugins.quantizers import draws_from, is_stochastic
from art_qplugins.recipes.model import Ask
from art_qplugins.recipes.user_code import called, imported, package_of
from art_qplugins.state_dicts import read_exported

__all__ = ["make_endpoint", "make_estimator", "make_module"]


def make_estimator(
    name: str, checkpoint: str | None, data: Dataset, *, abstain: int | None = None
) -> QuantizedClassifier:
    """The module that the factory ``name`` makes, as an ART estimator for the images of ``data``.

    :param checkpoint: its weights, see :func:`~art_qplugins.checkpoint.load_checkpoint`. ``None`` keeps the weights of the factory.
    :param abstain: the output with which it rejects an image. The others are those of the classes.
    :raises InputError: where there is no such module, or it gives no logits for two of the images.
    """
    module = make_module(name)
    if checkpoint is not None:
        load_checkpoint(checkpoint, module)
    whole = isinstance(module, Deployed) or (isinstance(module, Mixture) and module.choice is not None)
    random = not whole and (is_stochastic(module) or isinstance(module, StochasticEnsemble))
    family = SQEnsembleClassifier if random else QuantizedClassifier
    device_type = device_type_of(module)
    classes = data.nb_classes if abstain is None else max(data.nb_classes, abstain + 1)
    loss = nn.CrossEntropyLoss()
    if takes_modes(module):
        module.eval()
    estimator = family(module, loss, data.shape, classes, device_type=device_type, abstain=abstain)
    estimator = adapted(estimator, data.take(min(2, len(data)), seed=0).x())
    _try(name, estimator, data)
    return estimator


def make_module(name: str) -> nn.Module:
    """Call ``package.module:factory``, looked for where Python looks and then in the current folder; or read a ``.pt2`` file.

    Of an ART estimator, the module is all that its ``predict`` does. What is in an archive of ``torch.export`` is attacked as
    it was exported: it has a gradient, and no layers that could be quantized or trained again. A deployed file is a module
    without a gradient.

    :raises InputError: where it cannot be imported or called, or returns something else. What their code raises is
        shown with its last line.
    """
    if is_exported(name):
        return _exported(name)
    if is_file(name):
        predict, shape, classes = open_deployed(name)
        return Answering(predict, shape, _known(classes, name))
    where = f"model {shown(name).strip(chr(39))}"
    made = answering_of(as_module(imported(name, where)))
    module = made if isinstance(made, nn.Module) else answering_of(as_module(called(made, name, where)))
    if not isinstance(module, nn.Module):
        raise InputError(
            f"{where}: it returns {shown(module)}; it must return a torch.nn.Module or an ART PyTorchClassifier"
        )
    return module


def make_endpoint(name: str, ask: Ask, data: Dataset, nb_classes: int, *, labels_only: bool = False) -> Endpoint:
    """What asks ``package.module:predict`` about images such as those of ``data``. Some of them are asked twice here.

    :raises InputError: where there is no such function, or it does not answer.
    """
    where = f"endpoint {shown(name).strip(chr(39))}"
    predict: Any = imported(name, where, "MODULE:PREDICT, e.g. mypackage.client:predict")
    with at(where):
        as_predict(predict)
    endpoint = Endpoint(predict, name=name, nb_classes=nb_classes, labels_only=labels_only, **ask.model_dump())
    endpoint.check(data.take(min(TWICE, len(data)), seed=0).x().numpy())
    return endpoint


def _known(classes: int | None, name: str) -> int:
    """:raises InputError: where nobody says how many classes there are."""
    if classes is None:
        raise InputError(
            f"model {name}: the file does not say how many classes there are; use it in a recipe with data"
        )
    return classes


def _exported(name: str) -> nn.Module:
    module = read_exported(name, where="model ").module()
    for part in module.modules():  # those of an exported program refuse a mode, and none has an effect on its graph
        part.train = MethodType(nn.Module.train, part)  # type: ignore[method-assign]
        part.eval = MethodType(nn.Module.eval, part)  # type: ignore[method-assign]
    return module


def _try(name: str, estimator: QuantizedClassifier, data: Dataset) -> None:
    """Ask for the logits of two images. Nothing that the module is or draws changes."""
    model, few = estimator.model, data.take(2, seed=0).x()
    hint = f"it is given {len(few)} images {data.shape}, float32 in [0, 1]"
    if estimator.abstain is not None:
        hint = f"abstain = {estimator.abstain} is one output beside those of {data.nb_classes} classes"
    with (
        foreign(f"model {name}: its forward", package=package_of(name), hint=hint),
        isolated(model, 0),
        draws_from(model, 0),
        restoring(model),
        torch.no_grad(),
    ):
        logits = estimator._logits(estimator._tensor(few))
        repr(model)  # cells are named by a hash of it
    if not logits.is_floating_point():
        raise InputError(f"model {name}: its forward gives {logits.dtype}; it must give floating-point logits")
