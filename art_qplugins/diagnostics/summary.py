"""The diagnosis of one model in a paragraph of plain words."""

from __future__ import annotations

from collections.abc import Sequence

from art_qplugins.diagnostics.model_records import ModelRecords
from art_qplugins.evaluation.records import Claim, Finding, Layer, Verdict

__all__ = ["lower_first", "summary"]

_OPENING = {
    "OVERSTATED": "The claimed number is too high.",
    "HOLDS": "No attack that was run contradicts the claimed number.",
}
_ENDING = {
    "SUSPECT": "There are signs that gradients mislead attacks, short of proof that they explain a gap.",
    "NOT_REFUTED": "No check that ran found masked gradients; this is an upper bound, not a guarantee.",
    "INCONCLUSIVE": "Some checks did not run or too few images were used, so silence proves nothing.",
}


def summary(
    verdict: Verdict, records: ModelRecords, claim: Claim, explaining: Sequence[Finding], layer: Layer | None
) -> str:
    """The verdict on a claim that was measured.

    :param explaining: the mechanisms that explain the gap, where the verdict is MASKED.
    :param layer: where the gradient is lost, if one operation is to blame.
    """
    number = _number(records, claim)
    if verdict == "MASKED":
        why = ", and ".join(lower_first(f.title) for f in explaining)
        where = f" It is lost at {layer.op} in {layer.layer}." if layer else ""
        return f"The claimed number is an illusion. {number} The gradient hides the difference: {why}.{where}"
    return f"{_OPENING[claim.status]} {number} {_ENDING[verdict]}"


def _number(records: ModelRecords, claim: Claim) -> str:
    assert claim.accuracy is not None and claim.corrected is not None and claim.interval is not None
    low, high = (f"{100 * v:.1f}" for v in claim.interval)
    measured = records.claimed.cell.accuracy or 0.0
    claimed = "" if claim.accuracy == measured else f"Claimed are {100 * claim.accuracy:.1f} %. "
    return (
        f"{claimed}{records.claimed.cell.label} leaves {100 * measured:.1f} % of {records.n} images standing at "
        f"{claim.norm} eps = {claim.eps:.4g}; the worst case over all attacks that were run leaves "
        f"{100 * claim.corrected:.1f} % [{low}, {high}]."
    )


def lower_first(text: str) -> str:
    """``text`` with a small first letter, to go on with a sentence."""
    return text[:1].lower() + text[1:]
