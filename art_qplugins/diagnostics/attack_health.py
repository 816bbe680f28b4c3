"""Health of the claimed attack (class S): symptoms of the attack alone.

They say nothing about the model. They explain an overstated claim and make no suspicion. Symptoms of the model are in
``symptoms.py``. Sources are in the rows.
"""

from __future__ import annotations

import functools

import numpy as np

from art_qplugins.diagnostics.indicator import Indicator, Measurement, percent
from art_qplugins.diagnostics.model_records import ModelRecords

__all__ = ["ATTACK_HEALTH", "CLAIMED_ATTACK"]

#: The group of these symptoms.
CLAIMED_ATTACK = "claimed attack"
#: An attack was stopped too early if its loss makes more than this share of its whole fall at the end of the path. The
#: paper has 5 %, which every sound 20-step attack exceeds.
_FALL = 0.25


def silent_success(records: ModelRecords, threshold: float) -> Measurement:
    best, returned = records.claimed.column("path_best"), records.claimed.column("margin")
    if records.facts.get("random"):
        return Measurement.does_not_apply("the model is random, so a success in one draw need not repeat.")
    if np.isnan(best).all():
        return Measurement(None, None, "Not measured: the claimed attack's path was not recorded.")
    share = float(np.mean((best < 0) & (returned >= 0)))
    return Measurement(
        share > threshold,
        share,
        f"On {percent(share)} of the images the attack visited an adversarial image and returned one that is not adversarial.",
    )


def not_converged(records: ModelRecords, threshold: float) -> Measurement:
    progress, robust = records.claimed.column("path_progress"), records.claimed.column("correct") >= 0.5
    if not (robust & ~np.isnan(progress)).any():
        return Measurement(
            None, None, "Not measured: no path was recorded for an image that the claimed attack does not break."
        )
    known = progress[robust & ~np.isnan(progress)]
    share = float(np.mean(known > _FALL))
    return Measurement(
        share > threshold,
        share,
        f"On {percent(share)} of the images that it does not break, the claimed attack was still making progress at its end.",
    )


def binarization(records: ModelRecords, threshold: float) -> Measurement:
    """The test itself is in ``evaluation/binarization.py``."""
    found = [o for o in records.tests if o.ok and o.cell.facts.get("used")]
    if not found:
        failed = [o.cell.error_line for o in records.tests if not o.ok]
        return Measurement.not_run(f"{failed[0] if failed else 'the diagnosis ended before this test'}.")
    facts = found[0].cell.facts
    return Measurement(
        facts["success"] < threshold,
        facts["success"],
        f"The claimed attack finds {percent(facts['success'])} of the adversarial images planted around {facts['used']} "
        f"images. The same number of random points finds {percent(facts['random'])}.",
    )


def failed_transfer(records: ModelRecords, threshold: float) -> Measurement:
    claim = records.claimed.cell
    if claim.source == claim.model:
        return Measurement.does_not_apply("the claimed attack was crafted on the model itself.")
    accuracy = float(claim.accuracy or 0.0)
    evidence = f"The model classifies {percent(accuracy)} of the images crafted on {claim.source} correctly."
    return Measurement(accuracy > threshold, accuracy, evidence)


_PINTOR = "Pintor et al. 2022"

_health = functools.partial(
    Indicator,
    class_="S",
    group=CLAIMED_ATTACK,
    cost="0",
    shows="The attack or the loss surface does not behave as expected.",
    shows_not="That gradients are masked: weak attacks and curved loss surfaces do the same.",
    mitigation="Use more steps, restarts and other step sizes.",
)

ATTACK_HEALTH: tuple[Indicator, ...] = (
    _health(
        name="silent-success",
        target=f"{__name__}:silent_success",
        help="The claimed attack visits adversarial images and returns others",
        threshold=0.01,
        source=_PINTOR + ", I3",
        formula="share of images with an adversarial iterate and a returned image that is not adversarial",
        shows="The implementation of the attack discards its successes.",
        mitigation="Return the best iterate, not the last.",
    ),
    _health(
        name="not-converged",
        target=f"{__name__}:not_converged",
        help="The claimed attack had not converged",
        threshold=0.9,
        source=_PINTOR + ", I4, on the margin, with a floor for flat paths",
        formula="share of robust images whose margin falls by more than a quarter of its range in the last 10 points, or half, of "
        "the path",
        shows="The claimed attack needed more steps or larger steps.",
    ),
    _health(
        name="binarization",
        target=f"{__name__}:binarization",
        help="The claimed attack misses planted adversarial images",
        threshold=0.8,
        cost="the claimed attack and 100 F, on 32 images",
        source="Zimmermann et al. 2022, with the range of the model's own logits",
        formula="share of the binary networks around images that the attack breaks",
        shows="The attack does not work on this network.",
        shows_not="That the model is robust, if the attack passes.",
        mitigation="Use an attack that passes this test before you trust a number.",
    ),
    _health(
        name="failed-transfer",
        target=f"{__name__}:failed_transfer",
        help="The claimed attack was crafted on another model and does not transfer",
        threshold=0.5,
        source=_PINTOR + ", I5",
        formula="accuracy on images crafted on another model",
        mitigation="Attack the model itself.",
    ),
)
