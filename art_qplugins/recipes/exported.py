"""Models of a recipe as files, answered from by a runtime and attacked along the gradient of the network that was exported."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from art_qplugins._version import __version__
from art_qplugins.deployment.classifier import DeployedClassifier
from art_qplugins.deployment.export import export
from art_qplugins.deployment.files import open_deployed
from art_qplugins.deployment.frozen import frozen
from art_qplugins.deployment.integer import integer_form
from art_qplugins.errors import InputError, at
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.estimators.deployed import as_module
from art_qplugins.files import short_name, write_atomically
from art_qplugins.fingerprint import code_fingerprint, fingerprint
from art_qplugins.quantizers import bake
from art_qplugins.quantizers.noise import stochastic_layers
from art_qplugins.recipes.model import ModelSettings

__all__ = ["exported", "fixed", "told_of", "try_export"]

#: What an export runs through, beside torch and other packages.
_CODE = ("deployment", "quantizers")
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def exported(settings: ModelSettings, base: QuantizedClassifier, folder: Path) -> DeployedClassifier:
    """The file that ``base`` is exported to, as an estimator with the gradient of ``base``.

    Of a random network, the file holds frozen members, and the gradient is theirs.

    :param folder: where the file is, and its description beside it; both are written where they are not there yet.
    :raises InputError: where ONNX has no form of a layer, which it names.
    """
    assert settings.export is not None
    content = [
        fingerprint(base.model),
        settings.export.model_dump(),
        _code(),
        __version__,
        torch.__version__,
    ]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    path = folder / f"{short_name(settings.name)}-{key}.onnx"
    with at(f"models.{settings.name}"):
        if not _description(path).exists():
            made = export(base, path, to=settings.export.to, bias=settings.export.bias)
            told = {"draws": made.draws, "notes": made.notes}
            write_atomically(_description(path), json.dumps(told, indent=1).encode())
        predict = open_deployed(path, input_shape=base.input_shape, nb_classes=base.nb_classes)[0]
        twin = fixed(as_module(base), base.input_shape)
        return DeployedClassifier(predict, base.input_shape, base.nb_classes, twin=twin, abstain=base.abstain)


def told_of(path: Path) -> Mapping[str, Any]:
    """What the export of a file that :func:`exported` wrote told: ``draws`` and ``notes``."""
    told: dict[str, Any] = json.loads(_description(path).read_text())
    return told


def fixed(module: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    """``module`` itself, or where it draws noise its frozen members, as a file holds them."""
    if not stochastic_layers(module):
        return module
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    return frozen(bake(copy.deepcopy(module).cpu()).eval(), input_shape)[0].to(device)


def try_export(settings: ModelSettings, network: nn.Module, input_shape: tuple[int, int, int]) -> None:
    """:raises InputError: where a package is missing, or a layer has no integer form, which can be told before training."""
    assert settings.export is not None
    with at(f"models.{settings.name}"):
        if missing := [name for name in _NEEDED if find_spec(name) is None]:
            raise InputError(f"export: {' and '.join(missing)} not installed; run pip install 'art_qplugins[onnx]'")
        integer_form(fixed(network, input_shape), input_shape, bias=settings.export.bias)


@functools.cache
def _code() -> str:
    return code_fingerprint(_CODE)


def _description(path: Path) -> Path:
    return path.with_suffix(".json")
