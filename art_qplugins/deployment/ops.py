"""The two operations of an integer file as operations of torch, so that exporters see them whole.

``artq::quantize`` is ONNX's QuantizeLinear, Clip and DequantizeLinear in a row, ``artq::dequantize`` is DequantizeLinear of
a constant. Each has a translation for ONNX (:mod:`~art_qplugins.deployment.onnx_file`) and one for PT2E
(:mod:`~art_qplugins.deployment.torch_file`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["dequantize", "quantize"]


@torch.library.custom_op("artq::quantize", mutates_args=())
def quantize(x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    r"""The nearest of the levels :math:`s (q - z)` for whole q in :math:`q_{min} ... q_{max}`; ties go to the even q.

    The gradient is straight-through, 1 between the lowest and the highest level and 0 outside.

    :param x: any shape, float32.
    """
    codes = torch.div(x, scale).round_().add_(zero_point).clamp_(quant_min, quant_max)
    return codes.sub_(zero_point).mul_(scale)


@quantize.register_fake
def _(x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    return torch.empty_like(x)


def _remember(ctx: Any, inputs: tuple[Tensor, float, int, int, int], output: Tensor) -> None:
    x, scale, zero_point, quant_min, quant_max = inputs
    ctx.save_for_backward(x)
    ctx.range = scale * (quant_min - zero_point), scale * (quant_max - zero_point)


def _straight_through(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    return torch.ops.aten.hardtanh_backward(grad, ctx.saved_tensors[0], *ctx.range), None, None, None, None


quantize.register_autograd(_straight_through, setup_context=_remember)


@torch.library.custom_op("artq::dequantize", mutates_args=())
def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    """``scale * (codes - zero_point)``, with one scale and one zero point for each index of ``axis``.

    :param codes: int8 or int32.
    :param scale: (n,) float32.
    :param zero_point: (n,), in the dtype of ``codes``.
    """
    shape = [-1 if dim == axis else 1 for dim in range(codes.dim())]
    return (codes.int() - zero_point.int().view(shape)).float().mul_(scale.view(shape))


@dequantize.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)
