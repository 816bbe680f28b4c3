"""Attacks by id, with one adapter per library. They only craft images. ``evaluation`` decides which images succeeded."""

from art_qplugins.attacks.catalogue import ATTACKS, LIBRARIES, Attack, Library

__all__ = ["ATTACKS", "LIBRARIES", "Attack", "Library"]
