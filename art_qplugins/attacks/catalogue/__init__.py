"""The attacks by id, ``library:name``. Nothing here imports a library; an attack's adapter does when it runs.

``art:autoattack`` and ``torchattacks:autoattack`` do not exist. ART's and torchattacks' AutoAttack differ from the
published one: they have other losses, or ten times fewer iterations.
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

#: Current ids by the ids before version 0.2.
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
    """``attack``. For an old id, the current id, with a warning. The attack need not exist."""
    return ATTACKS[attack].name if attack in OLD_IDS else attack
