"""Residual networks (He et al. 2016) in their form for 32x32: a 3x3 stem with stride 1 and no max-pooling.

With ``aggregation=True`` every block ends in :class:`~art_qplugins.models.aggregation.Aggregation`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from art_qplugins.domains import FLAG, check
from art_qplugins.models.aggregation import Aggregation
from art_qplugins.models.common import WIDTH, check_sizes, he_init

__all__ = ["BasicBlock", "ResNet8", "ResNet18"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut, and an activation of their sum."""

    def __init__(
        self, channels: int, width: int, stride: int, *, aggregation: bool, activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.shortcut: nn.Module = nn.Identity()
        if channels != width or stride != 1:
            conv = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = activation()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = activation()
        self.add = Aggregation() if aggregation else None

    def forward(self, x: Tensor) -> Tensor:
        skip = self.shortcut(x)
        residual = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        out: Tensor = self.act2(skip + residual if self.add is None else self.add(skip, residual))
        return out


class _ResNet(nn.Module):
    """A convolution, groups of blocks, global average pooling, a linear layer. Each group but the first halves the image.

    :param blocks: the number of blocks in each group. Each group has twice as many channels as the one before.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        nb_classes: int,
        *,
        blocks: tuple[int, ...],
        width: int,
        aggregation: bool,
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        channels, *_ = check_sizes(input_shape, nb_classes, activation, side=2 ** (len(blocks) - 1))
        width = check("width", width, WIDTH)
        block = partial(BasicBlock, aggregation=check("aggregation", aggregation, FLAG), activation=activation)
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.act = activation()
        self._groups = [f"group{i}" for i, _ in enumerate(blocks, 1)]
        inner, outer = width, width
        for name, count in zip(self._groups, blocks, strict=True):
            first = block(inner, outer, 1 if name == "group1" else 2)
            others = (block(outer, outer, 1) for _ in range(count - 1))
            self.add_module(name, nn.Sequential(first, *others))
            inner, outer = outer, 2 * outer
        self.fc = nn.Linear(inner, nb_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.conv(x)))
        for name in self._groups:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class ResNet18(_ResNet):
    """Four groups of two blocks.

    :param input_shape: (C, H, W), H and W at least 8.
    :param nb_classes: number of logits.
    :param width: channels of the first group; the last has eight times as many.
    :param aggregation: end blocks in a learned convex sum in place of the plain one.
    :param activation: makes each activation, as modules that :func:`~art_qplugins.quantize` can replace.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        nb_classes: int,
        *,
        width: int = 64,
        aggregation: bool = False,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__(
            input_shape, nb_classes, blocks=(2, 2, 2, 2), width=width, aggregation=aggregation, activation=activation
        )


class ResNet8(_ResNet):
    """Three groups of one block: the paper's network for CIFAR-10 with 6n + 2 layers, n = 1 (section 4.2).

    Shortcuts that change the shape are 1x1 convolutions (option B), as in the deeper networks of the paper.

    :param input_shape: (C, H, W), H and W at least 4.
    :param nb_classes: number of logits.
    :param width: channels of the first group; the last has four times as many.
    :param aggregation: end blocks in a learned convex sum in place of the plain one.
    :param activation: makes each activation, as modules that :func:`~art_qplugins.quantize` can replace.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        nb_classes: int,
        *,
        width: int = 16,
        aggregation: bool = False,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__(
            input_shape, nb_classes, blocks=(1, 1, 1), width=width, aggregation=aggregation, activation=activation
        )
