"""From measurements to a verdict, by the table in ``rules.py``. A verdict of MASKED needs a control experiment.

The verdict is about the gradients of the model: do they hide adversarial images? A gap in accuracy alone only shows that an
attack was weak. The claim is about a number. It is judged in ``model_result.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from art_qplugins.diagnostics.indicator import Measurement
from art_qplugins.diagnostics.indicators import INDICATORS
from art_qplugins.diagnostics.rules import Rule
from art_qplugins.evaluation.fields import End, Interval, Verdict
from art_qplugins.evaluation.records import Mechanism

__all__ = ["decide", "invalidating", "mechanisms"]

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


def mechanisms(measurements: _Measurements) -> list[Mechanism]:
    """The mechanisms that fired, each with its end by the table in ``rules.py``."""
    fired = _fired(measurements)
    return [_ended(name, rule, measurements) for name, rule in fired.items() if _is_mechanism(name, rule, measurements)]


def _is_mechanism(name: str, rule: Rule, measurements: _Measurements) -> bool:
    """A control that is its own mechanism is one only where it says on which images."""
    itself = set(rule.controls) == {name}
    return measurements[name].present is not None if itself else INDICATORS[name].class_ == "M" or bool(rule.controls)


def _ended(name: str, rule: Rule, measurements: _Measurements) -> Mechanism:
    answers = {control: measurements.get(control, _NOT_RUN) for control in rule.controls}

    def largest(wanted: Callable[[Measurement], bool]) -> str | None:
        """The control with the largest effect of those wanted."""
        found = [control for control, answer in answers.items() if wanted(answer)]
        return max(found, key=lambda control: answers[control].value or 0.0, default=None)

    proof = largest(lambda control: _explains(measurements[name], control))
    apart = largest(lambda control: bool(control.fired))
    settled = largest(lambda control: control.answer == "silent" and control.settles)
    ends: list[tuple[End, str | None]] = [("proved", proof), ("apart", apart), ("settled", settled)]
    end, control = next(((end, control) for end, control in ends if control is not None), ("open", None))
    return Mechanism(id=name, end=end, control=control, controls=list(rule.controls))


def _explains(mechanism: Measurement, control: Measurement) -> bool:
    if not control.fired or mechanism.present is None or control.broke is None or not control.broke.any():
        return False
    return bool(np.mean(mechanism.present[control.broke]) >= _EXPLAINS)


def decide(measurements: _Measurements, ended: Sequence[Mechanism], *, interval: Interval) -> Verdict:
    """The verdict on a claim that was measured.

    :param ended: the mechanisms that fired.
    :param interval: 95 % interval of the corrected accuracy.
    """
    if any(mechanism.end == "proved" for mechanism in ended):
        return "MASKED"
    fired = _fired(measurements)
    alone = {name for name, rule in fired.items() if rule.alone == "SUSPECT"}
    if _scale_settles_underflow(measurements):
        alone.discard("loss-underflow")
    if alone or any(m.end != "settled" and fired[m.id].alone is None for m in ended):
        return "SUSPECT"
    skipped = any(i.decides.required and measurements[i.name].answer == "not run" for i in INDICATORS.values())
    failed = any(rule.alone == "INCONCLUSIVE" for rule in fired.values())
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
