"""A way back to the pixels of any network: bridges where its gradient is lost, or BPDA at its first layer."""

from __future__ import annotations

from torch import Tensor, nn

from art_qplugins.gradients.bridges import Bridged
from art_qplugins.gradients.crossings import find_bridges
from art_qplugins.gradients.first_layer import AtFirstLayer, at_first_layer

__all__ = ["way_back"]


def way_back(module: nn.Module, x: Tensor, *, radius: float, seed: int = 0) -> Bridged | AtFirstLayer | None:
    """A view with the same outputs, bit for bit, and a better backward pass; ``None`` where that of ``module`` is faithful.

    :param x: (N, C, H, W) in [0, 1].
    :param radius: half the side of the cube that an attack searches, above 0.
    :param seed: fixes steps and draws.
    """
    try:
        return find_bridges(module, x, radius=radius, seed=seed)
    except Exception:  # a network that cannot be traced may still have a first layer
        return at_first_layer(module, x, radius=radius, seed=seed)
