"""Reads the records of a run from its folder, and writes finished files into it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from art_qplugins.arrays import read_arrays
from art_qplugins.domains import PATH, check
from art_qplugins.errors import InputError
from art_qplugins.evaluation.reading import read_records
from art_qplugins.evaluation.records import Results, Sample
from art_qplugins.files import write_atomically

_AGAIN = "run the recipe again"


@dataclass(frozen=True, kw_only=True)
class Run:
    """The records of one run. The keys of ``samples`` are cell ids. Each list has the row order of the cell's npz."""

    folder: Path
    results: Results
    samples: dict[str, list[Sample]]

    def images(self, cell_id: str) -> NDArray[np.float32] | None:
        """``x_adv`` of a cell, (n, C, H, W) float32 in [0, 1]; ``None`` where it was not kept or cannot be read.

        A missing or damaged file is no error here: the report then has fewer pictures.
        """
        if Path(cell_id).name != cell_id:  # the id comes from a file and must not lead out of the folder
            return None
        path = self.folder / "cells" / f"{cell_id}.npz"
        try:
            images = np.asarray(read_arrays(path, names=["x_adv"], hint=_AGAIN)["x_adv"], dtype=np.float32)
        except (InputError, KeyError):
            return None
        if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) != len(self.samples.get(cell_id, [])):
            return None
        return np.clip(np.nan_to_num(images), 0.0, 1.0)


def read_run(folder: Path) -> Run:
    """Read and check the records of ``folder``.

    :raises InputError: where a file is missing, damaged or of another schema, or where the records contradict each other.
    """
    folder = Path(check("folder", folder, PATH))
    results, samples = read_records(folder)
    return Run(folder=folder, results=results, samples=samples)


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` as UTF-8, the whole file or nothing.

    :return: ``path``.
    """
    return write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> Path:
    """Write ``content``, the whole file or nothing.

    :return: ``path``.
    """
    write_atomically(path, content)
    return path
