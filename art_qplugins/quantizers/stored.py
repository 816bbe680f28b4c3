"""Records which maps were applied to the stored weights of a layer, because the weights themselves do not tell.

A layer has one weight, and an attention those of its projections. All weights of a layer have the same maps.

The record is an attribute of the layer. It is copied and pickled with the layer. No state dict holds it, so a checkpoint
stores it in its description. It changes no output, and it does not enter the fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from art_qplugins.quantizers.registry import QUANTIZERS
from art_qplugins.quantizers.weight import MuLawMapping, UniformWeightQuantizer

__all__ = [
    "add_stored_maps",
    "is_on_levels",
    "parametrizations",
    "restore_stored_maps",
    "stored_maps",
    "weight_bits",
    "weight_maps",
    "weight_names",
]

_NAME = "stored_maps"


@dataclass(frozen=True)
class _StoredMaps:
    """Not a plain tuple: :func:`~art_qplugins.fingerprint.fingerprint` reads tuples of settings."""

    maps: tuple[nn.Module, ...]


def weight_names(layer: nn.Module) -> tuple[str, ...]:
    """The parameters of ``layer`` whose maps are recorded."""
    if not isinstance(layer, nn.MultiheadAttention):
        return ("weight",)
    return ("in_proj_weight",) if layer._qkv_same_embed_dim else ("q_proj_weight", "k_proj_weight", "v_proj_weight")


def weight_maps(layer: nn.Module) -> tuple[nn.Module, ...]:
    """The maps applied to each weight of ``layer``, in order: first the stored maps, then its parametrizations."""
    return (*_stored(layer), *parametrizations(layer))


def add_stored_maps(layer: nn.Module, *maps: nn.Module) -> None:
    """Record that these maps were applied to the stored weight of ``layer``, after the maps recorded so far.

    Maps of other packages, such as a spectral norm, are not recorded.
    """
    if own := tuple(one for one in maps if isinstance(one, (MuLawMapping, UniformWeightQuantizer))):
        setattr(layer, _NAME, _StoredMaps((*_stored(layer), *own)))


def _stored(layer: nn.Module) -> tuple[nn.Module, ...]:
    found = getattr(layer, _NAME, None)
    return found.maps if isinstance(found, _StoredMaps) else ()


def weight_bits(layer: nn.Module) -> int | None:
    """Bits of the weight of ``layer``; ``None`` where the last of its maps is not a quantizer."""
    maps = weight_maps(layer)
    return maps[-1].num_bits if maps and isinstance(maps[-1], UniformWeightQuantizer) else None


@torch.no_grad()
def is_on_levels(layer: nn.Module) -> bool:
    """Whether the weights of ``layer`` are on the levels of its quantizer, up to float rounding."""
    last = weight_maps(layer)[-1]
    weights = [cast(Tensor, getattr(layer, name)) for name in weight_names(layer)]
    return all(bool((last(w) - w).abs().max() <= 8 * torch.finfo(w.dtype).eps * w.abs().max()) for w in weights)


def parametrizations(layer: nn.Module) -> list[nn.Module]:
    """The maps on each weight of ``layer`` that are computed at every forward pass, in order."""
    name = weight_names(layer)[0]
    if not parametrize.is_parametrized(layer, name):
        return []
    return list(cast(nn.ModuleDict, layer.parametrizations)[name].children())


def stored_maps(model: nn.Module) -> dict[str, list[dict[str, Any]]]:
    """The records of all layers as JSON: for each map its name in QUANTIZERS and its settings."""
    found = {name: [_as_json(one) for one in _stored(layer)] for name, layer in model.named_modules()}
    return {name: maps for name, maps in found.items() if maps}


def restore_stored_maps(model: nn.Module, saved: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Restore the result of :func:`stored_maps` in another module of the same structure."""
    for name, maps in saved.items():
        made = [
            QUANTIZERS[one["quantizer"]].load()(**{k: v for k, v in one.items() if k != "quantizer"}) for one in maps
        ]
        add_stored_maps(model.get_submodule(name), *made)


def _as_json(one: nn.Module) -> dict[str, Any]:
    row = next(row for row in QUANTIZERS.values() if row.place == "weight" and isinstance(one, row.load()))
    return {"quantizer": row.name, **{name: getattr(one, name) for name in row.arguments.values()}}
