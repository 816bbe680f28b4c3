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

from art_qplugins.files import write_atomically

__all__ = ["Arrays", "cached", "user_folder"]

logger = logging.getLogger(__name__)

Arrays = tuple[np.ndarray, np.ndarray]  # images (N, C, H, W) uint8, labels (N,) int64

#: Version of the decoding, part of every key. Increase it when the same source decodes to other arrays.
_FORMAT = 1


def user_folder(variable: str) -> Path:
    """The folder that an environment variable names, else the platform's cache folder."""
    if folder := os.environ.get(variable):
        return Path(folder).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("artq"))


def cached(stem: str, source: Any, build: Callable[[], Arrays]) -> Arrays:
    """The arrays that ``build`` returns for this source, from the cache if they are there.

    :param stem: the readable beginning of the file's name.
    :param source: plain JSON that identifies what is decoded: paths, sizes, times of change.
    """
    key = hashlib.sha256(json.dumps([_FORMAT, source]).encode()).hexdigest()
    path = user_folder("ARTQ_CACHE") / "arrays" / f"{stem}-{key[:20]}.npz"
    try:
        # np.load does not close a broken file that it has opened itself. The zip's checksums catch flipped bits.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return stored["images"], stored["labels"]
    except FileNotFoundError:
        pass
    except Exception as error:
        logger.warning("cannot read the cache %s (%s); decoding again", path, error)
    images, labels = build()
    try:
        buffer = io.BytesIO()
        np.savez(buffer, images=images, labels=labels)
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        logger.warning("cannot write the cache %s (%s); continuing without it", path, error)
    return images, labels
