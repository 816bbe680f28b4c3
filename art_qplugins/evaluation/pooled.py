"""Cells over all trainings of a model: what is measured, what is left, and what a paper says.

Trainings of one model with several seeds are pooled (:func:`~art_qplugins.metrics.pooled_accuracy`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from art_qplugins import metrics
from art_qplugins.evaluation.compare import replicates
from art_qplugins.evaluation.outcome import Outcome, left_by_image
from art_qplugins.evaluation.records import Cell, Pooled, PooledCell, Results

__all__ = ["cell_of_trainings", "pooled_cells"]


def pooled_cells(results: Results, outcomes: Iterable[Outcome], *, also: Collection[str] = ()) -> list[PooledCell]:
    """Clean images, the claimed attacks, and every cell for which a paper gives a number, in the order of the cells.

    :param outcomes: those of the cells of ``results``.
    :param also: attacks whose cells are pooled too.
    """
    same, by_id = replicates(results), {outcome.cell.id: outcome for outcome in outcomes}
    verdicts = {model.name: model.verdict for model in results.models}
    audits = {
        (model.name, audit.norm, audit.eps): audit.estimate
        for model in results.models
        for audit in model.audits
        if not audit.reason
    }
    own: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in by_id.values():
        own[outcome.cell.model].append(outcome)
    claimed = {model.claim.cell for model in results.models}
    groups: dict[tuple[str, str, str, float], list[Cell]] = {}
    for cell in results.cells:
        if cell.role == "clean" or cell.reference is not None or cell.id in claimed or cell.attack in also:
            groups.setdefault(cell_of_trainings(cell, same), []).append(cell)
    return [
        PooledCell(
            model=name,
            trainings=len(cells),
            cell=cells[0].id,
            paper=cells[0].reference,
            measured=_pooled([by_id[cell.id].correct_by_image() if cell.id in by_id else {} for cell in cells]),
            left=_pooled([left_by_image(own[cell.model], cell.norm, cell.eps) for cell in cells])
            if cells[0].role in ("attack", "probe")
            else None,
            audited=_mean([audits.get((cell.model, cell.norm, cell.eps)) for cell in cells]),
            verdicts=Counter(verdicts[cell.model] for cell in cells if cell.model in verdicts).most_common(),
        )
        for (name, *_), cells in groups.items()
    ]


def cell_of_trainings(cell: Cell, same: Mapping[str, str]) -> tuple[str, str, str, float]:
    """What the cells of all trainings of a model share: the model, the attack with its source, norm and eps.

    :param same: see :func:`~art_qplugins.evaluation.compare.replicates`.
    """
    source = "" if cell.source == cell.model else same.get(cell.source, cell.source)
    return same.get(cell.model, cell.model), f"{cell.label} {source}", cell.norm, cell.eps


def _mean(estimates: Sequence[float | None]) -> float | None:
    """The mean; ``None`` where a training has none."""
    known = [estimate for estimate in estimates if estimate is not None]
    return sum(known) / len(known) if len(known) == len(estimates) else None


def _pooled(parts: Sequence[Mapping[str, float]]) -> Pooled | None:
    """Over the images that all trainings have; ``None`` where there is none."""
    shared = [name for name in parts[0] if all(name in part for part in parts)] if parts else []
    if not shared:
        return None
    accuracy, interval = metrics.pooled_accuracy([[part[name] for name in shared] for part in parts])
    return Pooled(accuracy=accuracy, interval=interval, images=len(shared), trainings=len(parts))
