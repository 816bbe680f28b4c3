"""Which maps the stored weight of a layer went through. Weights alone do not tell.

The record is an attribute of the layer. It is copied and pickled with the layer, and no state dict holds it. It changes no
answer, so a fingerprint does not see it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from art_qplugins.quantizers.weight import MuLawMapping, UniformWeightQuantizer

__all__ = ["add_stored_maps", "is_on_levels", "parametrizations", "weight_bits", "weight_maps"]

_NAME = "stored_maps"


@dataclass(frozen=True)
class _StoredMaps:
    """Not a plain tuple: :func:`~art_qplugins.fingerprint.fingerprint` reads tuples of settings."""

    maps: tuple[nn.Module, ...]


def weight_maps(layer: nn.Module) -> tuple[nn.Module, ...]:
    """The maps that the weight of ``layer`` went through, in order: first the stored ones, then its parametrizations."""
    return (*_stored(layer), *parametrizations(layer))


def add_stored_maps(layer: nn.Module, *maps: nn.Module) -> None:
    """Record that the stored weight of ``layer`` went through these maps, after those that are recorded already.

    Maps that are none of this package, such as a spectral norm, are not recorded.
    """
    if own := tuple(one for one in maps if isinstance(one, (MuLawMapping, UniformWeightQuantizer))):
        setattr(layer, _NAME, _StoredMaps((*_stored(layer), *own)))


def _stored(layer: nn.Module) -> tuple[nn.Module, ...]:
    found = getattr(layer, _NAME, None)
    return found.maps if isinstance(found, _StoredMaps) else ()


def weight_bits(layer: nn.Module) -> int | None:
    """Bits that the weight of ``layer`` was quantized to; ``None`` where the last of its maps is no quantizer."""
    maps = weight_maps(layer)
    return maps[-1].num_bits if maps and isinstance(maps[-1], UniformWeightQuantizer) else None


@torch.no_grad()
def is_on_levels(layer: nn.Module) -> bool:
    """Whether quantizing the weight of ``layer`` again changes nothing, except by rounding of the floats."""
    weight = cast(Tensor, layer.weight)
    change = (weight_maps(layer)[-1](weight) - weight).abs().max()
    return bool(change <= 8 * torch.finfo(weight.dtype).eps * weight.abs().max())


def parametrizations(layer: nn.Module) -> list[nn.Module]:
    """The maps on the weight of ``layer`` that are computed at every forward pass, in order."""
    if not parametrize.is_parametrized(layer, "weight"):
        return []
    return list(cast(nn.ModuleDict, layer.parametrizations)["weight"].children())
