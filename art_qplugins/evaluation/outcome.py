"""A cell together with its images: what diagnostics and tables compute from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from art_qplugins import metrics
from art_qplugins.evaluation.records import Cell, Robust, Sample

__all__ = ["Columns", "Outcome", "column", "legal_at", "robust_at", "worst_case", "worst_images"]


class Images(Protocol):
    """Where the images of finished cells are."""

    def images(self, cell_id: str) -> NDArray[np.float32]: ...


@runtime_checkable
class Columns(Protocol):
    """Samples that are kept as columns."""

    def column(self, name: str) -> NDArray[np.float64]: ...


def column(rows: Iterable[Sample], name: str) -> NDArray[np.float64]:
    """One field or measure of every row; NaN where it is ``None`` or not there."""
    found = [row.measures.get(name) if name in row.measures else getattr(row, name, None) for row in rows]
    return np.array(found, dtype=float)


@dataclass(frozen=True)
class Outcome:
    """One finished or failed cell. Its columns are over all images, in the same order in every cell of a model."""

    cell: Cell
    samples: Sequence[Sample]

    @property
    def ok(self) -> bool:
        return self.cell.status == "success"

    def column(self, name: str) -> NDArray[Any]:
        """One field or measure, (images,); NaN where it is ``None`` and on images that this cell did not attack."""
        rows = self.samples
        values = rows.column(name) if isinstance(rows, Columns) else column(rows, name)
        if self.cell.rows is None:
            return values
        result = np.full(self.cell.of or 0, np.nan)
        result[self.cell.rows] = values
        return result


def legal_at(outcomes: Iterable[Outcome], norm: str, eps: float) -> list[Outcome]:
    """The finished cells whose images are legal at this budget: an image within a smaller eps is within a larger one.

    A test of an attack is none of them: it leaves the images as they are.
    """
    return [
        o
        for o in outcomes
        if o.ok and "check" not in o.cell.params and (o.cell.eps == 0 or (o.cell.norm == norm and o.cell.eps <= eps))
    ]


def worst_case(outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
    """Per image, what is left under the attack that was worst for it."""
    return metrics.worst_case([o.column("correct") for o in outcomes], [o.column("selection") for o in outcomes])


def robust_at(outcomes: Iterable[Outcome], norm: str, eps: float) -> Robust:
    """The mean over images of the worst case over every legal attack that was run."""
    legal = legal_at(outcomes, norm, eps)
    accuracy, interval = metrics.accuracy(worst_case(legal))
    return Robust(norm=norm, eps=eps, accuracy=accuracy, interval=interval, attacks=[o.cell.id for o in legal])


def worst_images(
    outcomes: Sequence[Outcome], images: Images, x: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Per image, which of these cells was worst for it, and the image that it left; ``x`` where there is none."""
    chosen = np.nanargmin([o.column("selection") for o in outcomes], axis=0)
    result = x.copy()
    for i in np.unique(chosen):
        rows = outcomes[i].cell.rows
        where = np.arange(len(x)) if rows is None else np.array(rows)
        mine = chosen[where] == i
        result[where[mine]] = images.images(outcomes[i].cell.id)[mine]
    return chosen, result
