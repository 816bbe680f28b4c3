"""Arrays in an ``.npz`` file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from art_qplugins.data.checks import check_images, check_labels
from art_qplugins.data.dataset import Dataset, Split, class_names, make_dataset, row_ids, split_rows
from art_qplugins.data.paths import find, one_line
from art_qplugins.errors import InputError

__all__ = ["from_npz"]


def from_npz(name: str, split: Split, *, root: Path, download: bool) -> Dataset:
    """Arrays ``x_train, y_train, x_test, y_test``, or ``x, y`` that are split 80 to 20, each class in proportion.

    Images are (N, C, H, W), uint8 or floats in [0, 1]. Labels are (N,) integers. ``classes`` may name the labels.
    """
    path = find(name, root)
    arrays = _read(name, path)
    whole = "x" in arrays or "y" in arrays
    x_key, y_key = ("x", "y") if whole else (f"x_{split}", f"y_{split}")
    if absent := [key for key in (x_key, y_key) if key not in arrays]:
        raise InputError(f"{name}: no array {absent[0]!r} among {sorted(arrays)}; store it with np.savez")
    x, y = arrays[x_key], arrays[y_key]
    check_images(x, where=f"{name}: {x_key}")
    classes = tuple(str(c) for c in np.atleast_1d(arrays["classes"])) if "classes" in arrays else None
    # Both splits together define the number of classes, so that a label means the same in both.
    keys = ["y"] if whole else [key for key in ("y_train", "y_test") if key in arrays]
    for key in keys:
        n = len(x) if key == y_key else arrays[key].size
        check_labels(arrays[key], None if classes is None else len(classes), n, where=f"{name}: {key}")
    classes = classes or class_names(np.concatenate([arrays[key] for key in keys]))
    rows = split_rows(y, split, test_share=0.2) if whole else np.arange(len(y))
    ids = row_ids(f"{path.stem}/{split}", rows, len(y))
    return make_dataset(x[rows], y[rows], name=name, split=split, ids=ids, classes=classes)


def _read(name: str, path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    # A .npy file is an array and no archive. `with` then raises an AttributeError in Python 3.10, and a TypeError
    # later.
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{name}: cannot read {path} ({one_line(error)}); write it with np.savez") from error
