"""Gradient repair: the same network with a straight-through backward pass at operations that zero the gradient.

This is BPDA with the identity (Athalye, Carlini & Wagner 2018, section 4.1) at every such operation. The operations are found
by their gradients and not by their layers, so no knowledge of the network is needed. A gradient that the graph does not hold
(detach, no_grad, a comparison) cannot be repaired; ``way_back`` bridges it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from art_qplugins.gradients.nodes import GATES, find_path, is_mixing, is_named, per_image, straight_edge

__all__ = ["GradientRepair"]

Gradients: TypeAlias = tuple[Tensor | None, ...]
#: A hook of a node. It takes the gradients behind and before the node, and may return others.
Hook: TypeAlias = Callable[[Gradients, Gradients], Gradients | None]

#: An operation is repaired for an image where it makes at least this share of the gradient's elements zero.
_ZEROED = 0.9


class GradientRepair(nn.Module):
    """The answers of ``network``, bit for bit, with a repaired backward pass.

    The repair acts at each operation that keeps the shape, separately for each image. If the operation makes at least
    90 % of the gradient's nonzero elements exactly zero, the gradient passes straight through. This turns rounding,
    sign, a custom backward of zeros, and saturated tanh, sigmoid, softmax and clamp into the identity. ReLU and similar
    gates often zero elements, so they are repaired only if no nonzero element remains. A linear operation, e.g. the
    product with a mask, has no other gradient and keeps it.

    :param network: gives logits. The gradients of its parameters are repaired too.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            answer: Tensor = self.network(x)
            return answer
        entered = x.clone()
        entrance = entered.grad_fn
        logits: Tensor = self.network(entered)
        for node, edges in find_path(logits.grad_fn, entrance).items():
            if node is entrance or is_mixing(node):
                continue
            edge = straight_edge(node, edges)
            if edge is not None:
                share = 1.0 if is_named(node, GATES) else _ZEROED
                node.register_hook(_repairing(len(x), edge, edges, share))
        return logits


def _repairing(images: int, edge: int, edges: Sequence[int], share: float) -> Hook:
    """A straight-through hook for images on which the node makes at least ``share`` of the nonzero elements zero."""

    def hook(behind: Gradients, before: Gradients) -> Gradients | None:
        both = _both(behind, before, edge)
        if both is None:
            return None
        taken, given = both
        # Several inputs may share the gradient, as the two sides of a `where` do.
        parts = [g for i in edges if (g := behind[i]) is not None and g.shape == taken.shape]
        alive = per_image(taken, images) != 0
        gone = torch.stack([part == 0 for part in parts]).all(0) if len(parts) > 1 else given == 0
        kept = alive & ~gone.reshape(alive.shape)
        count = alive.sum(1)
        blocked = (count > 0) & (count - kept.sum(1) >= share * count)
        if not blocked.any():
            return None
        repaired = torch.where(blocked[:, None], per_image(taken, images), per_image(given, images))
        return _with(behind, edge, repaired.reshape(given.shape))

    return hook


def _both(behind: Gradients, before: Gradients, edge: int) -> tuple[Tensor, Tensor] | None:
    """The gradients before and behind a node; ``None`` where the first cannot replace the second.

    torch accepts no tensor from a hook where the backward pass returned ``None``.
    """
    taken, given = before[0], behind[edge]
    if taken is None or given is None or given.shape != taken.shape or given.dtype != taken.dtype:
        return None
    return taken, given


def _with(gradients: Gradients, edge: int, gradient: Tensor) -> Gradients:
    return tuple(gradient if i == edge else g for i, g in enumerate(gradients))
