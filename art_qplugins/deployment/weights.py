"""The weight and the bias of one layer as integers, batch norm included.

A batch norm after a layer multiplies each output channel and adds to it. The scales of the weight take the factor, and the
bias the rest: the integers stay, with the other sign where the factor is negative.

An integer kernel adds the bias to its sums of products, so it holds it in steps of s_x s_w, as int32. Weights of few bits leave
room in int8: their integers are multiplied, and their scale divided, by the whole number for which the rounded bias is nearest.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from art_qplugins.deployment.grids import Codes, Grid

__all__ = ["IntegerBias", "Stored", "folded", "stored", "with_integer_bias"]

_INT8 = (-128, 127)
#: Without VNNI, kernels add two products in int16. Two of activations above 127 with weights beyond this may not fit.
_WITHOUT_VNNI = 64
#: A bias is at most this many steps, so that int32 holds it.
_MOST_STEPS = 2.0**30


class Stored(NamedTuple):
    """A weight as a file stores it: ``scale * (codes - zero_point)`` for each output channel.

    :ivar codes: int8, in the shape of the weight.
    :ivar scale: (out,) float32.
    :ivar zero_point: (out,) int8. It is 0 wherever the codes fit without one.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor


class IntegerBias(NamedTuple):
    """A bias ``scale * codes``, codes (out,) in int32."""

    codes: Tensor
    scale: Tensor


def folded(codes: Codes, gain: Tensor) -> Codes:
    """The weight with each output channel multiplied by ``gain``, (out,)."""
    sign = gain.sign().to(codes.steps.dtype)
    tiny = torch.finfo(codes.scale.dtype).tiny
    return Codes(codes.steps * _each(sign, codes.steps), (codes.scale * gain.abs()).clamp_min(tiny))


def stored(codes: Codes) -> Stored:
    """The weight in int8. Steps of 8 affine bits need a zero point."""
    low, high = (end.flatten(1).to(torch.int16) for end in (codes.steps.flatten(1).amin(1, True), codes.steps.flatten(1).amax(1, True)))
    fits = (low >= _INT8[0]) & (high <= _INT8[1])
    zero = torch.where(fits, 0, _INT8[0] - low).flatten()
    return Stored((codes.steps + _each(zero, codes.steps)).to(torch.int8), codes.scale, zero.to(torch.int8))


def with_integer_bias(codes: Codes, bias: Tensor, inputs: Grid) -> tuple[Stored, IntegerBias]:
    """The weight and the bias of a layer whose inputs are on a grid.

    :param bias: (out,) float32.
    """
    # A channel whose weights are nothing beside its bias, as of a dead batch norm, has coarser steps.
    least = bias.abs() / (inputs.scale * _MOST_STEPS)
    scale = torch.maximum(codes.scale, least)
    ratio = _each(codes.scale / scale, codes.steps)
    steps = torch.where(ratio < 1, (codes.steps * ratio).round(), codes.steps).to(torch.int16)
    times = _best_multiple(steps, bias / (inputs.scale * scale), inputs)
    weight = stored(Codes(steps * _each(times.to(torch.int16), steps), scale / times))
    step = weight.scale * inputs.scale
    return weight, IntegerBias((bias / step).round().to(torch.int32), step)


def _best_multiple(steps: Tensor, bias: Tensor, inputs: Grid) -> Tensor:
    """By channel, the whole number k for which ``k * bias`` is nearest to a whole number, in parts of k.

    :param bias: in steps.
    """
    peak = steps.flatten(1).abs().amax(1).clamp_min(1)
    limit = _INT8[1] if inputs.quant_max <= _INT8[1] else _WITHOUT_VNNI
    times = torch.arange(1, limit + 1, dtype=torch.float64, device=bias.device)[:, None]
    wide = bias.double() * times
    error = (wide - wide.round()).abs() / times
    allowed = (times * peak <= limit) & (wide.abs() <= 2 * _MOST_STEPS) | (times == 1)
    return torch.where(allowed, error, torch.inf).argmin(0).add(1).to(bias.dtype)


def _each(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
