"""ART estimators: real subclasses of ``PyTorchClassifier``."""

from art_qplugins.estimators.base import QuantizedClassifier
from art_qplugins.estimators.deployed import Deployed, deployed
from art_qplugins.estimators.detector import WithDetector, with_detector
from art_qplugins.estimators.families import DQClassifier, MuLawClassifier, SQEnsembleClassifier
from art_qplugins.estimators.feedback import FeedbackTrainer
from art_qplugins.estimators.information import InformationDetector

__all__ = [
    "DQClassifier",
    "Deployed",
    "FeedbackTrainer",
    "InformationDetector",
    "MuLawClassifier",
    "QuantizedClassifier",
    "SQEnsembleClassifier",
    "WithDetector",
    "deployed",
    "with_detector",
]
