"""Gradient-masking diagnostics: is a claimed number an illusion, and why? Pure functions of records."""

from art_qplugins.diagnostics.indicators import INDICATORS, Indicator
from art_qplugins.diagnostics.probes import clean_cell, probes
from art_qplugins.diagnostics.verdict import assess

__all__ = ["INDICATORS", "Indicator", "assess", "clean_cell", "probes"]
