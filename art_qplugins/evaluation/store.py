"""The folder of a run. Every file is written completely or not at all, so no kill or full disk loses finished cells.

Files are checked when they are read. A cell with a truncated, changed or missing file counts as not computed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from art_qplugins import metrics
from art_qplugins.arrays import MOST_BYTES, read_arrays
from art_qplugins.errors import InputError, shown
from art_qplugins.evaluation.outcome import Outcome, check
from art_qplugins.evaluation.reading import LARGEST, strictly
from art_qplugins.evaluation.records import SCHEMA_VERSION, Cell, Results
from art_qplugins.files import check_places, locked, read_bytes, read_json, short_name, sweep, write_atomically

__all__ = ["Memory", "Storage", "Store", "check_folder"]


#: What a run writes, and a file of each folder in it.
_FILES = (
    "results.json",
    "samples.jsonl",
    "report.html",
    ".lock",
    "cells/x",
    "checkpoints/x",
    "evidence/x",
    "figures/x",
)


class Storage(Protocol):
    """Storage of a run: finished cells, finished shards of unfinished cells, evidence and results.

    :ivar folder: the folder on disk; ``None`` for a run in memory.
    """

    @property
    def folder(self) -> Path | None: ...
    def alone(self, recipe: str) -> contextlib.AbstractContextManager[None]: ...
    def load(self, cell_id: str) -> Outcome | None: ...
    def save(self, outcome: Outcome, x_adv: NDArray[np.float32]) -> None: ...
    def images(self, cell_id: str) -> NDArray[np.float32]: ...
    def drop(self, cell_id: str) -> None: ...
    def write_evidence(self, model: str, **arrays: NDArray[Any]) -> str | None: ...
    @property
    def has_results(self) -> bool: ...
    def write_results(self, results: Results) -> None: ...
    def write_samples(self, outcomes: Iterable[Outcome]) -> None: ...


class Memory:
    """The storage of a run without a folder. Cells and images stay in memory, and nothing is written."""

    folder = None
    has_results = False

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Outcome, NDArray[np.float32]]] = {}

    def alone(self, recipe: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def load(self, cell_id: str) -> Outcome | None:
        return self._kept[cell_id][0] if cell_id in self._kept else None

    def save(self, outcome: Outcome, x_adv: NDArray[np.float32]) -> None:
        self._kept[outcome.cell.id] = outcome, x_adv

    def images(self, cell_id: str) -> NDArray[np.float32]:
        return self._kept[cell_id][1]

    def drop(self, cell_id: str) -> None:
        self._kept.pop(cell_id, None)

    def write_evidence(self, model: str, **arrays: NDArray[Any]) -> str | None:
        return None

    def write_results(self, results: Results) -> None: ...

    def write_samples(self, outcomes: Iterable[Outcome]) -> None: ...


class Store:
    """``cells/ID.json`` (the records) and ``cells/ID.npz`` (the adversarial images) of every finished cell.

    :raises InputError: where the folder cannot be made or written into.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._intact: set[str] = set()  # cells whose images were checked against their hash
        try:
            (folder / "cells").mkdir(parents=True, exist_ok=True)
            (folder / "checkpoints").mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=folder / "cells"):
                pass
        except OSError as error:
            raise InputError(
                f"{folder}: cannot write there ({error.strerror}); choose another folder with --out"
            ) from None

    @property
    def folder(self) -> Path:
        return self._folder

    @contextlib.contextmanager
    def alone(self, recipe: str) -> Iterator[None]:
        """Lock the folder for a run of the recipe with this name.

        Incomplete files of a killed process are removed first.

        :raises InputError: where another run holds the lock, or the folder has results of another recipe or schema.
        """
        with locked(self.folder / ".lock") as mine:
            if not mine:
                raise InputError(
                    f"{self.folder}: another run is writing there; wait until it ends or choose another folder with --out"
                )
            _check_same_recipe(self.folder, recipe)
            for folder in (self.folder, *(path for path in self.folder.iterdir() if path.is_dir())):
                sweep(folder)
            yield

    def load(self, cell_id: str) -> Outcome | None:
        """The finished cell; ``None`` where it must be computed, also because a file is damaged or missing."""
        path, images = self._path(cell_id, "json"), self._path(cell_id, "npz")
        try:
            content = read_json(path, most=LARGEST, hint="")
            if content["sha256"] != _digest(content):
                return None
            if cell_id not in self._intact:
                if hashlib.sha256(read_bytes(images, most=MOST_BYTES, hint="")).hexdigest() != content["images"]:
                    return None
            elif not images.exists():
                return None
            columns = {name: np.array(values, dtype=float) for name, values in content["columns"].items()}
            outcome = Outcome(strictly(Cell, content["cell"]), content["ids"], columns)
            check(outcome)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        self._intact.add(cell_id)
        return outcome

    def save(self, outcome: Outcome, x_adv: NDArray[np.float32]) -> None:
        """Save the images and then the records, so that a cell with records has images."""
        name, images = outcome.cell.id, _packed(x_adv=x_adv)
        self._intact.discard(name)
        write_atomically(self._path(name, "npz"), images)
        columns = {key: [metrics.finite(v) for v in values] for key, values in outcome.columns.items()}
        content: dict[str, Any] = {"cell": outcome.cell.model_dump(mode="json"), "ids": list(outcome.ids)}
        content |= {"columns": columns, "images": hashlib.sha256(images).hexdigest()}
        content["sha256"] = _digest(content)
        write_atomically(self._path(name, "json"), json.dumps(content).encode())
        self._intact.add(name)

    def images(self, cell_id: str) -> NDArray[np.float32]:
        return read_arrays(self._path(cell_id, "npz"), names=["x_adv"], hint="run the same command again")["x_adv"]

    def drop(self, cell_id: str) -> None:
        """Delete the records and then the images, so that a cell with records has images."""
        self._path(cell_id, "json").unlink(missing_ok=True)
        self._path(cell_id, "npz").unlink(missing_ok=True)
        self._intact.discard(cell_id)

    def _path(self, cell_id: str, kind: str) -> Path:
        return self.folder / "cells" / f"{cell_id}.{kind}"

    def write_evidence(self, model: str, **arrays: NDArray[Any]) -> str | None:
        """Write ``evidence/MODEL.npz`` and return its path within the folder."""
        path = self.folder / "evidence" / f"{short_name(model)}.npz"
        write_atomically(path, _packed(**arrays))
        return str(path.relative_to(self.folder))

    @property
    def has_results(self) -> bool:
        return (self.folder / "results.json").exists()

    def write_results(self, results: Results) -> None:
        content = results.model_dump_json(by_alias=True, indent=1)
        write_atomically(self.folder / "results.json", content.encode())

    def write_samples(self, outcomes: Iterable[Outcome]) -> None:
        """Write the rows cell by cell, so that only one cell's rows are in memory."""
        rows = (f"{row.model_dump_json()}\n".encode() for outcome in outcomes for row in outcome.samples())
        write_atomically(self.folder / "samples.jsonl", rows)


