"""The aggregation layer of Parseval networks (Cisse et al. 2017, section 4.3), which Defensive Quantization uses too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Aggregation"]


class Aggregation(nn.Module):
    """``a[0] * skip + a[1] * residual``; both weights start at 0.5. The defence ``convex-aggregation`` keeps them convex."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.full((2,), 0.5))

    def no_weight_decay(self) -> set[str]:
        """Decay would shrink the sum of the branches."""
        return {"a"}

    def forward(self, skip: Tensor, residual: Tensor) -> Tensor:
        return self.a[0] * skip + self.a[1] * residual
