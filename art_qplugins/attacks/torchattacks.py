"""Runs torchattacks. It translates; the loops stay there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from art_qplugins.attacks.art import eps_step
from art_qplugins.attacks.registry import Attack
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.threat import Threat

__all__ = ["run"]


def run(
    estimator: QuantizedClassifier,
    attack: Attack,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    options: dict[str, Any],
    batch_size: int,
    seed: int,
) -> Tensor:
    import torchattacks

    settings: dict[str, Any] = {"eps": threat.eps, **options}
    if "max_iter" in settings:
        settings["steps"] = settings.pop("max_iter")
        settings["alpha"] = eps_step(threat, settings.pop("rel_eps_step"), settings["steps"])
    crafted = getattr(torchattacks, attack.upstream)(estimator.model, **settings)
    return torch.cat([crafted(*part) for part in zip(x.split(batch_size), y.split(batch_size), strict=True)])
