"""Linear models whose answers and margins are known, as functions, and as files written by hand."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

SHAPE, CLASSES = (1, 4, 4), 3


def linear(shape=SHAPE, classes=CLASSES, seed=0):
    """A linear model with weights of +-1, so that many margins can be closed within a small eps and many cannot."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes))
        with torch.no_grad():
            model[1].weight.sign_()
            model[1].bias.zero_()
    return model.eval()


def images(n=64, shape=SHAPE, seed=1):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def function_of(model, answer=lambda z: z):
    """Its answers as arrays, through which no gradient flows."""

    def predict(x):
        assert isinstance(x, np.ndarray) and x.dtype == np.float32
        with torch.no_grad():
            return answer(model(torch.from_numpy(x))).numpy()

    return predict


ANSWERS = {
    "logits": lambda z: z,
    "probabilities": lambda z: z.softmax(1),
    "rounded probabilities": lambda z: (z.softmax(1) * 255).round() / 255,
    "one-hot": lambda z: nn.functional.one_hot(z.argmax(1), z.shape[1]).float(),
}


# --- Files


def onnx_file(
    path, model, *, before=(), dtype=None, shape=(1, 4, 4), batch="N", stored=(), metadata=None, classes=CLASSES
):
    """A file with ``before``, a flattening and the linear layer. ``before`` are nodes from "image" to "x"."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight, bias = (p.detach().numpy() for p in (model[1].weight, model[1].bias))
    first = "x" if before else "image"
    nodes = [
        *before,
        helper.make_node("Flatten", [first], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("image", dtype or TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, classes])],
        [
            numpy_helper.from_array(v, n)
            for n, v in (("weight", weight), ("bias", bias), *((n, np.asarray(v)) for n, v in stored))
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for key, value in (metadata or {}).items():
        entry = made.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(made)
    onnx.save(made, str(path))
    return path


def tflite_file(path, model, *, scale, zero_point, dtype, answers=None, shape=SHAPE, batch=1):
    """A file with a DEQUANTIZE, a RESHAPE and a FULLY_CONNECTED, of images (1, H, W, C).

    :param answers: scale and zero point of int8 answers; ``None`` for floats.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    channels, height, width = shape
    pixels = channels * height * width
    weight = model[1].weight.detach().numpy().reshape(CLASSES, channels, height, width)
    weight = np.ascontiguousarray(np.moveaxis(weight, 1, -1).reshape(CLASSES, pixels), dtype=np.float32)
    bias = model[1].bias.detach().numpy().astype(np.float32)
    made = schema.ModelT()
    made.version, made.description = 3, "linear"
    made.buffers = []

    def buffer(values=None):
        one = schema.BufferT()
        if values is not None:
            one.data = np.frombuffer(values.tobytes(), dtype=np.uint8)
        made.buffers.append(one)
        return len(made.buffers) - 1

    def tensor(name, sizes, kind, values=None, quantized=None):
        one = schema.TensorT()
        one.name, one.shape, one.type, one.buffer = name.encode(), list(sizes), kind, buffer(values)
        if quantized is not None:
            one.quantization = schema.QuantizationParametersT()
            one.quantization.scale, one.quantization.zeroPoint = [quantized[0]], [quantized[1]]
        return one

    buffer()  # the first is empty
    types = {"uint8": schema.TensorType.UINT8, "int8": schema.TensorType.INT8, "float32": schema.TensorType.FLOAT32}
    given = None if dtype == "float32" else (scale, zero_point)
    graph = schema.SubGraphT()
    graph.name = b"main"
    graph.tensors = [
        tensor("image", (batch, height, width, channels), types[dtype], None, given),
        tensor("floats", (batch, height, width, channels), types["float32"]),
        tensor("sizes", (2,), schema.TensorType.INT32, np.array([batch, pixels], dtype=np.int32)),
        tensor("flat", (batch, pixels), types["float32"]),
        tensor("weight", weight.shape, types["float32"], weight),
        tensor("bias", bias.shape, types["float32"], bias),
        tensor("scores", (batch, CLASSES), types["float32"]),
        *([] if answers is None else [tensor("coded", (batch, CLASSES), types["int8"], None, answers)]),
    ]
    graph.inputs, graph.outputs = [0], [6 if answers is None else 7]
    codes = schema.BuiltinOperator
    kinds = [codes.DEQUANTIZE, codes.RESHAPE, codes.FULLY_CONNECTED, codes.QUANTIZE]
    made.operatorCodes = []
    for kind in kinds:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        made.operatorCodes.append(code)

    def operator(place, inputs, outputs, options=(0, None)):
        one = schema.OperatorT()
        one.opcodeIndex, one.inputs, one.outputs = place, inputs, outputs
        one.builtinOptionsType, one.builtinOptions = options
        return one

    full = (schema.BuiltinOptions.FullyConnectedOptions, schema.FullyConnectedOptionsT())
    reshape = schema.ReshapeOptionsT()
    reshape.newShape = [batch, pixels]
    start = 0 if dtype == "float32" else 1
    graph.operators = [
        *([] if dtype == "float32" else [operator(0, [0], [1])]),
        operator(1, [start, 2], [3], (schema.BuiltinOptions.ReshapeOptions, reshape)),
        operator(2, [3, 4, 5], [6], full),
        *([] if answers is None else [operator(3, [6], [7])]),
    ]
    made.subgraphs = [graph]
    builder = flatbuffers.Builder(4096)
    builder.Finish(made.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path
