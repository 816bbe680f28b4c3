"""One image file of unknown origin."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from art_qplugins.errors import InputError, said
from art_qplugins.files import open_file, printable

if TYPE_CHECKING:
    from PIL import ImageFile

__all__ = ["read_image"]

#: Other formats of Pillow run other programs, or are films.
_FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP", "TIFF")
#: The largest file in bytes, and the largest image in pixels.
_LARGEST_FILE = 2**28
_MOST_PIXELS = 2**26
_HINT = "replace or remove it"


def read_image(path: Path) -> tuple[np.ndarray, bool]:
    """Pixels (H, W, 3) uint8, and whether the image is gray.

    :raises InputError: where it is no image, cut, larger than 67 megapixels, animated, or has more than 8 bits a channel.
    """
    from PIL import Image, UnidentifiedImageError

    with open_file(path, most=_LARGEST_FILE, where="folder:", hint=_HINT) as file:
        try:
            with _strict(), Image.open(file, "r", _FORMATS) as image:
                why = _unfit(image)
                if why is None:
                    return np.asarray(image.convert("RGB")), image.mode in ("L", "1")
        except Exception as error:  # decoders fail in many ways, and the cause is the file in each
            # Pillow names the open file, and not its path.
            why = "no image of a known format" if isinstance(error, UnidentifiedImageError) else said(error)
    raise InputError(f"folder:{printable(path)}: cannot be read ({why}); {_HINT}")


@contextlib.contextmanager
def _strict() -> Iterator[None]:
    """Pillow without what another package may have allowed: images that are cut, and warnings in place of errors."""
    from PIL import Image, ImageFile

    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _unfit(image: ImageFile.ImageFile) -> str | None:
    """Why an image is not read, before it is decoded."""
    width, height = image.size
    if width * height > _MOST_PIXELS:
        return f"{width}x{height} pixels, more than {_MOST_PIXELS}"
    # A second picture in a JPEG is a preview or a depth map.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        return "it has several frames"
    if image.mode[0] in "IF" or any(_is_deep(image.format, tile[3]) for tile in image.tile):
        return f"mode {image.mode} of more than 8 bits a channel; convert it to 8 bits"
    return None


def _is_deep(kind: str | None, layout: Any) -> bool:
    """Whether stored pixels have more than 8 bits a channel. Pillow cuts those of colors to 8 bits without a word.

    :param layout: how Pillow reads them, e.g. ``"RGB;16B"``, or for a PPM with its greatest value.
    """
    greatest = layout[-1] if kind == "PPM" and isinstance(layout, tuple) else 255
    return greatest > 255 or re.search(";16[BLN]", str(layout)) is not None
