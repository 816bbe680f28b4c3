"""The small networks of the validation zoo, untrained, and the data sets that they are for.

How they are trained is in ``training.py``, by which losses in ``losses.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins import Dataset, load

__all__ = ["CLASSES", "DATASETS", "Net", "Shape", "Site", "network"]

DATASETS = ("digits", "mnist", "cifar10")
CLASSES = 10
#: In the data folder, as images in ``CLASS/FILE``.
_FOLDERS = {"cifar10": "folder:cifar10-jpeg"}
_TRAIN_IMAGES = 10_000  # at most; digits has 1,198


@dataclass(frozen=True)
class Site:
    """Where a row of the zoo is built.

    :ivar root: folder of the data sets.
    :ivar cache: folder of trained weights; ``None`` keeps none.
    """

    dataset: str
    seed: int
    root: Path | None = None
    cache: Path | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}[self.dataset]

    def train(self) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) in [0, 1], y (N,)."""
        return _images(self.dataset, "train", _TRAIN_IMAGES, self.root)

    def test(self, n: int = 200) -> tuple[Tensor, Tensor]:
        """The same ``n`` images for every row and seed."""
        return _images(self.dataset, "test", n, self.root)


@functools.lru_cache(maxsize=8)
def _images(name: str, split: Any, n: int, root: Path | None) -> tuple[Tensor, Tensor]:
    images: Dataset = load(_FOLDERS.get(name, name), split, root=root).take(n, seed=0)
    return images.x(), images.y()


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The form of a network.

    :ivar width: channels of the first convolution.
    :ivar pool: how a convolution halves the image: ``stride``, ``max`` or ``average``.
    :ivar convolutions: without them, the network has three fully connected layers.
    """

    width: int = 8
    activation: str = "relu"
    pool: str = "stride"
    norm: bool = True
    residual: bool = False
    convolutions: bool = True
    dropout: float = 0.0


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "leaky-relu": lambda: nn.LeakyReLU(0.1),
}


class Net(nn.Module):
    """Two convolutions and two fully connected layers, or three fully connected layers.

    Each convolution halves the image, but for the first one on images smaller than 16 pixels.

    :param activation: makes each activation, in place of the one that ``shape`` names.
    """

    def __init__(
        self, input_shape: tuple[int, int, int], shape: Shape, activation: Callable[[], nn.Module] | None = None
    ) -> None:
        super().__init__()
        make = activation or _ACTIVATIONS[shape.activation]
        channels, height, _ = input_shape
        width = shape.width
        if shape.convolutions:
            side = -(-height // (2 if height < 16 else 4))
            self.features = nn.Sequential(
                *convolution(channels, width, shape, make, halve=height >= 16),
                *convolution(width, 2 * width, shape, make, halve=True),
                *([_Residual(2 * width, shape, make)] if shape.residual else []),
                nn.Flatten(),
            )
            flat = 2 * width * side * side
        else:
            flat = 16 * width
            inner = nn.Linear(channels * height * height, flat)
            self.features = nn.Sequential(nn.Flatten(), inner, make())
        self.head = nn.Sequential(nn.Dropout(shape.dropout), nn.Linear(flat, 64), make(), nn.Linear(64, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


def convolution(inner: int, outer: int, shape: Shape, make: Callable[[], nn.Module], *, halve: bool) -> list[nn.Module]:
    stride = 2 if halve and shape.pool == "stride" else 1
    parts: list[nn.Module] = [nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=not shape.norm)]
    parts += [nn.BatchNorm2d(outer)] * shape.norm
    parts.append(make())
    if halve and shape.pool != "stride":
        parts.append({"max": nn.MaxPool2d, "average": nn.AvgPool2d}[shape.pool](2))
    return parts


class _Residual(nn.Module):
    def __init__(self, width: int, shape: Shape, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.inner = nn.Sequential(*convolution(width, width, shape, make, halve=False))

    def forward(self, x: Tensor) -> Tensor:
        difference: Tensor = self.inner(x)
        return x + difference


def network(site: Site, shape: Shape = Shape(), activation: Callable[[], nn.Module] | None = None) -> Net:
    """Untrained, with weights from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(site.seed)
        return Net(site.shape, shape, activation)
