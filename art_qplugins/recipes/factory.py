"""A network of the user, made by a function ``package.module:function``, or one behind a function that answers.

Their code may raise anything, or exit. That is one line with the place in their code. The network is asked once, with two
images, before anything is computed.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from art_qplugins.checkpoint import load_checkpoint
from art_qplugins.data import Dataset
from art_qplugins.deployment.endpoint import TWICE, Endpoint
from art_qplugins.deployment.files import is_file, open_deployed
from art_qplugins.deployment.module import Answering, answering_of
from art_qplugins.deployment.predictors import as_predict
from art_qplugins.errors import InputError, at, did_you_mean, shown
from art_qplugins.estimators import Deployed, QuantizedClassifier, SQEnsembleClassifier
from art_qplugins.estimators.adapted import adapted
from art_qplugins.estimators.deployed import as_module
from art_qplugins.estimators.devices import device_type_of
from art_qplugins.foreign import foreign
from art_qplugins.guard import isolated, restoring
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.models.mixture import Mixture
from art_qplugins.quantizers import draws_from, is_stochastic
from art_qplugins.recipes.model import Ask

__all__ = ["make_endpoint", "make_estimator", "make_module"]


def make_estimator(
    name: str, checkpoint: str | None, data: Dataset, *, abstain: int | None = None
) -> QuantizedClassifier:
    """The module that the factory ``name`` makes, as an ART estimator for the images of ``data``.

    :param checkpoint: its weights, a ``.safetensors`` file. ``None`` keeps the weights of the factory.
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
    estimator = family(module.eval(), loss, data.shape, classes, device_type=device_type, abstain=abstain)
    estimator = adapted(estimator, data.take(min(2, len(data)), seed=0).x())
    _try(name, estimator, data)
    return estimator


def make_module(name: str) -> nn.Module:
    """Call ``package.module:factory``, looked for where Python looks and then in the current folder.

    Of an ART estimator, the module is all that its ``predict`` does. A deployed file is a module without a gradient.

    :raises InputError: where it cannot be imported or called, or returns something else. What their code raises is
        shown with its last line.
    """
    if is_file(name):
        predict, shape, classes = open_deployed(name)
        return Answering(predict, shape, _known(classes, name))
    where, path, factory, found = _imported("model", name, "MODULE:FACTORY, e.g. mypackage.models:make_net")
    package, made = path.split(".")[0], answering_of(as_module(found))
    if not callable(made):
        raise InputError(f"{where}: it is {shown(made)}; it must be a function, or a torch.nn.Module")
    hint = f'python -c "import {path} as m; m.{factory}()" shows more'
    with _current_folder_last(), foreign(where, package=package, hint=hint):
        module = made if isinstance(made, nn.Module) else answering_of(as_module(made()))
    if not isinstance(module, nn.Module):
        raise InputError(
            f"{where}: it returns {shown(module)}; it must return a torch.nn.Module or an ART PyTorchClassifier"
        )
    return module


def make_endpoint(name: str, ask: Ask, data: Dataset, nb_classes: int, *, labels_only: bool = False) -> Endpoint:
    """What asks ``package.module:predict`` about images such as those of ``data``. Some of them are asked twice here.

    :raises InputError: where there is no such function, or it does not answer.
    """
    where, _, _, predict = _imported("endpoint", name, "MODULE:PREDICT, e.g. mypackage.client:predict")
    with at(where):
        as_predict(predict)
    endpoint = Endpoint(predict, name=name, nb_classes=nb_classes, labels_only=labels_only, **ask.model_dump())
    endpoint.check(data.take(min(TWICE, len(data)), seed=0).x().numpy())
    return endpoint


def _imported(kind: str, name: str, form: str) -> tuple[str, str, str, Any]:
    """What a name of the form ``package.module:attribute`` stands for.

    :return: the beginning of messages about it, its two parts, and the attribute.
    """
    where = f"{kind} {shown(name).strip(chr(39))}"
    path, colon, attribute = name.partition(":")
    if not (colon and attribute.isidentifier() and all(part.isidentifier() for part in path.split("."))):
        raise InputError(f"{where}: write it as {form}")
    hint = f'run artq where python -c "import {path}" works'
    with _current_folder_last(), foreign(f"{where}: cannot import {path!r}", package=path.split(".")[0], hint=hint):
        module = importlib.import_module(path)
        known = hasattr(module, attribute)
    if not known:
        names = [n for n in vars(module) if not n.startswith("_")]
        raise InputError(f"{where}: {path} has no {attribute!r}{did_you_mean(attribute, names)}")
    return where, path, attribute, getattr(module, attribute)


def _known(classes: int | None, name: str) -> int:
    """:raises InputError: where nobody says how many classes there are."""
    if classes is None:
        raise InputError(
            f"model {name}: the file does not say how many classes there are; use it in a recipe with data"
        )
    return classes


def _try(name: str, estimator: QuantizedClassifier, data: Dataset) -> None:
    """Ask for the logits of two images. Nothing that the module is or draws changes."""
    model, few = estimator.model, data.take(2, seed=0).x()
    hint = f"it is given {len(few)} images {data.shape}, float32 in [0, 1]"
    if estimator.abstain is not None:
        hint = f"abstain = {estimator.abstain} is one output beside those of {data.nb_classes} classes"
    with (
        foreign(f"model {name}: its forward", package=name.split(":")[0].split(".")[0], hint=hint),
        isolated(model, 0),
        draws_from(model, 0),
        restoring(model),
        torch.no_grad(),
    ):
        logits = estimator._logits(estimator._tensor(few))
        repr(model)  # cells are named by a hash of it
    if not logits.is_floating_point():
        raise InputError(f"model {name}: its forward gives {logits.dtype}; it must give floating-point logits")


@contextlib.contextmanager
def _current_folder_last() -> Iterator[None]:
    """A file of the user's must not stand in for a module of the same name that somebody else imports."""
    here = str(Path.cwd())
    if here in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the module took it away
            sys.path.remove(here)
