"""Views of a network: on another scale of logits or gradients, without its rejection class, or with a gradient of zero. A loss that no logit scale can saturate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from art_qplugins.gradients.margin import logit_margin, rejection_as_label
from art_qplugins.quantizers.functional import straight_through
from art_qplugins.quantizers.noise import draws_from

__all__ = ["Connected", "GradientScale", "LogitScale", "MarginLoss", "RejectionAsLabel", "median_gap", "reaches_pixels"]


class Connected(nn.Module):
    """A network whose gradient does not reach the pixels, with a gradient of zero there. Its outputs are the same.

    Libraries stop where there is no gradient. With zeros, an attack runs and does not move, and the number that it leaves
    can be put to the test.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return logits
        return straight_through(logits, logits + 0 * x.flatten(1).sum(1, keepdim=True))


def reaches_pixels(network: nn.Module, x: Tensor) -> bool:
    """Whether the network's outputs have a gradient at these images, zero or not."""
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        logits: Tensor = network(point)
        if not logits.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(logits.sum(), point, allow_unused=True)
    return gradient is not None


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


class GradientScale(nn.Module):
    """The same network, its gradient times ``factor``: the same direction, unless its numbers underflow or overflow."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network = network
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return straight_through(logits, logits * self.factor)


class RejectionAsLabel(nn.Module):
    """A network with a rejection class as an attack on images of one label must see it: a rejection counts as the label.

    The rejection class is left out, and the logit of the label is the larger of the two, see
    :func:`~art_qplugins.gradients.margin.rejection_as_label`. So whatever fools this view is accepted and misclassified by
    the network, and any attack of any library aims past both.
    """

    def __init__(self, network: nn.Module, label: int, abstain: int) -> None:
        super().__init__()
        self.network = network
        self.label, self.abstain = label, abstain

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        y = torch.full((len(logits),), self.label, device=logits.device)
        return rejection_as_label(logits, y, self.abstain)[0]


def median_gap(network: nn.Module, x: Tensor, *, seed: int = 0, batch_size: int = 250) -> float:
    """Median over images of the gap between the two largest logits."""
    with torch.no_grad(), draws_from(network, seed):
        top = torch.cat([network(part) for part in x.split(batch_size)]).topk(2, dim=1).values
    return float((top[:, 0] - top[:, 1]).median())
