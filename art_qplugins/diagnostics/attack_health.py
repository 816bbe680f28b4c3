"""The health of the claimed attack (class S): symptoms of the attack alone, which say nothing about the model.

They explain an overstated claim and make no suspicion. Symptoms of the model are in ``symptoms.py``. Sources are in the
rows.
"""

from __future__ import annotations

import functools

import numpy as np

from art_qplugins.diagnostics.indicator import Indicator, Measurement, percent
from art_qplugins.diagnostics.model_records import ModelRecords

__all__ = ["ATTACK_HEALTH", "CLAIMED_ATTACK"]

#: The group of these symptoms.
CLAIMED_ATTACK = "claimed attack"
#: Share of its whole fall that a path makes at its end, where it was stopped too early. The paper's 5 % are met by every
#: sound attack of 20 steps.
_FALL = 0.25


def silent_success(records: ModelRecords, threshold: float) -> Measurement:
    best, returned = records.claimed.column("path_best"), records.claimed.column("margin")
    if records.facts.get("random"):
        return Measurement(False, None, "Does not apply: one draw of a random model says nothing of the next.")
    if np.isnan(best).all():
        return Measurement(None, None, "Not measured: the claimed attack's path was not recorded.")
    share = float(np.mean((best < 0) & (returned >= 0)))
    return Measurement(
        share > threshold,
        share,
        f"On {percent(share)} of the images the attack passed an adversarial image and returned another.",
    )


def not_converged(records: ModelRecords, threshold: float) -> Measurement:
    progress, robust = records.claimed.column("path_progress"), records.claimed.column("correct") >= 0.5
    if np.isnan(progress).all() or not robust.any():
        return Measurement(None, None, "Not measured: no path of an image that the claimed attack leaves.")
    share = float(np.nanmean(progress[robust] > _FALL))
    return Measurement(
        share > threshold,
        share,
        f"On {percent(share)} of the images that it leaves, the claimed attack was still getting closer when it stopped.",
    )


def binarization(records: ModelRecords, threshold: float) -> Measurement:
    """The test itself is in ``evaluation/binarization.py``."""
    found = [o for o in records.tests if o.ok and o.cell.facts.get("used")]
    if not found:
        failed = [o.cell.error_line for o in records.tests if not o.ok]
        return Measurement(None, None, f"Not run: {failed[0] if failed else 'the diagnosis did not go that far'}.")
    facts = found[0].cell.facts
    return Measurement(
        facts["success"] < threshold,
        facts["success"],
        f"Of adversarial images put in by hand around {facts['used']} images, the claimed attack finds "
        f"{percent(facts['success'])}; as many random points find {percent(facts['random'])}.",
    )


def failed_transfer(records: ModelRecords, threshold: float) -> Measurement:
    claim = records.claimed.cell
    if claim.source == claim.model:
        return Measurement(False, None, "Does not apply: the claimed attack was crafted on the model itself.")
    accuracy = float(claim.accuracy or 0.0)
    evidence = f"Crafted on {claim.source}, {percent(accuracy)} still stand."
    return Measurement(accuracy > threshold, accuracy, evidence)


_PINTOR = "Pintor et al. 2022"

_health = functools.partial(
    Indicator,
    class_="S",
    group=CLAIMED_ATTACK,
    cost="0",
    shows="The attack, or the surface that it climbs, is not what it seems.",
    shows_not="That gradients are masked: weak attacks and curved models do it too.",
    mitigation="More steps, restarts, and other step sizes.",
)

ATTACK_HEALTH: tuple[Indicator, ...] = (
    _health(
        name="silent-success",
        target=f"{__name__}:silent_success",
        help="The claimed attack returns a worse image than it had",
        threshold=0.01,
        source=_PINTOR + ", I3",
        formula="share of images with an adversarial iterate and a returned image that is none",
        shows="The attack's implementation gives successes away.",
        mitigation="Return the best iterate, not the last.",
    ),
    _health(
        name="not-converged",
        target=f"{__name__}:not_converged",
        help="The claimed attack had not converged",
        threshold=0.9,
        source=_PINTOR + ", I4, on the margin, with a floor for flat paths",
        formula="share of images left with a fall of more than a quarter of the path's range in its last 10 points, or its last half",
        shows="The claimed attack needed more steps or larger ones.",
    ),
    _health(
        name="binarization",
        target=f"{__name__}:binarization",
        help="The claimed attack misses adversarial images put in by hand",
        threshold=0.8,
        cost="the claimed attack and 100 F, on 32 images",
        source="Zimmermann et al. 2022, with the range of the model's own logits",
        formula="share of binary networks around images on which the attack succeeds",
        shows="The attack does not work on this network.",
        shows_not="Robustness, where it passes.",
        mitigation="Use an attack that passes it before any number is believed.",
    ),
    _health(
        name="failed-transfer",
        target=f"{__name__}:failed_transfer",
        help="The claimed attack was crafted on another model and does not transfer",
        threshold=0.5,
        source=_PINTOR + ", I5",
        formula="what is left of images crafted on another model",
        mitigation="Attack the model itself.",
    ),
)
