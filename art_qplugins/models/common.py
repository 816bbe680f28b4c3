"""Helpers that the networks share: checks of options and image shapes, and the initialisation of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.domains import ListOf, Number, check
from art_qplugins.quantizers.maps import weight_layers

__all__ = ["WIDTH", "check_sizes", "he_init", "lay_out_for_pooling"]

#: Channels of a first convolution. A network of the greatest width fits the memory of one machine.
WIDTH = Number(1, 1024, whole=True)
_CLASSES = Number(1, 10**6, whole=True)


@dataclass(frozen=True)
class _Shape:
    """(C, H, W) with H and W of at least ``side``."""

    side: int

    def accepts(self, value: Any) -> bool:
        least = Number(self.side, 4096, whole=True)
        return ListOf(Number(1, 4096, whole=True), 3, 3, False).accepts(value) and all(map(least.accepts, value[1:]))

    def __str__(self) -> str:
        return f"(C, H, W) from {self.side}x{self.side} on"


@dataclass(frozen=True)
class _Makes:
    """Functions that make a module, and classes of modules."""

    def accepts(self, value: Any) -> bool:
        return issubclass(value, nn.Module) if isinstance(value, type) else callable(value)

    def __str__(self) -> str:
        return "a function that makes a module, such as torch.nn.ReLU"


def check_sizes(
    input_shape: tuple[int, int, int], nb_classes: int, activation: object, *, side: int
) -> tuple[int, int, int]:
    """``input_shape``, (C, H, W), after the arguments that all networks share are checked.

    :raises InputError: where H or W is below ``side``, or an argument is something else.
    """
    channels, height, breadth = check("input_shape", input_shape, _Shape(side))
    check("nb_classes", nb_classes, _CLASSES)
    check("activation", activation, _Makes())
    return channels, height, breadth


def lay_out_for_pooling(model: nn.Module) -> None:
    """Keep convolutions' weights with channels last, in place: their outputs then are too, and max-pooling takes a tenth of the time.

    That is on the CPU, where torch's kernel for the other layout takes longer than the convolutions. No value changes.
    """
    model.to(memory_format=torch.channels_last)


def he_init(model: nn.Module) -> None:
    """Weights from N(0, 2 / fan_in) (He et al. 2015, equation 10) and biases 0, in place."""
    for _, layer in weight_layers(model):
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)  # an attribute of a module may be a module, as far as mypy knows
        nn.init.kaiming_normal_(weight, nonlinearity="relu")
        if isinstance(bias, Tensor):
            nn.init.zeros_(bias)
