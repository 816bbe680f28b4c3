"""Arrays in an ``.npz`` file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from art_qplugins.arrays import Header, read_arrays, read_headers
from art_qplugins.data.checks import check_classes, check_images, check_labels
from art_qplugins.data.dataset import Dataset, Split, class_names, make_dataset, row_ids, split_rows
from art_qplugins.data.paths import find
from art_qplugins.errors import InputError
from art_qplugins.files import printable

__all__ = ["all_used", "from_npz"]

_HINT = "write it with np.savez"


def from_npz(name: str, split: Split, *, root: Path, download: bool) -> Dataset:
    """Arrays ``x_train, y_train, x_test, y_test``, or ``x, y`` that are split 80 to 20, each class in proportion.

    Images are (N, C, H, W), uint8 or floats in [0, 1]. Labels are (N,) integers. ``classes`` may name the labels. Without it
    every label from 0 to the greatest has to belong to an image. Both splits have images of one size.
    """
    path = find(name, root)
    where = f"npz:{printable(path)}"
    headers = read_headers(path, where="npz:", hint=_HINT)
    whole = "x" in headers or "y" in headers
    x_key, y_key = ("x", "y") if whole else (f"x_{split}", f"y_{split}")
    if absent := [key for key in (x_key, y_key) if key not in headers]:
        raise InputError(f"{where}: no array {absent[0]!r} among {sorted(headers)}; store it with np.savez")
    # Both splits together define the classes, so that a label means the same in both.
    keys = ["y"] if whole else [key for key in ("y_train", "y_test") if key in headers]
    _check_splits(where, headers)
    arrays = read_arrays(path, where="npz:", hint=_HINT, names={x_key, *keys, "classes"})
    x, y = arrays[x_key], arrays[y_key]
    check_images(x, where=f"{where}: {x_key}")
    classes = _classes(where, arrays["classes"]) if "classes" in arrays else None
    for key in keys:
        n = len(x) if key == y_key else arrays[key].size
        check_labels(arrays[key], None if classes is None else len(classes), n, where=f"{where}: {key}")
    classes = classes or all_used(where, np.concatenate([arrays[key] for key in keys]))
    rows = split_rows(y, split, test_share=0.2) if whole else np.arange(len(y))
    ids = row_ids(f"{path.stem}/{split}", rows, len(y))
    return make_dataset(x[rows], y[rows], name=name, split=split, ids=ids, classes=classes)


def _check_splits(where: str, headers: dict[str, Header]) -> None:
    """A network that is trained on one split has to take the images of the other."""
    train, test = (headers[key].shape[1:] if key in headers else None for key in ("x_train", "x_test"))
    if train is not None and test is not None and train != test:
        raise InputError(f"{where}: images of x_train are {train} and those of x_test {test}; give both one size")


def _classes(where: str, names: NDArray[Any]) -> tuple[str, ...]:
    if names.ndim != 1 or names.dtype.kind not in "iuU":
        raise InputError(f"{where}: classes: {names.dtype} {names.shape}; give a list of texts, one for each label")
    return check_classes(names.astype(str).tolist(), where=f"{where}: classes")


def all_used(where: str, labels: NDArray[Any]) -> tuple[str, ...]:
    """The classes of labels without names. A label far from the others is a mistake, such as 255 for "unknown"."""
    used, wanted = np.unique(labels), int(labels.max()) + 1
    if len(used) < wanted:
        absent = int(np.setdiff1d(np.arange(wanted), used)[0])
        raise InputError(
            f"{where}: labels go to {wanted - 1}, and no image has the label {absent}; number the classes from 0 without "
            "gaps, or name all of them in an array 'classes'"
        )
    return class_names(labels)
