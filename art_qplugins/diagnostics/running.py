"""Runs the steps of a diagnosis one after another and decides at which level to stop.

Each step sees the results of the steps before it. The steps themselves are in ``steps.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from art_qplugins.diagnostics.model_records import records_of
from art_qplugins.diagnostics.model_result import verdict_of
from art_qplugins.diagnostics.state import DiagnosisState
from art_qplugins.diagnostics.steps import STEPS, DiagnosisStep
from art_qplugins.evaluation.cell import CellSpec
from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.evaluation.records import Step

__all__ = ["run_steps"]

_Run = Callable[[CellSpec], Outcome]


def run_steps(
    claim: CellSpec,
    claimed: Outcome,
    outcomes: Sequence[Outcome],
    run: _Run,
    *,
    others: Iterable[str] = (),
    level: int | None = None,
    budget: float | None = None,
) -> tuple[list[Outcome], list[Step]]:
    """Run the diagnosis of one claim.

    :param claim: the specification of the claimed cell. ``claimed`` is its outcome.
    :param outcomes: all cells of the model so far, including the claimed and the clean cell.
    :param run: runs a cell.
    :param others: names of the models to transfer from.
    :param level: the highest level to run, 0 to 3. ``None`` runs level 2, and level 3 if level 2 found something.
    :param budget: gradient evaluations per image of the whole set that may be spent beyond the claimed attack.
    :return: all outcomes, and a record of each step with the reason where it was skipped.
    """
    known, records, spent, top = list(outcomes), [], 0.0, 2 if level is None else level
    names = tuple(others)
    for step in STEPS:
        if step.level == 3 and level is None and top == 2 and verdict_of(known, claimed) in ("MASKED", "SUSPECT"):
            top = 3
        if step.level > top:
            ended = "the levels before it found nothing" if level is None else f"the diagnosis ends at level {top}"
            records.append(_skipped(step, ended))
            continue
        state = DiagnosisState(claim, records_of(known, claimed), names)
        record, found = _run_step(step, state, run, None if budget is None else budget - spent)
        records.append(record)
        spent += record.backward
        known += found
    return known, records


def _run_step(
    step: DiagnosisStep, state: DiagnosisState, run: _Run, budget: float | None
) -> tuple[Step, list[Outcome]]:
    planned = step.plan(state)
    if isinstance(planned, str):
        return _skipped(step, planned), []
    n = state.records.n
    attacked = sum(n if spec.rows is None else len(spec.rows) for spec in planned)
    expected = step.cost * attacked / n
    if budget is not None and not expected <= budget:
        too_much = f"it may take {expected:.0f} gradient evaluations per image, and {max(budget, 0):.0f} are left of the budget"
        return _skipped(step, too_much, robust=attacked), []
    found = [run(spec) for spec in planned]
    failed = [o for o in found if not o.ok]
    record = Step(
        id=step.id,
        level=step.level,
        title=step.title,
        status="failed" if len(failed) == len(found) else "run",
        reason=failed[0].cell.error_line if failed else "",
        cells=[o.cell.id for o in found],
        robust=attacked // len(planned),
        forward=sum(o.cell.forward_samples for o in found) / n,
        backward=sum(o.cell.backward_samples for o in found) / n,
    )
    return record, found


def _skipped(step: DiagnosisStep, reason: str, *, robust: int | None = None) -> Step:
    return Step(id=step.id, level=step.level, title=step.title, status="skipped", reason=reason, robust=robust)
