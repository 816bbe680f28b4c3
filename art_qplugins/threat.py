"""The threat: the norm and eps within which an attacker may change an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from art_qplugins.domains import NOT_NEGATIVE, OneOf, check
from art_qplugins.errors import InputError, shown

__all__ = ["ANYWHERE", "NORMS", "Threat", "diameter", "kurakin_steps"]

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
        check("threat: norm", self.norm, OneOf(NORMS))
        check("threat: eps", self.eps, NOT_NEGATIVE)
        if self.norm == "L0" and self.eps != int(self.eps):
            raise InputError(f"threat: eps is {shown(self.eps)}; L0 counts pixels, so give a whole number, e.g. 10")


#: The threat of a corruption, which no eps limits: all images in [0, 1].
ANYWHERE = Threat("Linf", 1.0)


def diameter(norm: str, shape: Sequence[int]) -> float:
    """The largest distance of two images of a ``shape`` (C, H, W). At a larger eps no image is excluded."""
    values = math.prod(shape)
    return {"Linf": 1.0, "L2": math.sqrt(values), "L1": float(values), "L0": float(values // shape[0])}[norm]


def kurakin_steps(eps: float) -> int:
    """floor(min(eps + 4, 1.25 eps)) steps with eps on the scale 0 to 255, at least 1: 2, 10 and 20 at 2, 8 and 16.

    Kurakin et al. 2017; Lin et al. 2019.

    :param eps: radius in Linf, in [0, 1].
    """
    pixels = 255 * eps
    return max(1, math.floor(min(pixels + 4, 1.25 * pixels) + 1e-6))
