"""Arrays in ``.npz`` files of unknown origin.

The directory of the archive and the header of every array are checked before anything is allocated: a header of a hundred
bytes can promise terabytes, and so can an archive of a megabyte. Numbers, booleans and short texts are read, and nothing is
unpickled.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from art_qplugins.errors import InputError, one_line, said, shown
from art_qplugins.files import in_words, open_file, printable, reason

__all__ = ["MOST_BYTES", "Header", "read_arrays", "read_headers"]

#: The largest file, and the most that its arrays may hold together.
MOST_BYTES = 8 * 2**30
#: The most arrays in a file.
_MOST_ARRAYS = 1000
#: The largest directory of an archive in bytes. It has about 50 for each array.
_LARGEST_DIRECTORY = 2**20
#: What is read of an array to find its header. NumPy's own limit for a header is 10,000.
_HEAD = 2**14
#: The longest text in an array, in characters.
_LONGEST_TEXT = 1000
_MOST_DIMENSIONS = 8
_PIECE = 2**20

_END, _END_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an array's header promises, and the file holds."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    start: int  # where the values begin, in bytes

    @property
    def size(self) -> int:
        """The number of bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


class _Unfit(ValueError):
    """Why a file cannot be read, in words."""


def read_headers(
    path: str | os.PathLike[str], *, hint: str, where: str = "", most: int = MOST_BYTES
) -> dict[str, Header]:
    """The shapes and types of all arrays of a file, by name. Parameters and errors are those of :func:`read_arrays`."""
    with open_file(path, most=most, hint=hint, where=where) as file:
        try:
            with _archive(file) as archive:
                return _headers(archive, most)
        except (_Unfit, OSError) as error:
            raise _refused(path, where, error, hint) from None


def read_arrays(
    path: str | os.PathLike[str],
    *,
    hint: str,
    where: str = "",
    most: int = MOST_BYTES,
    names: Collection[str] | None = None,
) -> dict[str, NDArray[Any]]:
    """The arrays of a file by name. The headers of all are checked first.

    :param hint: what to type next; the end of the message.
    :param where: what the file is; the beginning of the message.
    :param most: the largest size in bytes of the file, and of all its arrays together.
    :param names: the arrays that are wanted, as far as they are there; by default all.
    :return: boolean, whole, floating-point and text arrays, as they were written. Floats may be NaN.
    :raises InputError: where it cannot be opened (see :func:`~art_qplugins.files.open_file`), is no archive of arrays, is
        encrypted, damaged or larger, or where an array is of another type or not what its header promises.
    """
    with open_file(path, most=most, hint=hint, where=where) as file:
        try:
            with _archive(file) as archive:
                headers = _headers(archive, most)
                wanted = headers if names is None else {name: headers[name] for name in headers if name in names}
                return {name: _read(archive, name, header) for name, header in wanted.items()}
        except (_Unfit, OSError) as error:
            raise _refused(path, where, error, hint) from None


def _refused(path: str | os.PathLike[str], where: str, error: Exception, hint: str) -> InputError:
    why = reason(error) if isinstance(error, OSError) else str(error)
    return InputError(f"{where}{printable(path)}: cannot be read ({why}); {hint}")


# --- The archive


def _archive(file: BinaryIO) -> zipfile.ZipFile:
    start = file.read(len(npy.MAGIC_PREFIX)) or b""
    if start == npy.MAGIC_PREFIX:
        raise _Unfit("a single array, and no archive of arrays with names")
    if start[:2] != b"PK":
        raise _Unfit("it is empty" if not start else "no .npz file")
    _check_directory(file)
    try:
        return zipfile.ZipFile(file)
    except Exception as error:  # odd directories make it fail in many ways
        raise _Unfit(f"a damaged archive: {said(error)}") from None


