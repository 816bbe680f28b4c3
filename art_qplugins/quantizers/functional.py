"""Quantizers as pure functions, exact in value and in gradient.

This module has the fixed maps: the quantized ReLU and Hardtanh, the affine quantizer, that of weights, and the mu-law.
Quantizers with parameters or noise are in the other modules. All of them are "fake quantization": the values are those of the
integer network, stored as floats. Under autocast they are float32, see :mod:`~art_qplugins.quantizers.precision`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from art_qplugins.quantizers.precision import in_float32

__all__ = [
    "affine_grid",
    "mu_law",
    "mu_law_inverse",
    "quant_affine",
    "quant_hardtanh",
    "quant_relu",
    "quantize_weight",
    "straight_through",
]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(value: Tensor, path: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


def straight_through(value: Tensor, path: Tensor) -> Tensor:
    """Straight-through: ``value``, bit for bit, in the forward pass. The gradient goes to ``path`` unchanged.

    The usual ``path + (value - path).detach()`` is neither exact in float32 nor as fast.

    :param value: any shape. It gets no gradient.
    :param path: in the shape of ``value``.
    """
    result: Tensor = _StraightThrough.apply(value.detach(), path)
    return result


class _OnGrid(torch.autograd.Function):
    """Clip, then round to a multiple of ``scale``."""

    @staticmethod
    def forward(x: Tensor, scale: float, low: float, high: float) -> Tensor:
        return x.clamp(low, high).div_(scale).round_().mul_(scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.range = inputs[2:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        # The fused kernel of hardtanh has exactly this mask. A saved boolean mask takes twice the time.
        return torch.ops.aten.hardtanh_backward(grad, ctx.saved_tensors[0], *ctx.range), None, None, None


@in_float32
def quant_relu(x: Tensor, num_bits: int, clip: float = 6.0) -> Tensor:
    r"""Clip to [0, clip], then round to the nearest of :math:`2^k` evenly spaced levels. 0 and clip are levels.

    .. math:: Q_k(x) = s \cdot \mathrm{round}(\mathrm{clamp}(x, 0, c) / s), \quad s = c / (2^k - 1)

    Ties go to the even level, as in ONNX's ``QuantizeLinear``. The gradient is straight-through,
    :math:`dQ_k/dx = 1[0 < x < c]`: it passes the rounding and is masked by the clip (Lin et al. 2019, section 2.1).
    The :math:`2^k` levels on [0, c] follow DoReFa; the paper does not state them.

    :param x: any shape, floating point. Under autocast the levels are float32, also for a ``x`` that is not. In bfloat16
        it has too few values for 8 bits: at most 235 of the 256 levels on [0, 6] are reached.
    :param num_bits: k, at least 1.
    :param clip: c > 0, in units of ``x``.
    """
    result: Tensor = _OnGrid.apply(x, clip / (2**num_bits - 1), 0.0, clip)
    return result


def affine_grid(num_bits: int, low: float, high: float) -> tuple[float, int]:
    r"""The scale s and the zero point z of the :math:`2^k` levels :math:`s (q - z)`, q in :math:`0 ... 2^k - 1`, on [low, high].

    The range is widened to hold 0 and moved by at most half a step, so that 0 is a level (Jacob et al. 2018, equation 1).

    :param low: below ``high``, or 0 with it above.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**num_bits - 1)
    return scale, math.floor(0.5 - low / scale)


@in_float32
def quant_affine(x: Tensor, num_bits: int, scale: float, zero_point: int) -> Tensor:
    r"""Round to the nearest of the :math:`2^k` levels :math:`s (q - z)`, as an integer file stores activations.

    .. math:: Q_k(x) = s \cdot \mathrm{clamp}(\mathrm{round}(x / s), -z, 2^k - 1 - z)

    Ties go to the even multiple of s, as in ONNX's ``QuantizeLinear``. The gradient is straight-through, 1 strictly
    between the lowest and the highest level and 0 elsewhere. With z = 0 it is :func:`quant_relu`.

    :param x: any shape, floating point.
    :param num_bits: k, at least 1.
    :param scale: s > 0, in units of ``x``.
    :param zero_point: z, from 0 to :math:`2^k - 1`.
    """
    result: Tensor = _OnGrid.apply(x, scale, -zero_point * scale, (2**num_bits - 1 - zero_point) * scale)
    return result


