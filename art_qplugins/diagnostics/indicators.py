"""The indicators: pure functions from the records of one model to findings.

Classes: P proof (the same images, broken by another legal attack, or by the same attack after a change that cannot alter
any answer), M mechanism (why gradients fail), S symptom, V validity of the evaluation. Thresholds were set on one half of
the zoo under ``benchmarks/masking`` and measured on the other.
"""

from __future__ import annotations

from art_qplugins.diagnostics.mechanisms import MECHANISMS
from art_qplugins.diagnostics.model_records import Indicator
from art_qplugins.diagnostics.proofs import PROOFS
from art_qplugins.diagnostics.symptoms import SYMPTOMS
from art_qplugins.diagnostics.validity import VALIDITY

__all__ = ["INDICATORS"]

INDICATORS: tuple[Indicator, ...] = (*PROOFS, *MECHANISMS, *SYMPTOMS, *VALIDITY)
