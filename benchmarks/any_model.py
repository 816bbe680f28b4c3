"""A network of one's own, as a user would bring it: any-model.toml names its function. It knows nothing of art_qplugins."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions with batch norm, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.body(x))


class SmallResNet(nn.Module):
    """Its normalization is inside, so it takes pixels in [0, 1]."""

    def __init__(self, channels: int, nb_classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, channels, 1, 1), 0.3))
        self.register_buffer("std", torch.full((1, channels, 1, 1), 0.375))
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(Block(width), nn.MaxPool2d(2), Block(width))
        self.head = nn.Linear(width, nb_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem((x - self.mean) / self.std))
        return self.head(x.mean((2, 3)))


def make_net(shape: tuple[int, int, int], nb_classes: int, width: int = 16) -> nn.Module:
    """The network for images ``shape``, (C, H, W)."""
    return SmallResNet(shape[0], nb_classes, width)
