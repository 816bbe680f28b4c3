"""The outcome of a cell: its record, and its per-image results as columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from art_qplugins import metrics
from art_qplugins.errors import shown
from art_qplugins.evaluation.records import Cell, Results, Robust, Sample, Tries

__all__ = [
    "TRIES",
    "Columns",
    "Outcome",
    "attacked",
    "check",
    "clean_tries",
    "left_by_image",
    "legal_at",
    "means",
    "outcomes_of",
    "robust_at",
    "same_tries",
    "worst_case",
    "worst_images",
]

#: Arrays with one number per attacked image, by name: the numeric fields of a :class:`Sample`, and its measures.
#: ``None`` of a sample is NaN.
Columns = Mapping[str, NDArray[np.float64]]

_WHOLE = ("label", "prediction")
_REAL = ("correct", "selection", "distance")
_MAY_MISS = ("margin", "loss")
_FIELDS = (*_WHOLE, *_REAL, *_MAY_MISS)
#: The ranges of the columns of a finished cell. Other columns may be NaN.
_RANGES = {"correct": (0.0, 1.0), "selection": (0.0, 1.0), "distance": (0.0, np.inf)}
_RANGES |= {"label": (0.0, 2.0**31), "prediction": (0.0, 2.0**31)}
#: How often a persistent attacker tries an image.
TRIES = (1, 10, 100)
#: Numbers that a mean of the same values may differ by.
_ROUNDING = 1e-9


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
    def from_samples(cls, cell: Cell, samples: Sequence[Sample], *, measures: Iterable[str] | None = None) -> Outcome:
        """:param measures: those that become columns; by default all."""
        if measures is None:
            measures = {name for row in samples for name in row.measures}
        names = {*_FIELDS, *measures} if samples else set()
        values = {name: np.array(_values(samples, name), dtype=float) for name in sorted(names)}
        return cls(cell, [row.sample for row in samples], values)

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

    @property
    def labelled(self) -> NDArray[np.float64]:
        """(images,) whether the model gives the label: ``correct`` without the images that it rejects."""
        return self.column("correct") - np.nan_to_num(self.column("rejected"), nan=0.0)

    def correct_by_image(self) -> dict[str, float]:
        """The correctness by image id. A clean image that is rejected is not labelled. A failed cell has none."""
        if not self.ok:
            return {}
        values = self.labelled if self.cell.role == "clean" else self.column("correct")
        rows = range(len(self.ids)) if self.cell.rows is None else self.cell.rows
        return {name: float(values[row]) for name, row in zip(self.ids, rows, strict=True)}

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


def outcomes_of(results: Results, samples: Mapping[str, Sequence[Sample]]) -> list[Outcome]:
    """The outcomes that records describe, without their measures but for ``rejected`` and ``draws``."""
    return [
        Outcome.from_samples(cell, samples.get(cell.id, []), measures=["rejected", "draws"]) for cell in results.cells
    ]


def means(columns: Columns) -> dict[str, Any]:
    """The fields of a cell that are means of its images: ``accuracy`` with its ``interval``, ``rejected`` and ``tries``."""
    accuracy, interval = metrics.accuracy(columns["correct"])
    rejected = columns.get("rejected")
    return {
        "accuracy": accuracy,
        "interval": interval,
        "rejected": None if rejected is None else float(metrics.shares(rejected, name="rejected").mean()),
        "tries": _tries_of(columns),
    }


def _tries_of(columns: Columns) -> list[Tries]:
    """What several tries leave of the images of one cell."""
    correct = columns["correct"]
    return _tries([correct], [correct], [columns.get("draws", np.full_like(correct, np.nan))])


def _tries(
    correct: Sequence[NDArray[np.float64]],
    selection: Sequence[NDArray[np.float64]],
    draws: Sequence[NDArray[np.float64]],
) -> list[Tries]:
    """What several tries leave, at the strongest attack on each image. Empty where the draws of an attack are not known.

    :param correct: by attack, (images,). ``selection`` and ``draws`` likewise.
    """
    known = np.array(draws)[~np.isnan(correct)]
    if not (len(known) and np.isfinite(known).all()):
        return []
    found, most = [], int(known.min())
    for tries in TRIES:
        counted = min(tries, most)
        left = metrics.worst_case(metrics.after_tries(correct, draws, counted), selection)
        accuracy, interval = metrics.accuracy(left)
        found.append(Tries(tries=tries, counted=counted, accuracy=accuracy, interval=interval))
    return found


def clean_tries(clean: Outcome) -> list[Tries]:
    """What several tries leave of the clean images that a random model labels: noise alone makes some fail."""
    return _tries([clean.labelled], [clean.labelled], [clean.column("draws")])


def same_tries(first: Sequence[Tries], second: Sequence[Tries]) -> bool:
    """Whether they are the same numbers, up to rounding."""
    parts = zip(first, second, strict=False)
    return len(first) == len(second) and all(
        (one.tries, one.counted) == (other.tries, other.counted) and abs(one.accuracy - other.accuracy) <= _ROUNDING
        for one, other in parts
    )


def check(outcome: Outcome) -> None:
    """Check that a cell agrees with its images. NaN passes no comparison.

    :raises ValueError: where a column has a value out of its range or is missing, an image is missing or is there twice,
        or an accuracy is not the mean of its images.
    """
    cell, columns = outcome.cell, outcome.columns
    if not outcome.ok:
        if outcome.ids or cell.accuracy is not None:
            raise ValueError(f"its status is {cell.status}, and it has results")
        return
    _check_rows(cell, outcome.ids)
    for name, values in columns.items():
        if np.shape(values) != (cell.n,):
            raise ValueError(f"{np.size(values)} values of {shown(name)} for {cell.n} images")
    for name, (low, high) in _RANGES.items():
        values = columns.get(name, np.full(1, np.nan))
        fits = np.isfinite(values) & (values >= low) & (values <= high)
        if name in _WHOLE:
            fits &= values == np.floor(values)
        if not fits.all():
            first = int(np.argmin(fits))
            raise ValueError(f"{name} of image {shown(outcome.ids[first])} is {values[first]:.6g}")
    _check_mean("accuracy", cell.accuracy, columns["correct"])
    if cell.rejected is not None and "rejected" in columns:
        _check_mean("rejected", cell.rejected, columns["rejected"])
        if not (columns["correct"] >= columns["rejected"] - _ROUNDING).all():
            raise ValueError("an image is rejected and not correct; a rejected image counts as correct")
    if cell.tries and not same_tries(cell.tries, _tries_of(columns)):
        raise ValueError("its tries are not those of its images")
    if cell.grid is not None and "grid_correct" in columns:
        _check_mean("grid_accuracy", cell.grid_accuracy, columns["grid_correct"])


def _check_rows(cell: Cell, ids: Sequence[str]) -> None:
    if not cell.n or len(ids) != cell.n:
        raise ValueError(f"it is on {cell.n} images, and {len(ids)} are there")
    if len(set(ids)) != len(ids):
        raise ValueError("an image is there twice")
    if (cell.rows is None) != (cell.of is None):
        raise ValueError("rows and of belong together, and one is missing")
    if cell.limit is not None and not (cell.rows is not None and cell.n <= cell.limit):
        raise ValueError(f"it is on {cell.n} images, and its limit is {cell.limit}")
    rows, of = range(cell.n) if cell.rows is None else cell.rows, cell.n if cell.of is None else cell.of
    if not len(rows) == len(set(rows)) == cell.n or not max(rows) < of:
        raise ValueError(f"its rows are not {cell.n} of {of} images")


def _check_mean(name: str, mean: float | None, values: NDArray[np.float64]) -> None:
    found = float(np.mean(values))
    if mean is None or not abs(found - mean) <= _ROUNDING:
        raise ValueError(f"its {name} is {mean}, and the mean of its images is {found:.6g}")


def _values(samples: Sequence[Sample], name: str) -> list[float | None]:
    """``None`` becomes NaN in an array of floats."""
    return list(map(attrgetter(name), samples)) if name in _FIELDS else [row.measures.get(name) for row in samples]


def legal_at(outcomes: Iterable[Outcome], norm: str, eps: float) -> list[Outcome]:
    """The finished cells whose images are legal at this eps. These are the cells at this eps or a smaller one.

    A cell that tests an attack does not count, because its images are the clean ones. A corruption does not count either.
    """
    return [
        o
        for o in outcomes
        if o.ok
        and o.cell.role != "corruption"
        and "check" not in o.cell.params
        and (o.cell.eps == 0 or (o.cell.norm == norm and o.cell.eps <= eps))
    ]


def attacked(outcomes: Iterable[Outcome]) -> list[tuple[str, float]]:
    """Every (norm, eps) at which a cell attacked all images."""
    cells = [o.cell for o in outcomes if o.ok and o.cell.role != "corruption"]
    return sorted({(cell.norm, cell.eps) for cell in cells if cell.eps > 0 and cell.rows is None})


def worst_case(outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
    """For each image, the correctness under its strongest attack."""
    return metrics.worst_case([o.column("correct") for o in outcomes], [o.column("selection") for o in outcomes])


def left_by_image(outcomes: Iterable[Outcome], norm: str, eps: float) -> dict[str, float]:
    """The worst case by image id, on the images that every attack with a limit was given; empty where nothing was attacked.

    :param outcomes: those of one model.
    """
    own = [outcome for outcome in outcomes if outcome.ok]
    clean, legal = next((o for o in own if o.cell.role == "clean"), None), legal_at(own, norm, eps)
    if clean is None or not legal:
        return {}
    asked = np.ones(len(clean.ids), dtype=bool)
    for outcome in legal:
        if outcome.cell.limit is not None and outcome.cell.rows is not None:
            given = np.zeros(len(clean.ids), dtype=bool)
            given[outcome.cell.rows] = True
            asked &= given
    values = worst_case(legal)
    return {name: float(values[row]) for row, name in enumerate(clean.ids) if asked[row]}


def robust_at(outcomes: Iterable[Outcome], norm: str, eps: float) -> Robust:
    """The mean over images of the worst case over all legal attacks that were run."""
    legal = legal_at(outcomes, norm, eps)
    accuracy, interval = metrics.accuracy(worst_case(legal))
    return Robust(
        norm=norm,
        eps=eps,
        accuracy=accuracy,
        interval=interval,
        attacks=[o.cell.id for o in legal],
        tries=_tries(*([o.column(name) for o in legal] for name in ("correct", "selection", "draws"))),
    )


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
