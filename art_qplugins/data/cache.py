"""A disk cache of decoded images, so that thousands of small files are opened only once.

An entry is two files: the images as ``.npy``, which are memory-mapped and never loaded as a whole, and beside them the labels
and the hash of everything as ``.npz``, written last. An empty ``.lock`` lets one process at a time write them. The name is a
hash of everything that identifies the source, so a changed source has another entry. The folder may be deleted at any time, may be read-only, and may hold broken files. Each of these
costs time, and none gives wrong data: an entry whose images were touched since they were written is hashed again.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from art_qplugins.arrays import MOST_BYTES, read_arrays
from art_qplugins.data.dataset import new_digest
from art_qplugins.errors import InputError
from art_qplugins.files import (
    as_path,
    in_words,
    locked,
    open_file,
    printable,
    reason,
    short_name,
    sweep,
    write_atomically,
)

__all__ = ["Cached", "Decoded", "cached", "user_folder"]

logger = logging.getLogger(__name__)

#: Version of the decoding, part of every key. Increase it when the same source decodes to other arrays.
_FORMAT = 2
_LARGEST = 2**50
_PIECE = 2**22
_HINT = "decoding again"

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Decoded:
    """The content of a source, which is decoded block by block.

    :ivar shape: of all images: (N, C, H, W).
    :ivar labels: (N,) int64.
    :ivar blocks: gives the images from the first on, (n, C, H, W) uint8. It may be called again.
    """

    shape: Shape
    labels: np.ndarray
    blocks: Callable[[], Iterable[np.ndarray]]


@dataclass(frozen=True)
class Cached:
    """Images (N, C, H, W) uint8, labels (N,) int64, and the hash of both as a data set has it.

    The images are read-only, and memory-mapped unless the cache cannot be written.
    """

    images: np.ndarray
    labels: np.ndarray
    sha256: str


def user_folder(variable: str) -> Path:
    """The folder that an environment variable names, else the platform's cache folder.

    :raises InputError: where no folder can have that name.
    """
    if folder := os.environ.get(variable):
        return as_path(folder, where=f"{variable}: ", hint=f"set {variable} to a folder")
    import platformdirs

    return Path(platformdirs.user_cache_dir("artq"))


def cached(stem: str, source: Any, decode: Callable[[], Decoded]) -> Cached:
    """What ``decode`` gives for this source, from the cache if it is there.

    Of several processes that ask at once, one decodes and the others wait for it.

    :param stem: the readable beginning of the file's name.
    :param source: plain JSON that identifies what is decoded: paths, sizes, times of change.
    :raises InputError: where more than 8 GiB would have to be in memory, because the cache cannot be written.
    """
    key = hashlib.sha256(json.dumps([_FORMAT, source]).encode()).hexdigest()
    path = user_folder("ARTQ_CACHE") / "arrays" / f"{short_name(stem)}-{key[:20]}.npy"
    decode = functools.cache(decode)
    if os.path.lexists(path.with_suffix(".npz")):
        try:
            return _read(path)
        except InputError as error:
            logger.warning("%s", error)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock"), wait=True):
            with contextlib.suppress(InputError):
                return _read(path)  # another process has written it meanwhile
            sweep(path.parent, path.stem)
            return _write(path, decode())
    except OSError as error:
        logger.warning("cannot write the cache %s (%s); continuing without it", path, reason(error))
        return _in_memory(stem, decode(), reason(error))


def _write(path: Path, decoded: Decoded) -> Cached:
    """:raises OSError: where there is no space, or nothing can be written."""
    digest = new_digest(np.dtype(np.uint8), decoded.shape)

    def pieces() -> Iterator[bytes | memoryview]:
        yield _header(decoded.shape)
        for block in decoded.blocks():
            content = np.ascontiguousarray(block, dtype=np.uint8).data.cast("B")
            digest.update(content)
            yield content

    if shutil.disk_usage(path.parent).free < math.prod(decoded.shape):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    write_atomically(path, pieces())
    digest.update(decoded.labels.data)
    with path.open("rb") as file:
        found = Cached(_mapped(file, decoded.shape), decoded.labels, digest.hexdigest())
        _describe(path, found, _stamp(file))
    return found


def _describe(path: Path, found: Cached, stamp: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, labels=found.labels, shape=found.images.shape, sha256=np.array(found.sha256), stamp=stamp)
    write_atomically(path.with_suffix(".npz"), buffer.getvalue())


def _read(path: Path) -> Cached:
    """:raises InputError: where nothing was written, or it is not what was written."""
    about = read_arrays(path.with_suffix(".npz"), hint=_HINT, where="the cache ")  # checksums catch flipped bits
    with open_file(path, most=_LARGEST, hint=_HINT, where="the cache ") as file:
        try:
            one, two, three, four = (int(size) for size in about["shape"])
            shape, labels, sha256 = (one, two, three, four), about["labels"], str(about["sha256"])
            if labels.shape != shape[:1] or labels.dtype != np.int64:
                raise ValueError(f"it has {labels.dtype} labels {labels.shape} for images {shape}")
            touched = about["stamp"].tolist() != _stamp(file).tolist()
            if touched and sha256 != _digest(file, shape, labels):
                raise ValueError("its content has changed")
            found = Cached(_mapped(file, shape), labels, sha256)
        except (KeyError, ValueError, TypeError, OSError) as error:
            raise InputError(f"the cache {printable(path)}: cannot be used ({error}); {_HINT}") from None
        if touched:
            with contextlib.suppress(OSError):
                _describe(path, found, _stamp(file))
    return found


def _in_memory(stem: str, decoded: Decoded, why: str) -> Cached:
    size = math.prod(decoded.shape)
    if size > MOST_BYTES:
        raise InputError(
            f"{stem}: {decoded.shape[0]} images take {in_words(size)}, and the cache cannot hold them ({why}); set "
            "ARTQ_CACHE to a folder with space"
        )
    images = np.empty(decoded.shape, np.uint8)
    at = 0
    for block in decoded.blocks():
        images[at : at + len(block)] = block
        at += len(block)
    digest = new_digest(images.dtype, images.shape)
    digest.update(images.data.cast("B"))
    digest.update(decoded.labels.data)
    return Cached(images, decoded.labels, digest.hexdigest())


# --- The file of the images


def _header(shape: Shape) -> bytes:
    """What a ``.npy`` of these images begins with."""
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _stamp(file: BinaryIO) -> np.ndarray:
    """The size of an open file and the times at which it was changed. Who touches the file changes them."""
    found = os.fstat(file.fileno())
    return np.array([found.st_size, found.st_mtime_ns, found.st_ctime_ns])


def _mapped(file: BinaryIO, shape: Shape) -> np.ndarray:
    return np.asarray(np.memmap(file, np.uint8, "r", len(_header(shape)), shape))


def _digest(file: BinaryIO, shape: Shape, labels: np.ndarray) -> str | None:
    """The hash of the images in a file with the labels; ``None`` where it holds something else."""
    header = _header(shape)
    if file.read(len(header)) != header:
        return None
    digest = new_digest(np.dtype(np.uint8), shape)
    while piece := file.read(_PIECE):
        digest.update(piece)
    digest.update(labels.data)
    return digest.hexdigest()
