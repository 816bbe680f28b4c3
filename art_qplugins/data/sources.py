"""Where data sets come from: scikit-learn's digits, torchvision's classes, folders of images, ``.npz`` files.

What is not embedded is looked for under ``root``, else the environment's ``ARTQ_DATA``, else the platform's cache
folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from art_qplugins.data.cache import Arrays, cached, user_folder
from art_qplugins.data.checks import as_array, check_images, check_labels
from art_qplugins.data.dataset import Dataset, Split, class_names, make_dataset, row_ids, split_rows
from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.registry import Entry, Registry

logger = logging.getLogger(__name__)

DATASETS: Registry[Entry] = Registry(
    "data set",
    [
        Entry(name=name, target=f"{__name__}:{target}", help=line)
        for name, target, line in (
            ("digits", "digits", "8x8 gray, 10 classes, 1,797 images; comes with scikit-learn"),
            ("mnist", "from_torchvision", "28x28 gray digits, 60,000 + 10,000 images"),
            ("fashion-mnist", "from_torchvision", "28x28 gray clothes, 60,000 + 10,000 images"),
            ("cifar10", "from_torchvision", "32x32 color, 10 classes, 50,000 + 10,000 images"),
            ("svhn", "from_torchvision", "32x32 color house numbers, 73,257 + 26,032 images"),
            ("folder:PATH", "from_folder", "images in PATH/CLASS/, or in PATH/train/CLASS/ and PATH/test/CLASS/"),
            ("npz:PATH", "from_npz", "arrays x and y, or x_train, y_train, x_test and y_test"),
        )
    ],
)


def load(name: str, split: Split, *, root: str | os.PathLike[str] | None = None, download: bool = False) -> Dataset:
    """One split of a data set.

    :param name: a name in :data:`DATASETS`, with a path in place of ``PATH``.
    :param split: ``"train"`` or ``"test"``.
    :param root: where data sets lie; by default ``ARTQ_DATA``, else the platform's cache folder.
    :param download: fetch what is missing, where torchvision can.
    :raises InputError: for an unknown name or split, and for data that are missing, broken or out of range.
    """
    if split not in ("train", "test"):
        raise InputError(f"{name}: unknown split {split!r}{did_you_mean(split, ('train', 'test'))}")
    pattern = f"{name.partition(':')[0]}:PATH"
    entry = DATASETS[pattern if ":" in name and pattern in DATASETS else name]
    folder = Path(root).expanduser() if root else user_folder("ARTQ_DATA")
    return entry.load()(name, split, root=folder, download=download)


def digits(name: str, split: Split, *, root: Path, download: bool) -> Dataset:
    """The digits of scikit-learn, pixels 0 to 16: 1,198 to train, 599 to test, a fixed stratified split."""
    from sklearn.datasets import load_digits

    source = load_digits()
    rows = split_rows(source.target, split, test_share=1 / 3)
    return make_dataset(
        source.images[rows, None].astype(np.uint8),
        source.target[rows],
        name=name,
        split=split,
        ids=row_ids(f"{name}/{split}", rows, len(source.target)),
        classes=tuple("0123456789"),
        scale=16,
    )


# --- torchvision


@dataclass(frozen=True, kw_only=True)
class _Torchvision:
    """A class of ``torchvision.datasets``, the files it needs and the axes of its ``data``."""

    cls: str
    files: tuple[str, ...]
    axes: str
    classes: tuple[str, ...] = tuple("0123456789")


_IDX = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_CIFAR = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")

_TORCHVISION = {
    "mnist": _Torchvision(cls="MNIST", files=tuple(f"MNIST/raw/{file}" for file in _IDX), axes="NHW"),
    "fashion-mnist": _Torchvision(
        cls="FashionMNIST",
        files=tuple(f"FashionMNIST/raw/{file}" for file in _IDX),
        axes="NHW",
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
    "cifar10": _Torchvision(
        cls="CIFAR10",
        files=tuple(f"cifar-10-batches-py/{file}" for file in _CIFAR),
        axes="NHWC",
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "svhn": _Torchvision(cls="SVHN", files=("{split}_32x32.mat",), axes="NCHW"),
}

_TO_NCHW = {
    "NHW": lambda images: images[:, None],
    "NHWC": lambda images: images.transpose(0, 3, 1, 2),
    "NCHW": lambda images: images,
}


def from_torchvision(name: str, split: Split, *, root: Path, download: bool) -> Dataset:
    spec = _TORCHVISION[name]
    files = [root / file.format(split=split) for file in spec.files]
    missing = next((file for file in files if not file.is_file()), None)
    if missing and not download:
        raise InputError(f"{name}: no {missing}; fetch it with --download, or say where it is with --data-root DIR")
    # Only after the download are there files to stamp.
    arrays = _read_torchvision(name, split, root, download) if missing else None
    source = [name, split, [_stamp(file) for file in files]]
    images, labels = cached(f"{name}-{split}", source, lambda: arrays or _read_torchvision(name, split, root, download))
    ids = row_ids(f"{name}/{split}", np.arange(len(images)), len(images))
    return make_dataset(images, labels, name=name, split=split, ids=ids, classes=spec.classes)


def _read_torchvision(name: str, split: Split, root: Path, download: bool) -> Arrays:
    import torchvision.datasets

    spec = _TORCHVISION[name]
    part: dict[str, Any] = {"split": split} if name == "svhn" else {"train": split == "train"}
    try:
        data = getattr(torchvision.datasets, spec.cls)(root, download=download, **part)
    except (RuntimeError, OSError, ValueError, AssertionError, EOFError, HTTPException) as error:
        what, then = (
            ("cannot download to", "check the network and the folder, or say where it is with --data-root DIR")
            if download
            else ("broken files in", "delete them and fetch them again with --download")
        )
        folder = (root / spec.files[0]).parent
        raise InputError(f"{name}: {what} {folder} ({_one_line(error)}); {then}") from error
    labels = data.labels if name == "svhn" else data.targets
    return np.ascontiguousarray(_TO_NCHW[spec.axes](as_array(data.data))), as_array(labels).astype(np.int64)


# --- folders of images

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")


def from_folder(name: str, split: Split, *, root: Path, download: bool) -> Dataset:
    """``PATH/train`` and ``PATH/test`` (or ``val``) with a folder a class, or ``PATH`` with a folder a class.

    The latter is split 80 to 20, each class in proportion, by a hash of the path below ``PATH``: the same on every
    machine for the same files. Classes are numbered over both splits, in the order of their names. Images have
    one size. They are gray if all are (modes L and 1), else RGB; transparency is dropped.
    """
    path = _find(name, root)
    if not path.is_dir():
        raise InputError(f"{name}: {path} is not a folder; for arrays type npz:PATH")
    # A class may be called "train" too: only a folder of folders is a split.
    test = path / "test" if _subfolders(path / "test") else path / "val"
    parts = {key: part for key, part in (("train", path / "train"), ("test", test)) if _subfolders(part)}
    if parts and split not in parts:
        raise InputError(f"{name}: no folder {split} beside {next(iter(parts.values()))}; add {path / split}")
    base = parts.get(split, path)
    classes = sorted({folder for part in parts.values() or [path] for folder in _subfolders(part)})
    files = [(file, label) for label, folder in enumerate(classes) for file in _images_under(base, folder)]
    if not files:
        raise InputError(f"{name}: no images in {base}; put them there as CLASS/FILE ({', '.join(_SUFFIXES)})")
    if not parts:
        labels = np.array([label for _, label in files])
        draws = np.array([_hash_draw(file) for file, _ in files])
        files = [files[row] for row in split_rows(labels, split, test_share=0.2, draws=draws)]
    stem = path.resolve().name
    source = [str(base.resolve()), split, len(classes), [(label, *_stamp(base / file)) for file, label in files]]
    images, labels = cached(f"{stem}-{split}", source, lambda: _decode(name, base, files))
    ids = [f"{stem}/{split}/{file}" for file, _ in files]
    return make_dataset(images, labels, name=name, split=split, ids=ids, classes=classes)


def _subfolders(path: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(path) if e.is_dir() and e.name[0] != ".") if path.is_dir() else []


def _images_under(base: Path, folder: str) -> Iterator[str]:
    """Paths relative to ``base``, with forward slashes, in a fixed order."""
    for where, folders, files in os.walk(base / folder):
        folders.sort()
        below = Path(where).relative_to(base).as_posix()
        yield from (f"{below}/{file}" for file in sorted(files) if file.lower().endswith(_SUFFIXES) and file[0] != ".")


def _hash_draw(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _decode(name: str, base: Path, files: list[tuple[str, int]]) -> Arrays:
    from PIL import Image

    logger.info("%s: decoding %d images, once", name, len(files))
    images, gray = None, True
    for row, (file, _) in enumerate(files):
        try:
            with Image.open(base / file) as image:
                mode, size = image.mode, image.size
                pixels = np.asarray(image.convert("RGB"))
        except Exception as error:  # decoders fail in many ways; it is the file's fault in each
            raise InputError(f"{name}: cannot read {base / file} ({_one_line(error)}); replace or remove it") from error
        if mode[0] in "IF":
            raise InputError(f"{name}: {base / file} has mode {mode}; convert it to 8 bits a channel")
        if images is None:
            images, first = np.empty((len(files), *pixels.shape), np.uint8), size
        if size != first:
            raise InputError(
                f"{name}: {base / file} is {size[0]}x{size[1]}, {files[0][0]} is {first[0]}x{first[1]}; "
                f"resize all images to one size"
            )
        images[row] = pixels
        gray = gray and mode in ("L", "1")
    images = images.transpose(0, 3, 1, 2)[:, : 1 if gray else 3]
    return np.ascontiguousarray(images), np.array([label for _, label in files], dtype=np.int64)


# --- .npz


def from_npz(name: str, split: Split, *, root: Path, download: bool) -> Dataset:
    """Arrays ``x_train, y_train, x_test, y_test``, or ``x, y`` that are split 80 to 20, each class in proportion.

    Images are (N, C, H, W), uint8 or floats in [0, 1]; labels (N,) integers; ``classes`` may name the labels.
    """
    path = _find(name, root)
    arrays = _read_npz(name, path)
    whole = "x" in arrays or "y" in arrays
    x_key, y_key = ("x", "y") if whole else (f"x_{split}", f"y_{split}")
    if absent := [key for key in (x_key, y_key) if key not in arrays]:
        raise InputError(f"{name}: no array {absent[0]!r} among {sorted(arrays)}; store it with np.savez")
    x, y = arrays[x_key], arrays[y_key]
    check_images(x, where=f"{name}: {x_key}")
    classes = tuple(str(c) for c in np.atleast_1d(arrays["classes"])) if "classes" in arrays else None
    # Both splits have a say in how many classes there are, so that labels mean the same in both.
    keys = ["y"] if whole else [key for key in ("y_train", "y_test") if key in arrays]
    for key in keys:
        n = len(x) if key == y_key else arrays[key].size
        check_labels(arrays[key], None if classes is None else len(classes), n, where=f"{name}: {key}")
    classes = classes or class_names(np.concatenate([arrays[key] for key in keys]))
    rows = split_rows(y, split, test_share=0.2) if whole else np.arange(len(y))
    ids = row_ids(f"{path.stem}/{split}", rows, len(y))
    return make_dataset(x[rows], y[rows], name=name, split=split, ids=ids, classes=classes)


def _read_npz(name: str, path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    # A .npy is an array, no archive: `with` refuses it with an AttributeError in Python 3.10 and a TypeError since.
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{name}: cannot read {path} ({_one_line(error)}); write it with np.savez") from error


# --- shared


def _find(name: str, root: Path) -> Path:
    """The path in ``folder:PATH`` or ``npz:PATH``: as given (from the working folder), else below the data root."""
    kind, _, given = name.partition(":")
    if not given:
        raise InputError(f"{name!r} has no path; type {kind}:PATH")
    places = dict.fromkeys((Path(given).expanduser().absolute(), root.absolute() / Path(given).expanduser()))
    for place in places:
        if place.exists():
            return place
    raise InputError(f"{name}: nothing at {' or '.join(map(str, places))}; check the path, or give --data-root DIR")


def _stamp(file: Path) -> tuple[str, int, int]:
    stat = file.stat()
    return str(file.absolute()), stat.st_size, stat.st_mtime_ns


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