def check_folder(folder: Path, recipe: str) -> None:
    """Refuse a folder that cannot be a run's of the recipe with this name. Nothing is written.

    :raises InputError: where something else is there, or no folder can be made there.
    """
    try:
        found = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        fits = found.is_dir() and os.access(found, os.W_OK)
    except (OSError, ValueError):  # a name that is too long, or that no file can have
        fits = False
    if not fits:
        raise InputError(f"{folder}: cannot write there; choose another folder with --out")
    check_places(folder, _FILES)
    _check_same_recipe(folder, recipe)


def _check_same_recipe(folder: Path, recipe: str) -> None:
    """Refuse a folder of another recipe. Cells of the same recipe with other values may share the folder."""
    path = folder / "results.json"
    try:
        found = read_json(path, most=LARGEST, hint="")
        version, name = found["schema_version"], found["spec"]["resolved"].get("name")
    except (InputError, KeyError, TypeError, AttributeError):
        return  # missing or damaged: it will be written again
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: its schema is {shown(version)} and this version writes {SCHEMA_VERSION}; "
            "choose another folder with --out, or delete this one"
        )
    if name != recipe:
        whose = "no recipe" if name is None else f"recipe {shown(name)}"
        raise InputError(
            f"{folder}: holds results of {whose}, and this is {recipe!r}; choose another folder with --out"
        )


def _packed(**arrays: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _digest(content: dict[str, Any]) -> str:
    """Hash of a cell's file without the hash itself. JSON preserves floats exactly."""
    return hashlib.sha256(json.dumps({k: v for k, v in content.items() if k != "sha256"}).encode()).hexdigest()
