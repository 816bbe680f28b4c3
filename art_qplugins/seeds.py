"""Seeds derived from one seed: the one place where a purpose becomes a number."""

from __future__ import annotations

import hashlib

__all__ = ["derive_seed"]


def derive_seed(seed: int, purpose: str) -> int:
    """A seed below 2 ** 48 for one purpose, so that no two purposes share random numbers."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=6).digest(), "little")
