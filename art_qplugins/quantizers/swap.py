"""The activations of a network in exchange for others: for another function, or for their quantized form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.errors import InputError
from art_qplugins.quantizers.choose import chosen_names
from art_qplugins.quantizers.functions import QuantActivation
from art_qplugins.quantizers.layers import FUNCTIONS, activations, quantizable, values_of
from art_qplugins.quantizers.protocol import activation_quantizers, as_quantizer
from art_qplugins.quantizers.registry import Quantizer
from art_qplugins.quantizers.tracing import put

__all__ = ["avoid_fast_paths", "exchange_activations", "quantize_activations", "quantize_inputs"]

#: The functions that are quantized as modules of torch are, by their own ends: of the first two there is a fused form.
_PLAIN = ("relu", "relu6", "hardtanh", "tanh")
_INPUT = "input_quantizer"
#: By the name in :data:`~art_qplugins.quantizers.registry.ALSO`, whether the inputs of a module are meant.
_TAKES: dict[str, Callable[[nn.Module], bool]] = {
    "layer-norm": lambda m: isinstance(m, nn.LayerNorm),
    "softmax": lambda m: isinstance(m, nn.Softmax) or (isinstance(m, QuantActivation) and m.function == "softmax"),
}


def exchange_activations(model: nn.Module, function: str) -> None:
    """Put an activation function in the place of every activation."""
    if activation_quantizers(model):
        raise InputError(
            f"activation_function: the activations of {type(model).__name__} are quantized already; give the network in float"
        )
    for path, activation in _activations(model).items():
        put(model, path, FUNCTIONS[function]().train(activation.training))


def quantize_activations(model: nn.Module, row: Quantizer, table: Mapping[str, Any], seed: int) -> None:
    """Put the quantized form of ``row`` in the place of the activations that a ``quantize`` table chooses."""
    softmax = "softmax" in table["also"]
    found = _activations(model, softmax=softmax)
    names = chosen_names(list(found), table["activation_layers"], "activation_layers", "activations")
    for layer, path in enumerate(names):
        noise = {"seed": seed, "layer": layer} if row.random else {}
        put(model, path, _quantized(found[path], row, table, noise).train(found[path].training))


def avoid_fast_paths(model: nn.Module) -> None:
    """Keep attention on one path, with and without gradients.

    In eval mode without gradients torch has faster kernels. One computes its own ReLU or GELU in place of the quantizer. The
    other rounds differently, which moves values over the edges of levels, so that an attack would see another network.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.MultiheadAttention) and _apart not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_apart, with_kwargs=True)


def _apart(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The kernel needs that query, key and value are one object."""
    if args:
        return (args[0].view_as(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "query": kwargs["query"].view_as(kwargs["query"])}


def quantize_inputs(model: nn.Module, row: Quantizer, table: Mapping[str, Any]) -> None:
    """Quantize what the modules in ``table["also"]`` take. They keep their class and their place.

    :raises InputError: where the model has none, or the quantizer has no zero point.
    """
    for key in table["also"]:
        found = [m for m in model.modules() if _TAKES[key](m)]
        if not found:
            raise InputError(
                f"also: {type(model).__name__} has no module for {key!r}; leave it out, or call nn.LayerNorm() and "
                "nn.Softmax() modules"
            )
        for module in found:
            if not hasattr(module, _INPUT):
                module.register_forward_pre_hook(_round_input)
            rounding = row.make(table, low=-table["clip"], zero_point=True)
            setattr(module, _INPUT, rounding.train(module.training))


def _round_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    rounded = getattr(module, _INPUT)(args[0])
    if not isinstance(module, nn.LayerNorm):  # what a mask leaves out of a softmax stays out
        rounded = torch.where(args[0] == -math.inf, args[0], rounded)
    return (rounded, *args[1:])


def _activations(model: nn.Module, *, softmax: bool = False) -> dict[str, nn.Module]:
    found = activations(model, softmax=softmax)
    if not found:
        raise InputError(
            f"{type(model).__name__} has no activation module to quantize; "
            "use nn.ReLU() modules instead of functional calls such as F.relu(x), or functional = True"
        )
    return found


def _quantized(activation: nn.Module, row: Quantizer, table: Mapping[str, Any], noise: Mapping[str, int]) -> nn.Module:
    """The quantized form of an activation, or the activation itself if ``row`` cannot have its range."""
    name, options = quantizable(activation)
    low, high = values_of(activation, table["clip"])
    if table["ranges"] != "fixed":
        return QuantActivation(name, row.make({**table, "clip": high}, low=low, zero_point=True), **options)
    if name in ("relu", "relu6"):
        made = row.make(table, **noise)
    elif not row.signed:
        return activation
    else:
        affine = {"zero_point": True} if row.zero_point and name not in _PLAIN else {}
        made = row.make({**table, "clip": high}, low=low, **affine, **noise)
    if not isinstance(made, nn.Module) or as_quantizer(made) is None:
        raise InputError(
            f"quantizer {row.name!r} makes a {type(made).__name__}, which attacks cannot replace; "
            "it needs num_bits, range and full_precision as in art_qplugins.quantizers.ActivationQuantizer"
        )
    if name in _PLAIN:
        return nn.Sequential(nn.Tanh(), made) if name == "tanh" else made
    return QuantActivation(name, made, **options)