class _QuantHardtanh(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, num_bits: int, low: float, high: float) -> Tensor:
        scale = (high - low) / (2**num_bits - 1)
        return x.clamp(low, high).sub_(low).div_(scale).round_().mul_(scale).add_(low)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, float, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.range = inputs[2:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return torch.ops.aten.hardtanh_backward(grad, ctx.saved_tensors[0], *ctx.range), None, None, None


@in_float32
def quant_hardtanh(x: Tensor, num_bits: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    r"""Clip to [low, high], then round to the nearest of :math:`2^k` evenly spaced levels. low and high are levels.

    .. math:: Q_k(x) = l + s \cdot \mathrm{round}((\mathrm{clamp}(x, l, h) - l) / s), \quad s = (h - l) / (2^k - 1)

    At one bit on [-1, 1] this is the sign of binary networks. The number of levels is even, so a range that is
    symmetric about 0 has no level at 0. Ties go to the even level, counted from low. The gradient is straight-through,
    :math:`dQ_k/dx = 1[l < x < h]`.

    :param x: any shape, floating point.
    :param num_bits: k, at least 1.
    :param low: l, in units of ``x``.
    :param high: h > l, in units of ``x``.
    """
    result: Tensor = _QuantHardtanh.apply(x, num_bits, low, high)
    return result


@in_float32
def quantize_weight(
    weight: Tensor,
    num_bits: int,
    *,
    symmetric: bool = True,
    granularity: str = "per_channel",
    narrow_range: bool = True,
    zero_point: bool = False,
) -> Tensor:
    r"""Round a weight to a uniform grid that covers its own range. The gradient passes straight through.

    Symmetric: the levels are :math:`s \cdot \{q_{min}, ..., q_{max}\}`. ``quant_max`` is :math:`2^{k-1} - 1`,
    ``quant_min`` is ``-quant_max`` (``narrow_range``) or ``-quant_max - 1``, and s is the smallest scale whose levels
    reach every weight. In a narrow range that is :math:`\max|w| / q_{max}`. One bit has no level 0:
    :math:`\mathrm{sign}(w) \cdot \mathrm{mean}|w|` (Rastegari et al. 2016). Affine: :math:`2^k` levels from min to max. With
    ``zero_point`` the range is widened to hold 0 and moved by less than a step, so that 0 is a level: the levels are
    :math:`s \cdot (q - z)` for q in :math:`0 ... 2^k - 1` and a whole number z, as integer files store them (Jacob et al.
    2018, equation 1).

    :param weight: (out, ...) floating point.
    :param num_bits: k, at least 1.
    :param granularity: ``"per_channel"`` (one scale for each index of dimension 0) or ``"per_tensor"``.
    :param zero_point: of affine levels; symmetric ones have a level at 0 from two bits on.
    """
    w = weight.detach()
    dims = tuple(range(1, w.dim())) if granularity == "per_channel" else tuple(range(w.dim()))
    tiny = torch.finfo(w.dtype).tiny
    if symmetric and num_bits == 1:
        level = w.abs().mean(dims, keepdim=True)
        q = torch.where(w >= 0, level, -level)
    elif symmetric:
        quant_max = 2 ** (num_bits - 1) - 1
        quant_min = -quant_max if narrow_range else -quant_max - 1
        reach = torch.maximum(w.amax(dims, keepdim=True) / quant_max, w.amin(dims, keepdim=True) / quant_min)
        scale = reach.clamp_min(tiny)
        q = (w / scale).round_().clamp_(quant_min, quant_max).mul_(scale)
    else:
        low, high = w.amin(dims, keepdim=True), w.amax(dims, keepdim=True)
        if zero_point:
            low, high = low.clamp(max=0), high.clamp(min=0)
        scale = ((high - low) / (2**num_bits - 1)).clamp_min(tiny)
        if zero_point:
            # Half up, so that both ends have a level of their own where they lie between two.
            zero = (0.5 - low / scale).floor_()
            q = (w / scale + zero).round_().clamp_(0, 2**num_bits - 1).sub_(zero).mul_(scale)
        else:
            q = ((w - low) / scale).round_().mul_(scale).add_(low)
    return straight_through(q, weight)


class _MuLaw(torch.autograd.Function):
    @staticmethod
    def forward(w: Tensor, mu: float) -> Tensor:
        return w.sign() * torch.log1p(mu * w.abs()) / math.log1p(mu)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.mu = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # Closed form, because autograd's gradient of sign and abs is 0 at 0, where the true slope is largest.
        return grad * (ctx.mu / math.log1p(ctx.mu)) / (1 + ctx.mu * ctx.saved_tensors[0].abs()), None


@in_float32
def mu_law(w: Tensor, mu: float) -> Tensor:
    r""":math:`F(w) = \mathrm{sgn}(w) \ln(1 + \mu|w|) / \ln(1 + \mu)` for :math:`|w| \le 1` (Song et al. 2021, slides).

    The slope is :math:`\mu / ((1 + \mu|w|) \ln(1 + \mu))`, at zero 46 for :math:`\mu = 255`.

    :param w: any shape, in [-1, 1].
    :param mu: above 0.
    """
    result: Tensor = _MuLaw.apply(w, mu)
    return result


@in_float32
def mu_law_inverse(w: Tensor, mu: float) -> Tensor:
    """The inverse map: ``mu_law_inverse(mu_law(w, mu), mu)`` is ``w`` up to rounding."""
    return w.sign() * torch.expm1(w.abs() * math.log1p(mu)) / mu
