"""A network of the user's, named ``package.module:function``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from torch import nn

from art_qplugins.checkpoint import load_checkpoint
from art_qplugins.data import Dataset
from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.estimators import QuantizedClassifier, SQEnsembleClassifier
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import is_stochastic

__all__ = ["make_estimator", "make_module"]


def make_estimator(name: str, checkpoint: str | None, data: Dataset) -> QuantizedClassifier:
    """The module that ``name`` makes as an ART estimator for the images of ``data``.

    :param checkpoint: its weights, a ``.safetensors`` file; ``None`` takes the module as it is made.
    """
    module = make_module(name)
    if checkpoint is not None:
        load_checkpoint(Path(checkpoint), module)
    random = is_stochastic(module) or isinstance(module, StochasticEnsemble)
    family = SQEnsembleClassifier if random else QuantizedClassifier
    return family(module.eval(), nn.CrossEntropyLoss(), data.shape, data.nb_classes)


def make_module(name: str) -> nn.Module:
    """Call ``package.module:factory``, looked for where Python looks and in the current folder."""
    path, colon, factory = name.partition(":")
    if not colon or not factory:
        raise InputError(f"--model {name}: write it as MODULE:FACTORY, e.g. mypackage.models:make_net")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(path)
    except ImportError as error:
        raise InputError(
            f"--model {name}: cannot import {path!r} ({error}); run artq where it can be imported"
        ) from None
    finally:
        sys.path.pop(0)
    if not hasattr(found, factory):
        names = [n for n in vars(found) if not n.startswith("_")]
        raise InputError(f"--model {name}: {path} has no {factory!r}{did_you_mean(factory, names)}")
    made = getattr(found, factory)
    module = made if isinstance(made, nn.Module) else made()
    if not isinstance(module, nn.Module):
        raise InputError(f"--model {name}: it gives a {type(module).__name__}; it must give a torch.nn.Module")
    return module
