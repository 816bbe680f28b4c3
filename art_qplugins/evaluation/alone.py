"""Is an image also classified correctly when it is alone? Asked where a model's answers depend on the rest of a batch."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from art_qplugins.gradients.probe import answer, same_answers
from art_qplugins.quantizers.noise import is_stochastic

__all__ = ["correct_alone"]

#: Images by which a dependence is found.
_FEW = 4
#: Change of a logit, relative to the largest one, that is more than rounding.
_MATERIAL = 0.01


def correct_alone(module: nn.Module, x: Tensor, y: Tensor, *, seed: int) -> NDArray[np.float64] | None:
    """Whether each image is classified correctly in a batch of its own, (N,) of 0 and 1.

    A module that cannot take one image gets it twice. ``None`` where answers do not depend on the batch, or cannot be
    compared: those of a random module, or of a single image.

    :param x: (N, C, H, W) in [0, 1]. ``y`` are (N,) labels.
    """
    if len(x) < 2 or is_stochastic(module):
        return None
    few = x[:_FEW]
    together = answer(module, few, seed, 0)
    if not same_answers(together, answer(module, few, seed, 1)):
        return None
    each = _alone(module, few, seed)
    if bool((each - together).abs().max() <= _MATERIAL * together.abs().max()):
        return None
    found: NDArray[np.float64] = (_alone(module, x, seed).argmax(1) == y).double().cpu().numpy()
    return found


def _alone(module: nn.Module, x: Tensor, seed: int) -> Tensor:
    """Logits (N, K), each image in a batch of its own."""
    return torch.cat([_of_one(module, image, seed) for image in x.split(1)])


def _of_one(module: nn.Module, image: Tensor, seed: int) -> Tensor:
    try:
        logits = answer(module, image, seed, 0)
        if logits.dim() == 2:
            return logits
    except Exception:  # e.g. statistics of one value, which batch norm refuses
        pass
    return answer(module, image.repeat(2, 1, 1, 1), seed, 0)[:1]
