"""Checks of images and labels, given as arrays or tensors. torch is not imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from art_qplugins.domains import TEXT, ListOf, check
from art_qplugins.errors import InputError, shown

__all__ = ["MOST_CLASSES", "as_array", "check_classes", "check_images", "check_labels"]

#: Three times the classes of the largest public image data set.
MOST_CLASSES = 2**16


def as_array(x: Any, *, where: str = "x") -> np.ndarray:
    """``x`` as a NumPy array, without a copy where none is needed.

    :param x: an array, a tensor on any device, or a nested list.
    :param where: name of the input in the message.
    :raises InputError: where it cannot be one.
    """
    try:
        if hasattr(x, "detach"):
            x = x.detach().cpu()
            if x.is_floating_point():
                x = x.float()  # NumPy has no bfloat16
            x = x.numpy()
        try:
            return np.asarray(x)
        except ValueError:  # a ragged list
            return np.asarray(x, dtype=object)
    except Exception:  # sparse tensors, lists that hold themselves, objects with an odd __array__
        raise InputError(f"{where}: it is {shown(x)}, which is no array; give an array or a dense tensor") from None


def check_images(x: Any, *, where: str = "x") -> None:
    """Raise :class:`InputError` unless ``x`` is a non-empty batch of images.

    :param x: (N, C, H, W); floats in [0, 1], or uint8, where 255 means 1.0.
    :param where: name of the input in the message, e.g. ``"npz:faces.npz: x_test"``.
    """
    x = as_array(x, where=where)
    if x.ndim != 4:
        raise InputError(f"{where}: {x.ndim} dimensions {x.shape}, not 4; give images as (N, C, H, W)")
    if not x.size:
        raise InputError(f"{where}: empty, its shape is {x.shape}; give at least one image")
    if x.shape[3] in (1, 3) and x.shape[1] not in (1, 3) and x.shape[2] > 1:
        raise InputError(f"{where}: {x.shape} looks like (N, H, W, C); transpose it with x.transpose(0, 3, 1, 2)")
    if x.dtype == np.uint8:
        return
    if not np.issubdtype(x.dtype, np.floating):
        raise InputError(f"{where}: pixels are {x.dtype}; give uint8 in 0 to 255, or floats in [0, 1]")
    # Images are used in float32. There a float64 of about 1 is exactly 1.
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = np.float32(x.min()), np.float32(x.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        _raise_not_finite(x, where)
    if low < 0 or high > 1:
        eight_bit = low >= 0 and high <= 255
        hint = "divide by 255, or store uint8" if eight_bit else "undo any normalization: the model does it inside"
        raise InputError(f"{where}: pixels go from {low:.9g} to {high:.9g}, not within [0, 1]; {hint}")


def _raise_not_finite(x: np.ndarray, where: str) -> None:
    with np.errstate(over="ignore"):
        bad = np.argwhere(~np.isfinite(x.astype(np.float32)))
    first = ", ".join(map(str, bad[0]))
    raise InputError(f"{where}: {len(bad)} pixels are NaN or infinite, the first at [{first}]; correct or remove them")


def check_labels(y: Any, nb_classes: int | None, n: int, *, where: str = "y") -> None:
    """Raise :class:`InputError` unless ``y`` holds one class index for each of ``n`` images.

    :param y: (N,) integers in [0, ``nb_classes``).
    :param nb_classes: number of classes. ``None`` derives it from the labels; at most 65,536.
    :param n: number of images.
    :param where: name of the input in the message.
    """
    y = as_array(y, where=where)
    if y.ndim != 1:
        hint = "for one-hot labels give y.argmax(1)" if y.ndim == 2 else "give one class index per image"
        raise InputError(f"{where}: {y.ndim} dimensions {y.shape}, not 1; {hint}")
    if len(y) != n:
        raise InputError(f"{where}: {len(y)} labels for {n} images; give one per image")
    if not np.issubdtype(y.dtype, np.integer):
        raise InputError(f"{where}: labels are {y.dtype}; give integers, e.g. y.astype('int64')")
    if nb_classes is not None and nb_classes < 2:
        raise InputError(
            f"{where}: fewer than 2 classes ({nb_classes}); name all classes, or add images of a second one"
        )
    bad = np.flatnonzero((y < 0) | (y >= (MOST_CLASSES if nb_classes is None else nb_classes)))
    if len(bad):
        outside = f"outside 0 to {(MOST_CLASSES if nb_classes is None else nb_classes) - 1}"
        raise InputError(
            f"{where}: {len(bad)} labels {outside}, the first is {y[bad[0]]} at [{bad[0]}]; "
            f"correct it, or name all classes"
        )


def check_classes(classes: Sequence[str], *, where: str = "classes") -> tuple[str, ...]:
    """The names of the classes.

    :raises InputError: unless they are different texts, at most 65,536.
    """
    if isinstance(classes, (list, tuple)) and len(classes) > MOST_CLASSES:
        raise InputError(f"{where}: {len(classes)} classes, more than {MOST_CLASSES}; name those that have images")
    return tuple(check(where, classes, ListOf(TEXT, least=1, most=MOST_CLASSES)))
