"""A cell together with its images: what diagnostics and tables compute from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from art_qplugins import metrics
from art_qplugins.evaluation.records import Cell, Robust, Sample

__all__ = ["Outcome", "legal_at", "robust_at", "worst_case"]


@dataclass(frozen=True)
class Outcome:
    """One finished or failed cell. The rows are in the same order of images in every cell of a model."""

    cell: Cell
    samples: Sequence[Sample]

    @property
    def ok(self) -> bool:
        return self.cell.status == "success"

    def column(self, name: str) -> NDArray[Any]:
        """One field of all rows; ``None`` becomes NaN."""
        return np.array([getattr(row, name) for row in self.samples], dtype=float)


def legal_at(outcomes: Iterable[Outcome], norm: str, eps: float) -> list[Outcome]:
    """The finished cells whose images are legal at this budget: an image within a smaller eps is within a larger one."""
    return [o for o in outcomes if o.ok and (o.cell.eps == 0 or (o.cell.norm == norm and o.cell.eps <= eps))]


def worst_case(outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
    """Per image, what is left under the attack that was worst for it."""
    return metrics.worst_case([o.column("correct") for o in outcomes], [o.column("selection") for o in outcomes])


def robust_at(outcomes: Iterable[Outcome], norm: str, eps: float) -> Robust:
    """The mean over images of the worst case over every legal attack that was run."""
    legal = legal_at(outcomes, norm, eps)
    accuracy, interval = metrics.accuracy(worst_case(legal))
    return Robust(norm=norm, eps=eps, accuracy=accuracy, interval=interval, attacks=[o.cell.id for o in legal])
