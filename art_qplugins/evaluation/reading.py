"""Reads the records of a run back. What contradicts itself is refused: nothing in a file is believed that can be checked."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from art_qplugins.errors import InputError, did_you_mean, shown
from art_qplugins.evaluation.old_names import upgrade
from art_qplugins.evaluation.outcome import Outcome, check, clean_tries, robust_at, same_tries
from art_qplugins.evaluation.records import SCHEMA_VERSION, ModelResult, Results, Sample, Tries
from art_qplugins.files import open_file, printable, read_json

__all__ = ["LARGEST", "read_records", "read_results", "strictly"]

#: The largest JSON of a run, the largest samples.jsonl, and its longest line, in bytes.
LARGEST, _MOST_SAMPLES, _LONGEST_LINE = 2**30, 2**40, 2**20
_AGAIN = "copy the run again, or run its recipe again"
_HINT = "give the folder of a run, as written by 'artq run RECIPE'"

_Model = TypeVar("_Model", bound=BaseModel)


def read_records(folder: Path) -> tuple[Results, dict[str, list[Sample]]]:
    """``results.json``, and the samples of each cell by its id, in the order of the cell's images.

    A run that did not get as far as its first cell has no samples. A file that an earlier run left is then not read.

    :raises InputError: where a file is missing, damaged or of another schema, or where the records contradict each other.
    """
    results = read_results(folder / "results.json")
    path = folder / "samples.jsonl"
    samples = _read_samples(path) if results.cells and path.exists() else {}
    try:
        _check(results, samples)
    except ValueError as error:
        raise InputError(f"{printable(folder)}: {error}; {_AGAIN}") from None
    return results, samples


def read_results(path: Path) -> Results:
    """``results.json`` alone, with the current names.

    :raises InputError: where it is missing, damaged or of another schema.
    """
    raw = read_json(path, most=LARGEST, hint=_HINT)
    version = raw.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise InputError(
            f"{printable(path)}: schema_version is {shown(version)} and this version of art_qplugins reads "
            f"{SCHEMA_VERSION}; run the recipe again, or use the version that wrote it"
        )
    try:
        return strictly(Results, upgrade(raw))
    except ValueError as error:
        raise InputError(f"{printable(path)}: {error}; {_AGAIN}") from None


def strictly(model: type[_Model], content: Any) -> _Model:
    """``content`` as a record. A number in a text, or a flag in place of a number, is refused.

    :raises ValueError: in one line that names the field.
    """
    try:
        return model.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        raise ValueError(_first(error)) from None


def _read_samples(path: Path) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = defaultdict(list)
    with open_file(path, most=_MOST_SAMPLES, hint=_HINT) as lines:
        number = 0
        while line := lines.readline(_LONGEST_LINE):
            number += 1
            try:
                if not line.endswith(b"\n"):  # samples.jsonl is written whole, so it was cut later
                    raise ValueError(f"it is cut short, or longer than {_LONGEST_LINE} bytes")
                sample = Sample.model_validate_json(line, strict=True)
            except ValueError as error:
                why = _first(error) if isinstance(error, ValidationError) else error
                raise InputError(f"{printable(path)}, line {number}: {why}; {_AGAIN}") from None
            samples[sample.cell].append(sample)
    return dict(samples)


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    given = "" if isinstance(first["input"], (dict, list)) else f" (it is {shown(first['input'])})"
    return f"{where}: {first['msg']}{given}" if where else first["msg"]


# --- Do the records agree?


def _check(results: Results, samples: Mapping[str, Sequence[Sample]]) -> None:
    _check_names("cells", [cell.id for cell in results.cells])
    _check_names("models", [model.name for model in results.models])
    _known("sample of cell", samples, {cell.id for cell in results.cells})
    outcomes = {
        cell.id: Outcome.from_samples(
            cell,
            samples.get(cell.id, ()),
            measures=_MEASURES if cell.grid is not None or cell.rejected is not None or cell.tries else (),
        )
        for cell in results.cells
    }
    for name, outcome in outcomes.items():
        try:
            check(outcome)
        except ValueError as error:
            raise ValueError(f"cell {shown(name)}: {error}") from None
    _check_images(results, outcomes.values())
    for model in results.models:
        _check_model(model, outcomes)


_MEASURES = ("draws", "grid_correct", "rejected")  # those that numbers of a cell are of


def _check_names(what: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{what}: {shown(twice)} is there twice")


def _known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{what} {shown(unknown[0])}: there is no such cell{did_you_mean(unknown[0], known)}")


def _check_images(results: Results, outcomes: Iterable[Outcome]) -> None:
    """Every cell is on the same images in the same order, or on its rows of them, with the same labels."""
    images: dict[int, tuple[str, float]] = {}
    whole: list[tuple[str, float]] = []  # those of the last cell on all images; most cells have the same
    of = results.data.get("n")
    for cell, outcome in ((o.cell, o) for o in outcomes if o.ok):
        n = cell.n if cell.of is None else cell.of
        of = n if of is None else of
        if n != of:
            raise ValueError(f"cell {shown(cell.id)}: it is on {n} images, and the run on {of}")
        here = list(zip(outcome.ids, outcome.columns["label"].tolist(), strict=True))
        if cell.rows is None and here == whole:
            continue
        for row, image in zip(cell.rows or range(n), here, strict=True):
            if images.setdefault(row, image) != image:
                raise ValueError(
                    f"cell {shown(cell.id)}: image {row} is {shown(image[0])} of class {image[1]:g}, and "
                    f"{shown(images[row][0])} of class {images[row][1]:g} in another cell"
                )
        whole = here if cell.rows is None else whole


def _check_model(model: ModelResult, outcomes: Mapping[str, Outcome]) -> None:
    mine = {name: outcome for name, outcome in outcomes.items() if outcome.cell.model == model.name}
    where = f"models: {shown(model.name)}"
    clean = next((o for o in mine.values() if o.cell.role == "clean" and o.ok), None)
    if clean is not None and model.n:
        _equal(f"{where}: n", model.n, clean.cell.n)
        _equal(f"{where}: clean_accuracy", model.clean_accuracy, float(clean.labelled.mean()))
        _equal(f"{where}: clean_rejected", model.clean_rejected or 0.0, clean.cell.rejected or 0.0)
        _equal_tries(f"{where}: clean images", model.clean_tries, clean_tries(clean))
    for robust in model.robust:
        at = f"{where}: robust accuracy at {robust.norm} {robust.eps:g}"
        _known(at, robust.attacks, mine)
        if robust.attacks:
            again = robust_at([mine[name] for name in robust.attacks], robust.norm, robust.eps)
            _equal(at, robust.accuracy, again.accuracy)
            _equal_tries(at, robust.tries, again.tries)
        if (model.claim.norm, model.claim.eps) == (robust.norm, robust.eps) and model.claim.corrected is not None:
            _equal(f"{where}: corrected accuracy", model.claim.corrected, robust.accuracy)


def _equal_tries(what: str, recorded: Sequence[Tries], found: Sequence[Tries]) -> None:
    """Records of earlier versions have none."""
    if recorded and not same_tries(recorded, found):
        raise ValueError(f"{what}: what is left after several tries is not what its cells say")


def _equal(what: str, recorded: float, found: float | None) -> None:
    if found is None or not np.isclose(recorded, found, rtol=0, atol=1e-9):
        raise ValueError(f"{what} is {recorded:.6g}, and by its cells {found:.6g}")
