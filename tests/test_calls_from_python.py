"""Every public function and constructor checks its arguments before any work, and names what it refuses.

``CALLS`` has a row for each: good arguments, and the odd values that each argument may have. Every other odd value is an
:class:`InputError` that begins a line with the argument's name. A new public name or argument needs a line here.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import art_qplugins
from art_qplugins import (
    DeployedClassifier,
    DQClassifier,
    Endpoint,
    FeedbackTrainer,
    InformationDetector,
    InputError,
    MuLawClassifier,
    MuLawMapping,
    QuantHardtanh,
    QuantizedClassifier,
    QuantReLU,
    SQEnsembleClassifier,
    StochasticQuantizer,
    Threat,
    TwinGradient,
    UniformWeightQuantizer,
    WithDetector,
    export,
    metrics,
    open_deployed,
    parity,
    quantize,
    with_detector,
)
from art_qplugins.attacks.craft import craft
from art_qplugins.checkpoint import load_checkpoint, read_description, save_checkpoint
from art_qplugins.data import from_arrays, load, training_split
from art_qplugins.defences.adversarial import AdversarialTraining, Trades
from art_qplugins.defences.diversity import AdaptiveDiversity
from art_qplugins.defences.feedback import FeedbackLearning
from art_qplugins.defences.information import BinSpacing, MutualInformation
from art_qplugins.defences.lipschitz import Orthogonality, stationary_singular_value
from art_qplugins.defences.margins import margins, random_directions
from art_qplugins.defences.noise import GaussianNoise
from art_qplugins.defences.parseval import Parseval
from art_qplugins.defences.random_self_ensemble import RandomSelfEnsemble
from art_qplugins.defences.ranges import DataRange
from art_qplugins.defences.squeezing import FeatureSqueezing
from art_qplugins.defences.stochastic_weights import StochasticWeights
from art_qplugins.errors import shown
from art_qplugins.evidence import read_evidence, replay
from art_qplugins.gradients.fidelity import best_surrogate, fidelity
from art_qplugins.gradients.measure import measure
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.models.filtered import SqueezedNetwork
from art_qplugins.models.mixture import Mixture
from art_qplugins.models.mnist_cnn import MnistCNN
from art_qplugins.models.noisy import NoiseLayer, with_noise
from art_qplugins.models.resnet import ResNet18
from art_qplugins.models.vgg import VGG16
from art_qplugins.models.wide_resnet import WideResNet
from art_qplugins.quantizers import (
    QuantActivation,
    QuantAffine,
    activation_quantizers,
    bake,
    calibrate,
    draws_from,
    is_stochastic,
    weight_layers,
)
from art_qplugins.quantizers.surrogates import Surrogate
from art_qplugins.report import read_run, write_report
from art_qplugins.runner.runner import Execution
from art_qplugins.training.engine import train

ODD = {
    "nan": math.nan,
    "inf": math.inf,
    "-1": -1,
    "0": 0,
    "2.5": 2.5,
    "1e30": 10**30,
    "1e400": 10**400,
    "True": True,
    "text": "x",
    "empty text": "",
    "NUL": "a\0b",
    "bytes": b"x",
    "None": None,
    "list": [],
    "dict": {},
    "lists": [[]],
    "array": np.array([[math.nan]]),
    "complex": 1j,
    "object": object(),
    "class": int,
}

# What an argument may be, of these.
COUNT = BITS = IMAGES = LABELS = OBJECT = PATH = CHOICE = ()  # a path and a choice have no odd value that is good
SEED = WHOLE = ("0",)
KEY = ("-1", "0")
POSITIVE = ONE_OR_MORE = ("2.5", "1e30")
NOT_NEGATIVE = ("0", "2.5", "1e30")
FINITE = ("-1", *NOT_NEGATIVE)
FRACTION = ("0",)
FLAG = ("True",)
TEXT = ("text",)
FUNCTION = ("class",)
TABLE = ("dict",)
LIST = ("list",)
NONE = ("None",)


@dataclass
class Call:
    """A callable with good arguments and, for each argument, the odd values that are good too.

    :param checked: those that the signature has no name for.
    """

    function: Callable[..., Any]
    given: Callable[[], dict[str, Any]]
    good: dict[str, tuple[str, ...]]
    checked: tuple[str, ...] = ()
    also: dict[str, str] = field(default_factory=dict)  # the name in the message, where it is another

    @property
    def name(self) -> str:
        return self.function.__qualname__


def network() -> nn.Module:
    torch.manual_seed(0)
    return ConvNet((1, 8, 8), 10, width=2).eval()


def random_network() -> nn.Module:
    return quantize(network(), activation_bits=2, alpha=2.0)


def estimator() -> QuantizedClassifier:
    return QuantizedClassifier(network(), nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu")


def ensemble() -> SQEnsembleClassifier:
    return SQEnsembleClassifier(random_network(), nn.CrossEntropyLoss(), (1, 8, 8), 10, draws=2, device_type="cpu")


def fitted() -> InformationDetector:
    detector = InformationDetector(ensemble(), draws=1)
    detector.fit(np.random.default_rng(0).random((40, 1, 8, 8)), np.zeros(40))
    return detector


def deployed_network() -> DeployedClassifier:
    return DeployedClassifier(network(), (1, 8, 8), 10)


def trainable() -> QuantizedClassifier:
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return QuantizedClassifier(module, nn.CrossEntropyLoss(), (1, 8, 8), 10, optimizer, device_type="cpu")


X, Y = torch.rand(4, 1, 8, 8), torch.arange(4)
ARRAYS = {"x": X.numpy(), "y": Y.numpy()}
SHAPE = {"input_shape": (3, 32, 32), "nb_classes": 10}
SIZES: dict[str, tuple[str, ...]] = {"input_shape": (), "nb_classes": (), "activation": FUNCTION}

CONTRACT = lambda: {"loss": nn.CrossEntropyLoss(), "input_shape": (1, 8, 8), "nb_classes": 10, "device_type": "cpu"}  # noqa: E731
ESTIMATOR = {
    "model": OBJECT,
    "loss": FUNCTION,
    "input_shape": (),
    "nb_classes": COUNT,
}
ARTS = {
    "optimizer": NONE,
    "use_amp": FLAG,
    "opt_level": TEXT,
    "loss_scale": (*NONE, *POSITIVE),
    "channels_first": FLAG,
    "clip_values": NONE,
    "preprocessing_defences": (*NONE, *LIST),
    "postprocessing_defences": (*NONE, *LIST),
    "preprocessing": NONE,
    "device_type": (),
    "training_defences": LIST,
    "abstain": (*NONE, *WHOLE),
}
FAMILY = {**ARTS, "training_defences": (*NONE, *LIST)}
EXECUTION = {"executor": CHOICE, "workers": NONE, "address": (*NONE, *TEXT)}
OUTPUT = {"out": (*NONE, *TEXT), "progress": NONE}
EVALUATE = {
    "level": (*NONE, "0"),
    "budget": (*NONE, *NOT_NEGATIVE),
    "seed": SEED,
    "batch_size": COUNT,
    "abstain": (*NONE, *WHOLE),
    **OUTPUT,
    "recipe": (*NONE, *TABLE),
}

CALLS = [
    # quantizers
    Call(QuantReLU, lambda: {"num_bits": 4}, {"num_bits": BITS, "clip": POSITIVE, "surrogate": NONE}),
    Call(
        QuantHardtanh,
        lambda: {"num_bits": 4, "min_val": -9.0},
        {"num_bits": BITS, "min_val": ("-1", "0"), "max_val": FINITE, "surrogate": NONE},
        also={"min_val": "max_val"},
    ),
    Call(
        StochasticQuantizer,
        lambda: {"num_bits": 2},
        {
            "num_bits": BITS,
            "alpha": ONE_OR_MORE,
            "clip": POSITIVE,
            "low": ("-1", "0", "2.5"),
            "seed": KEY,
            "layer": WHOLE,
        },
        also={"low": "clip"},
    ),
    Call(
        UniformWeightQuantizer,
        lambda: {"num_bits": 3},
        {"num_bits": BITS, "symmetric": FLAG, "granularity": CHOICE, "narrow_range": FLAG, "zero_point": FLAG},
    ),
    Call(MuLawMapping, dict, {"mu": POSITIVE, "normalize": FLAG, "gain_only": FLAG}),
    Call(TwinGradient, lambda: {"network": network(), "twin": network()}, {"network": OBJECT, "twin": OBJECT}),
    Call(Surrogate, lambda: {"kind": "leaky"}, {"kind": CHOICE, "options": TABLE}, also={"kind": "surrogate"}),
    Call(
        quantize,
        lambda: {"model": network(), "activation_bits": 4, "weight_bits": 3, "mu": 255.0},
        {
            "model": OBJECT,
            "activation_bits": NONE,
            "weight_bits": NONE,
            "clip": POSITIVE,
            "mu": (*NONE, *POSITIVE),
            "activation": NONE,
            "activation_function": NONE,
            "activation_options": (*NONE, *TABLE),
            "alpha": (*NONE, *ONE_OR_MORE),
            "activation_layers": NONE,
            "mu_layers": COUNT,
            "mu_normalize": FLAG,
            "mu_gain_only": FLAG,
            "symmetric": FLAG,
            "granularity": CHOICE,
            "narrow_range": FLAG,
            "zero_point": FLAG,
            "ranges": CHOICE,
            "calibration": NONE,
            "percentile": (),
            "also": LIST,
            "exempt": LIST,
            "functional": FLAG,
            "fold_batch_norm": FLAG,
            "seed": KEY,
            "trainable": FLAG,
            "strict": FLAG,
        },
        also={"activation": "quantizer|activation"},
    ),
    Call(
        QuantActivation,
        lambda: {"function": "gelu", "quantizer": QuantAffine(4, 0, 1)},
        {"function": CHOICE, "quantizer": OBJECT},
    ),
    Call(
        QuantAffine,
        lambda: {"num_bits": 4, "low": -9.0, "high": 9.0},
        {"num_bits": BITS, "low": ("-1", "0", "2.5"), "high": FINITE, "surrogate": NONE},
        also={"low": "low|high"},
    ),
    Call(
        calibrate,
        lambda: {"model": nn.Sequential(QuantAffine(4, 0, 1)), "calibration": X},
        {"model": OBJECT, "calibration": IMAGES, "ranges": CHOICE, "percentile": ()},
    ),
    Call(
        art_qplugins.surrogate,
        lambda: {"module": QuantReLU(2)},
        {"module": OBJECT, "kind": CHOICE},
        also={"kind": "surrogate"},
    ),
    *(
        Call(function, lambda name=name: {name: network()}, {name: OBJECT})
        for function, name in (
            (art_qplugins.quantization_report, "model"),
            (bake, "model"),
            (weight_layers, "model"),
            (is_stochastic, "module"),
            (activation_quantizers, "module"),
        )
    ),
    Call(draws_from, lambda: {"module": random_network(), "seed": 1}, {"module": OBJECT, "seed": KEY}),
    # networks
    Call(ConvNet, lambda: dict(SHAPE), {**SIZES, "width": COUNT}),
    Call(MnistCNN, lambda: {**SHAPE, "width": 2}, {**SIZES, "width": COUNT}),
    Call(VGG16, lambda: {**SHAPE, "width": 2}, {**SIZES, "width": COUNT}),
    Call(ResNet18, lambda: {**SHAPE, "width": 2}, {**SIZES, "width": COUNT, "aggregation": FLAG}),
    Call(
        WideResNet,
        lambda: {**SHAPE, "depth": 10, "widen_factor": 1},
        {**SIZES, "depth": COUNT, "widen_factor": COUNT, "aggregation": FLAG},
    ),
    Call(SqueezedNetwork, lambda: {"network": network()}, {"network": OBJECT, "bits": BITS, "window": COUNT}),
    Call(NoiseLayer, lambda: {"sigma": 0.1}, {"sigma": NOT_NEGATIVE, "seed": KEY, "layer": SEED}),
    Call(
        with_noise,
        lambda: {"network": network(), "first": 0.2, "inner": 0.1},
        {"network": OBJECT, "first": NOT_NEGATIVE, "inner": NOT_NEGATIVE},
    ),
    Call(
        Mixture,
        lambda: {"members": [network(), network()]},
        {"members": OBJECT, "rule": CHOICE, "random": FLAG, "seed": KEY},
    ),
    Call(
        StochasticEnsemble,
        lambda: {"network": random_network()},
        {
            "network": NONE,
            "draws": COUNT,
            "rule": CHOICE,
            "eot_draws": NONE,
            "eot_chunk": NONE,
            "frozen": FLAG,
            "antithetic": FLAG,
            "gradient_of": CHOICE,
        },
    ),
    # defences and training
    Call(Orthogonality, dict, {"beta": NOT_NEGATIVE}),
    Call(MutualInformation, dict, {"beta": NOT_NEGATIVE, "of": CHOICE}),
    Call(BinSpacing, dict, {"weight": NOT_NEGATIVE, "relative": FLAG}),
    Call(DataRange, dict, {"low": FRACTION, "high": (), "samples": COUNT}),
    Call(
        AdversarialTraining,
        dict,
        {
            "method": CHOICE,
            "eps": (),
            "steps": NONE,
            "step_size": NONE,
            "start": NONE,
            "distribution": CHOICE,
            "per": CHOICE,
            "share": (),
            "batch_norm": CHOICE,
        },
    ),
    Call(Trades, dict, {"beta": ("0", "2.5"), "eps": (), "steps": COUNT, "step_size": NONE}),
    Call(GaussianNoise, dict, {"sigma": FRACTION, "share": ()}),
    Call(FeatureSqueezing, dict, {"bits": BITS, "window": COUNT}),
    Call(AdaptiveDiversity, dict, {"alpha": ("0", "2.5"), "beta": ("0", "2.5")}),
    Call(StochasticWeights, dict, {"num_bits": BITS, "limit": (*POSITIVE, *NONE)}),
    Call(RandomSelfEnsemble, dict, {"first": ("0", "2.5"), "inner": ("0", "2.5")}),
    Call(Parseval, dict, {"beta": FRACTION, "rows": ()}),
    Call(
        FeedbackLearning,
        dict,
        {
            "epochs": COUNT,
            "directions": COUNT,
            "nearest": COUNT,
            "largest": (*NONE, *POSITIVE),
            "weight": ("0", "2.5"),
            "stall": FRACTION,
            "batch_size": COUNT,
        },
    ),
    Call(
        margins,
        lambda: {"model": network(), "x": X, "y": Y, "directions": X, "largest": 1.0},
        {
            "model": OBJECT,
            "x": IMAGES,
            "y": LABELS,
            "directions": IMAGES,
            "largest": POSITIVE,
            "tolerance": (),
            "batch_size": COUNT,
            "progress": (*NONE, *FUNCTION),
        },
    ),
    Call(
        random_directions,
        lambda: {"count": 2, "shape": (1, 2, 2)},
        {"count": COUNT, "shape": (), "seed": SEED},
    ),
    Call(
        stationary_singular_value,
        lambda: {"beta": 1.0, "weight_decay": 0.0},
        {"beta": POSITIVE, "weight_decay": NOT_NEGATIVE},
    ),
    Call(
        train,
        lambda: {"model": network(), "data": (X, Y), "epochs": 0},
        {
            "model": OBJECT,
            "data": (),
            "defences": LIST,
            "epochs": WHOLE,
            "batch_size": COUNT,
            "learning_rate": POSITIVE,
            "weight_decay": NOT_NEGATIVE,
            "decay_norm_and_bias": FLAG,
            "optimizer": CHOICE,
            "schedule": CHOICE,
            "warmup": NOT_NEGATIVE,
            "augment": LIST,
            "accumulate": COUNT,
            "clip_norm": (*NONE, *POSITIVE),
            "ema": NONE,
            "precision": CHOICE,
            "channels_last": FLAG,
            "compile": FLAG,
            "validation": NONE,
            "keep": CHOICE,
            "devices": COUNT,
            "seed": SEED,
            "state": (*NONE, *TEXT),
            "save_seconds": NOT_NEGATIVE,
            "progress": (*NONE, *FUNCTION),
        },
    ),
    # estimators
    Call(QuantizedClassifier, lambda: {"model": network(), **CONTRACT()}, {**ESTIMATOR, **ARTS}),
    Call(
        DQClassifier,
        lambda: {"model": quantize(network(), activation_bits=4), **CONTRACT()},
        {**ESTIMATOR, "activation_bits": NONE, "clip": POSITIVE, **FAMILY},
        tuple(name for name in ARTS if name != "training_defences"),
    ),
    Call(
        MuLawClassifier,
        lambda: {"model": network(), **CONTRACT()},
        {
            **ESTIMATOR,
            "weight_bits": NONE,
            "mu": (*NONE, *POSITIVE),
            "mu_layers": COUNT,
            "granularity": CHOICE,
            **dict.fromkeys(
                ("mu_normalize", "mu_gain_only", "symmetric", "narrow_range", "zero_point", "trainable"), FLAG
            ),
            **ARTS,
        },
        tuple(ARTS),
    ),
    Call(
        Endpoint,
        lambda: {"predict": network(), "name": "endpoint"},
        {
            "predict": FUNCTION,
            "name": (*NONE, *TEXT),
            "batch_size": COUNT,
            "queries": NONE,
            "seconds": (*NONE, *POSITIVE),
            "retries": WHOLE,
            "backoff": NOT_NEGATIVE,
            "concurrency": COUNT,
            "cache": (*NONE, *TEXT),
            "labels_only": FLAG,
            "nb_classes": NONE,
        },
    ),
    Call(
        DeployedClassifier,
        lambda: {"predict": network(), "input_shape": (1, 8, 8), "nb_classes": 10},
        {
            "predict": (),
            "input_shape": (),
            "nb_classes": COUNT,
            "twin": NONE,
            "labels_only": FLAG,
            "probabilities": (*NONE, *FLAG),
            "loss": (*NONE, *FUNCTION),
            **ARTS,
        },
        tuple(ARTS),
    ),
    Call(
        DeployedClassifier.distilled,
        lambda: {"self": deployed_network(), "x": X, "queries": 4, "steps": 1},
        {"x": IMAGES, "queries": COUNT, "radius": POSITIVE, "steps": COUNT, "network": NONE, "seed": SEED},
        ("queries", "radius", "steps", "network", "seed"),
    ),
    Call(
        export,
        lambda: {"model": network(), "path": "net.onnx", "input_shape": (1, 8, 8)},
        {"model": OBJECT, "path": PATH, "input_shape": NONE, "to": CHOICE, "bias": CHOICE},
    ),
    Call(
        open_deployed,
        lambda: {"path": "net.onnx"},
        {"path": PATH, "inputs": (*NONE, *TABLE), "input_shape": NONE, "nb_classes": NONE},
        also={"path": "path|x: no runtime"},
    ),
    Call(
        parity,
        lambda: {"deployed": deployed_network(), "twin": network(), "x": X},
        {"deployed": (), "twin": NONE, "x": IMAGES, "x_adv": NONE, "batch_size": COUNT},
    ),
    Call(FeedbackTrainer, lambda: {"classifier": trainable()}, {"classifier": OBJECT, "feedback": NONE}),
    Call(
        SQEnsembleClassifier,
        lambda: {"model": random_network(), **CONTRACT()},
        {
            **ESTIMATOR,
            "draws": NONE,
            "activation_bits": NONE,
            "alpha": ONE_OR_MORE,
            "seed": KEY,
            "options": (*NONE, *TABLE),
            **FAMILY,
        },
        tuple(name for name in ARTS if name != "training_defences"),
    ),
    Call(
        WithDetector,
        lambda: {"classifier": network(), "detector": network()},
        {"classifier": OBJECT, "detector": OBJECT, "threshold": (*NONE, *FINITE), "inner": NONE},
    ),
    Call(
        with_detector,
        lambda: {"classifier": estimator(), "detector": nn.Sequential(nn.Flatten(), nn.Linear(64, 2))},
        {"classifier": OBJECT, "detector": OBJECT, "threshold": (*NONE, *FINITE)},
    ),
    Call(
        InformationDetector,
        lambda: {"classifier": ensemble()},
        {"classifier": OBJECT, "side": CHOICE, "false_positives": (), "draws": COUNT, "seed": SEED},
    ),
    Call(
        InformationDetector.fit,
        lambda: {"self": InformationDetector(ensemble()), "x": np.random.rand(40, 1, 8, 8), "y": np.zeros(40)},
        {"x": IMAGES, "y": LABELS, "batch_size": COUNT, "nb_epochs": WHOLE},
    ),
    Call(InformationDetector.detect, lambda: {"self": fitted(), "x": ARRAYS["x"]}, {"x": IMAGES, "batch_size": COUNT}),
    Call(
        SQEnsembleClassifier.predict_uncertainty,
        lambda: {"self": ensemble(), "x": ARRAYS["x"]},
        {"x": IMAGES, "batch_size": COUNT, "draws": NONE},
    ),
    Call(
        QuantizedClassifier.predict,
        lambda: {"self": estimator(), "x": ARRAYS["x"]},
        {"x": IMAGES, "batch_size": COUNT, "training_mode": FLAG},
        ("x", "batch_size", "training_mode"),  # ART wraps it
    ),
    Call(
        QuantizedClassifier.fit,
        lambda: {"self": trainable(), **ARRAYS, "nb_epochs": 1},
        {
            "x": IMAGES,
            "y": LABELS,
            "batch_size": COUNT,
            "nb_epochs": WHOLE,
            "training_mode": FLAG,
            "drop_last": FLAG,
            "scheduler": NONE,
            "verbose": FLAG,
        },
    ),
    Call(
        QuantizedClassifier.loss_gradient,
        lambda: {"self": estimator(), **ARRAYS},
        {"x": IMAGES, "y": LABELS, "training_mode": FLAG},
    ),
    Call(
        QuantizedClassifier.class_gradient,
        lambda: {"self": estimator(), "x": ARRAYS["x"]},
        {"x": IMAGES, "label": (*NONE, "0", "True"), "training_mode": FLAG},
    ),
    Call(
        QuantizedClassifier.compute_loss,
        lambda: {"self": estimator(), **ARRAYS},
        {"x": IMAGES, "y": LABELS, "reduction": CHOICE},
    ),
    Call(
        QuantizedClassifier.get_activations,
        lambda: {"self": estimator(), "x": ARRAYS["x"], "layer": 0},
        {"x": IMAGES, "layer": ("-1", "0", "empty text"), "batch_size": COUNT, "framework": FLAG},
    ),
    # data
    Call(Threat, dict, {"norm": CHOICE, "eps": NOT_NEGATIVE}),
    Call(from_arrays, lambda: dict(ARRAYS), {"x": IMAGES, "y": LABELS, "name": TEXT, "classes": NONE}),
    Call(
        load,
        lambda: {"name": "digits", "split": "test"},
        {"name": CHOICE, "split": CHOICE, "root": (*NONE, *TEXT), "download": FLAG, "options": (*NONE, *TABLE)},
        also={"name": "data", "root": "data root"},
    ),
    Call(
        training_split,
        lambda: {"data": load("digits", "train")},
        {"data": OBJECT, "limit": NONE, "validation": NONE, "seed": SEED},
        also={"limit": "data.train_limit"},
    ),
    # runs
    Call(
        craft,
        lambda: {"estimator": estimator(), "attack_id": "art:fgsm", "x": X, "y": Y, "threat": Threat("Linf", 0.1)},
        {
            "estimator": OBJECT,
            "attack_id": CHOICE,
            "x": IMAGES,
            "y": LABELS,
            "threat": OBJECT,
            "options": (*NONE, *TABLE),
            "temperature": (*NONE, *POSITIVE),
            "gap": (*NONE, *POSITIVE),
            "gradient_scale": (*NONE, *POSITIVE),
            "start": NONE,
            "batch_size": COUNT,
            "seed": SEED,
        },
        also={"attack_id": "attack"},
    ),
    Call(Execution, lambda: {"executor": "ray"}, EXECUTION),
    Call(
        art_qplugins.run,
        lambda: {"recipe": {}},
        {
            "recipe": (*TABLE, *TEXT),
            "profile": (*TEXT, *LIST),
            "estimators": NONE,
            "data": NONE,
            "data_root": (*NONE, *TEXT),
            "download": FLAG,
            **EXECUTION,
            **OUTPUT,
        },
    ),
    Call(
        art_qplugins.evaluate,
        lambda: {"estimators": estimator(), "data": (X, Y), "threat": Threat("Linf", 0.1)},
        {
            "estimators": (),
            "data": (),
            "threat": (),
            "attacks": (),
            "claim": NONE,
            "claimed_accuracy": (*NONE, *FRACTION),
            **EVALUATE,
            **EXECUTION,
        },
        tuple(EXECUTION),
    ),
    Call(
        art_qplugins.diagnose,
        lambda: {"estimator": estimator(), "x": X, "y": Y, "threat": Threat("Linf", 0.1)},
        {
            "estimator": (),
            "x": IMAGES,
            "y": LABELS,
            "threat": (),
            "claimed": (*NONE, *FRACTION, *TEXT),
            **EVALUATE,
            **EXECUTION,
        },
        tuple(EXECUTION),
    ),
    Call(
        art_qplugins.worst_case,
        lambda: {"estimator": estimator(), "x": X, "y": Y, "threat": Threat("Linf", 0.1)},
        {
            "estimator": (),
            "x": IMAGES,
            "y": LABELS,
            "threat": (),
            "effort": (*NONE, *CHOICE),
            "budget": (*NONE, "2.5"),
            "audit": NONE,
            "until": (*NONE, *POSITIVE),
            "progress": NONE,
            "seed": SEED,
            "batch_size": COUNT,
        },
    ),
    # files
    Call(
        save_checkpoint,
        lambda: {"path": Path("c.safetensors"), "module": network(), "description": {}},
        {"path": TEXT, "module": OBJECT, "description": TABLE},
    ),
    Call(
        load_checkpoint,
        lambda: {"path": Path("c.safetensors"), "module": network()},
        {"path": PATH, "module": OBJECT},
        also={"path": "checkpoint"},
    ),
    Call(read_description, lambda: {"path": Path("c.safetensors")}, {"path": TEXT}, also={"path": "checkpoint"}),
    Call(read_evidence, lambda: {"path": "e.npz"}, {"path": PATH}, also={"path": "path|x: cannot"}),
    Call(
        replay,
        lambda: {"path": "e.npz", "module": network()},
        {"path": PATH, "module": OBJECT, "seed": SEED, "batch_size": COUNT},
        also={"path": "path|x: cannot"},
    ),
    Call(read_run, lambda: {"folder": Path("run")}, {"folder": PATH}, also={"folder": "folder|x"}),
    Call(write_report, lambda: {"folder": Path("run")}, {"folder": PATH}, also={"folder": "folder|x"}),
    # measurements
    Call(
        fidelity,
        lambda: {"module": network(), "x": X, "y": Y, "step": 0.1},
        {
            "module": OBJECT,
            "x": IMAGES,
            "y": LABELS,
            "step": POSITIVE,
            "directions": COUNT,
            "seed": SEED,
            "calls": COUNT,
            "network": NONE,
        },
    ),
    Call(
        best_surrogate,
        lambda: {"module": quantize(network(), activation_bits=2), "x": X, "y": Y, "step": 0.1},
        {
            "module": OBJECT,
            "x": IMAGES,
            "y": LABELS,
            "step": POSITIVE,
            "kinds": (),
            "directions": COUNT,
            "seed": SEED,
            "calls": COUNT,
        },
    ),
    Call(
        measure,
        lambda: {"module": network(), "x": X, "y": Y, "threat": Threat("Linf", 0.1)},
        {
            "module": OBJECT,
            "x": IMAGES,
            "y": LABELS,
            "threat": (),
            "directions": COUNT,
            "seed": SEED,
            "batch_size": COUNT,
            "abstain": (*NONE, *WHOLE),
        },
    ),
    Call(
        art_qplugins.operator_norms,
        lambda: {"module": network(), "x": X},
        {"module": OBJECT, "x": IMAGES},
    ),
    Call(
        art_qplugins.activation_distances,
        lambda: {"module": network(), "x": X, "changed": X},
        {"module": OBJECT, "x": IMAGES, "changed": IMAGES, "batch_size": COUNT, "seed": SEED},
    ),
    Call(
        art_qplugins.weight_changes,
        lambda: {"module": network(), "changed": network(), "x": X},
        {"module": OBJECT, "changed": OBJECT, "x": IMAGES},
    ),
    Call(
        art_qplugins.output_terms,
        lambda: {"module": network(), "changed": network(), "x": X, "x_changed": X},
        {
            "module": OBJECT,
            "changed": OBJECT,
            "x": IMAGES,
            "x_changed": IMAGES,
            "batch_size": COUNT,
            "seed": SEED,
        },
    ),
    Call(
        art_qplugins.logit_gain,
        lambda: {"module": network(), "changed": network(), "x": X},
        {"module": OBJECT, "changed": OBJECT, "x": IMAGES, "batch_size": COUNT, "seed": SEED},
    ),
    Call(
        metrics.wilson_interval,
        lambda: {"successes": 0, "n": 3},
        {"successes": ("0", "2.5"), "n": COUNT, "confidence": ()},
    ),
    Call(
        metrics.most_in_population,
        lambda: {"found": 0, "drawn": 1, "population": 3},
        {"found": SEED, "drawn": SEED, "population": (), "confidence": ()},
    ),
    Call(metrics.accuracy, lambda: {"correct": [1.0]}, {"correct": ()}),
    Call(
        metrics.after_tries,
        lambda: {"correct": [1.0], "draws": [4], "tries": 2},
        {"correct": (), "draws": ("True",), "tries": COUNT},
    ),
    Call(metrics.shares, lambda: {"values": [1.0]}, {"values": (), "name": tuple(ODD)}),
    Call(
        metrics.worst_case,
        lambda: {"correct": [[1.0]], "selection": [[1.0]]},
        {"correct": (), "selection": ()},
    ),
    Call(metrics.pooled_accuracy, lambda: {"correct": [[1.0, 0.0]]}, {"correct": ()}),
    Call(
        metrics.gap_lower_bound,
        lambda: {"weaker": [1.0], "stronger": [0.0]},
        {"weaker": (), "stronger": (), "confidence": ()},
    ),
    Call(metrics.auroc, lambda: {"negative": [0.0], "positive": [1.0]}, {"negative": (), "positive": ()}),
    Call(
        metrics.auroc_interval,
        lambda: {"negative": [0.0], "positive": [1.0]},
        {"negative": (), "positive": (), "resamples": COUNT},
    ),
    Call(
        metrics.true_positive_rate,
        lambda: {"negative": [0.0], "positive": [1.0]},
        {"negative": (), "positive": (), "false_positive_rate": FRACTION},
    ),
]

#: Arguments whose errors are those of ART's own estimators, with its words.
ARTS_ERRORS = {"layer", "label"}

#: Public names that are no functions, or that make records, or whose arguments are checked by their own tests.
OTHERS = {
    *("ANYWHERE", "ATTACKS", "Audit", "WorstCase", "Dataset", "Diagnosis", "InputError", "Run", "__version__"),
    *("ActivationQuantizer", "Part", "QUANTIZERS", "Quantizer", "SURROGATES", "HasSurrogate"),
    *("DATASETS", "check_images", "check_labels", "entry_of", "make_dataset", "row_ids", "check_classes"),
    *("as_surrogate", "has_surrogate", "surrogate_layers", "RULES", "Pixels"),
    *(
        "SECTIONS",
        "Section",
        "Evidence",
        "Replay",
        "NORMS",
        "Adapter",
        "Crafted",
        "TrainingData",
        "TrainingProgress",
        "Runner",
    ),
    *(
        "check_splits",
        "trained_network",
        "diameter",
        "Deployed",
        "deployed",
        "finite",
        "resampled_means",
        "mutual_information",
        "orthogonality_penalty",
        "as_matrices",
        "groups_of",
        "LayerNorm",
        "LayerChange",
        "LogitGain",
        "Margins",
        "OutputTerms",
    ),
    *("agreement", "sign_moves", "Measured"),
    *(
        "entropy",
        "information",
        "member_information",
        "member_joint",
        "pooled",
        "uncertainty",
        "Uncertainty",
        "quantile",
    ),
    *("kurakin_steps", "retracted", "Filtered", "median_filter", "reduce_bits", "unfiltered"),
}
MODULES = (
    "",
    *(".estimators", ".quantizers", ".quantizers.surrogates", ".data", ".threat", ".attacks.craft", ".checkpoint"),
    *(".evidence", ".report", ".metrics", ".runner.runner", ".training.engine", ".defences.lipschitz"),
    *(".defences.information", ".gradients.fidelity", ".gradients.measure", ".models.convnet", ".models.mnist_cnn"),
    *(".models.vgg", ".models.ensemble", ".models.filtered", ".information"),
    *(".defences.adversarial", ".defences.noise", ".defences.parseval", ".defences.squeezing", ".defences.ranges"),
)


def test_every_public_name_has_a_row():
    rows = {call.function.__name__ for call in CALLS}
    public = {name for module in MODULES for name in importlib.import_module(f"art_qplugins{module}").__all__}
    assert not public - rows - OTHERS
    assert not rows & OTHERS


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_every_argument_has_its_odd_values(call):
    kinds = inspect.Parameter
    named = {
        name
        for name, parameter in inspect.signature(call.function).parameters.items()
        if parameter.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD) and name != "self"
    }
    assert set(call.good) == named | set(call.checked)
    assert {value for values in call.good.values() for value in values} <= ODD.keys()


@pytest.fixture(autouse=True)
def _no_work(monkeypatch, tmp_path):
    """A call that gets as far as a run has checked its arguments."""

    def stop(*_, **__):
        raise StopIteration

    monkeypatch.setattr("art_qplugins.runner.runner.Runner.run", stop)
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_what_is_no_argument_is_refused_by_its_name(call):
    wrong = []
    for name, good in call.good.items():
        for odd, value in ODD.items():
            given = call.given()
            done = outcome(call.function, {**given, name: value})
            names = [*call.also.get(name, name).split("|"), name]
            if done is None:
                refused = odd in good
            elif isinstance(done, InputError) or (name in ARTS_ERRORS and type(done) in (ValueError, TypeError)):
                line = str(done)
                refused = len(line) <= 300 and (odd in good or any(word.lower() in line.lower() for word in names))
            else:
                refused = False
            if not refused:
                wrong.append(
                    f"{name} = {shown(value)}: {type(done).__name__ if done else 'accepted'} {str(done)[:150]}"
                )
    assert not wrong, "\n".join(["", *wrong])


def outcome(function, given):
    """What it raised; ``None`` where it accepted the arguments."""
    try:
        made = function(**given)
        if hasattr(made, "__enter__") and not isinstance(made, nn.Module):
            with made:
                pass
    except StopIteration:
        return None
    except Exception as error:
        return error
    return None
