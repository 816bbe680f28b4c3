"""Answers of an exported ONNX file in ONNX Runtime, on the CPU."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from art_qplugins.errors import InputError

__all__ = ["Session"]


class Session:
    """``session(x)`` gives the outputs of the file for x (N, C, H, W) float32 in [0, 1].

    Biases stay as the file has them.

    :param path: of a file that :func:`~art_qplugins.deployment.export.export` wrote.
    :param threads: of one answer; ``None`` for ONNX Runtime's choice.
    :raises InputError: where onnxruntime is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise InputError("running an ONNX file needs onnxruntime; pip install 'art_qplugins[onnx]'") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        # This optimizer rounds float biases to s_x s_w.
        self._session: Any = onnxruntime.InferenceSession(
            os.fspath(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["WeightBiasQuantization"],
        )
        self._input = self._session.get_inputs()[0].name

    def __call__(self, x: np.ndarray, batch_size: int = 128) -> np.ndarray:
        """(N, K) float32."""
        parts = [self._session.run(None, {self._input: x[i : i + batch_size]})[0] for i in range(0, len(x), batch_size)]
        return np.concatenate(parts)
