"""How far each model carries a change of its input: norms of layers, and distances of activations under each attack.

Of a model that is another one after training, such as one with rounded weights, also how far its weights are from that one's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from art_qplugins.evaluation.evaluator import Evaluator
from art_qplugins.evaluation.network_records import Distances, Logits, Norms, Sensitivity, Terms, WeightChange
from art_qplugins.evaluation.records import Cell
from art_qplugins.evaluation.scheduler import Scheduler
from art_qplugins.evaluation.store import Storage
from art_qplugins.gradients.attempt import Attempt
from art_qplugins.gradients.margin import logit_margin
from art_qplugins.gradients.probe import answer, gradient
from art_qplugins.recipes.schema import Recipe
from art_qplugins.runner.progress import Progress
from art_qplugins.runner.stored import on_all_images, pairs
from art_qplugins.sensitivity import activation_distances, logit_gain, operator_norms, output_terms, weight_changes

__all__ = ["bases", "calls_of_sensitivity", "sensitivity"]

_BATCH = 100
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_PARTS = ("images", "weights", "both", "total")


def sensitivity(
    scheduler: Scheduler, models: Iterable[str], bases: Mapping[str, str], *, n: int, progress: Progress = Progress()
) -> dict[str, Sensitivity]:
    """The measurements of each model, from the images that are stored.

    Cells of a cascade or of a diagnosis are left out: they hold only images that were hard to break. What cannot be
    measured on an unusual module has a reason.

    :param bases: of models that were changed after training, the models that they were.
    :param n: distances are over the first so many images of each cell.
    """
    return {model: _of_model(scheduler, model, bases.get(model), n, progress) for model in models}


def calls_of_sensitivity(cells: int, *, changed: bool) -> int:
    """Calls of a model for each image, beside the gradient of its loss.

    :param cells: whose images are measured.
    :param changed: whether the model is another one after training, which is called as often.
    """
    return 1 + 2 * cells + changed * (2 + 2 * cells)


def bases(recipe: Recipe) -> dict[str, str]:
    """By model that was changed after training, the model that it was."""
    return {model.name: model.base for model in recipe.models if model.base is not None and model.train.epochs == 0}


def _of_model(scheduler: Scheduler, model: str, base: str | None, n: int, progress: Progress) -> Sensitivity:
    evaluator, store, attempt = scheduler.evaluator, scheduler.store, Attempt()
    estimator = evaluator.estimators[model]
    norms = attempt("norms", lambda: operator_norms(estimator.model, evaluator.x[:1].to(estimator.device)))
    cells = [outcome.cell for outcome in scheduler.outcomes(model) if outcome.ok and on_all_images(outcome.cell)]
    distances = [
        attempt(cell.id, partial(_distances, evaluator, store, cell, n))
        for cell in progress.over(model, "distances", cells)
    ]
    x, y = (values[:n].to(estimator.device) for values in (evaluator.x, evaluator.y))
    logits = attempt("logits", lambda: _logits(estimator.model, x, y))
    gain, changes, terms = None, [], []
    if base is not None:
        before, now = evaluator.estimators[base].model, estimator.model
        gain = attempt("gain", lambda: logit_gain(before, now, x))
        changes = [c for c in attempt("changes", lambda: weight_changes(before, now, x[:1])) or () if c.matrix > 0]
        if changes:
            terms = [
                attempt(f"terms of {cell.id}", partial(_terms, evaluator, store, base, cell, n))
                for cell in progress.over(model, "terms", cells)
            ]
    return Sensitivity(
        norms=[Norms(**asdict(norm)) for norm in norms or ()],
        distances=[found for found in distances if found is not None],
        logits=logits,
        base=base,
        gain=None if gain is None else gain.gain,
        alignment=None if gain is None else gain.alignment,
        changes=[WeightChange(**asdict(change)) for change in changes],
        terms=[found for found in terms if found is not None],
        skipped=attempt.skipped,
    )


def _logits(module: nn.Module, x: Tensor, y: Tensor) -> Logits:
    found, slopes = [], []
    for images, labels in zip(x.split(_BATCH), y.split(_BATCH), strict=True):
        found.append(logit_margin(answer(module, images, 0, 0).double(), labels))
        slopes.append(gradient(module, images, partial(cross_entropy, target=labels, reduction="none")).flatten(1))
    margins = torch.cat(found)
    zero = (torch.cat(slopes) == 0).all(1)[margins > 0]
    quantiles = margins.quantile(torch.tensor(_QUANTILES, dtype=margins.dtype, device=margins.device)).tolist()
    return Logits(n=len(x), margins=quantiles, no_gradient=zero.double().mean().item() if len(zero) else None)


def _terms(evaluator: Evaluator, store: Storage, base: str, cell: Cell, n: int) -> Terms:
    network, twin = (evaluator.estimators[name].model for name in (cell.model, base))
    x, crafted = pairs(evaluator, store, cell, n)
    found = output_terms(twin, network, x, crafted, seed=cell.seed)
    return Terms(
        cell=cell.id,
        n=len(x),
        **{part: {one.layer: getattr(one, part).mean().item() for one in found} for part in _PARTS},
        error=max(one.error.max().item() for one in found),
    )


def _distances(evaluator: Evaluator, store: Storage, cell: Cell, n: int) -> Distances:
    estimator = evaluator.estimators[cell.model]
    x, crafted = pairs(evaluator, store, cell, n)
    found = activation_distances(estimator.model, x, crafted, seed=cell.seed)
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
