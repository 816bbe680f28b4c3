"""Attacks by id through one adapter per library. They craft; ``evaluation`` decides what succeeded."""

from art_qplugins.attacks.catalogue import ATTACKS, LIBRARIES, Attack, Library

__all__ = ["ATTACKS", "LIBRARIES", "Attack", "Library"]
