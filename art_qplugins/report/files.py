"""Reads the records of a run from its folder, and writes finished files into it."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from art_qplugins.domains import PATH, check
from art_qplugins.errors import InputError
from art_qplugins.evaluation.old_names import upgrade
from art_qplugins.evaluation.records import SCHEMA_VERSION, Results, Sample
from art_qplugins.files import write_atomically


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
        try:
            # The file is opened here, since np.load leaves it open where it is no zip.
            with (
                (self.folder / "cells" / f"{cell_id}.npz").open("rb") as file,
                np.load(file, allow_pickle=False) as arrays,
            ):
                images = np.asarray(arrays["x_adv"], dtype=np.float32)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError):
            return None
        if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) != len(self.samples.get(cell_id, [])):
            return None
        return np.clip(np.nan_to_num(images), 0.0, 1.0)


def read_run(folder: Path) -> Run:
    """Read and check the records of ``folder``.

    :raises InputError: where a file is missing, damaged or of another schema.
    """
    folder = Path(check("folder", folder, PATH))
    return Run(
        folder=folder, results=_read_results(folder / "results.json"), samples=_read_samples(folder / "samples.jsonl")
    )


def _read_results(path: Path) -> Results:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the folder of a run, as written by 'artq run RECIPE'") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the folder of a run") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({_line(error)}); run the recipe again to rewrite it") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema_version is {version!r} and this version of art_qplugins reads {SCHEMA_VERSION}; "
            "run the recipe again, or use the version that wrote it"
        )
    try:
        return Results.model_validate(upgrade(raw))
    except ValidationError as error:
        raise InputError(f"{path}: {_first(error)}; run the recipe again to rewrite it") from None


def _read_samples(path: Path) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = defaultdict(list)
    if not path.exists():  # a run that stopped before its first cell has none
        return {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                sample = Sample.model_validate_json(line)
            except ValidationError as error:
                if not line.endswith(b"\n"):  # the run was stopped while it wrote this line
                    break
                raise InputError(f"{path}, line {number}: {_first(error)}; run the recipe again") from None
            samples[sample.cell].append(sample)
    return dict(samples)


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return _line(f"{where}: {first['msg']}" if where else first["msg"])


def _line(text: object) -> str:
    return " ".join(str(text).split())


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
