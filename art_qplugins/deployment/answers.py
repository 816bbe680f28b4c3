"""Answers of an endpoint on disk, by image: what was answered once is not asked again, by whichever process.

They are rows of an SQLite file in WAL mode. A kill in the middle of a write loses that write alone. The file may be shared by
the processes of one machine; SQLite's WAL mode is not for network file systems. Memory is bounded by SQLite's own cache of
pages. On disk an image takes about as many bytes as its answer, and 40 more.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from art_qplugins.errors import InputError, said
from art_qplugins.files import printable

__all__ = ["FILE", "Answers", "kept_as"]

FILE = "answers.sqlite"
#: Keys in one question to SQLite, which takes 32,766 at most, and seconds to wait for another process.
_KEYS, _PATIENCE = 500, 60.0
_TABLES = """
    CREATE TABLE IF NOT EXISTS endpoint (
        name TEXT PRIMARY KEY, asked INTEGER NOT NULL DEFAULT 0, steady INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS answer (key BLOB PRIMARY KEY, answer BLOB NOT NULL) WITHOUT ROWID;
"""


def kept_as(name: str, *, labels_only: bool) -> str:
    """The name under which an endpoint's answers are kept: labels and scores of one are no answers for each other."""
    return f"{name} {'labels' if labels_only else 'scores'}"


class Answers:
    """The answers of one endpoint, and how many images it was asked. Threads may share it.

    :param folder: where ``answers.sqlite`` is, or will be. It may hold those of several endpoints.
    :param name: the endpoint's, see :func:`kept_as`. Where the model behind a name changes, remove the file.
    :raises InputError: also from every method, where the file cannot be read or written, or is no such file.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path, self.name = Path(folder).absolute() / FILE, name
        self._lock = threading.RLock()
        self._process = -1
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._trouble(error) from None
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO endpoint (name) VALUES (?)", (name,))

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # nothing was opened, or Python ends
            if self._process == os.getpid():
                self._db.close()

    @property
    def asked(self) -> int:
        """Images that the endpoint was asked so far, by any process, an image that was asked again counted again."""
        return self._about("asked")

    @property
    def steady(self) -> bool:
        """Whether the endpoint was seen to give the same answers twice."""
        return bool(self._about("steady"))

    def is_steady(self) -> None:
        """Remember that it was."""
        with self._transaction() as db:
            db.execute("UPDATE endpoint SET steady = 1 WHERE name = ?", (self.name,))

    def take(self, images: int, most: int | None) -> bool:
        """Count ``images`` as asked, where ``asked`` stays within ``most``. Else nothing is counted, and it is ``False``."""
        with self._transaction() as db:
            limit = "" if most is None else f" AND asked + {int(images)} <= {int(most)}"
            taken = db.execute(f"UPDATE endpoint SET asked = asked + ? WHERE name = ?{limit}", (images, self.name))
            return taken.rowcount == 1

    def keys(self, x: NDArray[np.float32]) -> list[bytes]:
        """A key for each image: a hash of its bytes and shape, and of the name of the endpoint.

        :param x: (N, C, H, W).
        """
        begin = hashlib.sha256(f"{self.name}\n{x.shape[1:]}\n".encode())
        found = []
        for image in np.ascontiguousarray(x, dtype=np.float32):
            digest = begin.copy()
            digest.update(image)
            found.append(digest.digest()[:16])
        return found

    def find(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The answers that are known, by key."""
        found: dict[bytes, bytes] = {}
        with self._database() as db:
            for i in range(0, len(keys), _KEYS):
                some = keys[i : i + _KEYS]
                marks = ",".join("?" * len(some))
                found.update(db.execute(f"SELECT key, answer FROM answer WHERE key IN ({marks})", some).fetchall())
        return found

    def keep(self, answers: Mapping[bytes, bytes]) -> None:
        """Keep answers by key, all or, where the process is killed, none of them."""
        with self._transaction() as db:
            db.executemany("INSERT OR IGNORE INTO answer VALUES (?, ?)", answers.items())

    def _about(self, column: str) -> int:
        with self._database() as db:
            row = db.execute(f"SELECT {column} FROM endpoint WHERE name = ?", (self.name,)).fetchone()
        return 0 if row is None else int(row[0])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._database() as db:
            if db.in_transaction:  # an interrupt came between two statements
                db.execute("ROLLBACK")
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                if self._process != os.getpid():  # a connection must not be used in a process that was forked
                    self._db, self._process = self._open(), os.getpid()
                yield self._db
            except sqlite3.Error as error:
                raise self._trouble(error) from None

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")  # safe in WAL mode; a power cut may lose the last answers
        db.executescript(_TABLES)
        return db

    def _trouble(self, error: Exception) -> InputError:
        return InputError(f"cache {printable(self.path)}: {said(error)}; make room, or give another folder")
