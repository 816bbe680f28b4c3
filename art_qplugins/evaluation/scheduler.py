"""Cells from shards of images: who executes the shards, and in which order they finish, does not change the answer.

A cell with more images than a shard holds is crafted and judged shard by shard, each with seeds of its own. An executor
maps shards to outcomes: :class:`Serial` here, Ray's in :mod:`~art_qplugins.evaluation.ray`. What it gives is stored
by the one process that runs :func:`run_cells`, so that no result is lost or counted twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from art_qplugins import metrics
from art_qplugins.errors import InputError
from art_qplugins.evaluation.cell import CellSpec
from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.evaluation.store import CellStore

if TYPE_CHECKING:
    from art_qplugins.evaluation.evaluator import Evaluator

__all__ = ["Done", "Executor", "Serial", "Shard", "run_cells"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """Some images of a cell, which are worked on in one piece.

    :param cell: id of the cell; this is shard ``number``, from 0, ``of`` so many.
    :param rows: positions of its images.
    :param start: (len(rows), C, H, W) where the attack goes on from images of other cells.
    """

    cell: str
    spec: CellSpec
    number: int
    of: int
    rows: tuple[int, ...]
    start: NDArray[np.float32] | None = None

    @property
    def id(self) -> str:
        """What it is stored under: as the cell, where it is all of it."""
        return self.cell if self.of == 1 else f"{self.cell}.{self.number + 1}-of-{self.of}"


Done = tuple[Shard, Outcome, NDArray[np.float32] | None]  # the adversarial images; None where the shard failed


class Executor(Protocol):
    """Works on shards, in any order, several at a time if it can."""

    def map(self, shards: Iterable[Shard]) -> Iterator[Done]:
        """Every shard as it is finished. One is taken from ``shards`` when there is soon somebody to work on it."""
        ...


@dataclass(frozen=True)
class Serial:
    """One shard after the other, in this process."""

    bench: Evaluator

    def map(self, shards: Iterable[Shard]) -> Iterator[Done]:
        for shard in shards:
            yield self.bench.part(shard)


def run_cells(
    bench: Evaluator, specs: Iterable[CellSpec], store: CellStore, executor: Executor
) -> Iterator[tuple[CellSpec, Outcome, bool]]:
    """Every cell as it is finished, and whether it was there already.

    A failed cell is an outcome too, which is not stored. A finished shard is stored at once, so that a kill costs the
    shards under way and nothing else.

    :param specs: cells that differ in more than their role.
    """
    cells: dict[str, _Cell] = {}
    for spec in specs:
        cell = _Cell(spec, bench.shards(spec))
        if (found := store.load(cell.id)) is not None:
            cell.drop_shards(store)  # a kill may have come before that
            named = {"role": spec.role, "model": spec.model, "source": spec.source}
            yield spec, Outcome(found.cell.model_copy(update=named), found.samples), True
            continue
        cell.find_shards(store)
        if cell.ended:
            yield spec, cell.end(store), False
        else:
            cells[cell.id] = cell
    for shard, outcome, x_adv in executor.map(_missing(bench, cells, store)):
        cell = cells[shard.cell]
        if x_adv is not None:
            store.save(outcome, x_adv)
        if not cell.ended:
            cell.outcomes[shard.number] = outcome if shard.of == 1 else replace(outcome, samples=[])
            if cell.ended:
                yield cell.spec, cell.end(store), False


def _missing(bench: Evaluator, cells: dict[str, _Cell], store: CellStore) -> Iterator[Shard]:
    """What there is to do, decided as late as possible: after a failure the rest of a cell is not worth the time."""
    for cell in cells.values():
        if not cell.spec.start:
            yield from (shard for shard in cell.shards if cell.wants(shard))
            continue
        rows = [row for shard in cell.shards for row in shard.rows]
        start = bench.start(cell.spec, rows, store)
        begin = 0
        for shard in cell.shards:
            if cell.wants(shard):
                yield replace(shard, start=start[begin : begin + len(shard.rows)])
            begin += len(shard.rows)


@dataclass
class _Cell:
    """A cell under way."""

    spec: CellSpec
    shards: Sequence[Shard]
    outcomes: dict[int, Outcome] = field(default_factory=dict)  # by number, without samples where there are several

    @property
    def id(self) -> str:
        return self.shards[0].cell

    @property
    def _failed(self) -> int:
        """The first shard that failed. It speaks for the cell, whichever failed earlier by the clock."""
        return min((n for n, o in self.outcomes.items() if not o.ok), default=len(self.shards))

    def wants(self, shard: Shard) -> bool:
        return shard.number not in self.outcomes and shard.number < self._failed

    @property
    def ended(self) -> bool:
        return not any(self.wants(shard) for shard in self.shards)

    def find_shards(self, store: CellStore) -> None:
        """Those that an earlier run finished."""
        if len(self.shards) > 1:
            for shard in self.shards:
                if (found := store.load(shard.id)) is not None:
                    self.outcomes[shard.number] = replace(found, samples=[])

    def drop_shards(self, store: CellStore) -> None:
        if len(self.shards) > 1:
            for shard in self.shards:
                store.drop(shard.id)

    def end(self, store: CellStore) -> Outcome:
        """The whole cell's outcome, stored in place of its shards'."""
        if self._failed < len(self.shards):
            return self.outcomes[self._failed]
        if len(self.shards) == 1:
            return self.outcomes[0]
        outcome = self._joined([_whole(shard.id, store) for shard in self.shards])
        store.save(outcome, np.concatenate([store.images(shard.id) for shard in self.shards]))
        self.drop_shards(store)
        return outcome

    def _joined(self, parts: Sequence[Outcome]) -> Outcome:
        """Sums and means are over all images; what is said of the attack and of the model is what the first shard says."""
        samples = [row for part in parts for row in part.samples]
        accuracy, interval = metrics.accuracy(np.array([row.correct for row in samples]))
        rows = [row for shard in self.shards for row in shard.rows]
        cell = parts[0].cell.model_copy(
            update={
                "id": self.id,
                "n": len(samples),
                "accuracy": accuracy,
                "interval": interval,
                "forward_samples": sum(part.cell.forward_samples for part in parts),
                "backward_samples": sum(part.cell.backward_samples for part in parts),
                "seconds": math.fsum(part.cell.seconds for part in parts),
                "notes": list(dict.fromkeys(note for part in parts for note in part.cell.notes)),
                "rows": None if self.spec.rows is None else rows,
                "of": None if self.spec.rows is None else parts[0].cell.of,
            }
        )
        return Outcome(cell, samples)


def _whole(shard_id: str, store: CellStore) -> Outcome:
    found = store.load(shard_id)
    if found is None:
        raise InputError(f"{shard_id}: its files were damaged or removed; run the same command again")
    return found
