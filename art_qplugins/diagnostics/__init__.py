"""Gradient-masking diagnostics: is a claimed number an illusion, and why? Pure functions of records."""

from art_qplugins.diagnostics.case import Indicator
from art_qplugins.diagnostics.indicators import INDICATORS
from art_qplugins.diagnostics.ladder import LADDER, clean_cell, climb
from art_qplugins.diagnostics.verdict import assess, verdict_of

__all__ = ["INDICATORS", "LADDER", "Indicator", "assess", "clean_cell", "climb", "verdict_of"]
