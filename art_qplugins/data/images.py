"""Images of unknown origin: files, or the bytes of files."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from art_qplugins.data.cache import Decoded
from art_qplugins.errors import InputError, said
from art_qplugins.files import open_file, printable

if TYPE_CHECKING:
    from PIL import Image, ImageFile

__all__ = ["Encoded", "Source", "decoded", "is_gray", "read_image"]

#: Other formats of Pillow run other programs, or are films.
_FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP", "TIFF")
#: The largest file in bytes, and the largest image in pixels.
_LARGEST_FILE = 2**28
_MOST_PIXELS = 2**26
_HINT = "replace or remove it"


@dataclass(frozen=True)
class Encoded:
    """The bytes of an image file that is part of something larger.

    :ivar name: what it is, e.g. ``"hf:birds: row 3 of train"``.
    """

    name: str
    content: bytes = field(repr=False)


Source = Path | Encoded


def decoded(sources: Sequence[Source], labels: np.ndarray, *, resize: int | None, crop: int | None) -> Decoded:
    """All images of a data set: gray if all are (modes L and 1), else RGB.

    :param resize: see :func:`read_image`.
    :raises InputError: where one cannot be read, or not all have one size. The latter is raised while blocks are made.
    """
    first = read_image(sources[0], resize=resize, crop=crop)
    channels = 1 if all(is_gray(source) for source in sources) else 3

    def blocks() -> Iterator[np.ndarray]:
        for i, source in enumerate(sources):
            pixels = first if i == 0 else read_image(source, resize=resize, crop=crop)
            if pixels.shape != first.shape:
                raise InputError(
                    f"{_name(source)} is {_size(pixels)}, {_end(sources[0])} is {_size(first)}; set data.resize and "
                    "data.crop to give all images one size"
                )
            yield pixels.transpose(2, 0, 1)[None, :channels]

    return Decoded((len(sources), channels, *first.shape[:2]), labels, blocks)


def read_image(source: Source, *, resize: int | None = None, crop: int | None = None) -> np.ndarray:
    """Pixels (H, W, 3) uint8.

    :param resize: the shorter side in pixels, to which the image is scaled by torchvision, bilinearly and antialiased.
    :param crop: the side of the square that is cut out of the middle, after that.
    :raises InputError: where it is no image, cut, larger than 67 megapixels, animated, or has more than 8 bits a channel;
        or where it is smaller than ``crop``.
    """
    with _opened(source) as image:
        shorter = min(image.size) if resize is None else resize
        if image.width * image.height * (shorter / min(image.size)) ** 2 > _MOST_PIXELS:
            raise _Unfit(f"with its shorter side of {shorter} pixels it has more than {_MOST_PIXELS}")
        if crop is not None and crop > shorter:
            raise _Unfit(f"{image.width}x{image.height} pixels, fewer than data.crop = {crop}", "set data.resize")
        return np.asarray(_scaled(image.convert("RGB"), resize, crop))


def is_gray(source: Source) -> bool:
    """Whether an image has one channel. Its pixels are not read.

    :raises InputError: where it is no image.
    """
    with _opened(source) as image:
        return image.mode in ("L", "1")


class _Unfit(ValueError):
    """Why an image is not read, and what to do about it, in words."""

    def __init__(self, why: str, hint: str = _HINT) -> None:
        super().__init__(why)
        self.hint = hint


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[ImageFile.ImageFile]:
    """An image whose pixels are not read yet. All errors within the context are those of the file."""
    from PIL import Image, UnidentifiedImageError

    hint = _HINT
    with _bytes_of(source) as file:
        try:
            with _strict(), Image.open(file, "r", _FORMATS) as image:
                _check(image)
                yield image
                return
        except _Unfit as error:
            why, hint = str(error), error.hint
        except Exception as error:  # decoders fail in many ways, and the cause is the file in each
            # Pillow names the open file, and not its path.
            why = "no image of a known format" if isinstance(error, UnidentifiedImageError) else said(error)
    raise InputError(f"{_name(source)}: cannot be read ({why}); {hint}")


def _bytes_of(source: Source) -> IO[bytes]:
    if isinstance(source, Encoded):
        return io.BytesIO(source.content)
    return open_file(source, most=_LARGEST_FILE, where="folder:", hint=_HINT)


def _name(source: Source) -> str:
    return source.name if isinstance(source, Encoded) else f"folder:{printable(source)}"


def _end(source: Source) -> str:
    """The end of a name, beside another of the same data set."""
    return source.name.rpartition(": ")[2] if isinstance(source, Encoded) else printable("/".join(source.parts[-2:]))


def _size(pixels: np.ndarray) -> str:
    """Width x height."""
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def _scaled(image: Image.Image, resize: int | None, crop: int | None) -> Image.Image:
    if resize is None and crop is None:
        return image
    from torchvision.transforms import v2

    image = image if resize is None else v2.Resize(resize, antialias=True)(image)
    return image if crop is None else v2.CenterCrop(crop)(image)


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


def _check(image: ImageFile.ImageFile) -> None:
    """Refuse an image before it is decoded."""
    width, height = image.size
    if width * height > _MOST_PIXELS:
        raise _Unfit(f"{width}x{height} pixels, more than {_MOST_PIXELS}")
    # A second picture in a JPEG is a preview or a depth map.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise _Unfit("it has several frames")
    if image.mode[0] in "IF" or any(_is_deep(image.format, tile[3]) for tile in image.tile):
        raise _Unfit(f"mode {image.mode} of more than 8 bits a channel; convert it to 8 bits")


def _is_deep(kind: str | None, layout: Any) -> bool:
    """Whether stored pixels have more than 8 bits a channel. Pillow cuts those of colors to 8 bits without a word.

    :param layout: how Pillow reads them, e.g. ``"RGB;16B"``, or for a PPM with its greatest value.
    """
    greatest = layout[-1] if kind == "PPM" and isinstance(layout, tuple) else 255
    return greatest > 255 or re.search(";16[BLN]", str(layout)) is not None
