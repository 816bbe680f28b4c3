"""Networks as ONNX files: the operations of :mod:`~art_qplugins.deployment.ops` become those of ONNX.

A quantized activation is QuantizeLinear, Clip and DequantizeLinear, in this order: with Clip before QuantizeLinear, ONNX Runtime
finds no integer kernel. Rounding is monotone, so both orders give the same. 8 bits need no Clip. A weight is a constant in
int8 with a DequantizeLinear for each output channel, and an integer bias one in int32.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from art_qplugins.deployment.tracing import exported, layer_of, quiet
from art_qplugins.errors import InputError
from art_qplugins.files import write_atomically

__all__ = ["write_onnx"]

#: The first version of ONNX whose QuantizeLinear and DequantizeLinear exporters and runtimes all know.
_OPSET = 21


def write_onnx(path: Path, module: nn.Module, input_shape: tuple[int, ...], about: Mapping[str, str]) -> None:
    """Write ``module`` for any number of images to ``path``. Its input is called "input", its output "logits".

    :param about: metadata of the file.
    :raises InputError: where ONNX has no form of an operation. It names the layer.
    """
    table = _table()
    program = exported(module, input_shape)
    try:
        with quiet():
            found = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=_OPSET,
                custom_translation_table=table,
                input_names=["input"],
                output_names=["logits"],
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise InputError(_unknown(error, program.graph, module)) from None
    assert found is not None
    proto = found.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # names of files on this machine are among them
    for key, value in about.items():
        proto.metadata_props.add(key=key, value=value)
    write_atomically(path, proto.SerializeToString())


def _table() -> dict[Callable[..., Any], Callable[..., Any]]:
    try:
        import onnx
        from onnxscript import opset21 as op
    except ImportError:
        raise InputError("export to ONNX needs onnx and onnxscript; pip install 'art_qplugins[onnx]'") from None

    def number(value: float, kind: int) -> Any:
        return op.Constant(value=onnx.helper.make_tensor("value", kind, [], [value]))

    def quantize(x: Any, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Any:
        uint8 = onnx.TensorProto.UINT8
        step, zero = number(scale, onnx.TensorProto.FLOAT), number(zero_point, uint8)
        codes = op.QuantizeLinear(x, step, zero)
        if (quant_min, quant_max) != (0, 255):
            codes = op.Clip(codes, number(quant_min, uint8), number(quant_max, uint8))
        return op.DequantizeLinear(codes, step, zero)

    def dequantize(codes: Any, scale: Any, zero_point: Any, axis: int) -> Any:
        return op.DequantizeLinear(codes, scale, zero_point, axis=axis)

    return {torch.ops.artq.quantize.default: quantize, torch.ops.artq.dequantize.default: dequantize}


def _unknown(error: Exception, graph: fx.Graph, module: nn.Module) -> str:
    """What could not be translated, and where it is."""
    text, cause = "", error
    while cause is not None:
        text += f"{cause}\n"
        cause = cause.__cause__  # type: ignore[assignment]
    name = re.search(r"translating node %(\w+)", text)
    target = re.search(r"target=(?:torch\.ops\.)?([\w.]+)", text)
    operation = target[1] if target else "an operation"
    base = operation.split(".")[-2] if target else ""
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    node = next((n for n in nodes if name and n.name == name[1]), None)
    node = node or next((n for n in nodes if base and base in str(n.target)), None)
    where = f"layer {layer_of(node)!r}" if node is not None else type(module).__name__
    return (
        f"export: {where} uses {operation}, which the ONNX exporter does not know; write the layer with operations that it "
        "knows, or export with --to pt2"
    )
