"""The quantization report of a network: every activation and weight with its bits, or the reason why it is in float."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from art_qplugins.domains import check
from art_qplugins.quantizers.attention import OpenAttention
from art_qplugins.quantizers.calls import FunctionalCall, functional_calls
from art_qplugins.quantizers.functions import QuantActivation
from art_qplugins.quantizers.layers import WEIGHTED, activations
from art_qplugins.quantizers.protocol import as_quantizer
from art_qplugins.quantizers.stored import is_on_levels, weight_bits, weight_maps, weight_names
from art_qplugins.torch_domains import MODULE

__all__ = ["ATTENTION", "Part", "quantization_report"]

#: Activations of torch that have no quantized form here. LogSoftmax is left out: it turns logits into
#: log-probabilities.
_FLOAT_ACTIVATIONS = tuple(
    getattr(nn, name) for name in nn.modules.activation.__all__ if name not in ("MultiheadAttention", "LogSoftmax")
)
_QUANTIZABLE = "nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.GELU or nn.SiLU"
#: The type of the softmax inside attention, which no module computes.
ATTENTION = "scaled_dot_product_attention()"
_ADDED = "it has one value for all images, or one per channel, as a class token, a position embedding or a scale"
_FUSED = "the softmax inside attention is no module; compute it by nn.Softmax"
_NOT_ASKED = "it is quantized where it is asked for: also = ['softmax']"
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)


@dataclass(frozen=True)
class Part:
    """An activation or a weight of a network.

    :ivar name: name of the module in the network. A weight adds the parameter's name: ``"layer1.0.conv1.weight"``.
    :ivar kind: activation or weight.
    :ivar type: the module's class, or the function that it calls: ``"relu()"``.
    :ivar bits: ``None`` if it is in float.
    :ivar reason: the reason why it is in float, else "".
    :ivar expected: whether it is in float by design or by choice, such as the weights of a batch norm.
    """

    name: str
    kind: Literal["activation", "weight"]
    type: str
    bits: int | None
    reason: str = ""
    expected: bool = False


def quantization_report(model: nn.Module) -> list[Part]:
    """Every activation and weight of ``model`` in the order of the module tree. Biases are in float and are not listed.

    Activations that are called as functions are found by static analysis, see :mod:`~art_qplugins.quantizers.calls`. A
    weight counts as quantized as long as it is on the levels of its quantizer.
    """
    check("model", model, MODULE)
    return list(parts_of(model, checked=True))


def parts_of(model: nn.Module, *, checked: bool) -> Iterator[Part]:
    """The parts of the report.

    :param checked: also check that weights are on their levels. This takes as long as quantizing them.
    """
    replaceable = activations(model)
    for name, module in model.named_modules():
        if ".parametrizations." not in f".{name}.":
            yield from _activations(name, module, name in replaceable)
            yield from _weights(name, module, checked)


def _activations(name: str, module: nn.Module, replaceable: bool) -> Iterator[Part]:
    kind = type(module).__name__
    if (quantizer := as_quantizer(module)) is not None:
        yield Part(name, "activation", kind, quantizer.num_bits)
    elif isinstance(module, QuantActivation):
        return  # the quantizer inside is a part of its own
    elif replaceable:
        yield Part(name, "activation", kind, None, "it was not quantized", expected=True)
    elif isinstance(module, nn.Tanh):
        return  # the quantizer behind it is a part of its own
    elif isinstance(module, OpenAttention):
        return  # its softmax is a part of its own
    elif isinstance(module, nn.MultiheadAttention):
        yield Part(name, "activation", ATTENTION, None, _NOT_ASKED, expected=True)
    elif isinstance(module, nn.Softmax):
        yield Part(name, "activation", kind, None, _NOT_ASKED)
    elif isinstance(module, _FLOAT_ACTIVATIONS):
        yield Part(name, "activation", kind, None, f"it has no quantized form; use {_QUANTIZABLE}")
    else:
        for call in functional_calls(module):
            yield _called(name, kind, call)


def _called(name: str, kind: str, call: FunctionalCall) -> Part:
    if not call.function:
        reason = f"the code of {call.where} cannot be read, so activations that it calls as functions are unknown"
        return Part(name, "activation", kind, None, reason)
    if f"{call.function}()" == ATTENTION:
        return Part(name, "activation", ATTENTION, None, _FUSED, expected=True)
    reason = f"{call.where}: only modules are replaced; use {_QUANTIZABLE} there, or functional = True"
    return Part(name, "activation", f"{call.function}()", None, reason)


def _weights(name: str, module: nn.Module, checked: bool) -> Iterator[Part]:
    kind, prefix = type(module).__name__.removeprefix("Parametrized"), f"{name}." if name else ""
    if isinstance(module, (*WEIGHTED, nn.MultiheadAttention)):
        for parameter in weight_names(module):
            yield _quantizable(f"{prefix}{parameter}", kind, module, checked)
        return
    for parameter, value in module.named_parameters(recurse=False):
        if value.dim() >= 3 and (value.shape[0] == 1 or value.numel() == max(value.shape)):
            yield Part(f"{prefix}{parameter}", "weight", kind, None, _ADDED, expected=True)
        elif isinstance(module, _NORMS) and parameter == "weight":
            yield Part(f"{prefix}{parameter}", "weight", kind, None, "norms stay in float", expected=True)
        elif value.dim() >= 2 and not isinstance(module, _NORMS):
            reason = (
                f"it is of a {kind}; only nn.Linear, nn.MultiheadAttention and nn.Conv1d to nn.Conv3d are quantized"
            )
            yield Part(f"{prefix}{parameter}", "weight", kind, None, reason)


def _quantizable(name: str, kind: str, layer: nn.Module, checked: bool) -> Part:
    if (bits := weight_bits(layer)) is None:
        maps = ", ".join(type(one).__name__ for one in weight_maps(layer))
        reason = f"only {maps} was applied" if maps else "it was not quantized"
        return Part(name, "weight", kind, None, reason, expected=True)
    if checked and not is_on_levels(layer):
        return Part(name, "weight", kind, None, "it has changed since it was quantized")
    return Part(name, "weight", kind, bits)
