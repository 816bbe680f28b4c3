"""Reading files of unknown origin, atomic file writes, locks, and file names that every file system accepts.

Who reads a file that a person named uses :func:`open_file`, or a function above it. Nothing is read before its kind and size
are known, and no such file makes the program wait.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from art_qplugins.errors import InputError, one_line, said, shown

__all__ = [
    "as_path",
    "check_places",
    "in_words",
    "is_exported",
    "locked",
    "open_file",
    "parse_json",
    "printable",
    "read_bytes",
    "read_json",
    "read_text",
    "reason",
    "safe_name",
    "short_name",
    "sweep",
    "trouble",
    "write_atomically",
]

#: The names of devices on Windows, with any suffix.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
#: The end of a shortened name. A name that ends so is shortened too, so that it is not that of another.
_HASHED = re.compile(r"-[0-9a-f]{10}$")
#: Suffix of incomplete files. Their names begin with a dot.
_PART = ".part"

#: The longest path in a message, in characters.
_LONGEST_PATH = 120
#: The deepest nesting of lists and objects in JSON, and its longest whole number in digits.
_DEEPEST = 50
_MOST_DIGITS = 20

#: What is at a path in place of a file, by the type in its mode.
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
#: The errors of the operating system that people meet, in words.
_REASONS = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "a part of the path is no folder",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EISDIR: "a folder is in the place of this file",
    errno.ELOOP: "symbolic links that lead back to themselves",
    errno.ENAMETOOLONG: "the name is too long",
}
#: What a person can do about them, to go on.
_REMEDIES = {
    errno.EISDIR: "move that folder away",
    errno.EEXIST: "move what is in the place of its folder away",
    errno.ENOTDIR: "move what is in the place of its folder away",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "free some space",
    errno.EACCES: "allow writing there, or choose another folder with --out",
    errno.EPERM: "allow writing there, or choose another folder with --out",
    errno.EROFS: "choose another folder with --out",
    errno.ENAMETOOLONG: "choose another folder with --out",
}


# --- Reading


def as_path(path: str | os.PathLike[str], *, hint: str, where: str = "") -> Path:
    """``path`` with ``~`` written out. Whether something is there is not looked at.

    :param hint: what to type next; the end of the message.
    :param where: what the path is, e.g. ``"checkpoint "``; the beginning of the message.
    :raises InputError: where no file can have this path, or its name is not UTF-8.
    """
    why = None
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise InputError(f"{where}{shown(path)} is no path; {hint}")
    text = os.fspath(path)
    if not text:
        why = "the path is empty"
    elif "\0" in text:
        why = "the path has a NUL character"
    elif not _is_utf8(text):
        why = "the name is not UTF-8; rename it"
    else:
        try:
            return Path(text).expanduser()
        except RuntimeError:
            why = "there is no such user"
    raise InputError(f"{where}{printable(text) or shown(text)}: cannot be read ({why}); {hint}")


def open_file(path: str | os.PathLike[str], *, most: int, hint: str, where: str = "") -> BinaryIO:
    """Open a file of unknown origin for reading, without waiting for anybody.

    :param path: ``~`` is the home folder. Symbolic links are followed.
    :param most: the largest size in bytes.
    :param hint: what to type next; the end of the message.
    :param where: what the file is, e.g. ``"checkpoint "``; the beginning of the message.
    :raises InputError: where it is missing, cannot be read, is larger, or is no plain file: a folder, a pipe, a device.
    """
    place = as_path(path, hint=hint, where=where)
    try:
        why = _unfit(place.stat(), most)
        if why is None:
            file = open(place, "rb", opener=_at_once)  # noqa: SIM115, the caller closes it
            why = _unfit(os.fstat(file.fileno()), most)  # another file may have taken its place
            if why is None:
                return file
            file.close()
    except OSError as error:
        why = reason(error)
    raise InputError(f"{where}{printable(path)}: cannot be read ({why}); {hint}")


def read_bytes(path: str | os.PathLike[str], *, most: int, hint: str, where: str = "") -> bytes:
    """The content of a file of unknown origin. Parameters and errors are those of :func:`open_file`."""
    with open_file(path, most=most, hint=hint, where=where) as file:
        try:
            # A file may grow meanwhile. What has no size, such as the files of /proc, may give nothing at once.
            content = file.read(most + 1) or b""
            why = None if len(content) <= most else f"larger than {in_words(most)}"
        except OSError as error:
            why = reason(error)
    if why is not None:
        raise InputError(f"{where}{printable(path)}: cannot be read ({why}); {hint}")
    return content


def read_text(path: str | os.PathLike[str], *, most: int, hint: str, where: str = "") -> str:
    """The text of a UTF-8 file of unknown origin. Parameters are those of :func:`open_file`.

    :raises InputError: as there, and where it is not UTF-8.
    """
    content = read_bytes(path, most=most, hint=hint, where=where)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}{printable(path)}: no UTF-8 text (byte {error.start} is {content[error.start]:#04x}); {hint}"
        ) from None


def read_json(path: str | os.PathLike[str], *, most: int, hint: str, where: str = "") -> dict[str, Any]:
    """The object in a JSON file of unknown origin. Parameters are those of :func:`open_file`.

    :raises InputError: as there, and where :func:`parse_json` refuses it.
    """
    text = read_text(path, most=most, hint=hint, where=where)
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputError(f"{where}{printable(path)}: not the JSON that belongs there ({said(error)}); {hint}") from None


def parse_json(text: str) -> dict[str, Any]:
    """The object in JSON of unknown origin.

    :raises ValueError: where it is no JSON, no object, nested more than 50 deep, or holds a number that is NaN, infinite
        or a whole number of more than 20 digits.
    """
    try:
        content: Any = json.loads(text, parse_constant=_refused, parse_int=_whole)
        why = _amiss(content)
    except RecursionError:
        why = f"nested more than {_DEEPEST} deep"
    if why is not None:
        raise ValueError(why)
    found: dict[str, Any] = content
    return found


def printable(path: str | os.PathLike[str]) -> str:
    """A path for a message: printable, at most 120 characters."""
    return one_line(os.fspath(path).encode("utf-8", "backslashreplace").decode(), _LONGEST_PATH)


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Whether the ending is that of an archive of ``torch.export``."""
    return os.fspath(path).lower().endswith(".pt2")


