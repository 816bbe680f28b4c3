"""Helpers that the sources on disk share: find a path, identify the state of a file, shorten an error."""

from __future__ import annotations

from pathlib import Path

from art_qplugins.errors import InputError

__all__ = ["find", "one_line", "stamp"]


def find(name: str, root: Path) -> Path:
    """The path in ``folder:PATH`` or ``npz:PATH``: as given, from the working folder, else below ``root``.

    :raises InputError: where there is no path in ``name``, or nothing at it.
    """
    kind, _, given = name.partition(":")
    if not given:
        raise InputError(f"{name!r} has no path; type {kind}:PATH")
    places = dict.fromkeys((Path(given).expanduser().absolute(), root.absolute() / Path(given).expanduser()))
    for place in places:
        if place.exists():
            return place
    raise InputError(f"{name}: nothing at {' or '.join(map(str, places))}; check the path, or give --data-root DIR")


def stamp(file: Path) -> tuple[str, int, int]:
    """Path, size and modification time. They identify the state of the file."""
    stat = file.stat()
    return str(file.absolute()), stat.st_size, stat.st_mtime_ns


def one_line(error: Exception) -> str:
    """The error's message in one line; its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
