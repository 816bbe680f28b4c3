"""Atomic file writes, locks, and file names that every file system accepts."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["locked", "safe_name", "short_name", "sweep", "write_atomically"]

#: Suffix of incomplete files. Their names begin with a dot.
_PART = ".part"


def write_atomically(path: Path, content: bytes | Iterable[bytes]) -> None:
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


def sweep(folder: Path) -> None:
    """Remove the incomplete files of killed processes from ``folder``. No other process may be writing there."""
    for path in folder.glob(f".*{_PART}"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Lock the file ``path`` within the context, and yield whether that succeeded. The lock ends with its process.

    It always succeeds if the file system has no locks.
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
    """``name`` without characters that some file system refuses. Different names may become equal."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)


def short_name(name: str) -> str:
    """``name`` if it is a valid file name, else its beginning and a hash. Different names stay different."""
    safe = safe_name(name)
    if safe == name and len(safe.encode()) <= 80:
        return name
    begin = safe.encode()[:60].decode(errors="ignore")
    return f"{begin}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
