"""Models that answer with probabilities or votes are attacked and scored through the logarithm of their answers."""

from __future__ import annotations

from torch import Tensor

from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.estimators.probabilities import LogProbabilities, are_probabilities, floor_of
from art_qplugins.gradients.probe import answer
from art_qplugins.guard import restoring

__all__ = ["LogProbabilities", "are_probabilities", "as_logits"]

#: Images by whose answers a model is judged.
_IMAGES = 64


def as_logits(estimator: QuantizedClassifier, x: Tensor) -> QuantizedClassifier:
    """``estimator``, or a view of it that answers with logarithms where it answers with probabilities or votes.

    :param x: (N, C, H, W) in [0, 1], of which the first images are asked. A model that fails on them stays as it is.
    """
    module = estimator.model
    if isinstance(module, LogProbabilities):
        return estimator
    try:
        with restoring(module):
            answers = answer(module, x[:_IMAGES].to(estimator.device), 0, 0)
            view = LogProbabilities(module, floor_of(answers)) if are_probabilities(answers) else None
    except (Exception, SystemExit):  # others' code; the clean cell will fail and say why
        return estimator
    return estimator if view is None else estimator.with_model(view)
