"""Views of a network with the same outputs and another backward pass. They work for any network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from art_qplugins.attacks.adaptive.continuous import ContinuousSteps
from art_qplugins.quantizers.functional import straight_through
from art_qplugins.seeds import derive_seed

__all__ = ["Smoothed", "StraightThroughSteps"]


class Smoothed(nn.Module):
    """The same network with its gradient averaged over points around each image. This smooths a shattered gradient.

    The points are the image itself and pairs x + u, x - u. u is uniform in a cube and fixed by ``seed``, so the view is
    deterministic. It costs one pass for each point.

    :param radius: half the side of the cube, in units of pixels. Points outside [0, 1] are clipped.
    :param pairs: number of vectors u, at least 1.
    """

    def __init__(self, network: nn.Module, radius: float, *, pairs: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.network = network
        self.radius, self.pairs, self.seed = radius, pairs, seed
        self.points = 1 + 2 * pairs

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.network(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return value
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "smoothed"))
        u = (torch.rand((self.pairs, *x.shape[1:]), generator=generator).to(x) * 2 - 1) * self.radius
        around = [self.network(straight_through((x + h).clamp(0, 1), x)) for h in (*u, *-u)]
        return straight_through(value, torch.stack([value, *around]).mean(0))


class StraightThroughSteps(nn.Module):
    """The same network with a straight-through backward pass for PyTorch's own step functions.

    The backward pass of a step is that of the line or the clip that it rounds. For sign it is the clip to [-1, 1], as in
    the training of binary networks (Hubara et al. 2016, equation 4).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with ContinuousSteps(backward_only=True):
            logits: Tensor = self.network(x)
        return logits
