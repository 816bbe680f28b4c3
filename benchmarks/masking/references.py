"""The strongest attack known on a row: AutoAttack through the honest twin, or an attack that aims past a detector."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from networks import CLASSES
from rows import Built, Row, classifier
from torch import Tensor, nn

from art_qplugins import Threat
from art_qplugins.attacks.craft import craft
from art_qplugins.evaluation.score import check_legal, score
from art_qplugins.quantizers import is_stochastic

__all__ = ["Found", "Scores", "base_network", "scores_of", "strongest"]

#: Per image (correct or rejected, selection) of a model under one attack.
Scores = tuple[np.ndarray, np.ndarray]
_STEPS = 100


@dataclass(frozen=True)
class Found:
    """What an attack left, and the images through the network that it took."""

    scores: Scores
    forward: int
    backward: int


def strongest(row: Row, built: Built, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Found:
    model = (built.twin or built.model).eval()
    if row.abstain is not None:
        x_adv = past_detector(model, x, y, threat, row.abstain)
        passes = len(x) * _STEPS * (CLASSES - 1)
        return Found(scores_of(row, built, x, y, threat, x_adv, seed), passes, passes)
    suite, options = ("autoattack:rand", {"eot_iter": 2}) if is_stochastic(model) else ("autoattack:standard", {})
    crafted = craft(classifier(model, x), suite, x, y, threat=threat, options=options, seed=seed)
    scores = scores_of(row, built, x, y, threat, crafted.x_adv, seed)
    return Found(scores, crafted.forward_samples, crafted.backward_samples)


def scores_of(row: Row, built: Built, x: Tensor, y: Tensor, threat: Threat, x_adv: Tensor, seed: int) -> Scores:
    """The answers of the model under test to images that were crafted on it or on its twin."""
    check_legal(x, x_adv, threat)
    scored = score(built.model, x_adv, y, seed=seed, batch_size=250)
    if row.abstain is None:
        return scored["correct"], scored["selection"]
    rejected = score(built.model, x_adv, torch.full_like(y, row.abstain), seed=seed, batch_size=250)
    return scored["correct"] + rejected["correct"], scored["selection"] + rejected["selection"]


def past_detector(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, abstain: int) -> Tensor:
    """PGD in L-infinity towards each wrong class, until its logit is the largest of all, that of rejection among them."""
    best, reached = x.clone(), torch.full((len(x),), -torch.inf)
    for offset in range(1, abstain):
        target = ((y + offset) % abstain)[:, None]
        x_adv = x.clone()
        for step in range(_STEPS):
            leaf = x_adv.detach().requires_grad_()
            logits = model(leaf)
            others = logits.scatter(1, target, -torch.inf).amax(1)
            lead = logits.gather(1, target)[:, 0] - others
            better = lead.detach() > reached
            best[better], reached[better] = leaf.detach()[better], lead.detach()[better]
            (slope,) = torch.autograd.grad(lead.sum(), leaf)
            size = threat.eps / 4 * (1 - step / _STEPS)
            moved = leaf.detach() + size * slope.sign()
            x_adv = (x + (moved - x).clamp(-threat.eps, threat.eps)).clamp(0, 1)
    return best


def base_network(built: Built) -> str:
    """Which trained network a row is about: a hash of its biases and norms, which quantization and wrappers leave as they are."""
    digest = hashlib.sha256()
    for parameter in (built.twin or built.model).parameters():
        if parameter.dim() == 1:
            digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()[:8]
