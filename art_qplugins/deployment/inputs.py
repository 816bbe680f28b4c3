"""Pixels as a deployed file takes them: the order of axes, the type, scale and zero point, mean and deviation.

A file takes r = (x - mean) / std of pixels x in [0, 1] as floats, or as integers round(r / scale) + zero_point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from art_qplugins.domains import FINITE, MOST, POSITIVE, Domain, ListOf, Maybe, Number, OneOf, check
from art_qplugins.errors import InputError, did_you_mean, shown

__all__ = ["INPUTS", "FileInput", "Inputs", "inputs_of"]

#: What may be said of the inputs of a file, beside what the file says.
INPUTS: Mapping[str, Domain] = {
    "layout": Maybe(OneOf(("NCHW", "NHWC"))),
    "dtype": Maybe(OneOf(("float32", "float16", "uint8", "int8"))),
    "scale": Maybe(POSITIVE),
    "zero_point": Maybe(Number(-MOST, MOST, whole=True)),
    "mean": Maybe(ListOf(FINITE, least=1, different=False)),
    "std": Maybe(ListOf(POSITIVE, least=1, different=False)),
}
#: Numbers of channels by which an order of axes is told.
_CHANNELS = (1, 3)
#: Where a file does not say what its integers stand for, pixels may leave their range by so much of it, ...
_OUTSIDE = 0.1
#: ... and must fill so much of it.
_FILLED = 0.6


@dataclass(frozen=True, kw_only=True)
class FileInput:
    """What a file says of its input.

    :ivar shape: four axes, the first of which counts images; ``None`` where any number fits.
    :ivar scale: of integers, where the file says it. ``layout``, ``mean`` and ``std`` likewise.
    """

    shape: tuple[int | None, ...]
    dtype: str
    scale: float | None = None
    zero_point: int = 0
    layout: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The input of a file, all of it known.

    :ivar scale: of integers; ``None`` for floats.
    :ivar mean: one number, or one for each channel. ``std`` likewise.
    """

    layout: str
    dtype: str
    scale: float | None
    zero_point: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def encode(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """Pixels (N, C, H, W) in [0, 1] as the file takes them. Integers are rounded half to even and saturate."""
        values = (x - _per_channel(self.mean)) / _per_channel(self.std)
        if self.scale is not None:
            kind = np.iinfo(self.dtype)
            levels = np.rint(values.astype(np.float64) / self.scale) + self.zero_point
            values = np.clip(levels, kind.min, kind.max)
        ordered = values if self.layout == "NCHW" else np.moveaxis(values, 1, -1)
        return np.ascontiguousarray(ordered, dtype=self.dtype)

    def decode(self, taken: NDArray[Any]) -> NDArray[np.float32]:
        """What the file takes as pixels (N, C, H, W), the nearest ones in [0, 1]."""
        values = np.asarray(taken if self.layout == "NCHW" else np.moveaxis(taken, -1, 1), dtype=np.float64)
        if self.scale is not None:
            values = (values - self.zero_point) * self.scale
        pixels = values * _per_channel(self.std).astype(np.float64) + _per_channel(self.mean)
        return np.ascontiguousarray(pixels.clip(0, 1), dtype=np.float32)

    @property
    def levels(self) -> int | None:
        """Number of values that a pixel has for the file, of the channel with the most; ``None`` for floats."""
        if self.scale is None:
            return None
        return int(np.floor(1 / (self.scale * min(self.std)) + 1e-6)) + 1


def inputs_of(
    file: FileInput, given: Mapping[str, Any], shape: tuple[int, ...] | None, *, name: str
) -> tuple[Inputs, tuple[int, int, int], int | None]:
    """The input of a file, the shape (C, H, W) of an image, and how many images the file takes at once.

    :param given: what is known beside the file; see :data:`INPUTS`. It must not contradict the file.
    :param shape: (C, H, W) of the images, where that is known.
    :param name: of the file, for messages.
    :return: the number of images is ``None`` where it may be any.
    :raises InputError: where something is not known, or contradicts the file.
    """
    for key, value in given.items():
        if key not in INPUTS:
            raise InputError(f"inputs: unknown key {key!r}{did_you_mean(key, INPUTS)}")
        check(f"inputs.{key}", value, INPUTS[key])
    known = {key: value for key, value in given.items() if value is not None}
    if file.dtype not in ("float32", "float16", "uint8", "int8"):
        raise InputError(f"{name}: its input is {file.dtype}; it must be float32, float16, uint8 or int8")
    for key in ("dtype", "layout"):
        said = getattr(file, key)
        if said is not None and known.get(key, said) != said:
            raise InputError(f"inputs.{key}: it is {known[key]!r}, and {name} says {said!r}; leave it out")
    layout, image = _layout(file, known.get("layout"), shape, name)
    mean = tuple(known.get("mean", file.mean or (0.0,)))
    std = tuple(known.get("std", file.std or (1.0,)))
    for key, several in (("mean", mean), ("std", std)):
        if len(several) not in (1, image[0]):
            raise InputError(
                f"inputs.{key}: it has {len(several)} numbers, and images have {image[0]} channels; give one for each"
            )
    scale, zero_point = _scale(file, known, mean, std, name)
    inputs = Inputs(layout=layout, dtype=file.dtype, scale=scale, zero_point=zero_point, mean=mean, std=std)
    return inputs, image, file.shape[0]


def _layout(
    file: FileInput, given: str | None, shape: tuple[int, ...] | None, name: str
) -> tuple[str, tuple[int, int, int]]:
    """The order of axes, and (C, H, W)."""
    axes = file.shape[1:]
    if len(axes) != 3:
        raise InputError(
            f"{name}: its input has the shape {shown(file.shape)}; it must have four axes, (N, C, H, W) or (N, H, W, C). "
            "Give a function that reshapes images, in place of the file"
        )
    found = {}
    for layout, own in (("NCHW", axes), ("NHWC", (axes[2], axes[0], axes[1]))):
        known = given or file.layout
        if known not in (None, layout) or (known is None and shape is None and own[0] not in _CHANNELS):
            continue
        whole = tuple(own) if shape is None else shape
        if len(whole) == 3 and all(mine in (None, length) for mine, length in zip(own, whole, strict=True)):
            found[layout] = whole
    if not found:
        wanted = "images with 1 or 3 channels" if shape is None else f"images {tuple(shape)}"
        raise InputError(f"{name}: its input {shown(file.shape)} does not fit {wanted}; give inputs = {{layout = ...}}")
    if len(found) > 1:
        raise InputError(
            f"{name}: its input {shown(file.shape)} may be (N, C, H, W) or (N, H, W, C); give inputs = {{layout = "
            '"NCHW"} or {layout = "NHWC"}'
        )
    ((layout, image),) = found.items()
    if None in image:
        raise InputError(
            f"{name}: its input {shown(file.shape)} leaves the size of images open; give input_shape, (C, H, W)"
        )
    channels, height, width = (int(length or 0) for length in image)
    return layout, (channels, height, width)


def _scale(
    file: FileInput, known: Mapping[str, Any], mean: Sequence[float], std: Sequence[float], name: str
) -> tuple[float | None, int]:
    """The scale and the zero point of integers; ``None`` for floats."""
    if file.dtype.startswith("float"):
        if typed := [key for key in ("scale", "zero_point") if key in known]:
            raise InputError(f"inputs.{typed[0]}: {name} takes {file.dtype}, which has none; give mean and std")
        return None, 0
    scale, zero_point = known.get("scale", file.scale), known.get("zero_point", file.zero_point)
    kind = np.iinfo(file.dtype)
    if scale is None and file.dtype == "uint8" and (mean, std) == ((0.0,), (1.0,)):
        return 1 / 255, zero_point  # the bytes of an image file
    if scale is None:
        raise InputError(
            f"{name}: it takes {file.dtype} and does not say for what; give inputs = {{scale = ..., zero_point = ...}}"
        )
    low, high = (kind.min - zero_point) * scale, (kind.max - zero_point) * scale
    darkest = min((0 - m) / s for m, s in zip(*_pairs(mean, std), strict=True))
    brightest = max((1 - m) / s for m, s in zip(*_pairs(mean, std), strict=True))
    beyond = max(low - darkest, brightest - high) > _OUTSIDE * (high - low)
    said = {"mean", "std"} & known.keys() or file.mean is not None
    if beyond or (not said and brightest - darkest < _FILLED * (high - low)):
        raise InputError(
            f"{name}: its {file.dtype} stand for [{low:.3g}, {high:.3g}], and pixels in [0, 1] become [{darkest:.3g}, "
            f"{brightest:.3g}]; give inputs = {{mean = [...], std = [...]}} as they were in training"
        )
    return float(scale), int(zero_point)


def _pairs(mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], list[float]]:
    most = max(len(mean), len(std))
    return [*mean] * (most // len(mean)), [*std] * (most // len(std))


def _per_channel(values: Sequence[float]) -> NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32)[None, :, None, None]
