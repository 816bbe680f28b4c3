"""The training protocols of the papers, as tables of a recipe. This module imports no torch.

A preset gives the values that a model's ``train`` table leaves out. What a paper does not say is a choice here, and the
help line calls it reconstructed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from art_qplugins.errors import InputError, did_you_mean, shown

__all__ = ["PRESETS", "Preset", "with_preset"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One protocol.

    :ivar data: the name of the data set that it is for.
    :ivar help: where the values are from.
    :ivar train: values of the ``train`` table.
    """

    name: str
    data: str
    help: str
    train: Mapping[str, Any]


#: Wide residual networks (Zagoruyko & Komodakis 2016), which Defensive Quantization follows.
_WIDE_RESNET: Mapping[str, Any] = {
    "optimizer": {"name": "SGD", "options": {"momentum": 0.9, "nesterov": True}},
    "weight_decay": 5e-4,
    "batch_size": 128,
}


def _multi_step(milestones: list[int], gamma: float) -> dict[str, Any]:
    return {"name": "MultiStepLR", "options": {"milestones": milestones, "gamma": gamma}}


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="dq-cifar10",
            data="cifar10",
            help="Lin et al. 2019, section 4: 200 epochs, 0.1 times 0.2 at 60, 120, 160; the rest as wide ResNets",
            train={
                **_WIDE_RESNET,
                "epochs": 200,
                "learning_rate": 0.1,
                "schedule": _multi_step([60, 120, 160], 0.2),
                "augment": [{"name": "crop", "options": {"padding": 4}}, {"name": "flip"}],
            },
        ),
        Preset(
            name="dq-svhn",
            data="svhn",
            help="Lin et al. 2019, section 4: 160 epochs, 0.01 times 0.1 at 80, 120; the rest as wide ResNets",
            train={**_WIDE_RESNET, "epochs": 160, "learning_rate": 0.01, "schedule": _multi_step([80, 120], 0.1)},
        ),
        Preset(
            name="mu-law-mnist",
            data="mnist",
            help="Song et al. 2021, reconstructed: Adam with 1e-4 in batches of 50, as Madry et al. 2018 for that network",
            train={
                "optimizer": {"name": "Adam"},
                "learning_rate": 1e-4,
                "weight_decay": 0.0,
                "batch_size": 50,
                "epochs": 80,
                "schedule": {"name": "constant"},
            },
        ),
        Preset(
            name="mu-law-cifar10",
            data="cifar10",
            help="Song et al. 2021, reconstructed: 80,000 steps of 128 with 0.1 times 0.1 at 40,000 and 60,000, as Madry et al. 2018",
            train={
                "optimizer": {"name": "SGD", "options": {"momentum": 0.9}},
                "learning_rate": 0.1,
                "weight_decay": 2e-4,
                "batch_size": 128,
                "epochs": 204,
                "schedule": _multi_step([102, 153], 0.1),
                "augment": [{"name": "crop", "options": {"padding": 4}}, {"name": "flip"}],
            },
        ),
        Preset(
            name="sq-cifar10",
            data="cifar10",
            help="arXiv 2312.00105, reconstructed: 200 epochs, 0.1 down half a cosine; the rest as wide ResNets",
            train={
                **_WIDE_RESNET,
                "epochs": 200,
                "learning_rate": 0.1,
                "schedule": {"name": "cosine"},
                "augment": [{"name": "crop", "options": {"padding": 4}}, {"name": "flip"}],
            },
        ),
    )
}


def with_preset(table: Mapping[str, Any]) -> dict[str, Any]:
    """A ``train`` table with the values of its preset, where it names one and does not give its own.

    ``"none"`` is no preset: a profile can take back that of the recipe with it.

    :raises InputError: where there is no such preset.
    """
    name = table.get("preset")
    if name in (None, "none"):
        return {key: value for key, value in table.items() if key != "preset"}
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"unknown preset {shown(name)}{did_you_mean(str(name), PRESETS)}")
    return {**PRESETS[name].train, **table}
