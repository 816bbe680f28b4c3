"""Helpers that the sources on disk share: find a path, identify the state of a file."""

from __future__ import annotations

import os
from pathlib import Path

from art_qplugins.errors import InputError
from art_qplugins.files import as_path, printable, reason

__all__ = ["find", "stamp"]


def find(name: str, root: Path) -> Path:
    """The path in ``folder:PATH`` or ``npz:PATH``: as given, from the working folder, else below ``root``.

    :raises InputError: where there is no path in ``name``, or nothing at it. A link to nothing is something.
    """
    kind, _, given = name.partition(":")
    if not given:
        raise InputError(f"{name!r} has no path; type {kind}:PATH")
    path = as_path(given, where=f"{kind}:", hint=f"type {kind}:PATH")
    places = dict.fromkeys((path.absolute(), root.absolute() / path))
    for place in places:
        if os.path.lexists(place):
            return place
    nowhere = " or ".join(map(printable, places))
    raise InputError(f"{printable(name)}: nothing at {nowhere}; check the path, or give --data-root DIR")


def stamp(file: Path, *, where: str) -> tuple[str, int, int]:
    """Path, size and modification time. They identify the state of the file.

    :param where: what the file is; the beginning of the message.
    :raises InputError: where the file cannot be found.
    """
    try:
        stat = file.stat()
    except OSError as error:
        raise InputError(f"{where}{printable(file)}: cannot be read ({reason(error)}); replace or remove it") from None
    return str(file.absolute()), stat.st_size, stat.st_mtime_ns
