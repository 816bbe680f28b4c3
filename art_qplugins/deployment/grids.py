"""Levels as integers: what the levels of activations and of weights are in a file that holds whole numbers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from art_qplugins.quantizers.protocol import ActivationQuantizer
from art_qplugins.quantizers.weight import UniformWeightQuantizer

__all__ = ["Codes", "Grid", "codes_of", "grid_of"]

#: A file stores activations in uint8 and weights in int8.
_MOST_BITS = 8
#: How far a level may be from a whole number of steps, in steps.
_EXACT = 1e-3


class Grid(NamedTuple):
    r"""The levels :math:`s (q - z)` of activations, q from ``quant_min`` to ``quant_max`` in uint8."""

    scale: float
    zero_point: int
    quant_min: int
    quant_max: int

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest level."""
        return self.scale * (self.quant_min - self.zero_point), self.scale * (self.quant_max - self.zero_point)


def grid_of(quantizer: ActivationQuantizer) -> tuple[Grid | None, float]:
    """The levels of a quantizer of activations, and what they are moved by.

    Levels without 0 among them have no integer zero point. They are levels from 0 on, moved by the lowest.

    :return: no grid for more than 8 bits.
    """
    low, high = map(float, quantizer.range)
    most = 2**quantizer.num_bits - 1
    if quantizer.num_bits > _MOST_BITS:
        return None, 0.0
    scale = (high - low) / most
    zero = -low / scale
    whole = abs(zero - round(zero)) <= _EXACT and 0 <= round(zero) <= most
    return Grid(scale, round(zero) if whole else 0, 0, most), 0.0 if whole else low


class Codes(NamedTuple):
    r"""A weight :math:`s_c (q - z_c)` with one scale for each output channel c.

    :ivar steps: q - z, whole numbers in int16, in the shape of the weight.
    :ivar scale: (out,) float32, above 0.
    """

    steps: Tensor
    scale: Tensor

    def weight(self) -> Tensor:
        """The weight in float32."""
        return self.steps * _each(self.scale, self.steps)


def codes_of(weight: Tensor, quantizer: UniformWeightQuantizer) -> Codes | str:
    """The integer form of a weight that is on the levels of its quantizer, or why there is none.

    :param weight: (out, ...) float32.
    """
    if quantizer.num_bits > _MOST_BITS:
        return f"{quantizer.num_bits} bits do not fit into int8"
    if not quantizer.symmetric and not quantizer.zero_point:
        return "0 is not among its affine levels; quantize with zero_point = true"
    dims = tuple(range(1 if quantizer.granularity == "per_channel" else 0, weight.dim()))
    scale = _scale(weight, quantizer, dims).clamp_min(torch.finfo(weight.dtype).tiny)
    steps = (weight / scale).round()
    if (steps * scale - weight).abs().max() > 8 * torch.finfo(weight.dtype).eps * weight.abs().max():
        return "it has changed since it was quantized"
    return Codes(steps.to(torch.int16), scale.flatten().expand(len(weight)).clone())


def _scale(weight: Tensor, quantizer: UniformWeightQuantizer, dims: tuple[int, ...]) -> Tensor:
    """The step of :func:`~art_qplugins.quantizers.functional.quantize_weight`. The ends of its levels are taken."""
    if not quantizer.symmetric:
        low, high = weight.amin(dims, keepdim=True).clamp(max=0), weight.amax(dims, keepdim=True).clamp(min=0)
        span: Tensor = high - low
        return span / float(2**quantizer.num_bits - 1)
    if quantizer.num_bits == 1:
        level: Tensor = weight.abs().mean(dims, keepdim=True)
        return level
    most = 2 ** (quantizer.num_bits - 1) - 1
    least = -most if quantizer.narrow_range else -most - 1
    return torch.maximum(weight.amax(dims, keepdim=True) / most, weight.amin(dims, keepdim=True) / least)


def _each(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
