"""The registry of indicators: the built-in ones, and those of other packages.

A package adds an indicator by an entry point of the group ``art_qplugins.indicators`` that resolves to an
:class:`~art_qplugins.diagnostics.indicator.Indicator`, or to a list of them. The rules of its class apply to it as to
the built-in ones. Entry points are loaded at the first use of the registry, not at import.
"""

from __future__ import annotations

from art_qplugins.diagnostics.attack_health import ATTACK_HEALTH
from art_qplugins.diagnostics.controls import CONTROLS
from art_qplugins.diagnostics.indicator import Indicator
from art_qplugins.diagnostics.mechanisms import MECHANISMS
from art_qplugins.diagnostics.symptoms import SYMPTOMS
from art_qplugins.diagnostics.validity import VALIDITY
from art_qplugins.evaluation.fields import FindingClass
from art_qplugins.registry import Registry

__all__ = ["INDICATORS", "of_class"]

#: The order is that of the findings in a record.
INDICATORS: Registry[Indicator] = Registry(
    "indicator",
    [*CONTROLS, *MECHANISMS, *SYMPTOMS, *ATTACK_HEALTH, *VALIDITY],
    group="art_qplugins.indicators",
    row=Indicator,
)


def of_class(class_: FindingClass) -> list[Indicator]:
    """The indicators of one class, in the registry's order."""
    return [indicator for indicator in INDICATORS.values() if indicator.class_ == class_]
