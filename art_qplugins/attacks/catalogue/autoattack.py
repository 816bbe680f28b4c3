"""The published AutoAttack: its suites, and its parts alone, with the parameters that they have in ``standard``."""

from __future__ import annotations

from art_qplugins.attacks.catalogue.row import Attack, Library

__all__ = ["ROWS"]

_auto = Library(
    "autoattack",
    "art_qplugins.attacks.adapters.autoattack:run",
    ("Linf", "L2", "L1"),
    requires=("pyautoattack or autoattack",),
    install="pyautoattack",
)

ROWS: list[Attack] = [
    _auto(
        "standard",
        "standard",
        "the published AutoAttack, unmodified: APGD-CE, APGD-T, FAB-T, Square",
        models="deterministic",
    ),
    _auto(
        "plus",
        "plus",
        "AutoAttack+ as published: also APGD-DLR and FAB untargeted, 5 restarts",
        models="deterministic",
    ),
    _auto(
        "rand",
        "rand",
        "the published AutoAttack for random models: APGD-CE and APGD-DLR with 20 EOT draws",
        {"eot_iter": 20},
        models="stochastic",
    ),
    _auto("apgd-ce", "apgd-ce", "the first part of autoattack:standard, alone"),
    _auto("apgd-dlr", "apgd-dlr", "Auto-PGD on the difference-of-logits ratio, one start as in autoattack:rand"),
    _auto("apgd-t", "apgd-t", "the targeted DLR part of autoattack:standard, alone"),
    _auto("fab", "fab", "the minimum-norm part of autoattack:plus, alone, untargeted, one start"),
    _auto("fab-t", "fab-t", "the minimum-norm part of autoattack:standard, alone"),
    _auto(
        "square",
        "square",
        "the black-box part of autoattack:standard, alone",
        {"n_queries": 5000},
        needs="scores",
    ),
]