def in_words(size: float) -> str:
    """A number of bytes, e.g. ``"14.9 TiB"``."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    at = 0
    while size >= 1024 and at < len(units) - 1:
        size, at = size / 1024, at + 1
    return f"{size:.3g} {units[at]}"


def reason(error: OSError) -> str:
    """Why the operating system refused, in words."""
    if error.errno == errno.ENOENT and isinstance(error.filename, (str, Path)) and os.path.islink(error.filename):
        return "a symbolic link to nothing"
    return _REASONS.get(error.errno or 0) or error.strerror or type(error).__name__


def trouble(error: OSError) -> str:
    """Which file the operating system refused, why, and what a person can do about it."""
    where = (
        printable(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else "the operating system"
    )
    return f"{where}: {reason(error)}; {_REMEDIES.get(error.errno or 0, 'correct that')}"


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _unfit(found: os.stat_result, most: int) -> str | None:
    """Why what was found is no file of at most ``most`` bytes; ``None`` where it is one."""
    if not stat.S_ISREG(found.st_mode):
        return f"it is {_KINDS.get(stat.S_IFMT(found.st_mode), 'no file')}"
    return None if found.st_size <= most else f"it holds {in_words(found.st_size)}, more than {in_words(most)}"


def _at_once(path: str, flags: int) -> int:
    """Open without waiting for whoever writes into a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _refused(constant: str) -> float:
    raise ValueError(f"the number {constant}")


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def _amiss(content: Any) -> str | None:
    """What is wrong with parsed JSON. It does not recurse, and looks at numbers by the list: most files are numbers."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__} in place of an object"
    level: list[Any] = [content]
    for _ in range(_DEEPEST):
        values = [part.values() if isinstance(part, dict) else part for part in level]
        if any(math.inf in part or -math.inf in part for part in values):
            return "an infinite number"
        level = [v for part in values for v in part if isinstance(v, (dict, list))]
    return f"nested more than {_DEEPEST} deep" if level else None


# --- Writing


def write_atomically(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Write a temporary file next to ``path`` and rename it. A reader sees the old or the new file, also after a kill.

    :param content: the whole content, or an iterable of pieces if the whole is too large for memory.
    :raises OSError: with the file's name in it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PART)
        try:
            with os.fdopen(handle, "wb") as file:
                for piece in [content] if isinstance(content, bytes) else content:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(part, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
            os.replace(part, path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def check_places(folder: Path, names: Iterable[str]) -> None:
    """Check before any work that files of these names can be written into ``folder``.

    :raises InputError: where a folder is in the place of a file, or a file in the place of its folder.
    """
    for path in (folder / name for name in names):
        if path.is_dir():
            raise InputError(f"{printable(path)}: a folder is in the place of this file; move that folder away")
        if path.parent.exists() and not path.parent.is_dir():
            raise InputError(f"{printable(path.parent)}: a file is in the place of this folder; move that file away")


def sweep(folder: Path, name: str = "") -> None:
    """Remove the incomplete files of killed processes from ``folder``. No other process may be writing there.

    :param name: only those of files whose names begin with it, which is one that :func:`short_name` gives.
    """
    for path in folder.glob(f".{name}*{_PART}"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Lock the file ``path`` within the context, and yield whether that succeeded. The lock ends with its process.

    It always succeeds if the file system has no locks.

    :param wait: until another process has unlocked it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:  # no locks on this file system
            pass
        yield True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def safe_name(name: str) -> str:
    """``name`` without characters that some file system refuses. Different names may become equal."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)


def short_name(name: str) -> str:
    """``name`` if it is a file name everywhere, else its beginning and a hash. Different names stay different.

    What it gives has at most 80 bytes, leads out of no folder, is not hidden, and is no name that Windows reserves. Only
    names that differ in capital letters alone may be one file, where the file system ignores them.
    """
    safe = safe_name(name)
    plain = safe == name and name.isascii() and 0 < len(name) <= 80 and name[0] not in ".-" and name[-1] != "."
    if plain and not _RESERVED.match(name) and not _HASHED.search(name):
        return name
    begin = safe.encode()[:60].decode(errors="ignore").lstrip(".-")
    begin = f"_{begin}" if _RESERVED.match(begin) else begin or "name"
    return f"{begin}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:10]}"
