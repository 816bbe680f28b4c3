"""The result of one model: the claim and the verdict, judged from its records.

The two are separate. The claim is about a number: is it too high, and by how much? The verdict is about the gradients of
the model. Its rules are in ``verdict.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from art_qplugins import metrics
from art_qplugins.diagnostics.indicator import Measurement
from art_qplugins.diagnostics.indicators import of_class
from art_qplugins.diagnostics.measurements import findings_of, measure_all
from art_qplugins.diagnostics.model_records import ModelRecords, records_of
from art_qplugins.diagnostics.summary import lower_first, summary
from art_qplugins.diagnostics.thresholds import MATERIAL
from art_qplugins.diagnostics.verdict import decide, invalidating, mechanisms
from art_qplugins.evaluation.fields import Interval, Verdict
from art_qplugins.evaluation.outcome import Outcome, attacked, clean_tries, robust_at, worst_case
from art_qplugins.evaluation.records import Claim, Finding, Layer, Mechanism, ModelResult, Robust, Step
from art_qplugins.evaluation.significance import clustered_bootstrap

__all__ = ["assess", "verdict_of"]

_NO_CLAIM = Claim(status="NONE")


@dataclass(frozen=True, kw_only=True)
class _Judgement:
    """The conclusion of the diagnosis for one model."""

    verdict: Verdict
    summary: str
    claim: Claim = _NO_CLAIM
    findings: Sequence[Finding] = ()
    mechanisms: Sequence[Mechanism] = ()
    layer: Layer | None = None


def assess(
    name: str,
    outcomes: Sequence[Outcome],
    *,
    claimed: Outcome | None,
    claimed_accuracy: float | None = None,
    description: str = "",
    stochastic: bool = False,
    steps: Sequence[Step] = (),
) -> ModelResult:
    """The record of one model.

    :param outcomes: all its cells, including failed ones. One has the role "clean".
    :param claimed: the cell whose accuracy is claimed, one of ``outcomes``. ``None`` means that nothing is claimed.
    :param claimed_accuracy: the claimed number in [0, 1], if it differs from the accuracy of the cell.
    :param steps: the steps of the diagnosis.
    """
    clean = next((o for o in outcomes if o.cell.role == "clean" and o.ok), None)
    accuracy, interval, n = 0.0, (0.0, 1.0), 0
    if clean is None:
        failed = [o for o in outcomes if not o.ok]
        judgement = _invalid([f"the clean images could not be scored: {_errors(failed)}"])
    else:
        accuracy, interval = metrics.accuracy(clean.labelled)
        n, stochastic = len(clean.ids), stochastic or bool(clean.cell.facts.get("random"))
        judgement = _judge(outcomes, clean, claimed, claimed_accuracy)
    return ModelResult(
        name=name,
        description=description,
        stochastic=stochastic,
        clean_accuracy=accuracy,
        clean_interval=interval,
        clean_rejected=None if clean is None else clean.cell.rejected,
        clean_tries=[] if clean is None else clean_tries(clean),
        n=n,
        robust=[] if judgement.verdict == "INVALID" else _robust(outcomes),
        verdict=judgement.verdict,
        summary=judgement.summary,
        claim=judgement.claim,
        findings=list(judgement.findings),
        mechanisms=list(judgement.mechanisms),
        steps=list(steps),
        layer=judgement.layer,
    )


def verdict_of(outcomes: Sequence[Outcome], claimed: Outcome) -> Verdict:
    """The verdict alone."""
    return assess("", outcomes, claimed=claimed).verdict


def _judge(
    outcomes: Sequence[Outcome], clean: Outcome, claimed: Outcome | None, claimed_accuracy: float | None
) -> _Judgement:
    if claimed is None:
        why = "No accuracy was claimed, so there was no claim to test."
        return _Judgement(verdict="INCONCLUSIVE", summary=why, findings=_validity(records_of(outcomes, clean)))
    records = records_of(outcomes, claimed if claimed.ok else clean)
    measurements = measure_all(records)
    findings = findings_of(measurements)
    reasons = [lower_first(findings[name].title) for name in invalidating(measurements)]
    kept = list(findings.values())
    if not claimed.ok:
        reasons.append(f"{claimed.cell.attack} failed: {_errors([claimed])}")
        kept = [f for f in kept if f.class_ == "V" or f.id == "no-gradient"]
    if reasons:
        return _invalid(reasons, kept)
    robust = robust_at(outcomes, claimed.cell.norm, claimed.cell.eps)
    claim = _claim(records, robust, claimed_accuracy, measurements["attack-gap"])
    ended = mechanisms(measurements)
    verdict = decide(measurements, ended, interval=robust.interval)
    layer = _layer(records)
    proved = [findings[mechanism.id] for mechanism in ended if mechanism.end == "proved"]
    words = summary(verdict, records, claim, proved, layer)
    return _Judgement(verdict=verdict, summary=words, claim=claim, findings=kept, mechanisms=ended, layer=layer)


def _validity(records: ModelRecords) -> list[Finding]:
    """What a reader of the numbers must know where nothing is claimed: what was found of class V."""
    findings = (indicator.finding(indicator.measure(records)) for indicator in of_class("V"))
    return [finding for finding in findings if finding.fired]


def _invalid(reasons: Sequence[str], findings: Sequence[Finding] = ()) -> _Judgement:
    why = f"The evaluation itself failed, so no number counts: {'; '.join(reasons)}."
    return _Judgement(verdict="INVALID", summary=why, findings=findings)


def _robust(outcomes: Sequence[Outcome]) -> list[Robust]:
    """The robust accuracy at every norm and eps at which a cell attacked all images."""
    return [robust_at(outcomes, norm, eps) for norm, eps in attacked(outcomes)]


def _claim(records: ModelRecords, robust: Robust, claimed_accuracy: float | None, attack_gap: Measurement) -> Claim:
    """The claim with its status.

    An accuracy measured here is compared with other attacks image by image. An accuracy from elsewhere is compared with an
    interval.
    """
    measured, interval = records.claimed.column("correct"), robust.interval
    if claimed_accuracy is None:
        accuracy, overstated = float(measured.mean()), bool(attack_gap.fired)
        by: Interval = clustered_bootstrap(measured, worst_case(records.legal))
    else:
        too_high = claimed_accuracy - robust.accuracy > MATERIAL
        accuracy, overstated = claimed_accuracy, too_high and not interval[1] >= claimed_accuracy
        by = (claimed_accuracy - interval[1], claimed_accuracy - interval[0])
    return Claim(
        status="OVERSTATED" if overstated else "HOLDS",
        attack=records.claimed.cell.attack,
        cell=records.claimed.cell.id,
        norm=robust.norm,
        eps=robust.eps,
        accuracy=accuracy,
        corrected=robust.accuracy,
        interval=interval,
        overstated_by=accuracy - robust.accuracy,
        overstated_interval=by,
    )


def _layer(records: ModelRecords) -> Layer | None:
    """The blocking operation; ``None`` where there is none."""
    blocking = records.facts.get("blocking")
    return Layer(layer=blocking["layer"], op=blocking["op"], share=blocking["share"]) if blocking else None


def _errors(failed: Sequence[Outcome]) -> str:
    lines = {o.cell.error_line for o in failed if o.cell.error}
    return "; ".join(sorted(line.removeprefix("art_qplugins.errors.InputError: ") for line in lines)) or "no clean cell"
