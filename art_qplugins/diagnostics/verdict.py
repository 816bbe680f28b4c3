"""From measurements to a verdict: from proof, and not from symptoms.

The verdict speaks of the model's gradients: do they hide adversarial images? A gap in accuracy alone says that an attack was
weak. MASKED needs a mechanism that fired, a control experiment that belongs to it, and both on the same images: dividing
logits that are too large, repairing a backward pass that is not the slope, averaging over draws, more steps where the surface
turns. A repaired backward pass that goes further than every attack along the model's own is both at once: nothing but the
backward pass was exchanged.

Every indicator counts by its class and by what its row says, of whatever package it is. The claim, which speaks of a number,
is judged in ``model_result.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from art_qplugins.diagnostics.attack_health import CLAIMED_ATTACK
from art_qplugins.diagnostics.indicator import Indicator, Measurement
from art_qplugins.diagnostics.indicators import INDICATORS, of_class
from art_qplugins.evaluation.records import Interval, Verdict

__all__ = ["decide", "explanations", "invalidating"]

#: Share of the newly broken images on which a mechanism must be at work to explain them.
_EXPLAINS = 0.5
#: Half-width of the corrected accuracy's interval above which silence proves nothing.
_TOO_WIDE = 0.10
#: Proofs that compare the claim with all attacks, whatever they exchange: no control experiment of one mechanism.
_COMPARISONS = ("attack-gap", "ordinary-attack-gap")
_NOT_RUN = Measurement(None, None, "Not run.")


def invalidating(measurements: Mapping[str, Measurement]) -> list[str]:
    """Names of the indicators that fired and leave no number."""
    return _alone("INVALID", _fired(measurements))


def explanations(measurements: Mapping[str, Measurement]) -> list[tuple[str, str]]:
    """(mechanism, proof): both fired, and the mechanism is at work on most of the images that the proof newly broke."""
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
    if "failed-cells" in fired or skipped or (interval[1] - interval[0]) / 2 > _TOO_WIDE:
        return "INCONCLUSIVE"
    return "NOT_REFUTED"


def _suspect(measurements: Mapping[str, Measurement]) -> bool:
    """One that makes a suspicion alone, symptoms of two groups, or a mechanism without a control experiment."""
    fired = _fired(measurements)
    if _scale_settles_underflow(measurements):
        fired.discard("loss-underflow")
    groups = {s.group or s.name for s in of_class("S") if s.name in fired} - {CLAIMED_ATTACK}
    return bool(_alone("SUSPECT", fired) or len(groups) >= 2 or _unsettled(measurements))


def _scale_settles_underflow(measurements: Mapping[str, Measurement]) -> bool:
    """Whether divided logits were tried and found nothing, and little is unexplained.

    A loss of zero is then harmless: steps by the gradient's sign survive it.
    """
    scale = measurements["logit-scale"]
    return scale.fired is False and scale.value is not None and not measurements["ordinary-attack-gap"].fired


def _unsettled(measurements: Mapping[str, Measurement]) -> list[Indicator]:
    """Mechanisms that fired without a control experiment. One that was made and found nothing settles its mechanism.

    Those that make a suspicion alone are not asked for: they hide images from other attacks on the same loss too, whether
    or not the claimed one was fooled.
    """
    fired = [m for m in of_class("M") if measurements[m.name].fired and m.alone is None]
    controls = {m.name: [p for p in m.proof if p not in _COMPARISONS] for m in fired}
    return [m for m in fired if all(measurements.get(p, _NOT_RUN).fired is None for p in controls[m.name])]


def _alone(verdict: Verdict, fired: set[str]) -> list[str]:
    return [name for name, indicator in INDICATORS.items() if name in fired and indicator.alone == verdict]


def _fired(measurements: Mapping[str, Measurement]) -> set[str]:
    return {name for name, measurement in measurements.items() if measurement.fired}
