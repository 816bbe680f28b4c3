"""The diagnosis of one model as a paragraph of text."""

from __future__ import annotations

from collections.abc import Sequence

from art_qplugins.diagnostics.model_records import ModelRecords
from art_qplugins.evaluation.fields import Verdict
from art_qplugins.evaluation.records import Claim, Finding, Layer

__all__ = ["lower_first", "summary"]

_OPENING = {
    "OVERSTATED": "The claimed number is too high.",
    "HOLDS": "No attack that was run contradicts the claimed number.",
}
_ENDING = {
    "SUSPECT": "There are signs that gradients mislead attacks. It is not proven that they explain a gap.",
    "NOT_REFUTED": "No check that ran found masked gradients. The number is an upper bound, not a guarantee.",
    "INCONCLUSIVE": "Some checks did not run or too few images were used, so nothing can be concluded.",
}


def summary(
    verdict: Verdict, records: ModelRecords, claim: Claim, explaining: Sequence[Finding], layer: Layer | None
) -> str:
    """The verdict on a claim that was measured.

    :param explaining: the mechanisms that explain the gap, if the verdict is MASKED.
    :param layer: the blocking operation, if there is one.
    """
    number = _number(records, claim)
    if verdict == "MASKED":
        why = ", and ".join(lower_first(f.title) for f in explaining)
        where = f" The gradient is lost at {layer.op} in {layer.layer}." if layer else ""
        if claim.status == "OVERSTATED":
            return f"The claimed number is an illusion. {number} The gradient hides the difference: {why}.{where}"
        return (
            f"The claimed number is not too high. {number} But the gradients of the model mislead attacks: {why}.{where} "
            "Do not train or tune against them."
        )
    return f"{_OPENING[claim.status]} {number} {_ENDING[verdict]}"


def _number(records: ModelRecords, claim: Claim) -> str:
    assert claim.accuracy is not None and claim.corrected is not None and claim.interval is not None
    low, high = (f"{100 * v:.1f}" for v in claim.interval)
    measured = records.claimed.cell.accuracy or 0.0
    claimed = "" if claim.accuracy == measured else f"The claimed accuracy is {100 * claim.accuracy:.1f} %. "
    return (
        f"{claimed}Accuracy under {records.claimed.cell.label} is {100 * measured:.1f} % of {records.n} images at "
        f"{claim.norm} eps = {claim.eps:.4g}. In the worst case over all attacks it is "
        f"{100 * claim.corrected:.1f} % [{low}, {high}]."
    )


def lower_first(text: str) -> str:
    """``text`` with a lower-case first letter."""
    return text[:1].lower() + text[1:]
