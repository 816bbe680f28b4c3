"""From findings to a verdict, from proof and not from symptoms.

Two answers are kept apart. The claim is about a number: is it too high, and by how much? The verdict is about the model's
gradients: do they hide adversarial images? A gap alone says that an attack was weak. MASKED needs a mechanism that fired,
the control experiment that belongs to it, and both on the same images: dividing logits that are too large, repairing a
backward pass that is not the slope, averaging over draws, more steps where the surface turns. A repaired backward pass that
goes further than every attack along the model's own is both at once: nothing but the backward pass was exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from art_qplugins import metrics
from art_qplugins.diagnostics.indicators import INDICATORS
from art_qplugins.diagnostics.mechanisms import MECHANISMS
from art_qplugins.diagnostics.proofs import PROOFS
from art_qplugins.diagnostics.records import MATERIAL, Indicator, Measurement, ModelRecords, records_of
from art_qplugins.diagnostics.symptoms import ATTACK_HEALTH, SYMPTOMS
from art_qplugins.diagnostics.validity import FATAL
from art_qplugins.diagnostics.words import summary
from art_qplugins.evaluation import compare
from art_qplugins.evaluation.outcome import Outcome, robust_at, worst_case
from art_qplugins.evaluation.records import Claim, Finding, Layer, ModelResult, Robust, Step, Verdict

__all__ = ["assess", "verdict_of"]

#: Share of the newly broken images on which a mechanism must be at work to explain them.
_EXPLAINS = 0.5
#: Half-width of the corrected accuracy's interval above which nothing is concluded from silence.
_TOO_WIDE = 0.10
#: Error rate that Holm's correction keeps over all symptoms together.
_FAMILY = 0.05
#: Mechanisms that hide images from other attacks on this loss too, whether or not the claimed one was fooled ...
_NUMERIC = ("zero-gradient", "loss-underflow", "large-logits")
#: ... and the one that divided logits settle, where they were tried and found nothing, and little is unexplained: steps by
#: the gradient's sign survive a loss of zero.
_SETTLED_BY_SCALE = "loss-underflow"
#: Proofs that speak of the model's gradient, not of the claimed attack's strength.
_OF_THE_MODEL = ("surrogate-gradient", "mean-gradient", "black-box-search", "transfer")
#: Without these, silence proves nothing. The others do not apply to every model and threat.
_REQUIRED = ("attack-gap", "logit-scale", "black-box-search", "zero-gradient", "loss-underflow", "large-logits")


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
    """Everything that is said about one model.

    :param outcomes: all its cells, failed ones included; one has the role "clean".
    :param claimed: the cell whose accuracy is the claim, one of ``outcomes``; ``None`` where nothing is claimed.
    :param claimed_accuracy: the number claimed, if it is another than the cell's own.
    :param steps: what the ladder did.
    """
    clean = next((o for o in outcomes if o.cell.role == "clean"), None)
    about = {"name": name, "description": description, "stochastic": stochastic, "steps": list(steps)}
    if clean is None or not clean.ok:
        failed = [o for o in outcomes if not o.ok]
        return ModelResult(**about, **_nothing(f"it could not even be asked: {_errors(failed)}"))  # type: ignore[arg-type]
    accuracy, interval = metrics.accuracy(clean.column("correct"))
    about["stochastic"] = stochastic or bool(clean.cell.facts.get("random"))
    about |= {"clean_accuracy": accuracy, "clean_interval": interval, "n": len(clean.ids)}
    budgets = sorted({(o.cell.norm, o.cell.eps) for o in outcomes if o.ok and o.cell.eps > 0 and _whole(o)})
    about["robust"] = [robust_at(outcomes, *budget) for budget in budgets]
    if claimed is None:
        said = {"verdict": "INCONCLUSIVE", "claim": Claim(status="NONE"), "findings": []}
        return ModelResult(**about, **said, summary="No number was claimed, so there was nothing to test.")  # type: ignore[arg-type]
    measurable = claimed.ok
    case = records_of(outcomes, claimed if measurable else clean)
    findings, readings = read_all(case)
    invalid = [f for f in FATAL if readings[f].fired]
    if not measurable or invalid:
        reasons = [findings[f].title[0].lower() + findings[f].title[1:] for f in invalid]
        if not measurable:
            reasons.append(f"{claimed.cell.attack} failed: {_errors([claimed])}")
            findings = {k: f for k, f in findings.items() if f.class_ == "V" or k == "no-gradient"}
        said = {**_nothing("; ".join(reasons)), **about, "findings": list(findings.values()), "robust": []}
        return ModelResult(**said)  # type: ignore[arg-type]
    robust = robust_at(outcomes, claimed.cell.norm, claimed.cell.eps)
    claim = _claim(case, robust, claimed_accuracy, bool(readings["attack-gap"].fired))
    explaining = explanations(readings)
    verdict = _verdict(readings, explaining, robust)
    guilty = case.facts.get("blocking")
    layer = Layer(layer=guilty["layer"], op=guilty["op"], share=guilty["share"]) if guilty else None
    return ModelResult(
        **about,  # type: ignore[arg-type]
        verdict=verdict,
        claim=claim,
        findings=list(findings.values()),
        layer=layer,
        summary=summary(verdict, case, claim, [findings[m] for m, _ in explaining], layer),
    )


def verdict_of(outcomes: Sequence[Outcome], claimed: Outcome) -> Verdict:
    """The verdict alone."""
    return assess("", outcomes, claimed=claimed).verdict


def read_all(case: ModelRecords) -> tuple[dict[str, Finding], dict[str, Measurement]]:
    """Every indicator's finding and reading, the symptoms corrected for their number."""
    findings: dict[str, Finding] = {}
    readings: dict[str, Measurement] = {}
    for indicator in INDICATORS:
        findings[indicator.id], readings[indicator.id] = indicator(case)
    for name, fired in holm({s.id: readings[s.id].p_value for s in SYMPTOMS}).items():
        findings[name] = findings[name].model_copy(update={"fired": fired})
        readings[name] = replace(readings[name], fired=fired)
    return findings, readings


