"""The threat: the norm and eps within which an attacker may change an image."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

from art_qplugins.errors import InputError, did_you_mean

__all__ = ["NORMS", "Threat"]

NORMS = ("Linf", "L2", "L1", "L0")


@dataclass(frozen=True)
class Threat:
    """All images in [0, 1] within ``eps`` of the clean one in ``norm``.

    :param norm: ``"Linf"``, ``"L2"``, ``"L1"`` or ``"L0"``.
    :param eps: the radius in units of pixels in [0, 1], e.g. ``8 / 255``; for L0 the number of pixels.
    :raises InputError: where the norm is unknown, or eps is negative or not finite.
    """

    norm: str = "Linf"
    eps: float = 8 / 255

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise InputError(f"threat: unknown norm {self.norm!r}{did_you_mean(self.norm, NORMS)}")
        number = isinstance(self.eps, numbers.Real) and not isinstance(self.eps, bool)
        if not (number and math.isfinite(self.eps) and self.eps >= 0):
            raise InputError(f"threat: eps is {self.eps!r}; give a finite number that is not negative, e.g. 8/255")
