"""Numbers that somebody measured in another way than by an attack of the diagnosed model, and that are not broken."""

from __future__ import annotations

import torch
from references import past_detector
from rows import classifier
from torch import Tensor, nn
from torch.nn import functional as F

from art_qplugins import Threat
from art_qplugins.attacks.craft import craft
from art_qplugins.evaluation.score import score

__all__ = ["past_the_threshold", "pgd_on_output", "through_the_network", "unaware_of_rejection"]


def through_the_network(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> float:
    """The honest number of a wrapper that hides gradients: targeted Auto-PGD on the network in it (``model.network``)."""
    network = model.get_submodule("network")
    crafted = craft(classifier(network, x), "autoattack:apgd-t", x, y, threat=threat, seed=seed)
    again = craft(classifier(network, x), "artq:multi-targeted", x, y, threat=threat, seed=seed)
    stands = [score(model, images.x_adv, y, seed=seed)["correct"] for images in (crafted, again)]
    return float((stands[0] * stands[1]).mean())


def pgd_on_output(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> float:
    """20-step PGD on cross-entropy of whatever the module returns, probabilities or not; its best image counts."""
    x_adv = _pgd(model, x, y, threat, seed)
    with torch.no_grad():
        return float((model(x_adv).argmax(1) == y).double().mean())


def unaware_of_rejection(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> float:
    """The same against the classes of a detector alone. An image that it rejects counts as robust."""
    x_adv = _pgd(_Classes(model), x, y, threat, seed)
    with torch.no_grad():
        answers = model(x_adv).argmax(1)
        rejected = model(x).shape[1] - 1
    return float(((answers == y) | (answers == rejected)).double().mean())


class _Classes(nn.Module):
    """A detector without its last output."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.detector(x)[:, :-1]
        return logits


def _pgd(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Tensor:
    """The first image of each path that is answered wrongly, else the last; the clean image where that is wrong."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        stands, best = model(x).argmax(1) == y, x.clone()
    x_adv = (x + (2 * torch.rand(x.shape, generator=random) - 1) * threat.eps).clamp(0, 1)
    for _ in range(21):
        leaf = x_adv.detach().requires_grad_()
        output = model(leaf)
        best[stands] = x_adv[stands]
        stands &= output.argmax(1) == y
        if not output.requires_grad:  # an attack has nowhere to go
            return best
        (slope,) = torch.autograd.grad(F.cross_entropy(output, y, reduction="sum"), leaf)
        step = leaf.detach() + threat.eps / 8 * slope.sign()
        x_adv = (x + (step - x).clamp(-threat.eps, threat.eps)).clamp(0, 1)
    return best


def past_the_threshold(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> float:
    """The share of images that a detector answers rightly or rejects under an attack that aims past it."""
    with torch.no_grad():
        rejected = model(x).shape[1] - 1
    x_adv = past_detector(model, x, y, threat, rejected)
    with torch.no_grad():
        wrong = [(answers != y) & (answers != rejected) for answers in (model(v).argmax(1) for v in (x, x_adv))]
    return float((~(wrong[0] | wrong[1])).double().mean())
