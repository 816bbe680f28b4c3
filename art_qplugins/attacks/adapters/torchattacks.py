"""Runs torchattacks' attacks. The adapter translates settings. The attack loops stay in torchattacks."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from art_qplugins.attacks.adapters.options import translated, within
from art_qplugins.attacks.catalogue import Attack
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.threat import Threat

__all__ = ["run"]

_NAMES = {"max_iter": "steps", "rel_eps_step": "alpha"}


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
    """Images like ``x``. For a minimum-norm attack, an image beyond eps is replaced by the clean image."""
    import torchattacks

    name = attack.upstream_for(threat.norm)
    cls = getattr(torchattacks, name)
    accepted = inspect.signature(cls).parameters
    given = {
        "norm": threat.norm,
        "eps": threat.eps,
        "max_epsilon": threat.eps,
        "pixels": int(threat.eps),
        "gamma": threat.eps / x[0].numel(),
        "n_classes": estimator.nb_classes,
        "seed": seed,
    }
    settings = {option: value for option, value in given.items() if option in accepted}
    crafted = cls(estimator.model, **settings, **translated(attack, options, threat, _NAMES))
    crafted.set_device(x.device)  # torchattacks takes it from the first parameter, and a module may have none
    x_adv = torch.cat([crafted(*part) for part in zip(x.split(batch_size), y.split(batch_size), strict=True)])
    return within(x, x_adv, threat) if attack.minimum_norm else x_adv
