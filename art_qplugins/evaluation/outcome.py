"""The outcome of a cell: its record, and its per-image results as columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from art_qplugins import metrics
from art_qplugins.evaluation.records import Cell, Robust, Sample

__all__ = ["Columns", "Outcome", "legal_at", "robust_at", "worst_case", "worst_images"]

#: Arrays with one number per attacked image, by name: the numeric fields of a :class:`Sample`, and its measures.
#: ``None`` of a sample is NaN.
Columns = Mapping[str, NDArray[np.float64]]

_WHOLE = ("label", "prediction")
_REAL = ("correct", "selection", "distance")
_MAY_MISS = ("margin", "loss")
_FIELDS = (*_WHOLE, *_REAL, *_MAY_MISS)


class Images(Protocol):
    """A source of the adversarial images of finished cells."""

    def images(self, cell_id: str) -> NDArray[np.float32]: ...


@dataclass(frozen=True, eq=False)
class Outcome:
    """A finished, failed or skipped cell.

    :param ids: ids of the attacked images in the order of ``columns``. A failed cell has none.
    :param columns: (n,) arrays over the attacked images.
    """

    cell: Cell
    ids: Sequence[str] = ()
    columns: Columns = field(default_factory=dict)

    @classmethod
    def from_samples(cls, cell: Cell, samples: Sequence[Sample]) -> Outcome:
        names = {*_FIELDS, *(name for row in samples for name in row.measures)} if samples else set()
        values = {name: [_value(row, name) for row in samples] for name in sorted(names)}
        return cls(cell, [row.sample for row in samples], {k: np.array(v, dtype=float) for k, v in values.items()})

    @property
    def ok(self) -> bool:
        return self.cell.status == "success"

    def column(self, name: str) -> NDArray[np.float64]:
        """One field or measure over all images, (images,). It is NaN where it is missing and on images not attacked."""
        values = self.columns.get(name)
        if values is None:
            values = np.full(len(self.ids), np.nan)
        if self.cell.rows is None:
            return values.copy()
        result = np.full(self.cell.of or 0, np.nan)
        result[self.cell.rows] = values
        return result

    def samples(self) -> Iterator[Sample]:
        """The rows of ``samples.jsonl``, one for each attacked image."""
        measures = [name for name in self.columns if name not in _FIELDS]
        for i, name in enumerate(self.ids):
            yield Sample(
                cell=self.cell.id,
                sample=name,
                **{key: int(self.columns[key][i]) for key in _WHOLE},
                **{key: float(self.columns[key][i]) for key in _REAL},
                **{key: metrics.finite(self.columns[key][i]) for key in _MAY_MISS},
                measures={key: metrics.finite(self.columns[key][i]) for key in measures},
            )

    def with_cell(self, **changes: Any) -> Outcome:
        return replace(self, cell=self.cell.model_copy(update=changes))


def _value(row: Sample, name: str) -> float:
    value = getattr(row, name) if name in _FIELDS else row.measures.get(name)
    return np.nan if value is None else float(value)


def legal_at(outcomes: Iterable[Outcome], norm: str, eps: float) -> list[Outcome]:
    """The finished cells whose images are legal at this eps. These are the cells at this eps or a smaller one.

    A cell that tests an attack does not count, because its images are the clean ones.
    """
    return [
        o
        for o in outcomes
        if o.ok and "check" not in o.cell.params and (o.cell.eps == 0 or (o.cell.norm == norm and o.cell.eps <= eps))
    ]


def worst_case(outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
    """For each image, the correctness under its strongest attack."""
    return metrics.worst_case([o.column("correct") for o in outcomes], [o.column("selection") for o in outcomes])


def robust_at(outcomes: Iterable[Outcome], norm: str, eps: float) -> Robust:
    """The mean over images of the worst case over all legal attacks that were run."""
    legal = legal_at(outcomes, norm, eps)
    accuracy, interval = metrics.accuracy(worst_case(legal))
    return Robust(norm=norm, eps=eps, accuracy=accuracy, interval=interval, attacks=[o.cell.id for o in legal])


def worst_images(
    outcomes: Sequence[Outcome], images: Images, x: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each image, the cell with its strongest attack and the adversarial image of that cell, or ``x`` without one."""
    chosen = np.nanargmin([o.column("selection") for o in outcomes], axis=0)
    result = x.copy()
    for i in np.unique(chosen):
        rows = outcomes[i].cell.rows
        where = np.arange(len(x)) if rows is None else np.array(rows)
        mine = chosen[where] == i
        result[where[mine]] = images.images(outcomes[i].cell.id)[mine]
    return chosen, result
