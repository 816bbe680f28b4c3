"""Calls of every public function and constructor, with one or two arguments that are odd."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

import art_qplugins as aq
from art_qplugins.defences.information import BinSpacing, MutualInformation
from art_qplugins.defences.lipschitz import Orthogonality
from art_qplugins.models import MODELS
from art_qplugins.models.ensemble import StochasticEnsemble
from fuzzing.apart import call
from fuzzing.judge import Found, judged, timed
from fuzzing.strategies import Case
from fuzzing.values import FLAGS, NESTED, NUMBERS, TEXTS, value_of

__all__ = ["calls", "run_call"]


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def _random() -> nn.Module:
    return aq.quantize(_net(), activation_bits=2, alpha=2.0)


def _images() -> Any:
    return torch.linspace(0, 1, 20 * 64).reshape(20, 1, 8, 8).numpy()


def _labels() -> Any:
    return np.arange(20) % 10


def _estimator() -> Any:
    return aq.QuantizedClassifier(_net(), nn.CrossEntropyLoss(), (1, 8, 8), 10)


def _evidence() -> Path:
    x = np.full((2, 1, 8, 8), 0.5, np.float32)
    np.savez("e.npz", x=x, x_adv=x + 0.05, y=np.zeros(2, int), eps=0.1, norm="Linf")
    return Path("e.npz")


def _tables() -> dict[str, Any]:
    models = [{"name": "a", "architecture": {"name": "convnet", "options": {"width": 2}}, "train": {"epochs": 0}}]
    more = {"attacks": [{"id": "artq:clean"}], "diagnose": False, "threads": 1}
    return {"name": "t", "data": {"name": "digits", "limit": 4}, "threat": {"eps": [0.1]}, "models": models, **more}


Usual = dict[str, Callable[[], Any]]
_CLASSIFIER: Usual = {
    "model": _net,
    "loss": nn.CrossEntropyLoss,
    "input_shape": lambda: (1, 8, 8),
    "nb_classes": lambda: 10,
    "optimizer": lambda: None,
    "clip_values": lambda: (0.0, 1.0),
    "device_type": lambda: "cpu",
    "training_defences": lambda: (),
}
#: What is called, with its usual arguments. Every other argument of its signature may be given too.
_CALLS: dict[str, tuple[Callable[..., Any], Usual]] = {
    "Threat": (aq.Threat, {}),
    "evaluate": (
        aq.evaluate,
        {
            "estimators": _estimator,
            "data": lambda: (_images(), _labels()),
            "attacks": lambda: ["artq:clean"],
            "executor": lambda: "serial",
        },
    ),
    "diagnose": (
        aq.diagnose,
        {"estimator": _estimator, "x": _images, "y": _labels, "level": lambda: 0, "claimed": lambda: "art:fgsm"},
    ),
    "run": (aq.run, {"recipe": _tables}),
    "quantize": (aq.quantize, {"model": _net}),
    "train": (
        aq.train,
        {
            "model": _net,
            "data": lambda: (torch.rand(20, 1, 8, 8), torch.arange(20) % 10),
            "epochs": lambda: 1,
        },
    ),
    "load": (aq.load, {"name": lambda: "digits", "split": lambda: "test"}),
    "replay": (aq.replay, {"path": _evidence, "module": _net}),
    "quantization_report": (aq.quantization_report, {"model": _net}),
    "QuantizedClassifier": (aq.QuantizedClassifier, _CLASSIFIER),
    "DQClassifier": (aq.DQClassifier, {**_CLASSIFIER, "activation_bits": lambda: 2}),
    "MuLawClassifier": (aq.MuLawClassifier, {**_CLASSIFIER, "mu": lambda: 255.0}),
    "SQEnsembleClassifier": (aq.SQEnsembleClassifier, {**_CLASSIFIER, "model": _random}),
    "StochasticEnsemble": (StochasticEnsemble, {"network": _random, "draws": lambda: 4}),
    "QuantReLU": (aq.QuantReLU, {"num_bits": lambda: 2}),
    "QuantHardtanh": (aq.QuantHardtanh, {"num_bits": lambda: 2}),
    "MuLawMapping": (aq.MuLawMapping, {}),
    "UniformWeightQuantizer": (aq.UniformWeightQuantizer, {"num_bits": lambda: 3}),
    "StochasticQuantizer": (aq.StochasticQuantizer, {"num_bits": lambda: 2}),
    "Orthogonality": (Orthogonality, {}),
    "MutualInformation": (MutualInformation, {}),
    "BinSpacing": (BinSpacing, {}),
    "ConvNet": (MODELS["convnet"].load(), {"input_shape": lambda: (1, 8, 8), "nb_classes": lambda: 10}),
}
#: Arguments that ART itself checks.
_OF_ART = {"use_amp", "opt_level", "loss_scale", "channels_first", "preprocessing"}
_OF_ART |= {"preprocessing_defences", "postprocessing_defences"}


def _arguments(name: str) -> list[str]:
    function, usual = _CALLS[name]
    named = inspect.signature(function).parameters.values()
    fixed = (p.name for p in named if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    return [argument for argument in dict.fromkeys([*usual, *fixed]) if argument not in _OF_ART]


#: Objects that are no settings.
_OBJECTS: dict[str, Callable[[], Any]] = {
    **{
        "None": lambda: None,
        "an-object": object,
        "a-function": lambda: _net,
        "a-class": lambda: nn.Linear,
        "a-module": _net,
    },
    **{"an-estimator": _estimator, "images": _images, "labels": _labels, "a-tensor": lambda: torch.tensor([0.1, 0.2])},
    **{
        "a-nan-of-numpy": lambda: np.float32("nan"),
        "a-number-of-numpy": lambda: np.int64(3),
        "a-set": lambda: {1, 2},
        "bytes": lambda: b"x",
    },
    **{
        "a-path": lambda: Path("nowhere"),
        "a-threat": lambda: aq.Threat(),
        "threats": lambda: [aq.Threat()],
        "(nan, 1)": lambda: (float("nan"), 1),
    },
    **{
        "('art:fgsm',)": lambda: ("art:fgsm",),
        "[5]": lambda: [5],
        "a-defence": Orthogonality,
        "images-of-nan": lambda: _images() * np.nan,
    },
    **{
        "an-iterator": lambda: iter([1]),
        "a-complex-number": lambda: 1j,
        "a-long-list": lambda: [0] * 5000,
        "a-tensor-of-one": lambda: torch.tensor(0.1),
    },
    **{"a-broken-repr": lambda: _Broken()},
}


class _Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


@st.composite
def calls(draw: st.DrawFn) -> Case:
    name = draw(st.sampled_from([*_CALLS]))
    values = st.one_of(
        st.sampled_from([*_OBJECTS]).map(lambda key: ["object", key]),
        st.sampled_from(NUMBERS).map(lambda e: ["value", e]),
        st.sampled_from(NUMBERS + TEXTS + NESTED + FLAGS).map(lambda e: ["value", e]),
    )
    edit = st.tuples(st.sampled_from(_arguments(name)), values).map(list)
    return {"call": name, "edits": draw(st.lists(edit, min_size=1, max_size=2, unique_by=lambda e: e[0]))}


def run_call(case: Case, stage: Path) -> Found:
    function, usual = _CALLS[case["call"]]
    arguments = {key: make() for key, make in usual.items()}
    for name, (kind, value) in case["edits"]:
        arguments[name] = _OBJECTS[value]() if kind == "object" else value_of(value)
    given = {name: arguments[name] for name, _ in case["edits"]}
    result = timed(5, lambda: call(lambda: function(**arguments)))
    if (
        result.status == 2
        and not result.kind
        and not any(_named(name, value, result.err) for name, value in given.items())
    ):
        return Found(2, f"no argument is named: {case['call']}({', '.join(given)})", result.err)
    return judged(result, lambda _: _wrongly_taken(case["call"], function, given))


def _named(name: str, value: Any, line: str) -> bool:
    """Whether the line is about the argument: by its name, its singular, the thing it holds, or its value."""
    words = {name, name.rstrip("s"), *name.split("_")}
    shown = str(value) if isinstance(value, (str, Path)) else ""
    return any(len(word) > 0 and word in line for word in words) or (
        shown.isprintable() and shown != "" and shown in line
    )


def _wrongly_taken(name: str, function: Callable[..., Any], given: dict[str, Any]) -> str:
    """An argument that its annotation does not allow, or a number that is none."""
    try:
        target = function.__init__ if inspect.isclass(function) else function
        hints = typing.get_type_hints(target)
    except (NameError, TypeError):
        hints = {}
    for argument, value in given.items():
        if isinstance(value, (float, np.floating)) and not np.isfinite(value):
            return f"{name}: {argument} is not finite"
        if (allowed := _simple(hints.get(argument))) and not _is_one(value, allowed):
            return f"{name}: {argument} has a wrong type"
    return ""


def _simple(hint: Any) -> tuple[type, ...]:
    """The types of an annotation that has only numbers, texts, flags and None; else nothing."""
    parts = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    known = {int, float, str, bool, type(None)}
    return tuple(parts) if parts and all(part in known for part in parts) else ()


def _is_one(value: Any, allowed: tuple[type, ...]) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool in allowed
    if isinstance(value, (int, np.integer)):
        return int in allowed or float in allowed
    if isinstance(value, (float, np.floating)):
        return float in allowed
    return isinstance(value, allowed)
