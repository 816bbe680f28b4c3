"""Whether a control experiment applies to a model and its claim. The steps and the controls ask the same functions.

Each returns the reason why it does not apply, and ``""`` where it does.
"""

from __future__ import annotations

import numpy as np

from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.diagnostics.model_records import ModelRecords
from art_qplugins.diagnostics.thresholds import LARGE_GAP, SMALL_GAP

__all__ = [
    "diversified",
    "gradient_scale",
    "logit_scale",
    "mean_gradient",
    "repair",
    "saturation",
    "scale",
    "substitute",
]

#: No other gradient is expected to help above this fidelity and this cosine of two gradients in the ball.
_FAITHFUL, _ALIGNED = 0.8, 0.75
#: Longer attacks have not converged that break more than this share of all images beyond the first ones, ...
_STILL = 0.04
#: ... or more than this beyond the claimed attack and 20-step PGD. Most honest models stay below both.
_BEYOND = 0.08


def scale(records: ModelRecords) -> str:
    """For the claimed attack on logits or gradients times a constant."""
    return "" if gradient_scale(records) else logit_scale(records)


def gradient_scale(records: ModelRecords) -> float | None:
    """The factor of the gradient, for the claimed attack with its gradient times a constant. ``None`` if it does not apply."""
    scaled: float | None = records.facts.get("gradient_scale")
    attack = ATTACKS[records.claimed.cell.attack]
    return scaled if attack.knowledge == "white-box" and attack.gradient != "repaired" else None


def logit_scale(records: ModelRecords) -> str:
    """For the claimed attack on logits times a constant."""
    gap = records.logit_gap
    if ATTACKS[records.claimed.cell.attack].ignores_scale:
        return "the loss of the claimed attack does not depend on the scale of the logits"
    if not np.isfinite(gap):
        return "the gap of the two largest logits is not finite"
    if SMALL_GAP <= gap <= LARGE_GAP:
        return f"the gap of the two largest logits, {gap:.3g}, is neither large nor small"
    return ""


def repair(records: ModelRecords) -> str:
    """For attacks along another gradient than the model's own."""
    facts = records.facts
    if any(facts.get(name) for name in ("quantizers", "blocking", "lost")) or not facts.get("reaches_pixels", True):
        return ""
    if _median(records, "fidelity") >= _FAITHFUL and _median(records, "alignment") >= _ALIGNED:
        return "the gradient is faithful, and the model has no quantizer and no other operation to replace"
    return ""


def saturation(records: ModelRecords) -> str:
    """For attacks on the tensor before the logits saturate."""
    return "" if records.facts.get("saturates") else "the logits do not saturate"


def diversified(records: ModelRecords) -> str:
    """For restarts from diversified starts. They go on where longer attacks along the same gradient still found something."""
    further, _, _ = records.accuracy_gap(records.first, records.as_is)
    beyond, _, _ = records.accuracy_gap([records.claimed, *records.reference], records.as_is)
    if not (further > _STILL or beyond > _BEYOND):
        return "longer, restarted and targeted attacks found little more"
    return ""


def substitute(records: ModelRecords) -> str:
    """For a network that is fitted to the model's answers. It is used only where no gradient of the model leads anywhere."""
    facts = records.facts
    if facts.get("opaque") or (not facts.get("reaches_pixels", True) and not facts.get("lost")):
        return ""
    return "a gradient of the model itself, or a repaired one, can be followed"


def mean_gradient(records: ModelRecords) -> str:
    """For attacks along the mean gradient over draws."""
    return "" if records.facts.get("random") else "the model is not random"


def _median(records: ModelRecords, column: str) -> float:
    """Over all images. It is NaN where nothing was measured, and then nothing is known to be faithful."""
    values = records.clean.column(column)
    return float(np.nanmedian(values)) if not np.isnan(values).all() else float("nan")
