"""The activation functions that have a quantized form, with the ends of their values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from art_qplugins.domains import OneOf, check
from art_qplugins.torch_domains import MODULE

__all__ = ["QUANTIZABLE", "Function", "QuantActivation", "function_of"]


@dataclass(frozen=True)
class Function:
    """An activation function of torch.

    :ivar module: the module that computes it.
    :ivar call: the function.
    :ivar low: its lowest value, :math:`-\\infty` where it has none. ``high`` likewise. Of Hardtanh they are options.
    :ivar options: arguments of ``call`` with the module's attributes of the same names.
    """

    module: type[nn.Module]
    call: Callable[..., Tensor]
    low: float
    high: float = math.inf
    options: tuple[str, ...] = ()

    def ends(self, options: Mapping[str, Any]) -> tuple[float, float]:
        """Its lowest and its highest value with these options."""
        return float(options.get("min_val", self.low)), float(options.get("max_val", self.high))


#: By name. The lowest values of GELU, of both its forms, and of SiLU are rounded down.
QUANTIZABLE: Mapping[str, Function] = {
    "relu": Function(nn.ReLU, F.relu, 0, options=("inplace",)),
    "relu6": Function(nn.ReLU6, F.relu6, 0, 6, ("inplace",)),
    "hardtanh": Function(nn.Hardtanh, F.hardtanh, -1, 1, ("min_val", "max_val", "inplace")),
    "tanh": Function(nn.Tanh, torch.tanh, -1, 1),
    "hardswish": Function(nn.Hardswish, F.hardswish, -0.375, options=("inplace",)),
    "hardsigmoid": Function(nn.Hardsigmoid, F.hardsigmoid, 0, 1, ("inplace",)),
    "gelu": Function(nn.GELU, F.gelu, -0.1701, options=("approximate",)),
    "silu": Function(nn.SiLU, F.silu, -0.2785, options=("inplace",)),
    "softmax": Function(nn.Softmax, F.softmax, 0, 1, ("dim",)),
}


class QuantActivation(nn.Module):
    """An activation function and the quantizer of its values.

    :param function: a name in :data:`QUANTIZABLE`.
    :param quantizer: rounds what the function gives, e.g. a :class:`~art_qplugins.quantizers.QuantAffine`.
    :param options: of the function, e.g. ``approximate="tanh"`` of GELU.
    """

    def __init__(self, function: str, quantizer: nn.Module, **options: Any) -> None:
        super().__init__()
        self.function = check("function", function, OneOf(tuple(QUANTIZABLE)))
        self.options = options
        self.quantizer = check("quantizer", quantizer, MODULE)

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.quantizer(QUANTIZABLE[self.function].call(x, **self.options))
        return value

    def extra_repr(self) -> str:
        return ", ".join([self.function, *(f"{name}={value!r}" for name, value in self.options.items())])


def function_of(module: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """The function of an activation by its name, with its options; ``None`` where it has no quantized form.

    ``nn.ReLU6`` is a subclass of Hardtanh in torch, and has a name of its own here.
    """
    if isinstance(module, QuantActivation):
        return module.function, dict(module.options)
    for name, function in QUANTIZABLE.items():
        if isinstance(module, function.module):
            return name, {option: getattr(module, option) for option in function.options}
    return None
