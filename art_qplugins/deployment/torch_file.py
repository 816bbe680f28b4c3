"""Networks as ``.pt2`` files of ``torch.export``, in plain operations of torch or in the int8 form of PT2E.

PT2E is torchao's form of quantized graphs: ``quantized_decomposed`` operations around those of the network. Its backends, such as
Inductor's for x86 and ExecuTorch's XNNPACK, make integer kernels of them. Whoever loads such a file first imports
``torchao.quantization.pt2e``.
"""

from __future__ import annotations

import importlib
import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from art_qplugins.deployment.tracing import exported, quiet
from art_qplugins.errors import InputError
from art_qplugins.files import write_atomically

__all__ = ["write_pt2", "write_torchao"]


def write_pt2(path: Path, module: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Write ``module`` for any number of images to ``path``."""
    _save(path, exported(module, input_shape))


def write_torchao(path: Path, module: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Write ``module``, in its integer form, to ``path`` in PT2E's operations."""
    try:
        with warnings.catch_warnings(), quiet():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            importlib.import_module("torchao.quantization.pt2e")  # it registers the operations
    except ImportError:
        raise InputError("export to torchao needs torchao; pip install 'art_qplugins[torchao]'") from None
    program = exported(module, input_shape)
    table = {torch.ops.artq.quantize.default: _quantize, torch.ops.artq.dequantize.default: _dequantize}
    with quiet():
        _save(path, program.run_decompositions(table))


def _quantize(x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    form = torch.ops.quantized_decomposed
    levels = (scale, zero_point, quant_min, quant_max, torch.uint8)
    found: Tensor = form.dequantize_per_tensor.default(form.quantize_per_tensor.default(x, *levels), *levels)
    return found


def _dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    ends = torch.iinfo(codes.dtype)
    form = torch.ops.quantized_decomposed.dequantize_per_channel.default
    found: Tensor = form(codes, scale, zero_point, axis, ends.min, ends.max, codes.dtype)
    return found


def _save(path: Path, program: torch.export.ExportedProgram) -> None:
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer)
    write_atomically(path, buffer.getvalue())
