"""The weight and the bias of one layer as integers, batch norm included.

A batch norm after a layer multiplies each output channel and adds to it. The scales of the weight take the factor, and the
bias the rest: the integers stay, with the other sign where the factor is negative.

An integer kernel adds the bias to its sums of products, so it holds it in steps of s_x s_w, as int32. Weights of few bits leave
room in int8: their integers are multiplied, and their scale divided, by a whole number k, and steps are k times as fine. What
counts is the level that an output is rounded to. Sums of products n are whole numbers, so another bias and another scale change
no output where no n passes a threshold between two levels. k, the bias B and the scale are chosen so that none does, if there are
such: with 4 bits there are for nearly all channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from art_qplugins.deployment.grids import Codes, Grid

__all__ = ["IntegerBias", "Stored", "folded", "needs_vnni", "stored", "with_integer_bias"]

_INT8 = (-128, 127)
#: Without VNNI, kernels add two products in int16. Two of activations above 127 with weights beyond this may not fit.
_WITHOUT_VNNI = 64
#: A bias is at most this many steps, so that int32 holds it.
_MOST_STEPS = 2.0**30
#: A scale is free within a relative interval of this width at least, which float32 resolves.
_LEAST_ROOM = 1e-6


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
    low, high = codes.steps.flatten(1).amin(1), codes.steps.flatten(1).amax(1)
    zero = torch.where((low >= _INT8[0]) & (high <= _INT8[1]), 0, _INT8[0] - low)
    return Stored((codes.steps + _each(zero, codes.steps)).to(torch.int8), codes.scale, zero.to(torch.int8))


def needs_vnni(weight: Stored, inputs: Grid) -> bool:
    """Whether two products may be too large for the int16 in which kernels without VNNI add them."""
    return inputs.quant_max > _INT8[1] and int(weight.codes.int().abs().max()) > _WITHOUT_VNNI


def with_integer_bias(codes: Codes, bias: Tensor, inputs: Grid, thresholds: Tensor) -> tuple[Stored, IntegerBias]:
    """The weight and the bias of a layer whose inputs are on a grid.

    :param bias: (out,) float32.
    :param thresholds: (m,) float64, between the levels that the output is rounded to; m = 0 where it is not rounded.
    """
    # A channel whose weights are nothing beside its bias, as of a dead batch norm, has coarser steps.
    least = bias.abs() / (inputs.scale * _MOST_STEPS)
    scale = torch.maximum(codes.scale, least)
    ratio = _each(codes.scale / scale, codes.steps)
    steps = torch.where(ratio < 1, (codes.steps * ratio).round(), codes.steps).to(torch.int16)
    limit = _INT8[1] if inputs.quant_max <= _INT8[1] else _WITHOUT_VNNI
    most = (limit // steps.flatten(1).abs().amax(1).clamp_min(1)).clamp_min(1)
    step = (scale * inputs.scale).double()
    times, whole, stretch = _chosen(bias.double() / step, thresholds / step[:, None], most, _reach(steps, inputs))
    weight = stored(Codes(steps * _each(times.to(torch.int16), steps), (scale * stretch / times).float()))
    return weight, IntegerBias(whole.to(torch.int32), weight.scale * inputs.scale)


def _reach(steps: Tensor, inputs: Grid) -> tuple[Tensor, Tensor]:
    """The least and the greatest sum of products of each channel, (out, 1)."""
    wide = steps.flatten(1).double()
    low, high = inputs.quant_min - inputs.zero_point, inputs.quant_max - inputs.zero_point
    ends = (wide * low).clamp(max=0), (wide * high).clamp(max=0), (wide * low).clamp(min=0), (wide * high).clamp(min=0)
    return torch.minimum(*ends[:2]).sum(1, True), torch.maximum(*ends[2:]).sum(1, True)


def _chosen(
    bias: Tensor, thresholds: Tensor, most: Tensor, reach: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """By channel, k, the bias B in parts of k of a step, and the factor f of the scale: outputs are f (n + B / k) steps.

    :param bias: (out,) in steps, and ``thresholds`` (out, m).
    :param most: (out,) the greatest k.
    """
    # Of the whole numbers n, ``above`` is the least above a threshold, and ``below`` the greatest below it.
    above = (thresholds - bias[:, None]).ceil()
    below = (above - 1).clamp(max=reach[1])
    above = torch.where(above > reach[1], torch.inf, above)
    below = torch.where(above <= reach[0], -torch.inf, below)
    best = torch.full_like(bias, -torch.inf)
    times, whole, stretch = torch.ones_like(bias), bias.round(), torch.ones_like(bias)
    for k in range(1, int(most.max()) + 1):
        for candidate in ((bias * k).floor(), (bias * k).ceil()):
            shift = (candidate / k)[:, None]
            ends = (below + shift) / thresholds, (above + shift) / thresholds  # f is between 1 / these
            low, high = torch.minimum(*ends).clamp_min(0), torch.maximum(*ends)
            low, high = (low.amax(1), high.amin(1)) if thresholds.shape[1] else (torch.ones_like(bias),) * 2
            room = high - low
            exact = room > _LEAST_ROOM
            middle = torch.where(exact & high.isfinite(), (low + high) / 2, 1.0)
            score = torch.where(exact, room.clamp(max=1.0), -(candidate / k - bias).abs())
            score[(k > most) | (k * bias.abs() > 2 * _MOST_STEPS) & (k > 1)] = -torch.inf
            better = score > best
            best = torch.where(better, score, best)
            times[better], whole[better] = k, candidate[better]
            stretch[better] = torch.where(exact, 1 / middle, 1.0)[better]
    return times, whole, stretch


def _each(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
