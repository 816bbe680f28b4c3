"""Defences that took the place of rows of half C that had led to a change. With ``through``: an honest backward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pixels import OnArrays
from plants import OnPixels, Wrapped
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Decisions", "Dithered", "Embedded", "Median", "MedianOnArrays", "TinyBackward"]


class MedianOnArrays(OnArrays):
    """The median over 3x3 pixels, by NumPy (Xu et al. 2018, section II.C)."""

    def image(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        wide = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), axis=(1, 2))
        return np.asarray(np.median(windows, axis=(3, 4)))


class Median(OnPixels):
    """The same by torch: its slope is that of the pixel in the middle, and true."""

    def change(self, x: Tensor) -> Tensor:
        wide = F.pad(x, (1, 1, 1, 1), mode="replicate")
        windows = wide.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
        return windows.median(4).values


class Dithered(OnPixels):
    """Pixels on ``levels`` levels by ordered dithering: another threshold at every place of 4x4 pixels."""

    thresholds: Tensor

    def __init__(self, network: nn.Module, levels: int, through: bool = False) -> None:
        super().__init__(network, through)
        self.levels = levels
        order = torch.tensor([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])
        self.register_buffer("thresholds", (order + 0.5) / 16)

    def change(self, x: Tensor) -> Tensor:
        rows, columns = (torch.arange(side, device=x.device) % 4 for side in x.shape[2:])
        threshold = self.thresholds[rows[:, None], columns]
        return torch.floor(x * (self.levels - 1) + threshold).clamp(0, self.levels - 1) / (self.levels - 1)


class Embedded(Wrapped):
    """Features looked up in a table by the bin that they fall in, as words are. The table holds the middles of the bins."""

    edges: Tensor
    table: Tensor

    def __init__(self, network: nn.Module, x: Tensor, bins: int, through: bool = False) -> None:
        super().__init__(network)
        self.through = through
        with torch.no_grad():
            features = self.network.get_submodule("features")(x).flatten()
        edges = features.sort().values[torch.linspace(0, len(features) - 1, bins + 1).long()].unique()
        self.register_buffer("edges", edges[1:-1].contiguous())
        self.register_buffer("table", ((edges[1:] + edges[:-1]) / 2)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        features = self.network.get_submodule("features")(x)
        found = F.embedding(torch.bucketize(features, self.edges), self.table)[..., 0]
        logits: Tensor = self.network.get_submodule("head")(
            features + (found - features).detach() if self.through else found
        )
        return logits


class _Tiny(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 1e-44


class TinyBackward(Wrapped):
    """A backward pass so small that most of it underflows."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(_Tiny.apply(x))


class Decisions(Wrapped):
    """One for the class and zero for the others, as of a service that tells its answer alone."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.logits(x)
        return F.one_hot(logits.argmax(1), logits.shape[1]).to(logits)
