"""Answers that are probabilities or votes: how they are told from logits, and their logarithm.

Cross-entropy of probabilities takes a second softmax, whose gradient saturates. Their logarithm is what logits are, up to a
constant for each image, and predicts the same class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LogProbabilities", "are_probabilities", "floor_of"]

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


def floor_of(answers: Tensor) -> float:
    """Half a vote, spread over the classes: votes, and what was rounded, are often exactly 0.

    Where no answer is 0, it is the smallest normal number.
    """
    rows, least = answers.double(), float(torch.finfo(torch.float32).tiny)
    if bool((rows > 0).all()):
        return least
    return max(least, float(rows[rows > 0].min()) / 2 / rows.shape[1])
