"""Deployed files as functions of pixels: ONNX, TFLite and OpenVINO."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from art_qplugins.deployment.inputs import Inputs, inputs_of
from art_qplugins.deployment.runtimes import RUNTIMES, Levels, Runtime, hash_of
from art_qplugins.domains import COUNT, PATH, TABLE, ListOf, Maybe, check_all
from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.files import as_path, printable

__all__ = ["DeployedFile", "is_file", "open_deployed"]

_HINT = "give the path of an .onnx, .tflite or OpenVINO .xml file"


class DeployedFile:
    """The answers of a file to pixels (N, C, H, W) float32 in [0, 1]. It is pickled as its path, and opened again there.

    :ivar inputs: how pixels become what the file takes.
    :ivar identity: SHA-256 of the file, and of those that it names.
    """

    def __init__(self, path: Path, runtime: Runtime, inputs: Inputs, batch: int | None, identity: str) -> None:
        self.path, self.inputs = path, inputs
        self.identity = f"{identity} {inputs}"
        self._runtime: Runtime | None = runtime
        self._batch = batch  # images that the file takes at once; None for any number

    def __call__(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """Scores (N, K). A last batch that is too small for the file is filled up with copies of its last image."""
        taken = self.inputs.encode(x)
        size = self._batch or max(1, len(taken))
        parts = []
        for start in range(0, len(taken), size):
            part = taken[start : start + size]
            missing = 0 if self._batch is None else size - len(part)
            filled = np.concatenate([part, np.repeat(part[-1:], missing, 0)]) if missing else part
            parts.append(np.array(self.runtime.run(filled))[: len(part)])  # a copy: a runtime may use its memory again
        return np.concatenate(parts)

    @property
    def reading(self) -> str | None:
        """How it rounds pixels; ``None`` where it takes floats."""
        return f"as {self.inputs.dtype}, on a grid of {self.inputs.levels} levels" if self.inputs.levels else None

    def seen(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The images as the file reads them."""
        return x if self.reading is None else self.inputs.decode(self.inputs.encode(x))

    def levels(self, x: NDArray[np.float32]) -> list[Levels]:
        """The quantized activations inside the file, in their order; none where its runtime does not show them."""
        show = getattr(self.runtime, "levels", None)
        return [] if show is None else show(self.path, self.inputs.encode(x[: self._batch]))

    @property
    def runtime(self) -> Runtime:
        if self._runtime is None:
            found, identity = _opened(self.path)
            if not self.identity.startswith(identity):
                raise InputError(f"{printable(self.path)}: it is another file than before; run the same command again")
            self._runtime = found
        return self._runtime

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_runtime": None}


def is_file(name: str) -> bool:
    """Whether the name of a model is that of a deployed file, by its suffix."""
    return Path(name).suffix.lower() in RUNTIMES


def open_deployed(
    path: str | os.PathLike[str],
    *,
    inputs: Mapping[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
    nb_classes: int | None = None,
) -> tuple[DeployedFile, tuple[int, int, int], int | None]:
    """Open a deployed file as a function of pixels.

    :param path: an ``.onnx``, a ``.tflite``, or an OpenVINO ``.xml`` with its ``.bin``.
    :param inputs: what the file does not say of its input: ``layout``, ``scale``, ``zero_point``, ``mean``, ``std``; see
        :data:`~art_qplugins.deployment.inputs.INPUTS`. By default floats are pixels in [0, 1], and uint8 are those of an image
        file.
    :param input_shape: (C, H, W), where the file leaves it open.
    :param nb_classes: where the file does not say it.
    :return: the function, (C, H, W), and the number of classes, ``None`` where nobody says it.
    :raises InputError: where the file or its runtime is missing, or something is not known.
    """
    shapes = Maybe(ListOf(COUNT, least=3, most=3, different=False))
    check_all(locals(), {"path": PATH, "inputs": Maybe(TABLE), "input_shape": shapes, "nb_classes": Maybe(COUNT)})
    place = as_path(path, hint=_HINT).absolute()
    runtime, identity = _opened(place)
    shape = None if input_shape is None else tuple(map(int, input_shape))
    known, image, batch = inputs_of(runtime.input, inputs or {}, shape, name=printable(place.name))
    classes = runtime.nb_classes if nb_classes is None else nb_classes
    if runtime.nb_classes not in (None, classes):
        raise InputError(f"nb_classes: it is {nb_classes}, and {place.name} answers with {runtime.nb_classes} numbers")
    return DeployedFile(place, runtime, known, batch, identity), image, classes


def _opened(path: Path) -> tuple[Runtime, str]:
    """The runtime of a file, and a hash of the file."""
    if path.suffix.lower() not in RUNTIMES:
        raise InputError(f"{printable(path)}: no runtime is known for {path.suffix or 'it'!r}; {_HINT}")
    if not path.is_file():
        near = [str(p) for p in path.parent.glob("*") if p.suffix in RUNTIMES] if path.parent.is_dir() else []
        raise InputError(f"{printable(path)}: no such file{did_you_mean(str(path), near) if near else f'; {_HINT}'}")
    kind = RUNTIMES[path.suffix.lower()]
    runtime = kind(path)
    return runtime, hash_of(kind.files(path))
