"""A network of the user, made by a function ``package.module:function``."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from art_qplugins.checkpoint import load_checkpoint
from art_qplugins.data import Dataset
from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.estimators import QuantizedClassifier, SQEnsembleClassifier
from art_qplugins.estimators.devices import device_type_of
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import is_stochastic

__all__ = ["make_estimator", "make_module"]


def make_estimator(name: str, checkpoint: str | None, data: Dataset) -> QuantizedClassifier:
    """The module that the factory ``name`` makes, as an ART estimator for the images of ``data``.

    :param checkpoint: its weights, a ``.safetensors`` file. ``None`` keeps the weights of the factory.
    """
    module = make_module(name)
    if checkpoint is not None:
        load_checkpoint(checkpoint, module)
    random = is_stochastic(module) or isinstance(module, StochasticEnsemble)
    family = SQEnsembleClassifier if random else QuantizedClassifier
    device_type = device_type_of(module)
    return family(module.eval(), nn.CrossEntropyLoss(), data.shape, data.nb_classes, device_type=device_type)


def make_module(name: str) -> nn.Module:
    """Call ``package.module:factory``, looked for where Python looks and then in the current folder."""
    path, colon, factory = name.partition(":")
    if not colon or not factory:
        raise InputError(f"--model {name}: write it as MODULE:FACTORY, e.g. mypackage.models:make_net")
    try:
        with _current_folder_last():
            found = importlib.import_module(path)
    except ImportError as error:
        raise InputError(
            f"--model {name}: cannot import {path!r} ({error}); run artq where it can be imported"
        ) from None
    if not hasattr(found, factory):
        names = [n for n in vars(found) if not n.startswith("_")]
        raise InputError(f"--model {name}: {path} has no {factory!r}{did_you_mean(factory, names)}")
    made = getattr(found, factory)
    module = made if isinstance(made, nn.Module) else made()
    if not isinstance(module, nn.Module):
        raise InputError(f"--model {name}: it returns a {type(module).__name__}; it must return a torch.nn.Module")
    return module


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
