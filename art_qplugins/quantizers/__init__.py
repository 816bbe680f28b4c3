"""Quantizers turn a float network into one that an integer device computes, with gradients for training and attacks.

Importing this package does not import torch, since recipes look up :data:`QUANTIZERS` before anything is computed. Each
other name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from art_qplugins.quantizers.registry import QUANTIZERS, Quantizer

if TYPE_CHECKING:
    from art_qplugins.quantizers.activation import QuantAffine, QuantHardtanh, QuantReLU
    from art_qplugins.quantizers.calibration import calibrate
    from art_qplugins.quantizers.convert import quantize
    from art_qplugins.quantizers.functions import QuantActivation
    from art_qplugins.quantizers.maps import bake, weight_layers
    from art_qplugins.quantizers.noise import draws_from, is_stochastic
    from art_qplugins.quantizers.protocol import ActivationQuantizer, activation_quantizers
    from art_qplugins.quantizers.report import Part, quantization_report
    from art_qplugins.quantizers.stochastic import StochasticQuantizer
    from art_qplugins.quantizers.surrogates import surrogate
    from art_qplugins.quantizers.twin import TwinGradient
    from art_qplugins.quantizers.weight import MuLawMapping, UniformWeightQuantizer

_HOME = {
    "ActivationQuantizer": "protocol",
    "MuLawMapping": "weight",
    "Part": "report",
    "QuantActivation": "functions",
    "QuantAffine": "activation",
    "QuantHardtanh": "activation",
    "QuantReLU": "activation",
    "StochasticQuantizer": "stochastic",
    "TwinGradient": "twin",
    "UniformWeightQuantizer": "weight",
    "activation_quantizers": "protocol",
    "bake": "maps",
    "calibrate": "calibration",
    "draws_from": "noise",
    "is_stochastic": "noise",
    "quantization_report": "report",
    "quantize": "convert",
    "surrogate": "surrogates",
    "weight_layers": "maps",
}

__all__ = [
    "QUANTIZERS",
    "ActivationQuantizer",
    "MuLawMapping",
    "Part",
    "QuantActivation",
    "QuantAffine",
    "QuantHardtanh",
    "QuantReLU",
    "Quantizer",
    "StochasticQuantizer",
    "TwinGradient",
    "UniformWeightQuantizer",
    "activation_quantizers",
    "bake",
    "calibrate",
    "draws_from",
    "is_stochastic",
    "quantization_report",
    "quantize",
    "surrogate",
    "weight_layers",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
