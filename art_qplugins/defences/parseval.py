"""The retraction of Parseval networks (Cisse et al. 2017, algorithm 1)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from art_qplugins.defences import PARSEVAL
from art_qplugins.defences.base import Defence
from art_qplugins.defences.crafting import share_of
from art_qplugins.defences.lipschitz import as_matrices, groups_of
from art_qplugins.errors import InputError
from art_qplugins.quantizers.maps import weight_layers

__all__ = ["Parseval", "retracted"]


def retracted(weight: Tensor, beta: float, groups: int = 1) -> Tensor:
    r""":math:`(1 + \beta) W - \beta W W^T W` for W = ``weight`` as a matrix (out, rest), in the shape of ``weight``.

    It moves each singular value :math:`\sigma` to :math:`(1 + \beta)\sigma - \beta\sigma^3`: towards 1, from any
    :math:`\sigma^2 < 1 + 2 / \beta`. The smaller of the two Gram matrices is computed, in float32. The groups of a convolution
    are matrices of their own (:func:`~art_qplugins.defences.lipschitz.as_matrices`).
    """
    matrix = as_matrices(weight.float(), groups)
    wide = matrix.shape[-2] <= matrix.shape[-1]
    with torch.autocast(matrix.device.type, enabled=False):
        product = (matrix @ matrix.mT) @ matrix if wide else matrix @ (matrix.mT @ matrix)
    return torch.add(matrix, matrix - product, alpha=beta).view(weight.shape).to(weight.dtype)


class Parseval(Defence):
    r"""After each step, :math:`W \leftarrow (1 + \beta) W - \beta W W^T W` for all linear and convolutional layers.

    It is a step of gradient descent on the orthogonality penalty (:class:`~art_qplugins.defences.lipschitz.Orthogonality`)
    that neither the learning rate nor momentum scales. Where maps quantize a weight in training, the weight before the maps
    is retracted. Parseval networks also rescale the outputs of convolutions. That is left out: batch norm undoes it.

    :param beta: the paper's step. 3e-4 is for residual networks; 0 trains without it, for comparison.
    :param rows: the part of the rows of each linear layer that is retracted in one step, drawn at random.
    """

    def __init__(self, beta: float = 3e-4, rows: float = 1.0) -> None:
        PARSEVAL.check_arguments(locals())
        self.beta, self.rows = beta, rows

    def warning(self, weight_decay: float) -> str | None:
        """Where decay wins at learning rate 0.1 with momentum 0.9, which moves weights by their decay in each step."""
        if not 0 < self.beta <= weight_decay:
            return None
        return (
            f"weight decay {weight_decay:g} cancels the Parseval retraction while the learning rate is 0.1: with beta = "
            f"{self.beta:g} both together pull singular values to 0, not to 1; give weight_decay = 0"
        )

    def start(self, model: nn.Module) -> None:
        for name, layer in weight_layers(model):
            if _stored(layer) is None:
                raise InputError(
                    f"defence 'parseval' changes weights in place, and that of {name!r} is computed from several parameters; "
                    "remove its weight norm, or the defence"
                )

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        if self.beta == 0:
            return
        for _, layer in weight_layers(model):
            weight = _stored(layer)
            assert weight is not None, "start() refuses such layers"
            if isinstance(layer, nn.Linear) and self.rows < 1:
                chosen = torch.randperm(len(weight), device=weight.device)[: share_of(len(weight), self.rows)]
                weight[chosen] = retracted(weight[chosen], self.beta)
            else:
                weight.copy_(retracted(weight, self.beta, groups_of(layer)))


def _stored(layer: nn.Module) -> Tensor | None:
    """The parameter that training changes: of a weight with maps, the one before them. ``None`` where there are several."""
    if parametrize.is_parametrized(layer, "weight"):
        return getattr(cast(nn.ModuleDict, layer.parametrizations)["weight"], "original", None)
    return cast(Tensor, layer.weight)
