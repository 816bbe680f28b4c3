"""Images that are there already, judged once more: by another model (crafted once, judged by many), or on a pixel grid."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from art_qplugins import metrics
from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.evaluation.cascade import images_key
from art_qplugins.evaluation.cell import CellSpec
from art_qplugins.evaluation.evaluator import Evaluator, without_number
from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.evaluation.records import Cell, Sample
from art_qplugins.evaluation.score import check_legal, judge, on_grid
from art_qplugins.evaluation.store import CellStore
from art_qplugins.threat import Threat

__all__ = ["SharedImages", "judged_on_grid", "skipped"]

_GRID = "grid_correct"


class SharedImages:
    """Which finished cells of this run hold which images. The images stay in the store."""

    def __init__(self) -> None:
        self._holders: dict[tuple[Any, ...], list[str]] = defaultdict(list)

    def add(self, spec: CellSpec, outcome: Outcome) -> None:
        """A finished cell, whose images others may take if they were crafted for it."""
        if outcome.ok and outcome.cell.crafted_in is None and spec.role != "clean":
            self._holders[images_key(spec)].append(outcome.cell.id)

    def split(self, specs: Mapping[str, CellSpec]) -> tuple[dict[str, CellSpec], dict[str, CellSpec]]:
        """(cells to craft images for, cells that can wait for those or for what is held), by id.

        Of cells that differ in the judging model alone, the one that attacks the most images is crafted for.
        """
        groups: dict[tuple[Any, ...], list[str]] = defaultdict(list)
        for name, spec in specs.items():
            groups[images_key(spec)].append(name)
        first = set()
        for key, names in groups.items():
            if key not in self._holders or specs[names[0]].role == "clean":
                most = max(names, key=lambda n: float("inf") if (rows := specs[n].rows) is None else len(rows))
                first |= set(names) if specs[names[0]].role == "clean" else {most}
        return {n: s for n, s in specs.items() if n in first}, {n: s for n, s in specs.items() if n not in first}

    def holds(self, bench: Evaluator, spec: CellSpec, store: CellStore) -> bool:
        """Whether the images of ``spec`` are there, so that it costs no attack."""
        return self._held(bench, spec, store) is not None

    def judged(self, bench: Evaluator, spec: CellSpec, store: CellStore) -> Outcome | None:
        """The cell ``spec`` from images that are there, stored; ``None`` where it is finished or no cell holds them all."""
        name = bench.id_of(spec)
        if store.load(name) is not None:
            return None
        if (held := self._held(bench, spec, store)) is None:
            return None
        found, places = held
        images = store.images(found.cell.id)[places]
        outcome = _judged(bench, spec, name, found, places, torch.from_numpy(images))
        store.save(outcome, images)
        return outcome

    def _held(self, bench: Evaluator, spec: CellSpec, store: CellStore) -> tuple[Outcome, list[int]] | None:
        """A finished cell that holds every image, and where in it they are."""
        for holder in self._holders.get(images_key(spec), ()):
            if (found := store.load(holder)) is None:
                continue
            where = {row: i for i, row in enumerate(_rows(bench, found.cell.rows))}
            places = [where.get(row, -1) for row in _rows(bench, spec.rows)]
            if -1 not in places:
                return found, places
        return None


def _rows(bench: Evaluator, rows: Sequence[int] | None) -> list[int]:
    return list(range(len(bench.ids))) if rows is None else list(rows)


def _judged(
    bench: Evaluator,
    spec: CellSpec,
    name: str,
    found: Outcome,
    places: Sequence[int],
    images: Tensor,
) -> Outcome:
    """What ``spec.model`` says to the images of ``found`` at ``places``. Their distances and paths are as they were."""
    target, started = bench.estimators[spec.model], time.perf_counter()
    rows = _rows(bench, spec.rows)
    y = bench.y[rows].to(target.device)
    verdict = judge(target.model, images.to(target.device), y, seed=spec.seed, batch_size=bench.batch_size)
    samples = [
        Sample.model_validate(
            found.samples[place].model_dump()
            | {
                "cell": name,
                "prediction": int(verdict.prediction[i]),
                "correct": float(verdict.correct[i]),
                "selection": float(verdict.selection[i]),
                "margin": metrics.finite(verdict.margin[i]),
                "loss": metrics.finite(verdict.loss[i]),
                "measures": {k: v for k, v in found.samples[place].measures.items() if k != _GRID},
            }
        )
        for i, place in enumerate(places)
    ]
    accuracy, interval = metrics.accuracy(verdict.correct)
    cell = found.cell.model_copy(
        update={
            "id": name,
            "model": spec.model,
            "source": spec.source,
            "role": spec.role,
            "n": len(samples),
            "accuracy": accuracy,
            "interval": interval,
            "forward_samples": 0,
            "backward_samples": 0,
            "seconds": time.perf_counter() - started,
            "rows": None if spec.rows is None else rows,
            "of": None if spec.rows is None else len(bench.ids),
            "crafted_in": found.cell.id,
            **dict.fromkeys(("grid", "grid_accuracy", "grid_interval")),
        }
    )
    return Outcome(cell, samples)


def skipped(name: str, spec: CellSpec, reason: str) -> Cell:
    """The record of a cell that was not run."""
    params = ATTACKS[spec.attack].resolve(spec.options)
    return without_number(name, spec, "skipped", params=params, notes=[reason])


def judged_on_grid(bench: Evaluator, spec: CellSpec, outcome: Outcome, store: CellStore, levels: int | None) -> Outcome:
    """``outcome`` with the verdict on its images rounded to ``levels`` of a pixel, stored; as it is where it has that.

    The images that are stored stay as crafted.
    """
    cell = outcome.cell
    if levels is None or not outcome.ok or cell.grid == levels or spec.check:
        return outcome
    target, rows = bench.estimators[spec.model], _rows(bench, cell.rows)
    x, y = bench.x[rows].to(target.device), bench.y[rows].to(target.device)
    threat, x_adv = Threat(spec.norm, spec.eps), store.images(cell.id)
    rounded = on_grid(x, torch.from_numpy(x_adv).to(x), threat, levels)
    check_legal(x, rounded, threat)
    correct = judge(target.model, rounded, y, seed=spec.seed, batch_size=bench.batch_size).correct
    accuracy, interval = metrics.accuracy(correct)
    samples = [
        s.model_copy(update={"measures": s.measures | {_GRID: float(c)}})
        for s, c in zip(outcome.samples, correct, strict=True)
    ]
    update = {"grid": levels, "grid_accuracy": accuracy, "grid_interval": interval}
    result = Outcome(cell.model_copy(update=update), samples)
    store.save(result, x_adv)
    return result
