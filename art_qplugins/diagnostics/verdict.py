"""From findings to a verdict, from proof and not from symptoms.

Two answers are kept apart. The claim is about a number: is it too high? The verdict is about the model's gradients: do
they hide adversarial images from the attack that the number comes from? A gap alone says that an attack was weak. MASKED
needs the gap and a mechanism that is at work on most of the images that newly broke.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from art_qplugins import metrics
from art_qplugins.diagnostics.indicators import INDICATORS, MATERIAL, Case, Reading
from art_qplugins.evaluation.outcome import Outcome, legal_at, robust_at
from art_qplugins.evaluation.records import Claim, Finding, ModelResult, Robust, Verdict

__all__ = ["assess"]

#: Share of the newly broken images on which a mechanism must be at work to explain them.
_EXPLAINS = 0.5
#: Half-width of the corrected accuracy's interval above which nothing is concluded from silence.
_TOO_WIDE = 0.10
#: Mechanisms of scale: they explain a gap only where undoing the scale closes it.
_SCALE = ("M3", "M4")
#: Without these, silence proves nothing. The others need a second model, an L-infinity budget or a one-step attack.
_REQUIRED = ("GAP", "INV-T", "P1", "M2", "M3", "M4")


def assess(
    name: str,
    outcomes: Sequence[Outcome],
    *,
    claimed: Outcome | None,
    claimed_accuracy: float | None = None,
    description: str = "",
    stochastic: bool = False,
) -> ModelResult:
    """Everything that is said about one model.

    :param outcomes: all its cells, failed ones included; one has the role "clean".
    :param claimed: the cell whose accuracy is the claim, one of ``outcomes``; ``None`` where nothing is claimed.
    :param claimed_accuracy: the number claimed, if it is another than the cell's own.
    """
    clean = next((o for o in outcomes if o.cell.role == "clean"), None)
    failed = [o for o in outcomes if not o.ok]
    if clean is None or not clean.ok or (claimed is not None and not claimed.ok):
        return _invalid(name, description, stochastic, clean, failed)
    accuracy, interval = metrics.accuracy(clean.column("correct"))
    budgets = sorted({(o.cell.norm, o.cell.eps) for o in outcomes if o.ok and o.cell.eps > 0})
    robust = [robust_at(outcomes, *budget) for budget in budgets]
    verdict, findings, claim, summary = _judge(clean, outcomes, failed, claimed, claimed_accuracy)
    return ModelResult(
        name=name,
        description=description,
        stochastic=stochastic,
        clean_accuracy=accuracy,
        clean_interval=interval,
        n=len(clean.samples),
        robust=robust,
        verdict=verdict,
        summary=summary,
        claim=claim,
        findings=findings,
    )


def _judge(
    clean: Outcome,
    outcomes: Sequence[Outcome],
    failed: Sequence[Outcome],
    claimed: Outcome | None,
    claimed_accuracy: float | None,
) -> tuple[Verdict, list[Finding], Claim, str]:
    if claimed is None:
        return "INCONCLUSIVE", [], Claim(status="NONE"), "No number was claimed, so there was nothing to test."
    budget = claimed.cell.norm, claimed.cell.eps
    case = Case(clean, claimed, legal_at(outcomes, *budget), failed)
    findings, readings = {}, {}
    for indicator in INDICATORS:
        findings[indicator.id], readings[indicator.id] = indicator(case)
    robust = robust_at(outcomes, *budget)
    claim = _claim(case, robust, claimed_accuracy, bool(readings["GAP"].fired))
    explaining = _explaining(case, readings)
    verdict = _verdict(readings, explaining, robust)
    summary = _summary(verdict, case, claim, [findings[i] for i in explaining])
    return verdict, list(findings.values()), claim, summary


def _claim(case: Case, robust: Robust, claimed_accuracy: float | None, gap: bool) -> Claim:
    measured = case.claimed.cell.accuracy
    if claimed_accuracy is not None:
        gap = robust.interval[1] < claimed_accuracy - MATERIAL
    return Claim(
        status="OVERSTATED" if gap else "HOLDS",
        attack=case.claimed.cell.attack,
        norm=robust.norm,
        eps=robust.eps,
        accuracy=measured if claimed_accuracy is None else claimed_accuracy,
        corrected=robust.accuracy,
        interval=robust.interval,
    )


def _explaining(case: Case, readings: dict[str, Reading]) -> list[str]:
    """The mechanisms that fired and are at work on most of the newly broken images."""
    broken = case.newly_broken
    if not broken.any():
        return []
    found = []
    for name, reading in readings.items():
        undone = name not in _SCALE or readings["INV-T"].fired
        if undone and reading.fired and reading.present is not None and np.mean(reading.present[broken]) >= _EXPLAINS:
            found.append(name)
    return found


def _verdict(readings: dict[str, Reading], explaining: Sequence[str], robust: Robust) -> Verdict:
    fired = {name for name, reading in readings.items() if reading.fired}
    if "GAP" in fired and explaining:
        return "MASKED"
    if fired & {"M2", "M3", "M4", "M7", "P1", "P2", "INV-T"}:
        return "SUSPECT"
    skipped = any(readings[name].fired is None for name in _REQUIRED)
    if "V1" in fired or skipped or (robust.interval[1] - robust.interval[0]) / 2 > _TOO_WIDE:
        return "INCONCLUSIVE"
    return "NOT_REFUTED"


def _summary(verdict: Verdict, case: Case, claim: Claim, explaining: Sequence[Finding]) -> str:
    n = len(case.clean.samples)
    assert claim.accuracy is not None and claim.corrected is not None and claim.interval is not None
    low, high = (f"{100 * v:.1f}" for v in claim.interval)
    budget = f"{claim.norm} eps = {claim.eps:.4g}"
    left = case.claimed.cell.accuracy or 0.0
    said = "" if claim.accuracy == left else f"Claimed are {100 * claim.accuracy:.1f} %. "
    number = (
        f"{said}{case.claimed.cell.label} leaves {100 * left:.1f} % of {n} images standing at {budget}; "
        f"the worst case over all attacks that were run leaves {100 * claim.corrected:.1f} % [{low}, {high}]."
    )
    if verdict == "MASKED":
        why = ", and ".join(f"{f.title[0].lower()}{f.title[1:]}" for f in explaining)
        return f"The claimed number is an illusion. {number} The gradient hides the difference: {why}."
    opening = {
        "OVERSTATED": "The claimed number is too high.",
        "HOLDS": "No attack that was run contradicts the claimed number.",
    }[claim.status]
    ending = {
        "SUSPECT": "There are signs that gradients mislead the attack, short of proof that they explain a gap.",
        "NOT_REFUTED": "No check that ran found masked gradients; this is an upper bound, not a guarantee.",
        "INCONCLUSIVE": "Some checks did not run or too few images were used, so silence proves nothing.",
    }[verdict]
    return f"{opening} {number} {ending}"


def _invalid(
    name: str, description: str, stochastic: bool, clean: Outcome | None, failed: Sequence[Outcome]
) -> ModelResult:
    ok = clean is not None and clean.ok
    accuracy, interval = metrics.accuracy(clean.column("correct")) if ok and clean else (0.0, (0.0, 1.0))
    last_lines = {(o.cell.error or "").strip().splitlines()[-1] for o in failed if o.cell.error}
    errors = "; ".join(sorted(line.removeprefix("art_qplugins.errors.InputError: ") for line in last_lines))
    return ModelResult(
        name=name,
        description=description,
        stochastic=stochastic,
        clean_accuracy=accuracy,
        clean_interval=interval,
        n=len(clean.samples) if clean else 0,
        robust=[],
        verdict="INVALID",
        summary=f"The evaluation itself failed, so there is no number: {errors or 'no clean cell'}.",
        claim=Claim(status="NONE"),
        findings=[],
    )
