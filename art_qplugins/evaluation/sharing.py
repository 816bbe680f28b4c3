"""Scores existing adversarial images again: on another model, or rounded to a pixel grid."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from art_qplugins import metrics
from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.evaluation.cell import CellSpec, images_key
from art_qplugins.evaluation.evaluator import Evaluator
from art_qplugins.evaluation.outcome import Columns, Outcome, means
from art_qplugins.evaluation.score import check_legal, finite_columns, on_grid, score
from art_qplugins.evaluation.store import Storage
from art_qplugins.threat import Threat

__all__ = ["SharedImages", "scored_on_grid"]

_GRID = "grid_correct"


class SharedImages:
    """The images that finished cells of this run hold. The images stay in the store."""

    def __init__(self, evaluator: Evaluator, store: Storage) -> None:
        self._evaluator, self._store = evaluator, store
        self._holders: dict[tuple[Any, ...], list[Outcome]] = defaultdict(list)

    def add(self, spec: CellSpec, outcome: Outcome) -> None:
        """Add a finished cell. Other cells may use its images if they were crafted for it, and are all that it was scored on."""
        once = ATTACKS[spec.attack].images(spec.options) == 1
        if outcome.ok and outcome.cell.crafted_in is None and spec.role != "clean" and once:
            self._holders[images_key(spec)].append(outcome)

    def split(self, specs: Mapping[str, CellSpec]) -> tuple[dict[str, CellSpec], dict[str, CellSpec]]:
        """(cells that craft images, cells that use the images of other cells), by id.

        If cells differ only in the scored model, the cell that attacks the most images crafts for all of them.
        """
        groups: dict[tuple[Any, ...], list[str]] = defaultdict(list)
        for name, spec in specs.items():
            groups[images_key(spec)].append(name)
        first = set()
        for key, names in groups.items():
            if specs[names[0]].role == "clean":
                first |= set(names)
            elif key not in self._holders:
                first.add(max(names, key=lambda n: float("inf") if (rows := specs[n].rows) is None else len(rows)))
        return {n: s for n, s in specs.items() if n in first}, {n: s for n, s in specs.items() if n not in first}

    def holds(self, spec: CellSpec) -> bool:
        """Whether the images of ``spec`` exist, so that the cell costs no attack."""
        return self._held(spec) is not None

    def scored(self, spec: CellSpec) -> Outcome | None:
        """Score and store ``spec`` from existing images; ``None`` if it is finished or no cell holds all its images."""
        name = self._evaluator.id_of(spec)
        if self._store.load(name) is not None:
            return None
        if (held := self._held(spec)) is None:
            return None
        found, places = held
        images = self._store.images(found.cell.id)[places]
        outcome = _scored(self._evaluator, spec, name, found, places, torch.from_numpy(images))
        self._store.save(outcome, images)
        return outcome

    def _held(self, spec: CellSpec) -> tuple[Outcome, list[int]] | None:
        """A finished cell that holds every image, and the positions of the images in it."""
        for found in self._holders.get(images_key(spec), ()):
            if self._store.load(found.cell.id) is None:  # its files were damaged or removed
                continue
            where = {row: i for i, row in enumerate(self._evaluator.rows(found.cell.rows))}
            places = [where.get(row, -1) for row in self._evaluator.rows(spec.rows)]
            if -1 not in places:
                return found, places
        return None


def _scored(
    evaluator: Evaluator, spec: CellSpec, name: str, found: Outcome, places: Sequence[int], images: torch.Tensor
) -> Outcome:
    """Score ``spec.model`` on the images of ``found`` at ``places``. Distances and paths do not change."""
    target, started = evaluator.estimators[spec.model], time.perf_counter()
    rows = evaluator.rows(spec.rows)
    y = evaluator.y[rows].to(target.device)
    scored = _score(evaluator, spec, images.to(target.device), y)
    kept = {
        key: values[list(places)] for key, values in found.columns.items() if key not in (_GRID, "rejected", "draws")
    }
    cell = found.cell.model_copy(
        update={
            "id": name,
            **spec.named,
            "n": len(rows),
            **means(scored),
            "forward_samples": 0,
            "backward_samples": 0,
            "seconds": time.perf_counter() - started,
            "rows": None if spec.rows is None else rows,
            "of": None if spec.rows is None else len(evaluator),
            "crafted_in": found.cell.id,
            "drift": None,
            **dict.fromkeys(("grid", "grid_accuracy", "grid_interval")),
        }
    )
    return Outcome(cell, [found.ids[place] for place in places], {**kept, **finite_columns(scored)})


def scored_on_grid(
    evaluator: Evaluator, spec: CellSpec, outcome: Outcome, store: Storage, levels: int | None
) -> Outcome:
    """Add the scores of the images rounded to ``levels`` pixel values to ``outcome``, and store it.

    An outcome that has them does not change. The stored images are never rounded. A mean over several images has none.
    """
    cell = outcome.cell
    several = ATTACKS[spec.attack].images(spec.options) > 1
    if levels is None or not outcome.ok or cell.grid == levels or spec.check or several:
        return outcome
    target, rows = evaluator.estimators[spec.model], evaluator.rows(cell.rows)
    x, y = evaluator.x[rows].to(target.device), evaluator.y[rows].to(target.device)
    threat, x_adv = Threat(spec.norm, spec.eps), store.images(cell.id)
    rounded = on_grid(x, torch.from_numpy(x_adv).to(x), threat, levels)
    check_legal(x, rounded, threat)
    correct = _score(evaluator, spec, rounded, y)["correct"]
    accuracy, interval = metrics.accuracy(correct)
    changed = outcome.with_cell(grid=levels, grid_accuracy=accuracy, grid_interval=interval)
    result = Outcome(changed.cell, outcome.ids, {**outcome.columns, _GRID: correct})
    store.save(result, x_adv)
    return result


def _score(evaluator: Evaluator, spec: CellSpec, images: torch.Tensor, y: torch.Tensor) -> Columns:
    target = evaluator.estimators[spec.model]
    settings = {"batch_size": evaluator.batch_size, "draws": evaluator.score_draws}
    return score(target.model, images, y, seed=spec.seed, abstain=target.abstain, **settings)
