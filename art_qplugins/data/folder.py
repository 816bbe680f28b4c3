"""Folders of images, one folder per class."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from art_qplugins.data.cache import Decoded, cached
from art_qplugins.data.dataset import Dataset, Split, make_dataset, split_rows
from art_qplugins.data.images import decoded
from art_qplugins.data.paths import find, stamp
from art_qplugins.errors import InputError, shown
from art_qplugins.files import as_path, printable, reason

__all__ = ["from_folder"]

logger = logging.getLogger(__name__)

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")

#: The most folders that are looked through. The largest public data set has 22,000.
_MOST_FOLDERS = 30_000
_HINT = "replace or remove it"

#: A file's path below a folder, with forward slashes, and its label.
_Labelled = tuple[str, int]


def from_folder(
    name: str, split: Split, *, root: Path, download: bool, resize: int | None = None, crop: int | None = None
) -> Dataset:
    """``PATH/train`` and ``PATH/test`` (or ``val``) with a folder per class, or ``PATH`` with a folder per class.

    The latter is split 80 to 20, each class in proportion, by a hash of the path below ``PATH``. So the same files have
    the same split on every machine. Classes are numbered in the order of their names, and each has images in both splits.
    All images must have one frame and 8 bits a channel. They are gray if all are (modes L and 1), else RGB. Transparency
    is dropped. A class may be a symbolic link to a folder elsewhere.

    :param resize: the shorter side of all images in pixels, and ``crop`` the side of the square in the middle that is
        left, as in :func:`~art_qplugins.data.images.read_image`. Without them all images must have one size.
    """
    path = find(name, root)
    where = f"folder:{printable(path)}"
    if not path.is_dir():
        raise InputError(f"{where}: not a folder; for arrays type npz:PATH")
    parts = _splits(path)
    if parts and split not in parts:
        beside = next(iter(parts.values())).name
        raise InputError(f"{where}: no folder {split} beside {beside}; add it, with a folder for each class")
    base = parts.get(split, path)
    bases = list(parts.values()) or [path]
    classes = sorted({folder for part in bases for folder in _subfolders(part)})
    _check_links(path, [*parts.values(), *(part / folder for part in bases for folder in classes)])
    found = {part: list(_images_under(part, classes)) for part in bases}
    for part, some in found.items():
        if not some:
            raise InputError(
                f"{where}: no images in {part.name}; put them there as CLASS/FILE ({', '.join(_SUFFIXES)})"
            )
    sides = {part.name: some for part, some in found.items()}
    if not parts:
        sides = {"train": _split(found[path], "train"), "test": _split(found[path], "test")}
    _check_classes(where, classes, sides)
    files = found[base] if parts else sides[split]
    stem = path.resolve().name
    source = [
        str(base.resolve()),
        split,
        [len(classes), resize, crop],
        [(label, *stamp(base / file, where="folder:")) for file, label in files],
    ]

    def decode() -> Decoded:
        logger.info("%s: decoding %d images, once", name, len(files))
        labels = np.array([label for _, label in files], dtype=np.int64)
        return decoded([base / file for file, _ in files], labels, resize=resize, crop=crop)

    stored = cached(f"{stem}-{split}", source, decode)
    ids = [f"{stem}/{split}/{file}" for file, _ in files]
    return make_dataset(
        stored.images, stored.labels, name=name, split=split, ids=ids, classes=classes, sha256=stored.sha256
    )


# --- Which files


def _splits(path: Path) -> dict[str, Path]:
    """The folders of the splits. A class may be called "train" too, so only a folder of folders is a split."""
    test = path / "test" if _subfolders(path / "test") else path / "val"
    return {key: part for key, part in (("train", path / "train"), ("test", test)) if _subfolders(part)}


def _subfolders(path: Path) -> list[str]:
    """The names of the folders in ``path``, also of links to folders; none where it is no folder."""
    if not path.is_dir():
        return []
    found = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name[0] != "." and stat.S_ISDIR(entry.stat().st_mode):  # a link to nothing is an error
                    found.append(_named(entry.path).name)
    except OSError as error:
        raise _unread(Path(error.filename or path), reason(error)) from None
    return sorted(found)


def _check_links(top: Path, folders: Sequence[Path]) -> None:
    """Links from a data set into itself would give images two labels, or put training images among the test images."""
    home = top.resolve()
    for folder in folders:
        if folder.is_symlink():
            target = folder.resolve()
            if target == home or home in target.parents or target in home.parents:
                raise _unread(folder, "a symbolic link into its own data set")


def _images_under(base: Path, classes: Sequence[str]) -> Iterator[_Labelled]:
    """Paths relative to ``base`` with their labels, in a fixed order."""
    seen: set[tuple[int, int]] = set()

    def stop(error: OSError) -> None:
        raise _unread(Path(error.filename), reason(error))

    for label, folder in enumerate(classes):
        if not (base / folder).is_dir():  # a class of the other split
            continue
        for where, folders, files in os.walk(base / folder, onerror=stop):
            here = os.stat(where)
            if (here.st_dev, here.st_ino) in seen:
                raise _unread(Path(where), "two classes lead to it")
            seen.add((here.st_dev, here.st_ino))
            if len(seen) > _MOST_FOLDERS:
                raise InputError(
                    f"folder:{printable(base)}: more than {_MOST_FOLDERS} folders; give that of a data set"
                )
            folders.sort()
            for inner in folders:
                if os.path.islink(os.path.join(where, inner)):
                    raise _unread(Path(where, inner), "a symbolic link to a folder within a class")
            below = Path(where).relative_to(base).as_posix()
            for file in sorted(files):
                if file.lower().endswith(_SUFFIXES) and file[0] != ".":
                    _named(os.path.join(where, file))
                    yield f"{below}/{file}", label


def _check_classes(where: str, classes: Sequence[str], sides: Mapping[str, Iterable[_Labelled]]) -> None:
    """:raises InputError: where a class has no image on some side."""
    for side, files in sides.items():
        used = {label for _, label in files}
        if absent := [name for label, name in enumerate(classes) if label not in used]:
            more = f" (and {len(absent) - 1} more)" if absent[1:] else ""
            raise InputError(
                f"{where}: class {shown(absent[0])}{more} has no image in the {side} split; add images to it, or remove "
                "the folder"
            )


def _named(path: str) -> Path:
    """:raises InputError: where the name is not UTF-8, which no record can hold."""
    return as_path(path, where="folder:", hint=_HINT)


def _unread(path: Path, why: str) -> InputError:
    return InputError(f"folder:{printable(path)}: cannot be read ({why}); {_HINT}")


def _split(files: list[_Labelled], split: Split) -> list[_Labelled]:
    labels = np.array([label for _, label in files])
    draws = np.array([_hash_draw(file) for file, _ in files])
    return [files[row] for row in split_rows(labels, split, test_share=0.2, draws=draws)]


def _hash_draw(text: str) -> float:
    """A number in [0, 1) that depends on ``text`` alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
