"""From measurements to a verdict. A verdict of MASKED needs a proof; symptoms alone do not suffice.

The verdict is about the gradients of the model: do they hide adversarial images? A gap in accuracy alone only shows that an
attack was weak. MASKED needs a mechanism and its control experiment, both on the same images. The control experiments
divide logits that are too large, repair a backward pass that is not the slope, average over draws, or take more steps where
the gradient changes direction. A repaired backward pass that breaks more than every attack along the model's own gradient
is both at once: only the backward pass was exchanged.

An indicator counts by its class and its row, whichever package it comes from. The claim is about a number. It is judged
in ``model_result.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from art_qplugins.diagnostics.attack_health import CLAIMED_ATTACK
from art_qplugins.diagnostics.indicator import Indicator, Measurement
from art_qplugins.diagnostics.indicators import INDICATORS, of_class
from art_qplugins.evaluation.records import Interval, Verdict

__all__ = ["decide", "explanations", "invalidating"]

#: A mechanism explains newly broken images if it is present on at least this share of them.
_EXPLAINS = 0.5
#: With a wider interval of the corrected accuracy (half-width), the verdict is INCONCLUSIVE if nothing was found.
_TOO_WIDE = 0.10
#: Proofs that compare the claim with all attacks. They are the control experiment of no single mechanism.
_COMPARISONS = ("attack-gap", "ordinary-attack-gap")
_NOT_RUN = Measurement(None, None, "Not run.")


def invalidating(measurements: Mapping[str, Measurement]) -> list[str]:
    """Names of the indicators that fired and make the evaluation INVALID."""
    return _alone("INVALID", _fired(measurements))


def explanations(measurements: Mapping[str, Measurement]) -> list[tuple[str, str]]:
    """(mechanism, proof): both fired, and the mechanism is present on most of the images that the proof newly broke."""
    found = []
    for mechanism in (*of_class("M"), *of_class("P")):
        here = measurements[mechanism.name]
        proofs = [p for p in mechanism.proof if here.fired and _explains(here, measurements.get(p, _NOT_RUN))]
        found += [(mechanism.name, proof) for proof in proofs[:1]]
    return found


def _explains(mechanism: Measurement, proof: Measurement) -> bool:
    if not proof.fired or mechanism.present is None or proof.broke is None or not proof.broke.any():
        return False
    return bool(np.mean(mechanism.present[proof.broke]) >= _EXPLAINS)


def decide(measurements: Mapping[str, Measurement], *, explained: bool, interval: Interval) -> Verdict:
    """The verdict on a claim that was measured.

    :param explained: whether a mechanism and its control experiment explain the gap.
    :param interval: 95 % interval of the corrected accuracy.
    """
    if explained:
        return "MASKED"
    if _suspect(measurements):
        return "SUSPECT"
    fired = _fired(measurements)
    skipped = any(i.required and measurements[i.name].fired is None for i in INDICATORS.values())
    if "failed-cells" in fired or skipped or not (interval[1] - interval[0]) / 2 <= _TOO_WIDE:
        return "INCONCLUSIVE"
    return "NOT_REFUTED"


def _suspect(measurements: Mapping[str, Measurement]) -> bool:
    """Whether there is an indicator that suffices alone, symptoms of two groups, or a mechanism without a control."""
    fired = _fired(measurements)
    if _scale_settles_underflow(measurements):
        fired.discard("loss-underflow")
    groups = {s.group or s.name for s in of_class("S") if s.name in fired} - {CLAIMED_ATTACK}
    return bool(_alone("SUSPECT", fired) or len(groups) >= 2 or _unsettled(measurements))


def _scale_settles_underflow(measurements: Mapping[str, Measurement]) -> bool:
    """Whether an attack on divided logits found nothing, and little is unexplained.

    A loss of zero is then harmless: sign-gradient steps still work.
    """
    scale = measurements["logit-scale"]
    return scale.fired is False and scale.value is not None and not measurements["ordinary-attack-gap"].fired


def _unsettled(measurements: Mapping[str, Measurement]) -> list[Indicator]:
    """Mechanisms that fired without a control experiment. One that found nothing settles its mechanism.

    Mechanisms that suffice alone for SUSPECT are not listed. They hide images from other attacks on the same loss too,
    even if the claimed attack was not misled.
    """
    fired = [m for m in of_class("M") if measurements[m.name].fired and m.alone is None]
    controls = {m.name: [p for p in m.proof if p not in _COMPARISONS] for m in fired}
    return [m for m in fired if all(measurements.get(p, _NOT_RUN).fired is None for p in controls[m.name])]


def _alone(verdict: Verdict, fired: set[str]) -> list[str]:
    return [name for name, indicator in INDICATORS.items() if name in fired and indicator.alone == verdict]


def _fired(measurements: Mapping[str, Measurement]) -> set[str]:
    return {name for name, measurement in measurements.items() if measurement.fired}
