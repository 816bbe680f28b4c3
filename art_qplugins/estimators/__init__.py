"""ART estimators: real subclasses of ``PyTorchClassifier``."""

from art_qplugins.estimators.base import QuantizedClassifier, check_inside
from art_qplugins.estimators.families import DQClassifier, MuLawClassifier, SQEnsembleClassifier

__all__ = ["DQClassifier", "MuLawClassifier", "QuantizedClassifier", "SQEnsembleClassifier", "check_inside"]
