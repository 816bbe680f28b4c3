"""The logit margin. Its sign tells correct from wrong predictions, and no softmax can saturate it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["logit_margin"]


def logit_margin(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - max_{j != y} z_j, (N,). It is negative where the prediction is wrong.

    :param logits: z, (N, K).
    :param y: (N,) labels.
    """
    own = logits.gather(1, y[:, None])
    return (own - logits.scatter(1, y[:, None], -torch.inf).amax(1, keepdim=True)).squeeze(1)
