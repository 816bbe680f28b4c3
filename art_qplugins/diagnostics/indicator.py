"""One indicator of the diagnosis: its row, its measurement on the records of a model, and its finding.

Indicators have four classes. P is a control experiment: another legal attack breaks the same images, or the same attack
does after a change that alters no prediction. M is a mechanism: a reason why gradients fail. S is a symptom. V is the validity of the
evaluation. The rows are in ``controls.py``, ``mechanisms.py``, ``symptoms.py``, ``attack_health.py`` and ``validity.py``.
``indicators.py`` is the registry of all rows. What an indicator decides is in ``rules.py``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from art_qplugins.diagnostics.model_records import ModelRecords
from art_qplugins.diagnostics.rules import NOTE, RULES, Rule
from art_qplugins.evaluation.fields import Answer, FindingClass
from art_qplugins.evaluation.records import Finding
from art_qplugins.registry import Entry

__all__ = ["Indicator", "Measure", "Measurement", "percent"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurement:
    """The measurement of one indicator on the records of one model.

    :ivar fired: whether it found something. ``None`` means that it did not run or could not measure.
    :ivar value: the value compared with the threshold. It is finite, or ``None`` where there is no value.
    :ivar evidence: a sentence with the numbers, or the reason why there are none.
    :ivar present: (images,) for a mechanism: the images on which it is present.
    :ivar broke: (images,) for a proof: the images that it newly broke.
    :ivar p_value: for a symptom that is a test, the p value before Holm's correction. The correction decides whether
        the symptom fired.
    :ivar applies: whether the model and the claim have anything that it could test.
    :ivar settles: for a control experiment that found nothing: whether it could have found something.
    """

    fired: bool | None
    value: float | None
    evidence: str
    present: NDArray[np.bool_] | None = None
    broke: NDArray[np.bool_] | None = None
    p_value: float | None = None
    applies: bool = True
    settles: bool = True

    @property
    def answer(self) -> Answer:
        if not self.applies:
            return "does not apply"
        return "not run" if self.fired is None else "fired" if self.fired else "silent"

    @classmethod
    def not_run(cls, why: str) -> Measurement:
        """:param why: a sentence."""
        return cls(None, None, f"Not run: {why}")

    @classmethod
    def does_not_apply(cls, why: str) -> Measurement:
        """:param why: a sentence."""
        return cls(False, None, f"Does not apply: {why}", applies=False, settles=False)


#: Reads the records of a model and a threshold. It runs no model and no attack.
Measure: TypeAlias = Callable[[ModelRecords, float], Measurement]


@dataclass(frozen=True, kw_only=True)
class Indicator(Entry):
    """One check of the diagnosis.

    ``name`` is the id of its finding and ``help`` the finding's title. ``target`` names a :data:`Measure`.

    :ivar cost: cost of its records per image, in gradient evaluations (B) and forward passes (F).
    :ivar group: symptoms of the group ``"claimed attack"`` say nothing about the model.
    :ivar rule: what an indicator of another package decides. Those of this package have theirs in ``rules.py``.
    """

    class_: FindingClass
    threshold: float
    formula: str
    cost: str
    shows: str
    shows_not: str
    source: str
    mitigation: str
    group: str | None = None
    rule: Rule = NOTE

    @property
    def decides(self) -> Rule:
        """What it does to the verdict."""
        return self.rule if self.plugin is not None else RULES.get(self.name, NOTE)

    def measure(self, records: ModelRecords) -> Measurement:
        """Its measurement. If an indicator of another package raises an exception, it counts as not run."""
        if self.plugin is None:
            found: Measurement = self.load()(records, self.threshold)
            return found
        try:
            return _checked(self.load()(records, self.threshold), records.n)
        except (Exception, SystemExit) as error:  # code of another package may raise anything
            logger.debug("%s of %s failed", self.name, self.plugin, exc_info=True)
            lines = str(error).strip().splitlines()
            message = lines[0].rstrip(".") if lines else "no message"
            return Measurement.not_run(f"{self.plugin} raised {type(error).__name__}: {message}.")

    def finding(self, measurement: Measurement) -> Finding:
        """The record of a measurement."""
        return Finding(
            id=self.name,
            title=self.help,
            class_=self.class_,
            fired=measurement.fired,
            answer=measurement.answer,
            settles=measurement.settles,
            decides=self.decides != NOTE,
            value=measurement.value,
            threshold=self.threshold,
            evidence=measurement.evidence,
            mitigation=self.mitigation,
            p_value=measurement.p_value,
            group=self.group,
            shows_not=self.shows_not,
            source=self.source,
        )


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _checked(measurement: object, images: int) -> Measurement:
    """The measurement in Python's own types.

    :raises TypeError: where it is not a :class:`Measurement`.
    :raises ValueError: where a number is not finite, a p value is not in [0, 1], or an array has another length.
    """
    if not isinstance(measurement, Measurement):
        raise TypeError(f"it gave a {type(measurement).__name__}; it must give a {Measurement.__qualname__}")
    value, p_value = (None if v is None else float(v) for v in (measurement.value, measurement.p_value))
    if value is not None and not math.isfinite(value):
        raise ValueError(f"its value is {value}; it must be finite or None")
    if p_value is not None and not 0 <= p_value <= 1:
        raise ValueError(f"its p value is {p_value}; it must be in [0, 1] or None")
    return replace(
        measurement,
        fired=None if measurement.fired is None else bool(measurement.fired),
        value=value,
        evidence=str(measurement.evidence),
        present=_mask(measurement.present, images),
        broke=_mask(measurement.broke, images),
        p_value=p_value,
        applies=bool(measurement.applies),
        settles=bool(measurement.settles),
    )


def _mask(given: object, images: int) -> NDArray[np.bool_] | None:
    if given is None:
        return None
    mask = np.asarray(given)
    if mask.shape != (images,) or mask.dtype != np.bool_:
        raise ValueError(f"it gave {mask.dtype} of shape {mask.shape}; present and broke are bool of shape ({images},)")
    return mask
