"""Convex aggregation layers (Parseval networks, Cisse et al. 2017, section 4.3), also used by Defensive Quantization."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from art_qplugins.defences.base import Defence
from art_qplugins.errors import InputError
from art_qplugins.models.aggregation import Aggregation

__all__ = ["ConvexAggregation", "project_to_simplex"]


def project_to_simplex(a: Tensor) -> Tensor:
    """The point of the simplex that is nearest to ``a``, (2,), in closed form."""
    t = ((a[0] - a[1] + 1) / 2).clamp(0, 1)
    return torch.stack([t, 1 - t])


class ConvexAggregation(Defence):
    """Projects the two weights of every :class:`~art_qplugins.models.aggregation.Aggregation` after each step.

    A convex combination of branches that do not expand does not expand either. These weights do not decay.
    """

    def start(self, model: nn.Module) -> None:
        if not any(isinstance(m, Aggregation) for m in model.modules()):
            raise InputError(
                f"defence 'convex-aggregation' needs aggregation layers, and {type(model).__name__} has none; "
                'use a residual network with them, e.g. architecture = { name = "wrn", options = { aggregation = true } }'
            )

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        for layer in model.modules():
            if isinstance(layer, Aggregation):
                layer.a.copy_(project_to_simplex(layer.a))
