"""Derived seeds: many seeds for different purposes from one seed."""

from __future__ import annotations

import hashlib

__all__ = ["derive_seed"]


def derive_seed(seed: int, purpose: str) -> int:
    """A seed below 2 ** 48. Different purposes get different seeds, so that they share no random numbers."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=6).digest(), "little")
