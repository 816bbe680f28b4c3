"""The torch modules that :func:`~art_qplugins.quantize` replaces, and those whose weights it maps."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

from torch import nn

from art_qplugins.quantizers.activation import QuantHardtanh, QuantReLU
from art_qplugins.quantizers.functions import QUANTIZABLE, QuantActivation, function_of
from art_qplugins.quantizers.protocol import as_quantizer

__all__ = ["ACTIVATIONS", "FUNCTIONS", "WEIGHTED", "activations", "quantizable", "values_of"]

#: A softmax is one only where that is asked for.
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(function.module for name, function in QUANTIZABLE.items() if name != "softmax"),
    *(QuantReLU, QuantHardtanh, QuantActivation),
)
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

#: What makes each of :data:`~art_qplugins.quantizers.registry.ACTIVATION_FUNCTIONS`, in full precision.
FUNCTIONS: dict[str, Callable[[], nn.Module]] = {
    "relu6": nn.ReLU6,
    "relu1": functools.partial(nn.Hardtanh, 0.0, 1.0),
    "tanh": nn.Tanh,
}


def activations(model: nn.Module, *, softmax: bool = False) -> dict[str, nn.Module]:
    """The activations that can be replaced, by path, in the order of the module tree.

    That is usually also the order of the forward pass. A module that is used twice has two paths. A tanh whose values the
    next module of an ``nn.Sequential`` rounds is no activation of its own, and neither is the quantizer inside an activation.

    :param softmax: also every ``nn.Softmax``.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    rounded = {
        f"{path}.{name}" if path else name
        for path, module in modules.items()
        if isinstance(module, nn.Sequential)
        for (name, one), (_, after) in itertools.pairwise(module._modules.items())
        if isinstance(one, nn.Tanh) and after is not None and as_quantizer(after) is not None
    }
    inside = {
        f"{path}.quantizer" if path else "quantizer" for path, m in modules.items() if isinstance(m, QuantActivation)
    }
    kinds: tuple[type[nn.Module], ...] = (*ACTIVATIONS, nn.Softmax) if softmax else ACTIVATIONS
    return {path: m for path, m in modules.items() if isinstance(m, kinds) and path not in rounded | inside}


def quantizable(activation: nn.Module) -> tuple[str, dict[str, Any]]:
    """The name in :data:`~art_qplugins.quantizers.functions.QUANTIZABLE` of what an activation computes or rounds, and options."""
    if isinstance(activation, QuantReLU):
        return "relu", {}
    if isinstance(activation, QuantHardtanh):
        return "hardtanh", dict(zip(("min_val", "max_val"), activation.range, strict=True))
    found = function_of(activation)
    assert found is not None, type(activation)
    return found


def values_of(activation: nn.Module, clip: float) -> tuple[float, float]:
    """The range of the values of an activation, up to ``clip`` where they have no end. That of ReLU6 is ``clip`` too."""
    name, options = quantizable(activation)
    low, high = QUANTIZABLE[name].ends(options)
    return low, clip if name == "relu6" or math.isinf(high) else high
