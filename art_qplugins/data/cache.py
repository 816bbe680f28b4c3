"""A disk cache of decoded images, so that thousands of small files are opened only once.

The name of a cache file is a hash of everything that identifies its source, so a changed source has another file. The folder
may be deleted at any time, may be read-only, and may hold broken files. Each of these costs time, and none gives wrong data.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from art_qplugins.arrays import read_arrays
from art_qplugins.errors import InputError
from art_qplugins.files import as_path, write_atomically

__all__ = ["Arrays", "cached", "user_folder"]

logger = logging.getLogger(__name__)

Arrays = tuple[np.ndarray, np.ndarray]  # images (N, C, H, W) uint8, labels (N,) int64

#: Version of the decoding, part of every key. Increase it when the same source decodes to other arrays.
_FORMAT = 1


def user_folder(variable: str) -> Path:
    """The folder that an environment variable names, else the platform's cache folder.

    :raises InputError: where no folder can have that name.
    """
    if folder := os.environ.get(variable):
        return as_path(folder, where=f"{variable}: ", hint=f"set {variable} to a folder")
    import platformdirs

    return Path(platformdirs.user_cache_dir("artq"))


def cached(stem: str, source: Any, build: Callable[[], Arrays]) -> Arrays:
    """The arrays that ``build`` returns for this source, from the cache if they are there.

    :param stem: the readable beginning of the file's name.
    :param source: plain JSON that identifies what is decoded: paths, sizes, times of change.
    """
    key = hashlib.sha256(json.dumps([_FORMAT, source]).encode()).hexdigest()
    path = user_folder("ARTQ_CACHE") / "arrays" / f"{stem}-{key[:20]}.npz"
    if os.path.lexists(path):
        try:
            stored = read_arrays(path, hint="decoding again", where="the cache ")  # checksums catch flipped bits
            return stored["images"], stored["labels"]
        except InputError as error:
            logger.warning("%s", error)
        except KeyError as error:
            logger.warning("the cache %s has no %s; decoding again", path, error)
    images, labels = build()
    try:
        buffer = io.BytesIO()
        np.savez(buffer, images=images, labels=labels)
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        logger.warning("cannot write the cache %s (%s); continuing without it", path, error)
    return images, labels
