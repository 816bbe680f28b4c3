"""The attacks by id, ``library:name``. Nothing here imports a library; an attack's adapter does when it runs.

``art:autoattack`` and ``torchattacks:autoattack`` are other algorithms than the published AutoAttack (other losses, ten
times fewer iterations) and are therefore not offered under those names.
"""

from __future__ import annotations

from collections.abc import Mapping

from art_qplugins.attacks.catalogue import (
    art_black_box,
    art_refused,
    art_white_box,
    artq,
    autoattack,
    foolbox,
    torchattacks,
)
from art_qplugins.attacks.catalogue.libraries import LIBRARIES, Library
from art_qplugins.attacks.catalogue.row import Attack
from art_qplugins.registry import Registry

__all__ = ["ATTACKS", "LIBRARIES", "OLD_IDS", "Attack", "Library", "current_id"]

#: Today's ids by those that attacks had before version 0.2.
OLD_IDS: Mapping[str, str] = {"artq:shadow": "artq:full-precision"}

ATTACKS: Registry[Attack] = Registry(
    "attack",
    [
        *art_white_box.ROWS,
        *art_black_box.ROWS,
        *art_refused.ROWS,
        *torchattacks.ROWS,
        *autoattack.ROWS,
        *foolbox.ROWS,
        *artq.ROWS,
    ],
    group="art_qplugins.attacks",
    row=Attack,
    deprecated=OLD_IDS,
)


def current_id(attack: str) -> str:
    """``attack``, or today's id where it is an old one, with a warning. The attack need not exist."""
    return ATTACKS[attack].name if attack in OLD_IDS else attack
