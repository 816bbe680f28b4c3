"""What ``artq ls`` lists and ``artq doctor`` loads. Importing this module imports nothing else."""

from __future__ import annotations

__all__ = ["KINDS"]

#: Each kind of name, and where its registry is; recipes are files and have none.
KINDS = {
    "models": "art_qplugins.models:MODELS",
    "quantizers": "art_qplugins.quantizers.registry:QUANTIZERS",
    "defences": "art_qplugins.defences:DEFENCES",
    "attacks": "art_qplugins.attacks.catalogue:ATTACKS",
    "libraries": "art_qplugins.attacks.catalogue:LIBRARIES",
    "suites": "art_qplugins.attacks.suites:SUITES",
    "datasets": "art_qplugins.data:DATASETS",
    "indicators": "art_qplugins.diagnostics.indicators:INDICATORS",
    "sections": "art_qplugins.report.sections:SECTIONS",
    "recipes": "",
}
