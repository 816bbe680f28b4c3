"""Runs ART's evasion attacks. It translates; the loops stay in ART."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor

from art_qplugins.attacks.registry import Attack
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.threat import Threat

__all__ = ["run"]

_NORMS = {"Linf": np.inf, "L2": 2, "L1": 1}


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
    import art.attacks.evasion as evasion

    cls = getattr(evasion, attack.upstream)
    settings: dict[str, Any] = {"eps": threat.eps, "batch_size": batch_size, **options}
    # attack_params are inherited, and not every attack takes all that its parent takes (BasicIterativeMethod: no norm).
    accepted = inspect.signature(cls).parameters
    if "norm" in accepted:
        settings["norm"] = _NORMS[threat.norm]
    if "rel_eps_step" in settings:
        settings["eps_step"] = eps_step(threat, settings.pop("rel_eps_step"), settings["max_iter"])
    if "verbose" in accepted:
        settings["verbose"] = False
    x_adv = cls(estimator, **settings).generate(x=x.cpu().numpy(), y=y.cpu().numpy())
    return torch.from_numpy(x_adv).to(x.device)


def eps_step(threat: Threat, relative: float | None, max_iter: int) -> float:
    """The size of one step: ``relative`` times eps, by default so that all steps together reach 2.5 eps."""
    return threat.eps * (min(1.0, 2.5 / max_iter) if relative is None else relative)
