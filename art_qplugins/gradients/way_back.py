"""A way back to the pixels of any network: bridges where its gradient is lost, a twin without that, or BPDA at its first layer."""

from __future__ import annotations

from torch import Tensor, nn

from art_qplugins.gradients.bridges import Bridged, Bypassed
from art_qplugins.gradients.bypass import find_bypass
from art_qplugins.gradients.crossings import find_bridges
from art_qplugins.gradients.first_layer import AtFirstLayer, at_first_layer
from art_qplugins.gradients.trace import Effects

__all__ = ["twin_and_way_back", "way_back"]


def way_back(module: nn.Module, x: Tensor, *, radius: float, seed: int = 0) -> Bridged | AtFirstLayer | None:
    """A view with the same outputs, bit for bit, and a better backward pass; ``None`` where that of ``module`` is faithful.

    It takes 26 forward passes and one backward pass of 17 images where the gradient is faithful, and more elsewhere.

    :param x: (N, C, H, W) in [0, 1].
    :param radius: half the side of the cube that an attack searches, above 0.
    :param seed: fixes steps and draws.
    """
    try:
        return find_bridges(Effects(module, x, radius=radius, seed=seed), x)
    except Exception:  # a network that cannot be traced may still have a first layer
        return at_first_layer(module, x, radius=radius, seed=seed)


def twin_and_way_back(
    module: nn.Module, x: Tensor, *, radius: float, seed: int = 0
) -> tuple[Bypassed | None, Bridged | AtFirstLayer | None]:
    """The twin that leaves out what loses the gradient, and the view of :func:`way_back`, from one trace."""
    try:
        effects = Effects(module, x, radius=radius, seed=seed)
        return find_bypass(effects, x), find_bridges(effects, x)
    except Exception:
        return None, at_first_layer(module, x, radius=radius, seed=seed)
