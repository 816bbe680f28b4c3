"""Logits, logit margins and gradients of a module with fixed random draws.

Two calls with the same seed use the same draws of stochastic layers and of the global generators. So a gradient and the
margins around it belong to the same function, also for a random module.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from art_qplugins.gradients.margin import logit_margin
from art_qplugins.guard import isolated
from art_qplugins.quantizers.noise import draws_from
from art_qplugins.seeds import derive_seed

__all__ = ["answer", "gradient", "margins", "same_answers"]


@torch.no_grad()
def answer(module: nn.Module, x: Tensor, seed: int, number: int) -> Tensor:
    """Logits (N, K) with fixed draws. Another ``number`` gives other draws."""
    drawn = derive_seed(seed, f"answer/{number}")
    with isolated(module, drawn), draws_from(module, drawn):
        logits: Tensor = module(x)
    return logits.detach()  # a module may switch gradients on


def same_answers(a: Tensor, b: Tensor) -> bool:
    """Whether logits differ by rounding only. If not, the module is random or depends on more than its input."""
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


def gradient(
    module: nn.Module, x: Tensor, score: Callable[[Tensor], Tensor], *, seed: int = 0, calls: int = 1
) -> Tensor:
    """Gradient of ``score`` at each image, in the shape of ``x``. It is zero where the graph does not reach the pixels.

    :param x: (N, C, H, W) in [0, 1].
    :param score: takes logits (N, K) and returns one number per image, (N,).
    :param seed: fixes the draws of a random module.
    :param calls: number of calls of a random module over which the score is averaged.
    """
    point = x.detach().clone().requires_grad_()
    # The backward pass is inside the context too, because it runs checkpointed parts again with the same generators.
    with isolated(module, derive_seed(seed, "probe")), torch.enable_grad():
        total = _score_at(module, point, score, seed, calls).sum()
        found = torch.autograd.grad(total, point, allow_unused=True)[0] if total.requires_grad else None
    return torch.zeros_like(x) if found is None else found


@torch.no_grad()
def margins(
    module: nn.Module, x: Tensor, y: Tensor, moves: Tensor, *, seed: int, calls: int, abstain: int | None = None
) -> Tensor:
    """Logit margins at the images and after each move, (1 + D, N). All points see the same draws.

    :param x: (N, C, H, W) in [0, 1].
    :param y: (N,) labels.
    :param moves: (D, C, H, W), each added to every image.
    :param seed: as in :func:`gradient`, and so is ``calls``.
    :param abstain: index of the rejection class.
    """
    found = []
    for move in (0, *moves):
        with isolated(module, derive_seed(seed, "probe")):
            found.append(_score_at(module, x + move, lambda z: logit_margin(z, y, abstain), seed, calls))
    return torch.stack(found)


def _score_at(module: nn.Module, x: Tensor, score: Callable[[Tensor], Tensor], seed: int, calls: int) -> Tensor:
    """The score at ``x``. The caller holds ``isolated`` with the same seed, which fixes draws of the global generators."""
    with draws_from(module, derive_seed(seed, "probe")):
        return torch.stack([score(module(x)) for _ in range(calls)]).mean(0)
