"""The logit margin. Its sign tells correct from wrong predictions, and no softmax can saturate it.

A model may have a rejection class. An image on which it wins is rejected. To reject an adversarial image is as good as to
classify it correctly (Tramer 2022, "Detecting adversarial examples is (nearly) as hard as classifying them"), so a
rejection then counts as the label.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["logit_margin", "rejection_as_label"]


def logit_margin(logits: Tensor, y: Tensor, abstain: int | None = None) -> Tensor:
    """z_y - max_{j != y} z_j, (N,). It is negative where the prediction is wrong.

    :param logits: z, (N, K).
    :param y: (N,) labels.
    :param abstain: index of the rejection class a, if there is one. The margin is then max(z_y, z_a) - max_{j != y, a} z_j,
        and negative where the prediction is wrong and not rejected.
    """
    if abstain is not None:
        logits, y = rejection_as_label(logits, y, abstain)
    own = logits.gather(1, y[:, None])
    return (own - logits.scatter(1, y[:, None], -torch.inf).amax(1, keepdim=True)).squeeze(1)


def rejection_as_label(logits: Tensor, y: Tensor, abstain: int) -> tuple[Tensor, Tensor]:
    """Logits without the rejection class a, (N, K - 1), and the labels among them, (N,).

    The logit of the label is max(z_y, z_a), so the label wins where the model is right and where it rejects. An attack on
    these logits aims past both, as Carlini & Wagner 2017 ("Adversarial examples are not easily detected") do.

    :param logits: z, (N, K).
    :param y: (N,) labels, none of which is ``abstain``.
    """
    own = torch.maximum(logits.gather(1, y[:, None]), logits[:, abstain : abstain + 1])
    merged = logits.scatter(1, y[:, None], own)
    return torch.cat([merged[:, :abstain], merged[:, abstain + 1 :]], 1), y - (y > abstain).long()
