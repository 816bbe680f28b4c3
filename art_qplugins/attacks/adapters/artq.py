"""Attacks that no library has: another loss for ART's loop, and those of our own loop in ``adaptive``."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from art_qplugins.attacks.adapters import art
from art_qplugins.attacks.adaptive import attacks as adaptive
from art_qplugins.attacks.catalogue import Attack
from art_qplugins.attacks.views import MarginLoss
from art_qplugins.estimators import QuantizedClassifier

__all__ = ["run"]


def _pgd_margin(estimator: QuantizedClassifier, attack: Attack, x: Tensor, y: Tensor, **settings: Any) -> Tensor:
    """ART's PGD on the logit margin in place of cross-entropy."""
    pgd = dataclasses.replace(attack, upstream="ProjectedGradientDescentPyTorch")
    return art.run(estimator.with_model(estimator.model, MarginLoss()), pgd, x, y, **settings)


def _clean(estimator: QuantizedClassifier, attack: Attack, x: Tensor, y: Tensor, **settings: Any) -> Tensor:
    """The images as they are. What its options ask for is measured by ``evaluation``, not here."""
    return x.clone()


def run(
    estimator: QuantizedClassifier,
    attack: Attack,
    x: Tensor,
    y: Tensor,
    *,
    start: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """:param start: legal images to start from in place of random ones, where the attack can."""
    if attack.upstream not in _OWN:
        return adaptive.run(estimator, attack, x, y, start=start, **settings)
    return _OWN[attack.upstream](estimator, attack, x, y, **settings)


_OWN = {"pgd_margin": _pgd_margin, "clean": _clean}
