"""What the codes of stochastic models tell of images: clean, under each attack, and with random noise of the same size.

It is the adversarial information plane and the detector of arXiv 2312.00105, whose text is not public. What is measured, and how,
is a RECONSTRUCTION.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from art_qplugins import metrics
from art_qplugins.evaluation.cell import CellSpec
from art_qplugins.evaluation.evaluator import Evaluator
from art_qplugins.evaluation.network_records import ChangedInformation, Information
from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.evaluation.scheduler import Scheduler
from art_qplugins.evaluation.score import score
from art_qplugins.evaluation.store import Storage
from art_qplugins.geometry import random_noise
from art_qplugins.gradients.attempt import Attempt
from art_qplugins.gradients.counting import passes
from art_qplugins.quantizers.stochastic import stochastic_quantizers
from art_qplugins.runner.progress import Progress
from art_qplugins.runner.stored import on_all_images, pairs
from art_qplugins.seeds import derive_seed
from art_qplugins.sensitivity.codes import Codes, Told, calls_for
from art_qplugins.threat import Threat

__all__ = ["DRAWS", "calls_of_information", "information"]

#: Draws of the earlier layers, at least.
DRAWS = 10


def information(
    scheduler: Scheduler, models: Iterable[str], *, n: int, progress: Progress = Progress()
) -> dict[str, Information]:
    """The measurements of each model with stochastic quantizers whose clean images were scored, from the images that are stored.

    Cells of a cascade or of a diagnosis are left out: they hold only images that were hard to break.

    :param n: the first so many images of each cell are measured.
    """
    found = {}
    for name in models:
        known = [outcome for outcome in scheduler.outcomes(name) if outcome.ok]
        clean = next((outcome for outcome in known if outcome.cell.role == "clean"), None)
        if clean is not None and stochastic_quantizers(scheduler.evaluator.estimators[name].model):
            cells = [outcome for outcome in known if outcome.cell.role == "attack" and on_all_images(outcome.cell)]
            found[name] = _of_model(_Model(scheduler.evaluator, scheduler.store, clean, n), name, cells, progress)
    return found


def calls_of_information(attacked: Sequence[CellSpec], n: int, *, codes: int, scores: int) -> int:
    """Calls of a model for each image, at most.

    :param attacked: the cells that will be measured, on their first ``n`` images.
    :param codes: calls that show what codes tell of an image: :func:`~art_qplugins.sensitivity.codes.calls_for`.
    :param scores: predictions that score an image.
    """
    threats = len({(spec.norm, spec.eps) for spec in attacked})
    first = tuple(range(n))
    clean = len({first, *((spec.rows or first)[:n] for spec in attacked)})
    return codes * (3 * clean + 2 * (len(attacked) + threats)) + 2 * scores * threats


def _of_model(model: _Model, name: str, cells: Sequence[Outcome], progress: Progress) -> Information:
    attempt = Attempt()
    threats = dict.fromkeys(Threat(outcome.cell.norm, outcome.cell.eps) for outcome in cells)
    todo = [(f"{threat.norm} {threat.eps:g}", partial(model.noisy, threat)) for threat in threats]
    todo += [(outcome.cell.id, partial(model.attacked, outcome)) for outcome in cells]
    clean = attempt("clean", lambda: model.clean(model.rows)[1])
    parts = progress.over(name, "information", todo if clean is not None else [])
    known = [one for what, measure in parts if (one := attempt(what, measure)) is not None]
    return Information(
        n=len(model.rows),
        draws=model.draws,
        information=None if clean is None else clean.mutual,
        accuracy=float(model.correct[model.rows].mean()),
        attacked=[one for one in known if one.cell is not None],
        noisy=[one for one in known if one.cell is None],
        skipped=attempt.skipped,
    )


class _Model:
    """One model and its first images.

    :ivar rows: their positions.
    :ivar draws: over which everything is a mean.
    """

    def __init__(self, evaluator: Evaluator, store: Storage, clean: Outcome, n: int) -> None:
        self._evaluator, self._store, self._n = evaluator, store, n
        self._estimator, self._seed = evaluator.estimators[clean.cell.model], clean.cell.seed
        self.correct, self.rows = clean.column("correct"), evaluator.rows(None)[:n]
        module = self._estimator.model
        self.draws = calls_for(module, DRAWS) * passes(module, requires_grad=False)
        self._known: dict[tuple[int, ...], tuple[Codes, Told]] = {}

    def clean(self, rows: Sequence[int]) -> tuple[Codes, Told]:
        """The codes of clean images, and what they tell of these themselves."""
        if (key := tuple(rows)) not in self._known:
            x = self._x(rows)
            codes = Codes(self._estimator.model, x, draws=DRAWS, seed=derive_seed(self._seed, "information"))
            self._known[key] = codes, codes.told(x)
        return self._known[key]

    def attacked(self, outcome: Outcome) -> ChangedInformation:
        cell = outcome.cell
        _, images = pairs(self._evaluator, self._store, cell, self._n)
        rows = self._evaluator.rows(cell.rows)[: self._n]
        correct = float(outcome.column("correct")[rows].mean())
        return self._changed(rows, images, cell=cell.id, norm=cell.norm, eps=cell.eps, accuracy=correct)

    def noisy(self, threat: Threat) -> ChangedInformation:
        seed = derive_seed(self._seed, f"information/{threat.norm} {threat.eps!r}")
        images = random_noise(self._x(self.rows), threat, seed)
        labels, estimator = self._evaluator.y[self.rows].to(images.device), self._estimator
        scored = score(
            estimator.model,
            images,
            labels,
            seed=seed,
            abstain=estimator.abstain,
            batch_size=self._evaluator.batch_size,
            draws=self._evaluator.score_draws,
        )
        correct = float(scored["correct"].mean())
        return self._changed(self.rows, images, norm=threat.norm, eps=threat.eps, accuracy=correct)

    def _x(self, rows: Sequence[int]) -> Tensor:
        return self._evaluator.x[list(rows)].to(self._estimator.device)

    def _changed(self, rows: Sequence[int], images: Tensor, **of: Any) -> ChangedInformation:
        codes, clean = self.clean(rows)
        changed = codes.told(images)
        scores = [(told.images - clean.images.mean()).abs().numpy() for told in (clean, changed)]
        return ChangedInformation(
            **of,
            n=len(rows),
            information=changed.mutual,
            clean_information=clean.mutual,
            clean_accuracy=float(self.correct[list(rows)].mean()),
            auroc=metrics.auroc(*scores),
            interval=metrics.auroc_interval(*scores),
            detected=metrics.true_positive_rate(*scores),
            roc=[metrics.true_positive_rate(*scores, false_positive_rate=rate / 100) for rate in range(101)],
        )
