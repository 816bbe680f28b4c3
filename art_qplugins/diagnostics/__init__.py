"""Gradient-masking diagnostics: is a claimed number an illusion, and why? Pure functions of records."""

from art_qplugins.diagnostics.indicators import INDICATORS
from art_qplugins.diagnostics.model_records import Indicator
from art_qplugins.diagnostics.steps import STEPS, clean_cell, climb
from art_qplugins.diagnostics.verdict import assess, verdict_of

__all__ = ["INDICATORS", "STEPS", "Indicator", "assess", "clean_cell", "climb", "verdict_of"]
