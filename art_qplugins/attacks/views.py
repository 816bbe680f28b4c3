"""A view of a network on another logit scale, and a loss that no logit scale can saturate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from art_qplugins.gradients.margin import logit_margin
from art_qplugins.quantizers.stochastic import draws_from

__all__ = ["LogitScale", "MarginLoss", "median_gap"]


class MarginLoss(nn.Module):
    """Minus the logit margin, averaged over the batch: linear in the logits, so its gradient never underflows."""

    reduction = "mean"

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        loss = -logit_margin(logits, y)
        return loss.mean() if self.reduction == "mean" else loss.sum() if self.reduction == "sum" else loss


class LogitScale(nn.Module):
    """The same network with its logits divided by ``temperature``. No prediction changes.

    Above 1 every softmax is softer, against logits so large that it saturates. Below 1 it is harder, against logits so small
    that cross-entropy follows the mean of all classes instead of the nearest (label smoothing, logit squeezing).
    A correct robust accuracy cannot depend on it. Gupta & Ajanthan 2022 use it to attack quantized networks.
    """

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits / self.temperature


def median_gap(network: nn.Module, x: Tensor, *, seed: int = 0, batch_size: int = 250) -> float:
    """Median over images of the gap between the two largest logits."""
    with torch.no_grad(), draws_from(network, seed):
        top = torch.cat([network(part) for part in x.split(batch_size)]).topk(2, dim=1).values
    return float((top[:, 0] - top[:, 1]).median())
