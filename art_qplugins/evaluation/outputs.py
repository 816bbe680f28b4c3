"""Models that answer with probabilities or votes are attacked and scored through the logarithm of their answers.

Cross-entropy of probabilities takes a second softmax, whose gradient saturates. Their logarithm is what logits are, up to a
constant for each image, and predicts the same class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.gradients.probe import answer
from art_qplugins.guard import restoring

__all__ = ["LogProbabilities", "are_probabilities", "as_logits"]

#: Images by whose answers a model is judged.
_IMAGES = 64
#: Totals of votes may differ by rounding; those of probabilities also by what somebody rounded or cut off.
_ROUNDING = 1e-4
_CUT = 0.5


class LogProbabilities(nn.Module):
    """The logarithm of a network's probabilities or votes, (N, K). No prediction changes.

    :param floor: added to each of them, so that no logarithm is infinite and every class keeps a gradient.
    """

    def __init__(self, network: nn.Module, floor: float) -> None:
        super().__init__()
        self.network = network
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        shares: Tensor = self.network(x)
        if torch.finfo(shares.dtype).bits < 32:
            shares = shares.float()
        return (shares + self.floor).log()


def are_probabilities(answers: Tensor) -> bool:
    """Whether answers (N, K) are probabilities, also rounded ones or ones with small entries set to 0, or votes.

    Probabilities are in [0, 1] and mostly sum to 1. Votes are not negative, and have the same total for every image.
    """
    if answers.dim() != 2 or answers.shape[1] < 2 or not answers.is_floating_point():
        return False
    rows = answers.detach().double()
    totals = rows.sum(1)
    total = float(totals.median())
    if not (rows >= 0).all() or not total > 0:
        return False
    if len(rows) > 2 and bool(((totals / total - 1).abs() <= _ROUNDING).all()) and bool((rows != rows[0]).any()):
        return True
    unit = abs(total - 1) <= 100 * _ROUNDING and bool(((totals - 1).abs() <= _CUT).all())
    return unit and bool((rows <= 1 + _ROUNDING).all())


def _floor(answers: Tensor) -> float:
    """Half a vote, spread over the classes: votes, and what was rounded, are often exactly 0.

    Where no answer is 0, it is the smallest normal number.
    """
    rows, least = answers.double(), float(torch.finfo(torch.float32).tiny)
    if bool((rows > 0).all()):
        return least
    return max(least, float(rows[rows > 0].min()) / 2 / rows.shape[1])


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
            view = LogProbabilities(module, _floor(answers)) if are_probabilities(answers) else None
    except (Exception, SystemExit):  # others' code; the clean cell will fail and say why
        return estimator
    return estimator if view is None else estimator.with_model(view)
