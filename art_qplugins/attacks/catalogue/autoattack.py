"""The published AutoAttack: its suites, and its components alone with their parameters in ``standard``.

The DLR loss divides by the gap between the first and the third logit, so it needs three classes. The targeted DLR loss
divides by the gap between the first logit and the mean of the third and the fourth, so it needs four.
"""

from __future__ import annotations

from functools import partial

from art_qplugins.attacks.catalogue.libraries import AUTOATTACK
from art_qplugins.attacks.catalogue.row import Attack, attack_of, refused_attack_of

__all__ = ["ROWS"]

_auto = partial(attack_of, AUTOATTACK)
_refused = partial(refused_attack_of, AUTOATTACK)

ROWS: list[Attack] = [
    _auto(
        "standard",
        "standard",
        "the published AutoAttack, unmodified: APGD-CE, APGD-T, FAB-T, Square",
        models="deterministic",
        needs_classes=4,
        gradient="mixed",
        scale_free=True,
        targeted=True,
        cost=(1_910, 7_864),
    ),
    _auto(
        "plus",
        "plus",
        "AutoAttack+ as published: also APGD-DLR and FAB untargeted, 5 restarts",
        models="deterministic",
        needs_classes=4,
        gradient="mixed",
        scale_free=True,
        targeted=True,
        cost=(7_819, 9_787),
    ),
    _auto(
        "rand",
        "rand",
        "the published AutoAttack for random models: APGD-CE and APGD-DLR with 20 EOT draws",
        {"eot_iter": 20},
        models="stochastic",
        needs_classes=3,
        gradient="mean",
        scale_free=True,
        cost=(4_040, 4_047),
    ),
    _auto("apgd-ce", "apgd-ce", "the first component of autoattack:standard, alone", cost=(101, 111)),
    _auto(
        "apgd-dlr",
        "apgd-dlr",
        "Auto-PGD on the difference-of-logits ratio, with one start as in autoattack:rand",
        needs_classes=3,
        scale_free=True,
        cost=(101, 111),
    ),
    _auto(
        "apgd-t",
        "apgd-t",
        "the targeted DLR component of autoattack:standard, alone",
        needs_classes=4,
        scale_free=True,
        targeted=True,
        cost=(909, 928),
    ),
    _auto(
        "fab",
        "fab",
        "the minimum-norm component of autoattack:plus, alone, untargeted, one start",
        scale_free=True,
        cost=(1_000, 212),
    ),
    _auto(
        "fab-t",
        "fab-t",
        "the minimum-norm component of autoattack:standard, alone",
        scale_free=True,
        targeted=True,
        cost=(900, 1_837),
    ),
    _auto(
        "square",
        "square",
        "the black-box component of autoattack:standard, alone",
        {"n_queries": 5000},
        needs="scores",
        cost=(0, 5_012),
    ),
]
