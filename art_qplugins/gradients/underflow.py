"""Whether a backward pass loses its direction because its numbers are too small or too large for their type.

A gradient is linear in what the backward pass starts from. So the gradient of a loss times a power of two points where the
gradient of the loss does, unless numbers on the way underflow or overflow. Training in half precision multiplies its
loss for this reason (Micikevicius et al. 2018, "Mixed precision training", section 3.2), and an attack can do the same.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from art_qplugins.gradients.per_image import cosine
from art_qplugins.gradients.probe import gradient

__all__ = ["gradient_scale"]

#: The largest power of two, and its opposite. Where a gradient is not finite, the first is tried and then its multiples.
_FARTHEST, _FIRST = 120, -15
#: The largest entry of a multiplied gradient: attacks in L2 square it in float32.
_LARGEST = 2.0**40
#: Two gradients of an image point to the same side above this cosine; rounding alone stays above it.
_SAME = 0.95
#: The backward pass loses its direction on at least this share of the images.
_SHARE = 0.1


def gradient_scale(module: nn.Module, x: Tensor, y: Tensor, *, seed: int) -> float | None:
    """The power of two by which an attack multiplies its gradient, so that it neither underflows nor overflows.

    It is ``None`` where no factor changes the direction of the gradient on 10 % of the images, as on almost every module.

    :param x: (N, C, H, W) in [0, 1].
    :param y: (N,) labels.
    """

    def at(power: float) -> Tensor:
        def loss(logits: Tensor) -> Tensor:
            found: Tensor = nn.functional.cross_entropy(logits, y, reduction="none") * 2.0**power
            return found

        return gradient(module, x, loss, seed=seed).flatten(1).double()

    own = at(0)
    defined = bool(own.isfinite().all())
    largest = max(float(own.abs().max()), 1e-300) if defined else math.nan
    power = min(_FARTHEST, math.floor(math.log2(_LARGEST) - math.log2(largest))) if defined else _FIRST
    scaled = at(power)
    # Numbers on the way may be larger than those that arrive.
    while not scaled.isfinite().all() and (power > 1 if defined else power > -_FARTHEST):
        power = power // 2 if defined else 2 * power
        scaled = at(power)
    turned = ~_same(own, scaled) & (scaled != 0).any(1)
    if not scaled.isfinite().all() or turned.double().mean() < _SHARE:
        return None
    # A module that answers otherwise at each call has other gradients too, with any factor.
    steady = not defined or bool((_same(own, again := at(0)) | ((own == 0) & (again == 0)).all(1)).all())
    return 2.0**power if steady else None


def _same(a: Tensor, b: Tensor) -> Tensor:
    """(N,) whether two gradients point to the same side. A gradient that is zero or not finite points nowhere."""
    return cosine(a, b) > _SAME
