"""The attacks by id, ``library:name``. Nothing here imports a library; an attack's adapter does when it runs.

``art:autoattack`` and ``torchattacks:autoattack`` are other algorithms than the published AutoAttack (other losses, ten
times fewer iterations) and are therefore not offered under those names.
"""

from __future__ import annotations

from art_qplugins.attacks.catalogue import art, artq, autoattack, foolbox, torchattacks
from art_qplugins.attacks.catalogue.row import Attack
from art_qplugins.registry import Registry

__all__ = ["ATTACKS", "Attack"]

ATTACKS: Registry[Attack] = Registry(
    "attack", [*art.ROWS, *torchattacks.ROWS, *autoattack.ROWS, *foolbox.ROWS, *artq.ROWS]
)
