"""From measurements to a verdict, by the table in ``rules.py``. A verdict of MASKED needs a control experiment.

The verdict is about the gradients of the model: do they hide adversarial images? A gap in accuracy alone only shows that an
attack was weak. The claim is about a number. It is judged in ``model_result.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from art_qplugins.diagnostics.indicator import Measurement
from art_qplugins.diagnostics.indicators import INDICATORS
from art_qplugins.diagnostics.rules import Rule
from art_qplugins.evaluation.records import Interval, Verdict

__all__ = ["decide", "explanations", "invalidating", "open_mechanisms"]

#: A mechanism explains newly broken images if it is present on at least this share of them.
_EXPLAINS = 0.5
#: A control experiment settles nothing where other attacks break this much more than the claimed one and 20-step PGD.
_UNEXPLAINED = 0.15
#: With a wider interval of the corrected accuracy (half-width), the verdict is INCONCLUSIVE if nothing was found.
_TOO_WIDE = 0.10
_NOT_RUN = Measurement.not_run("")

_Measurements = Mapping[str, Measurement]


def invalidating(measurements: _Measurements) -> list[str]:
    """Names of the indicators that fired and make the evaluation INVALID."""
    return [name for name, rule in _fired(measurements).items() if rule.alone == "INVALID"]


def explanations(measurements: _Measurements) -> list[tuple[str, str]]:
    """(mechanism, control): both fired, and the mechanism is present on most of the images that the control newly broke."""
    found = []
    for name, rule in _fired(measurements).items():
        controls = [c for c in rule.controls if _explains(measurements[name], measurements.get(c, _NOT_RUN))]
        found += [(name, control) for control in controls[:1]]
    return found


def _explains(mechanism: Measurement, control: Measurement) -> bool:
    if not control.fired or mechanism.present is None or control.broke is None or not control.broke.any():
        return False
    return bool(np.mean(mechanism.present[control.broke]) >= _EXPLAINS)


def open_mechanisms(measurements: _Measurements) -> list[str]:
    """Mechanisms that fired, and that no control experiment proved or settled."""
    proved = {mechanism for mechanism, _ in explanations(measurements)}
    return [
        name
        for name, rule in _fired(measurements).items()
        if _is_mechanism(name, rule) and name not in proved and not _settled(measurements, rule)
    ]


def _is_mechanism(name: str, rule: Rule) -> bool:
    """A control that is its own mechanism has no other to wait for."""
    return INDICATORS[name].class_ == "M" or bool(set(rule.controls) - {name})


def _settled(measurements: _Measurements, rule: Rule) -> bool:
    """Whether no control fired, and one found nothing where it could have found something."""
    controls = [measurements.get(name, _NOT_RUN) for name in rule.controls]
    return not any(c.fired for c in controls) and any(c.answer == "silent" and c.settles for c in controls)


def decide(measurements: _Measurements, *, explained: bool, interval: Interval) -> Verdict:
    """The verdict on a claim that was measured.

    :param explained: whether a mechanism and its control experiment explain the gap.
    :param interval: 95 % interval of the corrected accuracy.
    """
    if explained:
        return "MASKED"
    alone = {name for name, rule in _fired(measurements).items() if rule.alone == "SUSPECT"}
    if _scale_settles_underflow(measurements):
        alone.discard("loss-underflow")
    if alone or any(INDICATORS[name].decides.alone is None for name in open_mechanisms(measurements)):
        return "SUSPECT"
    skipped = any(i.decides.required and measurements[i.name].answer == "not run" for i in INDICATORS.values())
    failed = any(rule.alone == "INCONCLUSIVE" for rule in _fired(measurements).values())
    if failed or skipped or not (interval[1] - interval[0]) / 2 <= _TOO_WIDE:
        return "INCONCLUSIVE"
    return "NOT_REFUTED"


def _scale_settles_underflow(measurements: _Measurements) -> bool:
    """Whether an attack on divided logits found nothing, and little is unexplained.

    A loss of zero is then harmless: sign-gradient steps still work.
    """
    unexplained = measurements["misled-loss"].value
    return measurements["logit-scale"].answer == "silent" and not (unexplained or 0.0) > _UNEXPLAINED


def _fired(measurements: _Measurements) -> dict[str, Rule]:
    """The rules of the indicators that fired, in the registry's order."""
    return {name: indicator.decides for name, indicator in INDICATORS.items() if measurements[name].fired}
