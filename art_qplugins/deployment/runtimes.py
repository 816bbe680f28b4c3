"""Runtimes of deployed files, one class each: what a file says of its input, and its answers to an encoded batch.

All run on the CPU in one thread, so that the same images get the same answers. Each is imported where it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from art_qplugins.deployment.inputs import FileInput
from art_qplugins.errors import InputError, shown
from art_qplugins.foreign import raised

__all__ = ["RUNTIMES", "Levels", "LiteRT", "ONNXRuntime", "OpenVINO", "Runtime", "hash_of"]


@dataclass(frozen=True, kw_only=True)
class Levels:
    """A quantized activation: the numbers that its integers stand for, and how far two levels are apart."""

    name: str
    values: NDArray[np.float32]
    step: float


class Runtime(Protocol):
    """A file that is open.

    :ivar input: what the file says of its input.
    :ivar nb_classes: the width of its output, where the file says it.
    """

    input: FileInput
    nb_classes: int | None

    def __init__(self, path: Path) -> None: ...

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """The answers (N, ...) to a batch as the file takes it, as numbers that need no scale."""
        ...

    @staticmethod
    def files(path: Path) -> list[Path]:
        """The files that the model is made of."""
        ...


@contextlib.contextmanager
def _opening(path: Path) -> Iterator[None]:
    """Within, what a runtime raises of a file that it cannot open is one line. Its warnings are about its own code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path.name}: it cannot be opened: {raised(error)}") from error


def _installed(name: str, extra: str, path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the Python that it was built for
            return importlib.import_module(name)
    except ImportError as error:
        if (error.name or "").split(".")[0] != name.split(".")[0]:
            raise
        raise InputError(
            f"{path.name}: {name.split('.')[0]} is not installed; run pip install 'art_qplugins[{extra}]'"
        ) from None


def _only(names: list[str], what: str, path: Path) -> str:
    if len(names) != 1:
        raise InputError(
            f"{path.name}: it has {len(names)} {what}s ({', '.join(names[:4])}); give a file with one, or a function that "
            "asks it"
        )
    return names[0]


class ONNXRuntime:
    """An ONNX file in ONNX Runtime. Biases stay as they were exported: by default it rounds them to 32-bit integers."""

    _TYPES: Mapping[str, str] = {"float": "float32", "float16": "float16", "uint8": "uint8", "int8": "int8"}
    #: ``Image.NominalPixelRange`` of ONNX's metadata, as mean and deviation.
    _RANGES: Mapping[str, tuple[float, float]] = {
        "NominalRange_0_255": (0.0, 1 / 255),
        "Normalized_0_1": (0.0, 1.0),
        "Normalized_1_1": (0.5, 0.5),
    }

    def __init__(self, path: Path) -> None:
        self._session = self._session_of(str(path), path)
        given = {node.name: node for node in self._session.get_inputs()}
        self._name = _only(list(given), "input", path)
        node = given[self._name]
        self._output = _only([out.name for out in self._session.get_outputs()], "output", path)
        dtype = node.type.removeprefix("tensor(").removesuffix(")")
        dtype = self._TYPES.get(dtype, dtype)
        scale, zero_point = _first_scale(path, self._name) if dtype in ("uint8", "int8") else (None, 0)
        said = self._session.get_modelmeta().custom_metadata_map.get("Image.NominalPixelRange")
        if said not in (None, *self._RANGES):
            raise InputError(
                f"{path.name}: it says that its pixels are {shown(said)}; it must be one of {', '.join(self._RANGES)}. Give a "
                "function that scales them and asks the file"
            )
        mean, std = self._RANGES.get(said, (None, None))
        self.input = FileInput(
            shape=tuple(_length(axis) for axis in node.shape),
            dtype=dtype,
            scale=scale,
            zero_point=zero_point,
            mean=None if mean is None else [mean],
            std=None if std is None else [std],
        )
        width = self._session.get_outputs()[0].shape
        self.nb_classes = _length(width[-1]) if len(width) == 2 else None

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        answers: NDArray[Any] = self._session.run([self._output], {self._name: batch})[0]
        return answers

    def levels(self, path: Path, batch: NDArray[Any]) -> list[Levels]:
        """The integers before each DequantizeLinear of an activation. They are outputs of fused kernels, so showing them changes none."""
        onnx = _installed("onnx", "onnx", path)
        model = onnx.load(str(path))
        stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        nodes = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] not in stored]
        scales = {
            n.input[0]: [stored[key] for key in n.input[1:] if key in stored] for n in nodes if n.input[0] != self._name
        }
        scales = {name: found for name, found in scales.items() if found and all(v.size == 1 for v in found)}
        for name, found in scales.items():
            dtype = onnx.helper.np_dtype_to_tensor_dtype(found[1].dtype) if len(found) > 1 else onnx.TensorProto.UINT8
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, dtype, None))
        answers = self._session_of(model.SerializeToString(), path).run(list(scales), {self._name: batch})
        result = []
        for (name, found), integers in zip(scales.items(), answers, strict=True):
            scale, zero = float(found[0].reshape(())), int(found[1].reshape(())) if len(found) > 1 else 0
            values = ((integers.astype(np.float64) - zero) * scale).astype(np.float32)
            result.append(Levels(name=name, values=values, step=scale))
        return result

    @staticmethod
    def _session_of(model: str | bytes, path: Path) -> Any:
        runtime = _installed("onnxruntime", "onnx", path)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what it refuses, it raises
        with _opening(path):
            return runtime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
            )

    @staticmethod
    def files(path: Path) -> list[Path]:
        onnx = _installed("onnx", "onnx", path)
        with _opening(path):
            graph = onnx.load(str(path), load_external_data=False).graph
        kept = (entry.value for t in graph.initializer for entry in t.external_data if entry.key == "location")
        return [path, *(path.parent / name for name in sorted(set(kept)))]