def _check_directory(file: BinaryIO) -> None:
    """Look at the record that ends an archive: a directory of a gigabyte takes minutes to read."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size - 20 - _END_64.size))
    tail = file.read()
    if tail[-_END.size : -_END.size + 4] != b"PK\x05\x06" or tail[-2:] != b"\0\0":
        raise _Unfit("a damaged archive: it does not end as one")
    directory = _END.unpack(tail[-_END.size :])[5]
    if tail[-_END.size - 20 :][:4] == b"PK\x06\x07":  # larger than 4 GiB: the true size is in another record
        if len(tail) < _END.size + 20 + _END_64.size or tail[:4] != b"PK\x06\x06":
            raise _Unfit("a damaged archive: it does not end as one")
        directory = _END_64.unpack(tail[: _END_64.size])[8]
    if directory > _LARGEST_DIRECTORY:
        raise _Unfit(f"its directory takes {in_words(directory)}, more than {in_words(_LARGEST_DIRECTORY)}")


def _headers(archive: zipfile.ZipFile, most: int) -> dict[str, Header]:
    members = archive.infolist()
    if len(members) > _MOST_ARRAYS:
        raise _Unfit(f"{len(members)} arrays, more than {_MOST_ARRAYS}")
    total = sum(member.file_size for member in members)
    if not 0 <= total <= most:
        raise _Unfit(f"its arrays hold {in_words(total)}, more than {in_words(most)}")
    headers: dict[str, Header] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name == member.filename or not name:
            raise _Unfit(f"{shown(member.filename)} in it is no .npy array")
        if name in headers:
            raise _Unfit(f"two arrays have the name {shown(name)}")
        if member.flag_bits & 0x2041:
            raise _Unfit(f"{shown(name)} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _Unfit(f"{shown(name)} is compressed by method {member.compress_type}, which NumPy does not write")
        try:
            with archive.open(member) as stream:
                head = stream.read(_HEAD)
        except Exception as error:  # damaged data and odd local headers make zipfile and zlib fail in many ways
            raise _Unfit(f"{shown(name)} is damaged: {said(error)}") from None
        headers[name] = _header(name, head, member.file_size)
    return headers


# --- An array


def _header(name: str, head: bytes, size: int) -> Header:
    """The header at the beginning of an array, checked against the ``size`` of all of it in bytes."""
    file = io.BytesIO(head)
    try:
        version = npy.read_magic(file)
        reader = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran_order, dtype = reader(file)
    except KeyError:
        raise _Unfit(f"{shown(name)} is an array of an unknown version") from None
    except Exception:  # the header is a literal of Python, and NumPy fails on odd ones in many ways
        raise _Unfit(f"the header of {shown(name)} is no header of an array") from None
    if dtype.kind not in "biufU":
        what = "Python objects" if dtype.hasobject else f"of type {one_line(str(dtype), 40)}"
        raise _Unfit(f"{shown(name)} is {what}; numbers, booleans and str are read")
    if dtype.kind == "U" and not 0 < dtype.itemsize <= 4 * _LONGEST_TEXT:
        raise _Unfit(f"{shown(name)} holds texts of {dtype.itemsize // 4} characters, not of 1 to {_LONGEST_TEXT}")
    possible = all(not isinstance(n, bool) and n >= 0 for n in shape) and math.prod(max(n, 1) for n in shape) < 2**48
    if len(shape) > _MOST_DIMENSIONS or not possible:
        raise _Unfit(f"{shown(name)} has the impossible shape {shown(shape)}")
    header = Header(shape=shape, dtype=dtype, fortran_order=fortran_order, start=file.tell())
    if header.start + header.size != size:
        raise _Unfit(f"the header of {shown(name)} promises {in_words(header.size)}, and it holds {in_words(size)}")
    return header


def _read(archive: zipfile.ZipFile, name: str, header: Header) -> NDArray[Any]:
    try:
        flat = np.empty(header.size, np.uint8)
    except MemoryError:
        raise _Unfit(f"{shown(name)} takes {in_words(header.size)}, more than this machine has") from None
    try:
        with archive.open(f"{name}.npy") as stream:
            stream.read(header.start)
            at = 0
            while piece := stream.read(_PIECE):
                flat[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
                at += len(piece)
    except Exception as error:  # damaged data make zipfile and zlib fail in many ways
        raise _Unfit(f"{shown(name)} is damaged: {said(error)}") from None
    if at != header.size:
        raise _Unfit(f"{shown(name)} ends after {in_words(at)} of {in_words(header.size)}")
    values = flat.view(header.dtype)
    if header.dtype.kind == "U" and not _is_text(values):
        raise _Unfit(f"{shown(name)} holds characters that do not exist")
    return values.reshape(header.shape[::-1]).T if header.fortran_order else values.reshape(header.shape)


def _is_text(values: NDArray[Any]) -> bool:
    """Whether all characters are those of Unicode, without the halves of pairs."""
    points = values.astype(values.dtype.newbyteorder("=")).view(np.uint32)
    return not bool(((points > 0x10FFFF) | ((points >= 0xD800) & (points < 0xE000))).any())
