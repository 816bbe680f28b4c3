r"""Adaptive diversity promoting training of an ensemble (ADP; Pang, Xu, Du, Chen & Zhu 2019, "Improving Adversarial
Robustness via Promoting Ensemble Diversity").

.. math:: L = \sum_k CE(F^k, y) - \alpha\, H(\mathcal F) - \beta \log \det(\tilde M^\top \tilde M)

:math:`\mathcal F` is the mean of the members' probabilities :math:`F^k` and H its entropy. A column of :math:`\tilde M` is what
a member gives to the other classes than the label, with L2 norm 1. The determinant is the squared volume that these columns span:
1 where they are orthogonal, and 0 where two are equal (equations 4 to 6).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.defences import ADAPTIVE_DIVERSITY
from art_qplugins.defences.base import Defence
from art_qplugins.errors import InputError
from art_qplugins.models.mixture import Mixture

__all__ = ["AdaptiveDiversity", "log_diversity"]

#: Added to the diagonal, as in the authors' code (P2333/Adaptive-Diversity-Promoting, ``det_offset``): the logarithm is finite.
_OFFSET = 1e-6


def log_diversity(logits: Tensor, y: Tensor) -> Tensor:
    r"""The logarithm of :math:`\det(\tilde M^\top \tilde M + 10^{-6} I)` of each image, (N,) float64.

    It depends on the ratios of probabilities alone, so it is computed from the logits of the other classes, and a probability
    that rounds to 0 makes no NaN.

    :param logits: (M, N, C) of M members; C is above M, else the determinant is 0.
    :param y: (N,) int64 labels.
    """
    members, _, classes = logits.shape
    other = torch.arange(classes - 1, device=y.device)
    others = other + (other >= y[:, None])  # the classes but the label, (N, C - 1)
    z = logits.double().gather(2, others.expand(members, -1, -1))
    rows = nn.functional.normalize(z.softmax(-1), dim=-1).transpose(0, 1)  # (N, M, C - 1)
    gram = rows @ rows.mT + _OFFSET * torch.eye(members, dtype=rows.dtype, device=rows.device)
    found: Tensor = torch.linalg.slogdet(gram)[1]
    return found


class AdaptiveDiversity(Defence):
    """Trains the members of a :class:`~art_qplugins.models.mixture.Mixture` to be right and to differ in their other classes.

    Beside the cross-entropy of the mixture it makes the loss of the paper: it adds the sum of those of the members, and takes
    away that of the mixture. Labels are not smoothed, as in the authors' code. A recipe trains e.g. ``architecture = { name =
    "resnet8", members = 3 }`` with it. Adaptive attacks break it (Tramer, Carlini, Brendel & Madry 2020).

    :param alpha: weight of the entropy of the mean probability.
    :param beta: weight of the log of the diversity.
    """

    def __init__(self, alpha: float = 2.0, beta: float = 0.5) -> None:
        ADAPTIVE_DIVERSITY.check_arguments(locals())
        self.alpha, self.beta = alpha, beta

    def start(self, model: nn.Module) -> None:
        mixture = next((m for m in model.modules() if isinstance(m, Mixture)), None)
        if mixture is None:
            raise InputError(
                f"defence 'adaptive-diversity' trains several networks together, and {type(model).__name__} is one; "
                'give its architecture members, e.g. architecture = { name = "resnet8", members = 3 }'
            )
        self._seen: list[Tensor] = []  # logits of the members in the last forward pass
        self._logits: list[Tensor] = []  # those of the pass that is trained on

        def keep(member: nn.Module, inputs: Any, logits: Tensor) -> None:
            self._seen.append(logits)

        self._hooks = [member.register_forward_hook(keep) for member in mixture.members]
        self._hooks.append(mixture.register_forward_pre_hook(lambda *_: self._seen.clear()))

    def penalty(self, model: nn.Module) -> float:
        self._logits = list(self._seen)  # before the terms of others call the network again
        return 0.0

    def term(self, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        each = torch.stack(self._logits).float()
        if len(each) >= each.shape[-1]:
            raise InputError(
                f"defence 'adaptive-diversity': {len(each)} members cannot differ in {each.shape[-1] - 1} other classes; "
                "train fewer members than there are classes"
            )
        members = torch.stack([nn.functional.cross_entropy(z, y) for z in each]).sum()
        entropy: Tensor = torch.special.entr(each.softmax(-1).mean(0)).sum(-1).mean()
        diversity = log_diversity(each, y).mean().float()
        return members - nn.functional.cross_entropy(logits, y) - self.alpha * entropy - self.beta * diversity

    def finish(self, model: nn.Module) -> None:
        for hook in self._hooks:
            hook.remove()
        self._seen, self._logits = [], []
