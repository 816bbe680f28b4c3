"""The measurements of all indicators on the records of one model. Symptoms are corrected for multiple testing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from art_qplugins.diagnostics.indicator import Measurement
from art_qplugins.diagnostics.indicators import INDICATORS, of_class
from art_qplugins.diagnostics.model_records import ModelRecords
from art_qplugins.diagnostics.thresholds import SIGNIFICANT
from art_qplugins.evaluation import significance
from art_qplugins.evaluation.records import Finding

__all__ = ["findings_of", "holm", "measure_all"]


def measure_all(records: ModelRecords) -> dict[str, Measurement]:
    """The measurement of every indicator, by its name. Holm's correction decides which symptoms that are tests fired."""
    found = {name: indicator.measure(records) for name, indicator in INDICATORS.items()}
    for name, fired in holm({s.name: found[s.name].p_value for s in of_class("S")}).items():
        found[name] = replace(found[name], fired=fired)
    return found


def findings_of(measurements: Mapping[str, Measurement]) -> dict[str, Finding]:
    """The record of every measurement, by the name of its indicator."""
    return {name: INDICATORS[name].finding(measurement) for name, measurement in measurements.items()}


def holm(p_values: Mapping[str, float | None]) -> dict[str, bool]:
    """Which of these are significant together at 5 % (Holm 1979). Entries without a p value are dropped."""
    known = {name: p for name, p in p_values.items() if p is not None}
    adjusted = significance.holm(list(known.values()))
    return {name: bool(p <= SIGNIFICANT) for name, p in zip(known, adjusted, strict=True)}
