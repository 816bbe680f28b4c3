"""Defended quantized networks for the Adversarial Robustness Toolbox, attacked and checked for gradient masking.

Importing this package imports neither torch nor ART; each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from art_qplugins._version import __version__

if TYPE_CHECKING:
    from art_qplugins.api import Diagnosis, Run, diagnose, evaluate, run
    from art_qplugins.attacks import ATTACKS
    from art_qplugins.audit import Audit, WorstCase, worst_case
    from art_qplugins.data import Dataset, load
    from art_qplugins.defences.feedback import FeedbackLearning
    from art_qplugins.defences.margins import Margins, margins, random_directions
    from art_qplugins.deployment.classifier import DeployedClassifier
    from art_qplugins.deployment.endpoint import Endpoint
    from art_qplugins.deployment.export import export
    from art_qplugins.deployment.files import open_deployed
    from art_qplugins.deployment.parity import parity
    from art_qplugins.errors import InputError
    from art_qplugins.estimators import (
        DQClassifier,
        FeedbackTrainer,
        InformationDetector,
        MuLawClassifier,
        QuantizedClassifier,
        SQEnsembleClassifier,
        WithDetector,
        with_detector,
    )
    from art_qplugins.evidence import replay
    from art_qplugins.quantizers import (
        MuLawMapping,
        QuantHardtanh,
        QuantReLU,
        StochasticQuantizer,
        TwinGradient,
        UniformWeightQuantizer,
        quantization_report,
        quantize,
        surrogate,
    )
    from art_qplugins.sensitivity import (
        LayerChange,
        LayerNorm,
        LogitGain,
        OutputTerms,
        activation_distances,
        logit_gain,
        operator_norms,
        output_terms,
        weight_changes,
    )
    from art_qplugins.threat import Threat
    from art_qplugins.training.engine import train
    from art_qplugins.training.progress import TrainingProgress

_HOME = {
    "ATTACKS": "attacks",
    "Audit": "audit",
    "DQClassifier": "estimators",
    "Dataset": "data",
    "DeployedClassifier": "deployment.classifier",
    "Endpoint": "deployment.endpoint",
    "Diagnosis": "api",
    "FeedbackLearning": "defences.feedback",
    "FeedbackTrainer": "estimators",
    "InformationDetector": "estimators",
    "InputError": "errors",
    "LayerChange": "sensitivity",
    "LayerNorm": "sensitivity",
    "LogitGain": "sensitivity",
    "Margins": "defences.margins",
    "MuLawClassifier": "estimators",
    "MuLawMapping": "quantizers",
    "OutputTerms": "sensitivity",
    "QuantHardtanh": "quantizers",
    "QuantReLU": "quantizers",
    "QuantizedClassifier": "estimators",
    "Run": "api",
    "SQEnsembleClassifier": "estimators",
    "StochasticQuantizer": "quantizers",
    "Threat": "threat",
    "TrainingProgress": "training.progress",
    "TwinGradient": "quantizers",
    "UniformWeightQuantizer": "quantizers",
    "WithDetector": "estimators",
    "WorstCase": "audit",
    "activation_distances": "sensitivity",
    "diagnose": "api",
    "evaluate": "api",
    "export": "deployment.export",
    "load": "data",
    "logit_gain": "sensitivity",
    "margins": "defences.margins",
    "open_deployed": "deployment.files",
    "operator_norms": "sensitivity",
    "output_terms": "sensitivity",
    "parity": "deployment.parity",
    "quantization_report": "quantizers",
    "quantize": "quantizers",
    "random_directions": "defences.margins",
    "replay": "evidence",
    "run": "api",
    "surrogate": "quantizers",
    "train": "training.engine",
    "weight_changes": "sensitivity",
    "with_detector": "estimators",
    "worst_case": "audit",
}

__all__ = [
    "ATTACKS",
    "Audit",
    "DQClassifier",
    "Dataset",
    "DeployedClassifier",
    "Diagnosis",
    "Endpoint",
    "FeedbackLearning",
    "FeedbackTrainer",
    "InformationDetector",
    "InputError",
    "LayerChange",
    "LayerNorm",
    "LogitGain",
    "Margins",
    "MuLawClassifier",
    "MuLawMapping",
    "OutputTerms",
    "QuantHardtanh",
    "QuantReLU",
    "QuantizedClassifier",
    "Run",
    "SQEnsembleClassifier",
    "StochasticQuantizer",
    "Threat",
    "TrainingProgress",
    "TwinGradient",
    "UniformWeightQuantizer",
    "WithDetector",
    "WorstCase",
    "__version__",
    "activation_distances",
    "diagnose",
    "evaluate",
    "export",
    "load",
    "logit_gain",
    "margins",
    "open_deployed",
    "operator_norms",
    "output_terms",
    "parity",
    "quantization_report",
    "quantize",
    "random_directions",
    "replay",
    "run",
    "surrogate",
    "train",
    "weight_changes",
    "with_detector",
    "worst_case",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
