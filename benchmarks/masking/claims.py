"""Numbers that somebody measured in another way than by an attack of the diagnosed model, and that are not broken."""

from __future__ import annotations

import torch
from rows import classifier
from torch import Tensor, nn
from torch.nn import functional as F

from art_qplugins import Threat
from art_qplugins.attacks.craft import craft
from art_qplugins.evaluation.score import score

__all__ = ["pgd_on_output", "through_the_network"]


def through_the_network(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> float:
    """The honest number of a wrapper that hides gradients: targeted Auto-PGD on the network in it (``model.network``)."""
    network = model.get_submodule("network")
    crafted = craft(classifier(network, x), "autoattack:apgd-t", x, y, threat=threat, seed=seed)
    again = craft(classifier(network, x), "artq:multi-targeted", x, y, threat=threat, seed=seed)
    stands = [score(model, images.x_adv, y, seed=seed)["correct"] for images in (crafted, again)]
    return float((stands[0] * stands[1]).mean())


def pgd_on_output(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> float:
    """20-step PGD on cross-entropy of whatever the module returns, probabilities or not; its best image counts."""
    random = torch.Generator().manual_seed(seed)
    x_adv = (x + (2 * torch.rand(x.shape, generator=random) - 1) * threat.eps).clamp(0, 1)
    stands = torch.ones(len(x), dtype=torch.bool)
    for _ in range(20):
        leaf = x_adv.detach().requires_grad_()
        output = model(leaf)
        stands &= output.argmax(1) == y
        (slope,) = torch.autograd.grad(F.cross_entropy(output, y, reduction="sum"), leaf)
        step = leaf.detach() + threat.eps / 8 * slope.sign()
        x_adv = (x + (step - x).clamp(-threat.eps, threat.eps)).clamp(0, 1)
    with torch.no_grad():
        stands &= model(x_adv).argmax(1) == y
    return float(stands.double().mean())