def holm(p_values: Mapping[str, float | None]) -> dict[str, bool]:
    """Which of these are significant together at 5 % (Holm 1979). Those without a p-value are left out."""
    known = {name: p for name, p in p_values.items() if p is not None}
    adjusted = compare.holm(list(known.values()))
    return {name: bool(p <= _FAMILY) for name, p in zip(known, adjusted, strict=True)}


def explanations(readings: Mapping[str, Measurement]) -> list[tuple[str, str]]:
    """(mechanism, proof): both fired, and the mechanism is at work on most of the images that the proof newly broke."""
    found = []
    for mechanism in (*MECHANISMS, *PROOFS):
        here = readings[mechanism.id]
        proofs = [p for p in mechanism.proof if here.fired and readings[p].fired and _at_work(here, readings[p])]
        found += [(mechanism.id, proof) for proof in proofs[:1]]
    return found


def _at_work(mechanism: Measurement, proof: Measurement) -> bool:
    if mechanism.present is None or proof.broke is None or not proof.broke.any():
        return False
    return bool(np.mean(mechanism.present[proof.broke]) >= _EXPLAINS)


def _verdict(readings: Mapping[str, Measurement], explaining: Sequence[object], robust: Robust) -> Verdict:
    fired = {name for name, reading in readings.items() if reading.fired}
    if explaining:
        return "MASKED"
    scale = readings["logit-scale"]
    if scale.fired is False and scale.value is not None and "ordinary-attack-gap" not in fired:
        fired.discard(_SETTLED_BY_SCALE)
    groups = {s.group for s in SYMPTOMS if s.id in fired} - {ATTACK_HEALTH}
    if (
        fired & {*_OF_THE_MODEL, *_NUMERIC, "no-gradient", "test-time-optimisation", "misled-loss"}
        or len(groups) >= 2
        or _unsettled(readings)
    ):
        return "SUSPECT"
    skipped = any(readings[name].fired is None for name in _REQUIRED)
    if "failed-cells" in fired or skipped or (robust.interval[1] - robust.interval[0]) / 2 > _TOO_WIDE:
        return "INCONCLUSIVE"
    return "NOT_REFUTED"


def _unsettled(readings: Mapping[str, Measurement]) -> list[Indicator]:
    """Mechanisms that fired and for which no control experiment was made. One that was made and found nothing settles."""
    others = [m for m in MECHANISMS if m.id not in _NUMERIC]
    controls = {m.id: [p for p in m.proof if p not in ("attack-gap", "ordinary-attack-gap")] for m in others}
    return [m for m in others if readings[m.id].fired and all(readings[p].fired is None for p in controls[m.id])]


def _claim(case: ModelRecords, robust: Robust, claimed_accuracy: float | None, gap: bool) -> Claim:
    measured = case.claimed.column("correct")
    accuracy = float(measured.mean()) if claimed_accuracy is None else claimed_accuracy
    if claimed_accuracy is None:
        interval = compare.clustered_bootstrap(measured, worst_case(case.legal))
    else:
        gap = robust.interval[1] < claimed_accuracy - MATERIAL
        interval = (claimed_accuracy - robust.interval[1], claimed_accuracy - robust.interval[0])
    return Claim(
        status="OVERSTATED" if gap else "HOLDS",
        attack=case.claimed.cell.attack,
        cell=case.claimed.cell.id,
        norm=robust.norm,
        eps=robust.eps,
        accuracy=accuracy,
        corrected=robust.accuracy,
        interval=robust.interval,
        overstated_by=accuracy - robust.accuracy,
        overstated_interval=interval,
    )


def _whole(o: Outcome) -> bool:
    return o.cell.rows is None


def _nothing(why: str) -> dict[str, object]:
    return {
        "clean_accuracy": 0.0,
        "clean_interval": (0.0, 1.0),
        "n": 0,
        "robust": [],
        "verdict": "INVALID",
        "summary": f"The evaluation itself failed, so there is no number: {why}.",
        "claim": Claim(status="NONE"),
        "findings": [],
    }


def _errors(failed: Sequence[Outcome]) -> str:
    lines = {o.cell.error_line for o in failed if o.cell.error}
    return "; ".join(sorted(line.removeprefix("art_qplugins.errors.InputError: ") for line in lines)) or "no clean cell"
