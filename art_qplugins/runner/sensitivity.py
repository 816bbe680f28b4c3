"""How far each model carries a change of its input: norms of layers, and distances of activations under each attack."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor

from art_qplugins.evaluation.evaluator import Evaluator
from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.evaluation.records import Cell, Distances, Norms, Sensitivity
from art_qplugins.evaluation.scheduler import Scheduler
from art_qplugins.evaluation.store import Storage
from art_qplugins.gradients.attempt import Attempt
from art_qplugins.sensitivity import activation_distances, operator_norms

__all__ = ["sensitivity"]


def sensitivity(scheduler: Scheduler, store: Storage, models: Iterable[str], *, n: int) -> dict[str, Sensitivity]:
    """The measurements of each model, from the images that are stored.

    Cells of a cascade or of a diagnosis are left out: they hold only images that were hard to break. What cannot be
    measured on an unusual module has a reason.

    :param n: distances are over the first so many images of each cell.
    """
    return {model: _of_model(scheduler.evaluator, store, model, scheduler.outcomes(model), n) for model in models}


def _of_model(evaluator: Evaluator, store: Storage, model: str, outcomes: Iterable[Outcome], n: int) -> Sensitivity:
    estimator, attempt = evaluator.estimators[model], Attempt()
    norms = attempt("norms", lambda: operator_norms(estimator.model, evaluator.x[:1].to(estimator.device)))
    cells = [outcome.cell for outcome in outcomes if outcome.ok and _on_all_images(outcome.cell)]
    distances = [attempt(cell.id, partial(_distances, evaluator, store, cell, n)) for cell in cells]
    return Sensitivity(
        norms=[Norms(**asdict(norm)) for norm in norms or ()],
        distances=[found for found in distances if found is not None],
        skipped=attempt.skipped,
    )


def _on_all_images(cell: Cell) -> bool:
    chosen = cell.rows is not None and cell.limit is None
    return cell.role in ("attack", "corruption") and not chosen and "check" not in cell.params


def _distances(evaluator: Evaluator, store: Storage, cell: Cell, n: int) -> Distances:
    images = torch.from_numpy(store.images(cell.id))
    estimator = evaluator.estimators[cell.model]
    rows = evaluator.rows(cell.rows)[:n]
    found = activation_distances(
        estimator.model,
        evaluator.x[rows].to(estimator.device),
        images[: len(rows)].to(estimator.device),
        seed=cell.seed,
    )
    finite = {layer: values[values.isfinite()] for layer, values in found.items()}
    return Distances(
        cell=cell.id,
        n=min((len(values) for values in finite.values()), default=0),
        layers={layer: _mean(values) for layer, values in finite.items() if len(values)},
    )


def _mean(values: Tensor) -> tuple[float, float]:
    """The mean over images and its standard error."""
    error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else 0.0
    return values.mean().item(), error
