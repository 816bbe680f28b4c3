"""Runs the published AutoAttack (Croce & Hein 2020), unmodified, from ``pyautoattack`` or an installed ``autoattack``.

``standard``, ``plus`` and ``rand`` are the published suites. A single component has the parameters of ``standard``.
``evaluation`` judges the images, because AutoAttack's own result depends on one draw of a random model.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from art_qplugins.attacks.catalogue import Attack
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.threat import Threat

__all__ = ["run"]

_SUITES = ("standard", "plus", "rand")


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
    """Images like ``x``, within the threat."""
    suite = attack.upstream if attack.upstream in _SUITES else "standard"
    package, auto = _make(estimator.model, threat, suite, str(x.device), seed)
    if attack.upstream not in _SUITES:
        auto.attacks_to_run = [attack.upstream]
    for part in (auto.apgd_targeted, auto.fab):  # published for ten classes or more: 9 targets (5 in L1)
        part.n_target_classes = min(part.n_target_classes, estimator.nb_classes - 1)
    if "n_queries" in options:
        auto.square.n_queries = options["n_queries"]
    if "eot_iter" in options:
        auto.apgd.eot_iter = options["eot_iter"]
    if package == "pyautoattack":
        x_adv: Tensor = auto.run_standard_evaluation(x, y, batch_size=batch_size)[0]
    else:
        x_adv = auto.run_standard_evaluation(x, y, bs=batch_size)
    return x_adv


def _make(model: nn.Module, threat: Threat, version: str, device: str, seed: int) -> tuple[str, Any]:
    """The name of the installed package, and its attack."""
    settings = {"norm": threat.norm, "eps": threat.eps, "seed": seed, "version": version, "device": device}
    try:
        from pyautoattack import AutoAttack

        return "pyautoattack", AutoAttack(model, **settings)
    except ImportError:
        pass
    from autoattack import AutoAttack

    return "autoattack", AutoAttack(model, verbose=False, **settings)