def _first_scale(path: Path, name: str) -> tuple[float | None, int]:
    """The scale and the zero point with which the graph reads its integer input, if that is the first thing it does."""
    onnx = _installed("onnx", "onnx", path)
    graph = onnx.load(str(path), load_external_data=False).graph
    values = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] == name and node.input[1] in values:
            scale, *zero = (onnx.numpy_helper.to_array(values[key]) for key in node.input[1:] if key in values)
            if scale.size == 1:
                return float(scale.reshape(())), int(zero[0].reshape(())) if zero else 0
    return None, 0


class LiteRT:
    """A TFLite file in LiteRT. Integers that it answers with become the numbers that they stand for."""

    def __init__(self, path: Path) -> None:
        interpreter = _installed("ai_edge_litert.interpreter", "litert", path).Interpreter
        with _opening(path):
            self._interpreter = interpreter(model_path=str(path), num_threads=1)
            self._interpreter.allocate_tensors()
        details = {one["name"]: one for one in self._interpreter.get_input_details()}
        self._given = details[_only(list(details), "input", path)]
        details = {one["name"]: one for one in self._interpreter.get_output_details()}
        self._answered = details[_only(list(details), "output", path)]
        signature = self._given.get("shape_signature")
        shape = self._given["shape"] if signature is None or not len(signature) else signature
        scale, zero_point = self._given["quantization"]
        self.input = FileInput(
            shape=tuple(None if axis < 0 else int(axis) for axis in shape),
            dtype=np.dtype(self._given["dtype"]).name,
            scale=float(scale) or None,
            zero_point=int(zero_point),
        )
        width = self._answered["shape"]
        self.nb_classes = int(width[-1]) if len(width) == 2 else None

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        model, place = self._interpreter, self._given["index"]
        if tuple(model.get_input_details()[0]["shape"]) != batch.shape:
            model.resize_tensor_input(place, batch.shape)
            model.allocate_tensors()
        model.set_tensor(place, batch)
        model.invoke()
        answers: NDArray[Any] = model.get_tensor(self._answered["index"])
        scale, zero_point = self._answered["quantization"]
        return answers if not scale else (answers.astype(np.float32) - zero_point) * np.float32(scale)

    @staticmethod
    def files(path: Path) -> list[Path]:
        return [path]


class OpenVINO:
    """An OpenVINO model on the CPU. It computes in float32: by default it takes bfloat16 where the processor has it."""

    def __init__(self, path: Path) -> None:
        openvino = _installed("openvino", "openvino", path)
        with _opening(path):
            core = openvino.Core()
            hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
            self._model = core.compile_model(core.read_model(str(path)), "CPU", hints)
        _only([port.any_name for port in self._model.inputs], "input", path)
        _only([str(number) for number in range(len(self._model.outputs))], "output", path)
        port, answers = self._model.input(0), self._model.output(0)
        layout = str(port.node.layout).strip("[]").replace(",", "")
        self.input = FileInput(
            shape=_dimensions(port.partial_shape),
            dtype=port.element_type.to_dtype().name,
            layout=layout if layout in ("NCHW", "NHWC") else None,
        )
        width = _dimensions(answers.partial_shape)
        self.nb_classes = width[-1] if len(width) == 2 else None

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        answers: NDArray[Any] = self._model(batch)[0]
        return answers

    @staticmethod
    def files(path: Path) -> list[Path]:
        return [path, *([weights] if (weights := path.with_suffix(".bin")).exists() else [])]


def _dimensions(shape: Any) -> tuple[int | None, ...]:
    return tuple(axis.get_length() if axis.is_static else None for axis in shape)


def _length(axis: Any) -> int | None:
    """The length of an axis; ``None`` where it has a name or none."""
    return axis if isinstance(axis, int) and axis > 0 else None


def hash_of(files: list[Path]) -> str:
    """SHA-256 of the content of some files."""
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as stream:
                while block := stream.read(2**20):
                    digest.update(block)
        except OSError as error:
            raise InputError(f"{file.name}: it cannot be read: {raised(error)}") from None
    return digest.hexdigest()


#: By the suffix of a file.
RUNTIMES: Mapping[str, type[Runtime]] = {".onnx": ONNXRuntime, ".tflite": LiteRT, ".xml": OpenVINO}
