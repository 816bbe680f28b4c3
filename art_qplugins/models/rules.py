"""How the logits of an ensemble's members become one answer. Each rule takes (M, N, C) and gives (N, C)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from art_qplugins.quantizers.functional import straight_through

__all__ = ["RULES"]


def _mean_probability(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))


def _mean_logits(logits: Tensor) -> Tensor:
    return logits.mean(0)


def _majority_vote(logits: Tensor) -> Tensor:
    members, classes = logits.shape[0], logits.shape[-1]
    votes = nn.functional.one_hot(logits.argmax(-1), classes).sum(0)
    # Half a vote spread over the classes keeps the logarithm finite, and changes neither ties nor the order.
    value = torch.log((votes + 0.5 / classes) / (members + 0.5)).to(logits.dtype)
    return straight_through(value, _mean_probability(logits))


RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean-probability": _mean_probability,
    "mean-logits": _mean_logits,
    "majority-vote": _majority_vote,
}
