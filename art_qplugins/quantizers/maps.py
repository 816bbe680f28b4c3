"""The maps on the weights of a network: put there as parametrizations, and baked into the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from art_qplugins.domains import check
from art_qplugins.errors import InputError
from art_qplugins.quantizers.choose import chosen_names
from art_qplugins.quantizers.layers import WEIGHTED
from art_qplugins.quantizers.registry import Quantizer, switched_on
from art_qplugins.quantizers.stored import add_stored_maps, parametrizations, weight_maps, weight_names
from art_qplugins.quantizers.weight import MuLawMapping
from art_qplugins.torch_domains import MODULE

__all__ = ["bake", "map_weights", "record_maps", "weight_layers"]


def weight_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The (name, module) of every linear and convolutional layer, in the order of the module tree."""
    check("model", model, MODULE)
    return [(name, m) for name, m in model.named_modules() if isinstance(m, WEIGHTED)]


def bake(model: nn.Module) -> nn.Module:
    """Replace every parametrized weight by its value, in place: the deployed form. Returns ``model``."""
    check("model", model, MODULE)
    with torch.no_grad():
        for module in model.modules():
            if maps := parametrizations(module):
                for name in weight_names(module):
                    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
                add_stored_maps(module, *maps)
    return model


def map_weights(model: nn.Module, row: Quantizer, table: Mapping[str, Any]) -> None:
    """Register the map of ``row`` on the weights that a ``quantize`` table gives it."""
    for name, layer in _layers(model, row, table):
        weight_map: nn.Module = row.make(table)
        if isinstance(weight_map, MuLawMapping):
            weight_map.check(cast(Tensor, layer.weight), name)
            if any(isinstance(one, MuLawMapping) for one in weight_maps(layer)):
                raise InputError(
                    f"mu-law: weight {name!r} is mapped already; quantize the network that is not mapped yet"
                )
        for parameter in weight_names(layer):
            parametrize.register_parametrization(layer, parameter, weight_map)


def _layers(model: nn.Module, row: Quantizer, table: Mapping[str, Any]) -> list[tuple[str, nn.Module]]:
    """The layers whose weights ``row`` maps."""
    if row.layers:
        layers = dict(weight_layers(model))
        names = chosen_names(list(layers), table[row.layers], row.layers, "layers with weights")
        return [(name, layers[name]) for name in names]
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (*WEIGHTED, nn.MultiheadAttention))}
    if not layers:
        key = row.switch[0]
        raise InputError(f"{key} is {table[key]}, and {type(model).__name__} has no layer with weights to quantize")
    exempt = table.get("exempt") or ()
    left = chosen_names(list(layers), list(exempt), "exempt", "layers with weights")
    return [(name, layer) for name, layer in layers.items() if name not in left]


def record_maps(model: nn.Module, table: Mapping[str, Any]) -> None:
    """Record that the loaded weights of ``model`` are already mapped by a ``quantize`` table.

    :param table: only the keys about weights.
    """
    for row in switched_on(table):
        for _, layer in _layers(model, row, table):
            add_stored_maps(layer, row.make(table))
