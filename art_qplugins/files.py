"""Files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

__all__ = ["safe_name", "write_atomically"]


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside ``path`` and rename: a reader sees the old file or the new one, also after a kill or a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


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
