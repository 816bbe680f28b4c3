"""The adversarial information plane of a run: curves over eps, and what weaker strengths tell of stronger ones."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from art_qplugins.evaluation.compare import replicates
from art_qplugins.evaluation.fields import Interval
from art_qplugins.evaluation.network_records import ChangedInformation
from art_qplugins.evaluation.records import Results
from art_qplugins.report import select

__all__ = ["Plane", "Point", "Prediction", "planes", "predictions"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One strength of an attack, or of noise: means over the trainings of a model.

    :ivar gained: the change of information, and ``lost`` that of accuracy; ``accuracy`` is after the change.
    :ivar interval: of ``auroc``. It covers the images, and not the trainings.
    :ivar roc: the share of changed images that is found where 0, 1, ..., 100 % of the clean images may be, too.
    """

    eps: float
    n: int
    gained: float
    lost: float
    accuracy: float
    auroc: float
    interval: Interval
    detected: float
    roc: list[float]


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One model in one norm: by attack, its points from the weakest to the strongest; and those of noise, the control."""

    model: str
    norm: str
    attacks: dict[str, list[Point]]
    noise: list[Point]

    def control(self, eps: float) -> Point | None:
        """Noise of this length."""
        return next((point for point in self.noise if point.eps == eps), None)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The accuracy at one strength, held out, from all weaker ones.

    :ivar predicted: by the line through the clean images that fits the weaker strengths best; ``None`` where they do not
        change the information.
    :ivar last: the accuracy at the strongest of the weaker ones, which predicts it naively.
    """

    eps: float
    measured: float
    predicted: float | None
    last: float

    @property
    def error(self) -> float | None:
        return None if self.predicted is None else self.predicted - self.measured

    @property
    def naive_error(self) -> float:
        return self.last - self.measured


def planes(results: Results) -> list[Plane]:
    """Those that the run measured. Trainings of one model with several seeds are one."""
    measured = {one.cell for record in results.information.values() for one in record.attacked}
    same, cells = replicates(results), {cell.id: cell for cell in results.cells if cell.id in measured}
    names = select.names(cells.values())
    found: dict[tuple[str, str], dict[str | None, dict[float, list[ChangedInformation]]]] = {}
    for model, record in results.information.items():
        for one in (*record.attacked, *record.noisy):
            name = None
            if one.cell is not None:
                if (cell := cells.get(one.cell)) is None:
                    continue
                source = same.get(cell.source, cell.source)
                name = names[cell.id].replace(f" from {cell.source}", f" from {source}")
            curves = found.setdefault((same.get(model, model), one.norm), {})
            curves.setdefault(name, {}).setdefault(one.eps, []).append(one)
    return [
        Plane(
            model=model,
            norm=norm,
            attacks={name: _points(by_eps) for name, by_eps in curves.items() if name is not None},
            noise=_points(curves.get(None, {})),
        )
        for (model, norm), curves in found.items()
    ]


def _points(by_eps: dict[float, list[ChangedInformation]]) -> list[Point]:
    return [_point(eps, several) for eps, several in sorted(by_eps.items())]


def _point(eps: float, trainings: Sequence[ChangedInformation]) -> Point:
    def mean(name: str) -> float:
        return statistics.fmean(getattr(one, name) for one in trainings)

    low, high = (statistics.fmean(ends) for ends in zip(*(one.interval for one in trainings), strict=True))
    return Point(
        eps=eps,
        n=min(one.n for one in trainings),
        interval=(low, high),
        roc=[statistics.fmean(rates) for rates in zip(*(one.roc for one in trainings), strict=True)],
        **{name: mean(name) for name in ("gained", "lost", "accuracy", "auroc", "detected")},
    )


def predictions(points: Sequence[Point]) -> list[Prediction]:
    """Each strength from the third on, predicted from all weaker ones. Two are needed for a relation to be one."""
    return [_prediction(points[:i], points[i]) for i in range(2, len(points))]


def _prediction(known: Sequence[Point], held_out: Point) -> Prediction:
    clean, square = held_out.accuracy - held_out.lost, sum(point.gained**2 for point in known)
    predicted = None
    if square > 0:
        slope = sum(point.gained * point.lost for point in known) / square
        predicted = min(max(clean + slope * held_out.gained, 0.0), 1.0)
    return Prediction(eps=held_out.eps, measured=held_out.accuracy, predicted=predicted, last=clean + known[-1].lost)
