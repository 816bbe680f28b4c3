"""Folders of images, one folder per class."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from art_qplugins.data.cache import Arrays, cached
from art_qplugins.data.dataset import Dataset, Split, make_dataset, split_rows
from art_qplugins.data.paths import find, one_line, stamp
from art_qplugins.errors import InputError

__all__ = ["from_folder"]

logger = logging.getLogger(__name__)

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")

#: A file's path below a folder, with forward slashes, and its label.
_Labelled = tuple[str, int]


def from_folder(name: str, split: Split, *, root: Path, download: bool) -> Dataset:
    """``PATH/train`` and ``PATH/test`` (or ``val``) with a folder per class, or ``PATH`` with a folder per class.

    The latter is split 80 to 20, each class in proportion, by a hash of the path below ``PATH``. So the same files have
    the same split on every machine. Classes are numbered over both splits, in the order of their names. All images must
    have one size. They are gray if all are (modes L and 1), else RGB. Transparency is dropped.
    """
    path = find(name, root)
    if not path.is_dir():
        raise InputError(f"{name}: {path} is not a folder; for arrays type npz:PATH")
    parts = _splits(path)
    if parts and split not in parts:
        raise InputError(f"{name}: no folder {split} beside {next(iter(parts.values()))}; add {path / split}")
    base = parts.get(split, path)
    classes = sorted({folder for part in parts.values() or [path] for folder in _subfolders(part)})
    files = [(file, label) for label, folder in enumerate(classes) for file in _images_under(base, folder)]
    if not files:
        raise InputError(f"{name}: no images in {base}; put them there as CLASS/FILE ({', '.join(_SUFFIXES)})")
    if not parts:
        files = _split(files, split)
    stem = path.resolve().name
    source = [str(base.resolve()), split, len(classes), [(label, *stamp(base / file)) for file, label in files]]
    images, labels = cached(f"{stem}-{split}", source, lambda: _decode(name, base, files))
    ids = [f"{stem}/{split}/{file}" for file, _ in files]
    return make_dataset(images, labels, name=name, split=split, ids=ids, classes=classes)


def _splits(path: Path) -> dict[str, Path]:
    """The folders of the splits. A class may be called "train" too, so only a folder of folders is a split."""
    test = path / "test" if _subfolders(path / "test") else path / "val"
    return {key: part for key, part in (("train", path / "train"), ("test", test)) if _subfolders(part)}


def _subfolders(path: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(path) if e.is_dir() and e.name[0] != ".") if path.is_dir() else []


def _images_under(base: Path, folder: str) -> Iterator[str]:
    """Paths relative to ``base``, with forward slashes, in a fixed order."""
    for where, folders, files in os.walk(base / folder):
        folders.sort()
        below = Path(where).relative_to(base).as_posix()
        yield from (f"{below}/{file}" for file in sorted(files) if file.lower().endswith(_SUFFIXES) and file[0] != ".")


def _split(files: list[_Labelled], split: Split) -> list[_Labelled]:
    labels = np.array([label for _, label in files])
    draws = np.array([_hash_draw(file) for file, _ in files])
    return [files[row] for row in split_rows(labels, split, test_share=0.2, draws=draws)]


def _hash_draw(text: str) -> float:
    """A number in [0, 1) that depends on ``text`` alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _decode(name: str, base: Path, files: list[_Labelled]) -> Arrays:
    logger.info("%s: decoding %d images, once", name, len(files))
    first, gray = _open(name, base / files[0][0])
    images = np.empty((len(files), *first.shape), np.uint8)
    for row, (file, _) in enumerate(files):
        pixels, is_gray = _open(name, base / file) if row else (first, gray)
        if pixels.shape != first.shape:
            raise InputError(
                f"{name}: {base / file} is {_size(pixels)}, {files[0][0]} is {_size(first)}; "
                f"resize all images to one size"
            )
        images[row] = pixels
        gray = gray and is_gray
    images = images.transpose(0, 3, 1, 2)[:, : 1 if gray else 3]
    return np.ascontiguousarray(images), np.array([label for _, label in files], dtype=np.int64)


def _open(name: str, path: Path) -> tuple[np.ndarray, bool]:
    """Pixels (H, W, 3) uint8, and whether the image is gray."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.asarray(image.convert("RGB"))
    except Exception as error:  # decoders fail in many ways, and the cause is the file in each
        raise InputError(f"{name}: cannot read {path} ({one_line(error)}); replace or remove it") from error
    if mode[0] in "IF":
        raise InputError(f"{name}: {path} has mode {mode}; convert it to 8 bits a channel")
    return pixels, mode in ("L", "1")


def _size(pixels: np.ndarray) -> str:
    """Width x height."""
    return f"{pixels.shape[1]}x{pixels.shape[0]}"
