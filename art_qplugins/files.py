"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["locked", "safe_name", "short_name", "sweep", "write_atomically"]

#: How the names of files end that are not whole yet; they begin with a dot.
_PART = ".part"


def write_atomically(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write beside ``path`` and rename: a reader sees the old file or the new one, also after a kill or a full disk.

    :param content: whole, or piece by piece where all of it is too much for the memory.
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


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written in ``folder``. Nobody else may be writing there."""
    for path in folder.glob(f".*{_PART}"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the file ``path`` alone, and yield whether that is so. The lock dies with its process, however that dies.

    Where the system or the file system knows no locks, everybody holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    """``name`` with everything replaced that some file system refuses. Different names may become one."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)


def short_name(name: str) -> str:
    """``name`` where a file may be called so; else the begin of it and a hash, so that different names stay different."""
    safe = safe_name(name)
    if safe == name and len(safe.encode()) <= 80:
        return name
    begin = safe.encode()[:60].decode(errors="ignore")
    return f"{begin}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
