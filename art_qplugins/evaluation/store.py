"""A run's folder. Every file is written whole or not at all, so that a kill or a full disk loses nothing finished."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from art_qplugins.errors import InputError
from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.evaluation.records import Cell, Results, Sample
from art_qplugins.files import short_name, write_atomically

__all__ = ["CellStore", "Memory", "Store"]


class CellStore(Protocol):
    """Where finished cells are kept."""

    def load(self, cell_id: str) -> Outcome | None: ...
    def save(self, outcome: Outcome, x_adv: NDArray[np.float32]) -> None: ...
    def images(self, cell_id: str) -> NDArray[np.float32]: ...


class Memory:
    """Finished cells of a run from Python that has no folder."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Outcome, NDArray[np.float32]]] = {}

    def load(self, cell_id: str) -> Outcome | None:
        return self._kept[cell_id][0] if cell_id in self._kept else None

    def save(self, outcome: Outcome, x_adv: NDArray[np.float32]) -> None:
        self._kept[outcome.cell.id] = outcome, x_adv

    def images(self, cell_id: str) -> NDArray[np.float32]:
        return self._kept[cell_id][1]


class Store:
    """``cells/ID.json`` (the records) and ``cells/ID.npz`` (the adversarial images) of every finished cell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            (folder / "cells").mkdir(parents=True, exist_ok=True)
            (folder / "checkpoints").mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{folder}: cannot write there ({error.strerror}); choose another folder with --out"
            ) from None

    def load(self, cell_id: str) -> Outcome | None:
        """The finished cell, or ``None`` where it has to be computed (also where a file of it is damaged or gone)."""
        stem = self.folder / "cells" / cell_id
        if not stem.with_name(f"{cell_id}.npz").exists():
            return None
        try:
            content = json.loads(stem.with_name(f"{cell_id}.json").read_bytes())
            return Outcome(Cell(**content["cell"]), [Sample(**row) for row in content["samples"]])
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            return None

    def save(self, outcome: Outcome, x_adv: NDArray[np.float32]) -> None:
        """The records are written last: where they are, the images are too."""
        stem = self.folder / "cells" / outcome.cell.id
        buffer = io.BytesIO()
        np.savez_compressed(buffer, x_adv=x_adv)
        write_atomically(stem.with_name(stem.name + ".npz"), buffer.getvalue())
        rows = [row.model_dump(mode="json") for row in outcome.samples]
        content = {"cell": outcome.cell.model_dump(mode="json"), "samples": rows}
        write_atomically(stem.with_name(stem.name + ".json"), json.dumps(content).encode())

    def images(self, cell_id: str) -> NDArray[np.float32]:
        with np.load(self.folder / "cells" / f"{cell_id}.npz", allow_pickle=False) as archive:
            return np.asarray(archive["x_adv"])

    def write_evidence(self, model: str, **arrays: NDArray[Any]) -> str:
        """``evidence/MODEL.npz``; its path within the folder."""
        path = self.folder / "evidence" / f"{short_name(model)}.npz"
        path.parent.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_atomically(path, buffer.getvalue())
        return str(path.relative_to(self.folder))

    @property
    def has_results(self) -> bool:
        return (self.folder / "results.json").exists()

    def write_results(self, results: Results) -> None:
        content = results.model_dump_json(by_alias=True, indent=1)
        write_atomically(self.folder / "results.json", content.encode())

    def write_samples(self, outcomes: Iterable[Outcome]) -> None:
        rows = (row.model_dump_json() for outcome in outcomes for row in outcome.samples)
        write_atomically(self.folder / "samples.jsonl", "".join(row + "\n" for row in rows).encode())
