"""``quantize``: any network in, its quantized twin out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from art_qplugins.errors import InputError
from art_qplugins.quantizers.activation import QuantReLU
from art_qplugins.quantizers.protocol import as_quantizer
from art_qplugins.quantizers.registry import Quantizer, switched_on
from art_qplugins.quantizers.weight import MuLawMapping

__all__ = ["bake", "quantize", "weight_layers"]

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, QuantReLU)
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def weight_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The (name, module) of every linear and convolutional layer, in the order of the module tree."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, _WEIGHTED)]


def quantize(
    model: nn.Module,
    activation_bits: int | None = None,
    weight_bits: int | None = None,
    clip: float = 6.0,
    mu: float | None = None,
    *,
    activation: str | None = None,
    activation_options: Mapping[str, Any] | None = None,
    alpha: float | None = None,
    activation_layers: int | None = None,
    mu_layers: int = 1,
    mu_normalize: bool = False,
    symmetric: bool = True,
    granularity: str = "per_channel",
    narrow_range: bool = True,
    seed: int = 0,
    trainable: bool = False,
) -> nn.Module:
    """A quantized copy of ``model``. The given model does not change.

    Weights of every linear and convolutional layer are mapped first and quantized after, ``Q(F(W))``. Biases and batch
    norms stay in float32.

    :param model: any module whose activations are modules (``nn.ReLU``, ``nn.ReLU6``, ``nn.Hardtanh``, ``QuantReLU``).
    :param activation_bits: bits of every activation.
    :param weight_bits: bits of every weight.
    :param clip: upper level of the quantized activations.
    :param mu: strength of the mu-law mapping of the last ``mu_layers`` layers; ``None`` for no mapping.
    :param activation: what each activation becomes, by its name in :data:`~art_qplugins.quantizers.QUANTIZERS`. ``None``
        for a :class:`QuantReLU`, or with ``alpha`` a :class:`StochasticQuantizer`.
    :param activation_options: settings of that quantizer for which there is no argument here.
    :param alpha: sparsity of stochastic activations.
    :param activation_layers: quantize only this many of the last activations; ``None`` for all.
    :param mu_normalize: see :class:`MuLawMapping`.
    :param symmetric: see :class:`UniformWeightQuantizer`, also for ``granularity`` and ``narrow_range``.
    :param seed: key of the noise of stochastic activations.
    :param trainable: keep the maps on weights as parametrizations, for quantization-aware training. By default the mapped
        weights become plain parameters: then the module is faster, and it pickles.
    :raises InputError: where there is nothing to quantize, a setting is out of range or of no quantizer that is asked for,
        or a weight is outside the mu-law's domain [-1, 1].
    """
    table = {
        "activation": activation,
        "options": activation_options,
        "activation_bits": activation_bits,
        "clip": clip,
        "alpha": alpha,
        "weight_bits": weight_bits,
        "symmetric": symmetric,
        "granularity": granularity,
        "narrow_range": narrow_range,
        "mu": mu,
        "mu_layers": mu_layers,
        "mu_normalize": mu_normalize,
    }
    twin = copy.deepcopy(model)
    for row in switched_on(table):
        if row.place == "activation":
            _swap_activations(twin, row, table, seed, activation_layers)
        else:
            _map_weights(twin, row, table)
    return twin if trainable else bake(twin)


def bake(model: nn.Module) -> nn.Module:
    """Replace every parametrized weight by its value, in place: the deployed form. Returns ``model``."""
    with torch.no_grad():
        for module in model.modules():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return model


def _swap_activations(model: nn.Module, row: Quantizer, table: Mapping[str, Any], seed: int, last: int | None) -> None:
    # In the order of the module tree, which is usually that of the forward pass. A module used twice has two places.
    paths = [name for name, child in model.named_modules(remove_duplicate=False) if isinstance(child, ACTIVATIONS)]
    if not paths:
        raise InputError(
            f"{type(model).__name__} has no activation module to quantize; "
            "use nn.ReLU() modules in place of functional calls such as F.relu(x)"
        )
    if last is not None and not 1 <= last <= len(paths):
        raise InputError(f"activation_layers is {last}, and the network has {len(paths)} activations")
    for layer, path in enumerate(paths[-last:] if last else paths):
        parent, _, name = path.rpartition(".")
        made = _activation(row, table, seed, layer)
        setattr(model.get_submodule(parent), name, made.train(model.get_submodule(path).training))


def _activation(row: Quantizer, table: Mapping[str, Any], seed: int, layer: int) -> nn.Module:
    made = row.make(table, seed=seed, layer=layer) if row.random else row.make(table)
    if not isinstance(made, nn.Module) or as_quantizer(made) is None:
        raise InputError(
            f"quantizer {row.name!r} makes a {type(made).__name__}, which attacks could not undo; "
            "it needs num_bits, range and full_precision as in art_qplugins.quantizers.ActivationQuantizer"
        )
    return made


def _map_weights(model: nn.Module, row: Quantizer, table: Mapping[str, Any]) -> None:
    layers = weight_layers(model)
    count = table[row.last] if row.last else len(layers)
    if row.last and not 1 <= count <= len(layers):
        raise InputError(f"{row.last} is {count}, and the network has {len(layers)} layers with weights")
    if not layers:
        key = row.switch[0]
        raise InputError(f"{key} is {table[key]}, and {type(model).__name__} has no layer with weights to quantize")
    for name, layer in layers[-count:]:
        weight_map: nn.Module = row.make(table)
        if isinstance(weight_map, MuLawMapping):
            weight_map.check(cast(Tensor, layer.weight), name)
        parametrize.register_parametrization(layer, "weight", weight_map)
