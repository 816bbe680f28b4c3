"""Assesses one model at the end of a run: the diagnosis of its claim, the worst case at each eps, the evidence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from art_qplugins import diagnostics
from art_qplugins.diagnostics.running import QUERIES
from art_qplugins.evaluation.outcome import Outcome, attacked, legal_at, robust_at, worst_case, worst_images
from art_qplugins.evaluation.records import Audit, ModelResult, Robust, Spent, Step
from art_qplugins.evaluation.scheduler import Scheduler
from art_qplugins.quantizers import is_stochastic
from art_qplugins.recipes.schema import Diagnosis
from art_qplugins.runner.audit import run_audits
from art_qplugins.runner.plan import ModelUnderTest
from art_qplugins.runner.progress import Progress

__all__ = ["assess_model"]


def assess_model(
    scheduler: Scheduler,
    model: ModelUnderTest,
    *,
    covered: Iterable[tuple[str, str, float]] = (),
    diagnosis: Diagnosis | None = None,
    audit: int | None = None,
    progress: Progress = Progress(),
) -> ModelResult:
    """The result of one model, from all its cells in this run and those that its diagnosis adds.

    :param covered: (model, norm, eps) at which a cascade knows the worst case, even if no cell attacked every image.
    :param diagnosis: settings of the diagnosis. ``None`` runs no diagnosis.
    :param audit: images in the sample of an audit at each eps. ``None`` runs none.
    :param progress: told before each step of the diagnosis what it may cost.
    """
    estimators = scheduler.evaluator.estimators
    outcomes = scheduler.outcomes(model.name)
    claimed = None if model.claim is None else scheduler.outcome(model.claim)
    clean = scheduler.outcome(model.clean)
    steps: list[Step] = []
    if diagnosis is not None and model.claim is not None and claimed is not None and claimed.ok and clean.ok:
        outcomes, steps = diagnostics.run_steps(
            model.claim,
            claimed,
            outcomes,
            scheduler.outcome,
            others=[name for name, e in estimators.items() if not is_stochastic(e.model)],
            level=diagnosis.level,
            budget=diagnosis.budget,
            queries=QUERIES if diagnosis.queries is None else diagnosis.queries,
            passes=scheduler.evaluator.passes(model.claim),
            announce=lambda step, gradients, queries: progress.step(model.name, step.title, gradients, queries),
        )
    at = {(norm, eps) for name, norm, eps in covered if name == model.name}
    spent = scheduler.spent(model.name)
    audits: list[Audit] = []
    if audit is not None and clean.ok:
        threats = at | set(attacked(outcomes))
        outcomes, audits = run_audits(scheduler, model.clean, outcomes, threats, size=audit, progress=progress)
    result = diagnostics.assess(
        model.name,
        outcomes,
        claimed=claimed,
        claimed_accuracy=model.claimed_accuracy,
        description=model.description,
        stochastic=is_stochastic(estimators[model.name].model),
        steps=steps,
    )
    update = {
        "spent": Spent(gradients=spent.gradients, queries=spent.queries),
        "robust": _with_covered(result.robust, outcomes, at),
        "audits": audits,
    }
    if claimed is not None and claimed.ok:
        update["evidence"] = _keep_evidence(scheduler, model.name, outcomes, claimed)
    return result.model_copy(update=update)


def _with_covered(
    robust: Sequence[Robust], outcomes: Sequence[Outcome], covered: set[tuple[str, float]]
) -> list[Robust]:
    """Add every eps at which a cascade ran, even if no cell at this eps attacked every image."""
    if not robust and any(not o.ok for o in outcomes):  # the evaluation of this model failed
        return list(robust)
    found = [*robust, *(robust_at(outcomes, *at) for at in covered - {(r.norm, r.eps) for r in robust})]
    return sorted(found, key=lambda r: (r.norm, r.eps))


def _keep_evidence(scheduler: Scheduler, name: str, outcomes: Sequence[Outcome], claimed: Outcome) -> str | None:
    """Store the images that break the model for ``artq replay``: ``x``, ``x_adv``, ``y``, ``ids``."""
    evaluator, store = scheduler.evaluator, scheduler.store
    if store.folder is None:
        return None
    legal = legal_at(outcomes, claimed.cell.norm, claimed.cell.eps)
    chosen, x_adv = worst_images(legal, store, evaluator.x.numpy())
    broken = np.flatnonzero(worst_case(legal) < 0.5)
    abstain = evaluator.estimators[name].abstain
    return store.write_evidence(
        name,
        x=evaluator.x.numpy()[broken],
        x_adv=x_adv[broken],
        y=evaluator.y.numpy()[broken],
        ids=np.array(evaluator.ids)[broken],
        norm=np.array(claimed.cell.norm),
        eps=np.array(claimed.cell.eps),
        cells=np.array([legal[r].cell.id for r in chosen])[broken],
        **({} if abstain is None else {"abstain": np.array(abstain)}),
    )
